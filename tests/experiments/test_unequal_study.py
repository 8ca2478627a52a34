"""The study of unequal classes: its runs, and what is read from finished ones."""

import json
from pathlib import Path

import pytest

from experiments.unequal import results
from experiments.unequal.sweep import CHANGES, sweep
from jaxmatch.algorithms.unequal import Unequal
from jaxmatch.config.checks import check_settings
from jaxmatch.config.flags import from_flags
from jaxmatch.config.own import Circumstances, settle, with_usual_input
from jaxmatch.errors import InputError


def write(base, name, seed, recalls):
    folder = base / f"{name}-s{seed}"
    folder.mkdir(parents=True)
    classes = "abcde"
    per_class = {one: {"recall": recall} for one, recall in zip(classes, recalls, strict=True)}
    metrics = {"accuracy": 0.5, "balanced_accuracy": sum(recalls) / 5, "per_class": per_class}
    summary = {"evaluated": "teacher", "teacher": {"metrics": metrics}, "steps": 3, "seconds": 60.0}
    (folder / "summary.json").write_text(json.dumps(summary))
    counts = {one: {"labeled": count} for one, count in zip(classes, (2, 9, 5, 3, 2), strict=True)}
    (folder / "findings.json").write_text(json.dumps({"counts": counts}))


@pytest.mark.parametrize("data", ["mnist5k", "fashion_mnist"])
def test_runs_differ_in_one_option(data):
    runs = list(sweep(data))
    assert len({run["workdir"] for run in runs}) == 3 * len(CHANGES) == len(runs)
    for run in runs[: len(CHANGES)]:
        name = run.pop("workdir")
        words = [f"--config.{key}={value}" for key, value in run.items() if key != "config"]
        config, _ = from_flags(str(run["config"]), words)
        config, _ = settle(config, Circumstances(side=28, one_side=True))
        check_settings(with_usual_input(config))
        usual = Unequal()
        changed = {key for key in config.unequal if config.unequal[key] != getattr(usual, key)}
        assert len(changed) == (name != "plain-s0")


def test_an_unknown_data_set():
    with pytest.raises(InputError, match="did you mean 'mnist5k'"):
        list(sweep("mnist"))


def test_the_table_is_of_finished_runs(tmp_path, capsys):
    write(tmp_path, "plain", 0, [0.1, 0.9, 0.8, 0.4, 0.1])
    write(tmp_path, "plain", 1, [0.3, 0.9, 0.8, 0.4, 0.2])
    write(tmp_path, "abc", 0, [0.6, 0.8, 0.8, 0.6, 0.6])
    results.main([str(tmp_path), "-o", str(tmp_path)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[2] == "| FixMatch | 0 1 | 49.0 ± 4.2 | 25.0 ± 7.1 |"
    assert lines[3] == "| + ABC | 0 | 68.0 | 60.0 |"
    assert len(json.loads((tmp_path / "results.json").read_text())) == 3


def test_the_page_has_the_recorded_table():
    folder = Path(results.__file__).parent
    recorded = json.loads((folder / "results.json").read_text())
    assert len(recorded) == 3 * len(CHANGES)
    assert results.table(recorded) in (folder / "README.md").read_text()
