"""The study of own images: its runs, and the table of finished ones."""

import json

import pytest

from experiments.own_data import curves, results
from experiments.own_data.sweep import METHODS, WEAK, sweep
from jaxmatch.config.flags import from_flags
from jaxmatch.errors import InputError


def write(base, run, seed, accuracy, baseline):
    folder = base / f"fashion_mnist-{run}-s{seed}"
    folder.mkdir()
    metrics = {"accuracy": accuracy, "balanced_accuracy": accuracy - 0.1, "macro_f1": 0.0}
    metrics["roc_auc"] = accuracy + 0.1
    summary = {"evaluated": "student", "student": {"metrics": metrics}, "steps": 3}
    (folder / "summary.json").write_text(json.dumps(summary))
    test = {"accuracy": baseline, "balanced_accuracy": baseline}
    found = {"baselines": {"knn": {"title": "k-NN on pixels", "test": test}}}
    (folder / "baselines.json").write_text(json.dumps(found))


@pytest.mark.parametrize(
    ("data", "runs"),
    [
        ("elpv", 3 * 5),
        ("elpv200", 3 * 3),
        ("elpv_weak", 9 * 3),
        ("elpv200_weak", 3 * 3),
        ("fashion_mnist", 3 * 4),
    ],
)
def test_every_run_is_a_configuration(data, runs):
    found = list(sweep(data))
    assert len({run["workdir"] for run in found}) == len(found) == runs
    for run in found:
        words = [f"--config.{key}={run[key]}" for key in run.keys() - {"config", "workdir"}]
        config, _ = from_flags(str(run["config"]), words)
        assert config.algorithm.name in {*METHODS, *WEAK}
        assert config.data.name.startswith(("folder:elpv", "npz:fashion.npz"))


def test_an_unknown_data_set():
    with pytest.raises(InputError, match="did you mean 'elpv'"):
        list(sweep("elvp"))


def test_the_table_has_runs_and_the_baselines_of_their_labels(tmp_path, capsys):
    write(tmp_path, "fixmatch", 0, 0.8, 0.5)
    write(tmp_path, "fixmatch", 1, 0.9, 0.6)
    write(tmp_path, "supervised", 1, 0.7, 0.6)
    results.main([str(tmp_path), "-o", str(tmp_path)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[4] == "| `supervised` | 1 | 70.0 | 60.0 | 80.0 |"
    row = "85.0 ± 7.1 (80.0 / 90.0) | 75.0 ± 7.1 (70.0 / 80.0) | 95.0 ± 7.1 (90.0 / 100.0)"
    assert lines[5] == f"| `fixmatch` | 0, 1 | {row} |"
    cells = "55.0 ± 7.1 (50.0 / 60.0)"
    assert lines[6] == f"| k-NN on pixels | 0, 1 | {cells} | {cells} |  |"
    assert len(json.loads((tmp_path / "results.json").read_text())) == 3


def test_the_recorded_curves_end_at_the_figures_of_the_page():
    recorded = json.loads(curves.RECORDED.read_text())
    page = (curves.HERE / "README.md").read_text()
    for method, runs in recorded.items():
        last = [f"{100 * runs[seed]['test/teacher/accuracy'][-1]:.1f}" for seed in "012"]
        (row,) = [line for line in page.splitlines() if line.startswith(f"| `{method}` | 7")]
        assert f"({' / '.join(last)})" in row


def test_curves_of_runs_without_pseudo_labels_at_first(tmp_path):
    for method in curves.METHODS:
        folder = tmp_path / f"fashion_mnist-{method}-s0"
        folder.mkdir()
        (folder / "summary.json").write_text("{}")
        accuracies = {"unlabeled/weak_accuracy": 0.4, "test/teacher/accuracy": 0.5}
        lines = [{"step": 1}, {"step": 2} | accuracies]
        lines.append({"step": 4, "pseudo/accuracy": 0.9} | accuracies)
        (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    output = tmp_path / "pictures"
    output.mkdir()
    curves.main([str(tmp_path), "-o", str(output)])
    found = json.loads((output / "curves.json").read_text())
    assert found["simmatch"]["0"]["step"] == [2, 4]
    assert found["fixmatch"]["0"]["pseudo/accuracy"] == [None, 0.9]
    assert {"curves.svg", "curves.png"} <= {path.name for path in output.iterdir()}


def test_curves_need_runs_of_both_methods(tmp_path):
    with pytest.raises(InputError, match="no finished run of fixmatch"):
        curves.collect(tmp_path)


def test_differences_are_of_the_same_labels():
    def entry(run, seed, accuracy):
        baselines = {"SVC on pixels": {"accuracy": 0.5}}
        return {"run": run, "seed": seed, "accuracy": accuracy, "baselines": baselines}

    values = ((0.6, 0.5), (0.8, 0.6), (0.7, 0.4))
    entries = [entry("mean_teacher", seed, own) for seed, (own, _) in enumerate(values)]
    entries += [entry("supervised", seed, other) for seed, (_, other) in enumerate(values)]
    entries.append(entry("supervised", 9, 0.1))
    # The half width is 4.303 sqrt(100 / 3), from tables of Student's distribution.
    assert results.differences(entries, "mean_teacher") == [
        "mean_teacher above supervised, accuracy: 20.0 (-4.8 to 44.8), 3 seeds",
        "mean_teacher above SVC on pixels, accuracy: 20.0 (-4.8 to 44.8), 3 seeds",
    ]
