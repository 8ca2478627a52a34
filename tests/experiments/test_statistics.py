"""The comparison of two programs: textbook values, and what is refused."""

import json

import numpy as np
import pytest
from scipy import stats

from experiments.statistics.__main__ import difference, main, needed_table, runs_of, seeds_needed
from jaxmatch.errors import InputError


def runs(*values):
    return {str(seed): value for seed, value in enumerate(values)}


@pytest.mark.parametrize(("effect", "needed"), [(0.2, 394), (0.5, 64), (0.8, 26), (1.0, 17)])
def test_the_number_of_seeds_is_that_of_cohens_tables(effect, needed):
    assert seeds_needed(10.0, 10 * effect) == needed


def test_the_number_of_seeds_finds_the_difference():
    random = np.random.default_rng(0)
    count = seeds_needed(3.0, 2.0)
    first, second = (random.normal(mean, 3.0, (4000, count)) for mean in (50, 52))
    found = np.mean(stats.ttest_ind(first, second, axis=1).pvalue < 0.05)
    assert abs(found - 0.8) < 0.03


def test_a_difference_by_hand():
    found = difference(runs(1.0, 2.0, 3.0), runs(4.0, 6.0))
    assert found.mean == -3
    assert found.error == pytest.approx((1 / 3 + 2 / 2) ** 0.5)
    # Welch and Satterthwaite's degrees of freedom
    freedom = (1 / 3 + 1) ** 2 / ((1 / 3) ** 2 / 2 + 1**2 / 1)
    half = stats.t.ppf(0.975, freedom) * found.error
    assert (found.low, found.high) == pytest.approx((-3 - half, -3 + half))
    assert found.p == pytest.approx(2 * stats.t.sf(3 / found.error, freedom))


def test_pairs_take_the_seeds_out():
    ours, theirs = runs(10.0, 50.0, 90.0), runs(9.0, 48.0, 89.0)
    paired, apart = difference(ours, theirs, paired=True), difference(ours, theirs)
    assert paired.mean == apart.mean == pytest.approx(4 / 3)
    assert paired.error == pytest.approx(1 / 3)
    assert apart.high - apart.low > 20 * (paired.high - paired.low)


def test_intervals_hold_the_truth_as_often_as_they_say():
    random = np.random.default_rng(1)
    held = 0
    for _ in range(1000):
        found = difference(runs(*random.normal(50, 1, 4)), runs(*random.normal(47, 5, 6)))
        held += found.low <= 3 <= found.high
    assert 925 <= held <= 975


def write_run(folder, seed, accuracy):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"seed": seed}))
    summary = {"evaluated": "teacher", "teacher": {"last": accuracy}}
    (folder / "summary.json").write_text(json.dumps(summary))


def test_runs_are_found_where_they_are(tmp_path):
    for seed, accuracy in ((3, 0.5), (4, 0.25)):
        write_run(tmp_path / f"ours-s{seed}", seed, accuracy)
    assert runs_of(str(tmp_path)) == runs_of(f"{tmp_path}/ours-s*") == {"3": 50.0, "4": 25.0}
    assert runs_of("1, 2.5") == {"0": 1.0, "1": 2.5}
    recorded = {"10": {"a": {"0": {"teacher": 0.5}, "1": {"accuracy": 0.25}}, "b": {"0": 62.5}}}
    (tmp_path / "r.json").write_text(json.dumps(recorded))
    assert runs_of(f"{tmp_path}/r.json:10/a") == {"0": 50.0, "1": 25.0}
    assert runs_of(f"{tmp_path}/r.json:10/b") == {"0": 62.5}


def test_what_cannot_be_compared_is_refused(tmp_path, capsys):
    write_run(tmp_path / "runs" / "a", 0, 0.5)
    write_run(tmp_path / "runs" / "b", 0, 0.5)
    (tmp_path / "empty").mkdir()
    (tmp_path / "r.json").write_text('{"10": {}, "x": {"0": null}}')
    for argument, sentence in (
        (f"{tmp_path}/runs", "second run of seed 0"),
        (f"{tmp_path}/empty", "no finished run"),
        (f"{tmp_path}/none", "no folder of runs, no JSON file"),
        (f"{tmp_path}/r.json:10/fixmatch", "there is no 'fixmatch'"),
        (f"{tmp_path}/r.json:x", "'0' is no run"),
        ("1", "at least two runs of each"),
    ):
        with pytest.raises(SystemExit, match="2"):
            main(["compare", argument, "1,2"])
        assert sentence in capsys.readouterr().err
    with pytest.raises(InputError, match="pairs of equal seeds"):
        difference({"0": 1.0, "1": 2.0}, {"2": 1.0, "1": 2.0}, paired=True)
    with pytest.raises(InputError, match="the runs of each group are equal"):
        difference(runs(1.0, 1.0), runs(2.0, 2.0))
    with pytest.raises(InputError, match="more than 100,000 runs"):
        seeds_needed(500.0, 1.0)


def test_the_table_has_a_row_for_each_method_with_a_spread():
    results = {"40": {"a": {"0": 90.0, "1": 95.0}, "b": {"0": 1.0}}}
    assert needed_table(results).splitlines()[2:] == ["| 40 | a | 2 | 3.5 | 198 | 51 | 9 |"]


def test_the_commands_print_what_the_page_shows(capsys):
    main(["seeds", "experiments/mnist5k/results.json"])
    assert "| 10 | flexmatch | 3 | 12.2 | 2,342 | 587 | 95 |" in capsys.readouterr().out
    main(["compare", "1,2,3", "4,6"])
    assert "difference: -3.0 ± 1.2 points (standard error)" in capsys.readouterr().out
