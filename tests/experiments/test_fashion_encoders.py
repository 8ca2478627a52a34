"""The study of encoders that are trained on Fashion-MNIST: its runs, and the tables of them."""

import json

import pytest

from experiments.pretrained import fashion, fashion_results
from jaxmatch.config.flags import from_flags
from jaxmatch.errors import InputError


@pytest.mark.parametrize(("chosen", "runs"), [("encoders", 6), ("", 45), ("seeds", 90)])
def test_every_run_is_a_configuration(chosen, runs):
    found = list(fashion.sweep(chosen))
    assert len({run["workdir"] for run in found}) == len(found) == runs
    encoders = {f"{fashion.RUNS}/{run['workdir']}" for run in fashion.sweep("encoders")}
    for run in found:
        words = [f"--config.{key}={run[key]}" for key in run.keys() - {"config", "workdir"}]
        config, _ = from_flags(run["config"], words)
        assert config.init_from in {"", *encoders}
        assert config.model.name == ("vit" if "vit" in run["workdir"] else "wide_resnet")


def write(base, way, labels, accuracy, baseline=None, seed=0):
    folder = base / fashion.name("wrn", way, labels, seed)
    folder.mkdir()
    own = {"last": accuracy, "metrics": {"balanced_accuracy": accuracy}}
    summary = {"evaluated": "teacher", "teacher": own, "seconds": 1.0}
    (folder / "summary.json").write_text(json.dumps(summary))
    if baseline is not None:
        found = {"baselines": {"svc": {"test": {"accuracy": baseline}}}}
        (folder / "baselines.json").write_text(json.dumps(found))


def test_the_table_has_the_runs_beside_the_baselines_of_their_features(tmp_path):
    with pytest.raises(InputError, match="no finished run"):
        fashion_results.collect(tmp_path)
    write(tmp_path, "FixMatch", 40, 0.7, baseline=0.6)
    write(tmp_path, "FixMatch from scratch", 40, 0.5, baseline=0.1)  # of pixels alone
    write(tmp_path, "FixMatch", 400, 0.8)
    lines = fashion_results.table(fashion_results.collect(tmp_path)).splitlines()
    assert "| SVC on pixels | 60.0 | not run | not run |" in lines
    assert "| FixMatch | 70.0 | not run | 80.0 |" in lines
    assert "| FixMatch from scratch | 50.0 | not run | not run |" in lines
    assert "| FixMatch over FixMatch from scratch | 20.0 | not run | not run |" in lines
    assert not any(line.startswith("| SoftMatch over") for line in lines)


def test_gains_are_on_equal_seeds_and_over_the_baseline_that_is_best_in_the_mean(tmp_path):
    for seed, accuracies in enumerate(((0.5, 0.7, 0.6), (0.6, 0.7, 0.5), (0.5, 0.6, 0.4))):
        for way, accuracy in zip(
            ("SoftMatch from scratch", "SoftMatch", "FixMatch"), accuracies, strict=True
        ):
            write(tmp_path, way, 40, accuracy, baseline=0.5 + seed / 10, seed=seed)
    results = fashion_results.collect(tmp_path)
    (gained, *_), (over, *_) = (
        fashion_results.gains(results, "wrn")[f"SoftMatch over {other}"]
        for other in ("SoftMatch from scratch", fashion_results.BEST)
    )
    assert gained == pytest.approx([20, 10, 10])
    assert over == pytest.approx([20, 10, -10])
