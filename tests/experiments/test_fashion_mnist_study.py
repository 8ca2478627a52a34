"""The study of Fashion-MNIST: its runs are configurations, its tables have the finished ones."""

import json

import pytest

from experiments.fashion_mnist import mixmatch, results, sweep, views
from jaxmatch.config.flags import from_flags
from jaxmatch.errors import InputError


def configuration(run):
    words = [f"--config.{key}={run[key]}" for key in run.keys() - {"config", "workdir"}]
    return from_flags(run["config"], words)


def test_every_method_has_three_seeds_of_each_number_of_labels():
    runs = list(sweep.sweep())
    assert len({run["workdir"] for run in runs}) == len(runs) == 13 * 3 * 3
    assert list(sweep.sweep("0")) == runs[:39]
    for run in runs[:13]:
        config, notes = configuration(run)
        last = config.stages[config.order[-1]] if "order" in config else config
        assert not notes
        assert last.data.labels == "40"
    with pytest.raises(InputError, match="'3' is no seed of this study"):
        list(sweep.sweep("3"))


def test_candidates_differ_from_the_published_views_in_views_alone():
    runs = list(views.sweep())
    assert len({run["workdir"] for run in runs}) == len(runs) == 3 * 11
    texts = set()
    for run in runs[:11]:
        config, _ = configuration(run)
        assert (config.seed, config.data.validation) == (3, 5000)
        assert config.data.labels == "100"
        texts.add(f"{config.algorithm.name} {config.views.to_dict()}")
    assert len(texts) == 11


def write(folder, step, key, accuracy):
    folder.mkdir(parents=True)
    own = {"last": accuracy, "metrics": {"balanced_accuracy": accuracy}}
    summary = {"evaluated": "teacher", "teacher": own, "steps": 1200, "forward_images": 1}
    summary |= {"seconds": 60.0, "images_seen": {"labeled": 1, "unlabeled": 1}}
    needed = dict.fromkeys(("mean_20", "median_20", "best", "evaluations"), accuracy)
    summary["teacher"] |= needed
    (folder / "summary.json").write_text(json.dumps(summary))
    lines = [{"step": step // 2, key: accuracy / 2}, {"step": step, key: accuracy}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    baselines = {"baselines": {"svc": {"test": {"accuracy": 0.6}}}}
    (folder / "baselines.json").write_text(json.dumps(baselines))


def test_the_table_has_the_runs_beside_the_baselines_on_pixels(tmp_path):
    with pytest.raises(InputError, match="no finished run"):
        results.collect(tmp_path)
    for seed, accuracy in ((0, 0.7), (1, 0.8)):
        write(tmp_path / f"fixmatch-40-s{seed}", 1200, "test/teacher/accuracy", accuracy)
    found = results.collect(tmp_path)
    assert found["runs"]["fixmatch-40-s0"]["curve"] == {"600": 0.35, "1200": 0.7}
    lines = results.table(found).splitlines()
    assert "| SVC on pixels | 60.0 ± 0.0 | not run | not run |  |" in lines
    assert "| `fixmatch` | 75.0 ± 7.1 | not run | not run | 1.0 |" in lines
    results.plot(found, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 10_000


def test_the_curve_of_stages_goes_on_after_those_before(tmp_path):
    folder = tmp_path / "selfmatch-40-s0"
    write(folder, 800, "test/teacher/accuracy", 0.7)
    summary = json.loads((folder / "summary.json").read_text())
    summary["stages"] = {"simclr": {"steps": 400}, "fixmatch": {"steps": 800}}
    assert results.entry(folder, summary)["curve"] == {"800": 0.35, "1200": 0.7}


def test_gains_are_those_on_equal_seeds(tmp_path):
    for name, accuracies in (("published", (0.7, 0.6, 0.5)), ("no_flips", (0.72, 0.63, 0.54))):
        for seed, accuracy in zip(views.SEEDS, accuracies, strict=True):
            folder = tmp_path / f"fixmatch-{name}-s{seed}"
            write(folder, 1200, "validation/teacher/accuracy", accuracy)
    *_, published, no_flips = views.table(views.collect(tmp_path)).splitlines()
    assert published.endswith("| 70.0 / 60.0 / 50.0 | 60.0 ± 10.0 |  |")
    assert no_flips.startswith("| `fixmatch` | no flips | 72.0 / 63.0 / 54.0 | 63.0 ± 9.0 | +3.0 (")


def test_mixmatch_has_its_weights_beside_supervised(tmp_path):
    runs = list(mixmatch.sweep())
    assert len({run["workdir"] for run in runs}) == len(runs) == 3 * 2 * 6
    configs = [configuration(run)[0] for run in runs[:6]]
    assert [config.algorithm.name for config in configs] == ["supervised", *["mixmatch"] * 5]
    weights = [config.algorithm.unlabeled_weight for config in configs[1:]]
    assert weights == [75, 25, 7.5, 2.5, 0]
    for name, accuracy in (("supervised", 0.7), ("75", 0.6)):
        write(tmp_path / f"{name}-400-s3", 1200, "validation/teacher/accuracy", accuracy)
    assert mixmatch.table(mixmatch.collect(tmp_path)).splitlines()[2:] == [
        "| supervised, without MixUp | not run | 70.0: 70.0 |",
        "| 75 | not run | 60.0: 60.0 |",
    ]


def test_the_weight_of_short_runs_on_own_images_is_the_best_on_the_page():
    recorded = json.loads((mixmatch.HERE / "mixmatch.json").read_text())
    assert mixmatch.table(recorded) in (mixmatch.HERE / "README.md").read_text()
    means = {
        name: sum(sum(values.values()) / len(values) for values in found.values())
        for name, found in recorded.items()
    }
    own = configuration({"config": "mixmatch:fashion_mnist", "workdir": ""})[0]
    assert max(means, key=lambda name: means[name]) == f"{own.algorithm.unlabeled_weight:g}"


def test_the_page_has_the_recorded_table_of_views():
    recorded = json.loads((views.HERE / "views.json").read_text())
    page = (views.HERE / "README.md").read_text()
    assert {method: [*found] for method, found in recorded.items()} == {
        method: [*names] for method, names in views.METHODS.items()
    }
    assert views.table(recorded) in page


def test_the_page_has_the_recorded_results():
    recorded = json.loads((results.HERE / "results.json").read_text())
    assert results.table(recorded) in (results.HERE / "README.md").read_text()
