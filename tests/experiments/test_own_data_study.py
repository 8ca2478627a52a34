"""The study of own images: its runs, and the table of finished ones."""

import json

import pytest

from experiments.own_data import results
from experiments.own_data.sweep import METHODS, sweep
from jaxmatch.config.flags import from_flags
from jaxmatch.errors import InputError


def write(base, run, seed, accuracy, baseline):
    folder = base / f"fashion_mnist-{run}-s{seed}"
    folder.mkdir()
    metrics = {"accuracy": accuracy, "balanced_accuracy": accuracy - 0.1, "macro_f1": 0.0}
    summary = {"evaluated": "student", "student": {"metrics": metrics}, "steps": 3}
    (folder / "summary.json").write_text(json.dumps(summary))
    test = {"accuracy": baseline, "balanced_accuracy": baseline}
    found = {"baselines": {"knn": {"title": "k-NN on pixels", "test": test}}}
    (folder / "baselines.json").write_text(json.dumps(found))


@pytest.mark.parametrize(("data", "runs"), [("elpv", 3 * 5), ("fashion_mnist", 3 * 4)])
def test_every_run_is_a_configuration(data, runs):
    found = list(sweep(data))
    assert len({run["workdir"] for run in found}) == len(found) == runs
    for run in found:
        words = [f"--config.{key}={run[key]}" for key in run.keys() - {"config", "workdir"}]
        config, _ = from_flags(str(run["config"]), words)
        assert config.algorithm.name in METHODS
        assert config.data.name.startswith(("folder:elpv", "npz:fashion.npz"))


def test_an_unknown_data_set():
    with pytest.raises(InputError, match="did you mean 'elpv'"):
        list(sweep("elvp"))


def test_the_table_has_runs_and_the_baselines_of_their_labels(tmp_path, capsys):
    write(tmp_path, "fixmatch", 0, 0.8, 0.5)
    write(tmp_path, "fixmatch", 1, 0.9, 0.6)
    write(tmp_path, "supervised", 1, 0.7, 0.6)
    results.main([str(tmp_path)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[4] == "| `supervised` | 1 | 70.0 | 60.0 |"
    assert lines[5] == "| `fixmatch` | 0, 1 | 85.0 ± 7.1 (80.0 / 90.0) | 75.0 ± 7.1 (70.0 / 80.0) |"
    cells = "55.0 ± 7.1 (50.0 / 60.0)"
    assert lines[6] == f"| k-NN on pixels | 0, 1 | {cells} | {cells} |"
    assert len(json.loads((tmp_path / "results.json").read_text())) == 3
