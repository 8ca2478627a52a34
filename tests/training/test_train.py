"""Whole runs: what they record, and what stops them."""

import json
import subprocess

import jax.numpy as jnp
import numpy as np
import pytest
from tiny_runs import (
    LABELS,
    PERIOD,
    STEPS,
    configuration,
    train_tiny,
    without_extras,
    without_learning,
    write_data,
)

from jaxmatch import load, train
from jaxmatch.config.flags import from_flags
from jaxmatch.config.saved import to_json
from jaxmatch.data import splits
from jaxmatch.errors import DiskError, InputError, NonFiniteError
from jaxmatch.optim.optimizer import Optim
from jaxmatch.record.folder import RunFolder
from jaxmatch.record.metrics import read
from jaxmatch.report.describe import describe
from jaxmatch.training import train as loop

ALWAYS = {
    "step",
    "loss/total",
    "loss/supervised",
    "optim/learning_rate",
    "optim/gradient_norm",
    "test/teacher/accuracy",
    "test/student/accuracy",
    *(
        f"test/{network}/{name}"
        for network in ("teacher", "student")
        for name in (
            *("balanced_accuracy", "macro_f1", "weighted_f1"),
            *("negative_log_likelihood", "expected_calibration_error"),
        )
    ),
    "time/seconds",
}
PSEUDO = {"loss/unsupervised", "pseudo/coverage"}
KNOWN = {"pseudo/accuracy", "unlabeled/weak_accuracy"}
KEYS = {
    "supervised": ALWAYS,
    "pseudo_label": ALWAYS | PSEUDO | KNOWN | {"optim/ramp"},
    "fixmatch": ALWAYS | PSEUDO | KNOWN | {"unlabeled/strong_accuracy"},
}


@pytest.fixture
def only_steps():
    with without_extras():
        yield


@pytest.fixture(scope="module")
def reference(data, tmp_path_factory):
    """A FixMatch run that nothing interrupted; to be read, not changed."""
    workdir = tmp_path_factory.mktemp("reference") / "run"
    train_tiny(data, workdir, devices=1)
    return workdir


def test_the_run_folder_holds_what_is_promised(reference, data):
    present = {path.name for path in reference.iterdir()}
    assert present == {
        "config.json",
        "data.json",
        "findings.json",
        "baselines.json",
        "split.json",
        "metrics.jsonl",
        "summary.json",
        "curves.png",
        "log.txt",
        "checkpoints",
        "events",
    }
    steps = range(PERIOD, STEPS + 1, PERIOD)
    assert sorted(int(path.name) for path in (reference / "checkpoints").iterdir()) == [*steps]
    assert [line["step"] for line in read(reference)] == [*steps]
    assert (reference / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert f"step {STEPS}/{STEPS}" in (reference / "log.txt").read_text()
    content = json.loads((reference / "config.json").read_text())
    assert content["facts"] == {
        "classes": ["0", "1", "2", "3"],
        "image_shape": [8, 8, 3],
        "labels": [label for label in range(4) for _ in range(LABELS // 4)],
        "unlabeled": 64,
    }


def test_the_summary_tells_accuracies_and_costs(reference):
    summary = json.loads((reference / "summary.json").read_text())
    lines = read(reference)
    for network in ("teacher", "student"):
        values = [line[f"test/{network}/accuracy"] for line in lines]
        found = summary.pop(network)
        metrics = found.pop("metrics")
        if network == "teacher":  # which FixMatch reports
            low, high = found.pop("intervals")["accuracy"]
            assert 0 <= low <= metrics["accuracy"] <= high <= 1
        assert metrics["accuracy"] == values[-1]
        assert metrics["balanced_accuracy"] == lines[-1][f"test/{network}/balanced_accuracy"]
        assert found == {
            "last": values[-1],
            "mean_20": pytest.approx(np.mean(values)),
            "median_20": pytest.approx(np.median(values)),
            "best": max(values),
            "best_is_test_selection": True,
            "evaluations": STEPS // PERIOD,
        }
    assert 0 < summary.pop("seconds") < 600
    assert summary == {
        "algorithm": "fixmatch",
        "evaluated": "teacher",
        "steps": STEPS,
        "images_seen": {"labeled": 8 * STEPS, "unlabeled": 16 * STEPS},
        "forward_images": (8 + 2 * 16) * STEPS,
    }


def test_the_split_file_names_the_labeled_images(reference, data):
    split = splits.read(reference / "split.json")
    content = json.loads((reference / "split.json").read_text())
    labels = np.load(data)["y_train"]
    assert np.array_equal(labels[split.indices], np.repeat(np.arange(4), LABELS // 4))
    assert content["hash"] == split.hash
    assert (content["source"], content["seed"]) == (f"npz:{data}", 0)


@pytest.mark.usefixtures("only_steps")
@pytest.mark.slow  # those of FixMatch, and of pseudo-labels without known labels, are tested below
@pytest.mark.parametrize("method", ["supervised", "pseudo_label"])
def test_metrics_of_other_methods(method, data, tmp_path):
    summary = train_tiny(data, tmp_path / "run", method=method, steps=10, devices=1)
    for line in read(tmp_path / "run"):
        assert set(line) == KEYS[method]
    views = {"supervised": 8, "pseudo_label": 8 + 16}[method]
    assert summary["forward_images"] == 10 * views
    assert summary["images_seen"]["unlabeled"] == (160 if method == "pseudo_label" else 0)


@pytest.mark.slow
def test_the_summary_tells_what_ctaugment_learned_and_counts_its_probes(data, tmp_path):
    options = {"augment": "ctaugment", "steps": 10}
    summary = train_tiny(data, tmp_path / "run", **options)
    assert summary["forward_images"] == 10 * (8 + 2 * 16 + 8)
    bins = summary["ctaugment"]
    assert len(bins["rotate"]["degrees"]) == 17
    assert any(weight != 1 for op in bins.values() for bins in op.values() for weight in bins)


@pytest.mark.parametrize("method", ["supervised", "mixmatch", "vat", "byol"])
def test_a_policy_that_no_view_follows_is_refused_in_new_runs_alone(method, tmp_path):
    flags = ["--config.augment=ctaugment", "--config.steps=150"]
    config, _ = from_flags(f"{method}:mnist5k", flags)
    message = f"augment=ctaugment .*, and {method} draws none; .* one of adamatch, .*, uda"
    for begin in (lambda: train(config, tmp_path / "run"), lambda: describe(config)):
        with pytest.raises(InputError, match=message):
            begin()
    assert not (tmp_path / "run").exists()
    (tmp_path / "run").mkdir()
    RunFolder(tmp_path / "run").write_config(to_json(config))
    assert loop.chosen(config, tmp_path / "run")[0].augment == "ctaugment"


def test_metrics_of_fixmatch(reference):
    for line in read(reference):
        assert set(line) == KEYS["fixmatch"]
        for key, value in line.items():
            if key.endswith(("accuracy", "coverage")):
                assert 0 <= value <= 1, key


@pytest.mark.usefixtures("only_steps")
@pytest.mark.parametrize("include_labeled", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_accuracies_are_absent_where_labels_are_unknown(tmp_path, capsys, include_labeled):
    """Labels of labeled images in the unlabeled pool do not count."""
    known = np.arange(64) < LABELS
    data = write_data(tmp_path / "x.npz", y_train=np.where(known, np.arange(64) % 4, -1))
    options = {"chosen": ",labels=all", "data__include_labeled": include_labeled, "steps": 5}
    options["devices"] = 1
    train_tiny(data, tmp_path / "run", method="pseudo_label", **options)
    assert "pseudo-label accuracy unknown" in capsys.readouterr().err
    assert "pseudo-label accuracy unknown" in (tmp_path / "run" / "log.txt").read_text()
    (line,) = read(tmp_path / "run")
    assert set(line) == ALWAYS | PSEUDO | {"optim/ramp"}
    facts = json.loads((tmp_path / "run" / "config.json").read_text())["facts"]
    pool = 64 if include_labeled else 64 - LABELS
    assert (len(facts["labels"]), facts["unlabeled"]) == (LABELS, pool)


def rate_that_breaks(monkeypatch, step, value):
    """The learning rate becomes ``value`` at ``step``."""
    monkeypatch.setattr(
        Optim, "rate", lambda self, steps: lambda count: jnp.where(count < step, 0.03, value)
    )


def test_a_loss_that_is_not_finite_stops_the_run(data, tmp_path, monkeypatch):
    rate_that_breaks(monkeypatch, 6, 1e30)
    with pytest.raises(NonFiniteError) as caught:
        train_tiny(data, tmp_path / "run", method="supervised", devices=1)
    assert "loss/supervised became NaN or Inf at step 7" in str(caught.value)
    assert "the last good checkpoint is that of step 5" in str(caught.value)
    found = load(tmp_path / "run")
    assert found.step == 5
    assert np.isfinite(found.predict(np.zeros((2, 8, 8, 3), np.uint8)).probabilities).all()
    assert [line["step"] for line in read(tmp_path / "run")] == [5]


def test_parameters_that_are_not_finite_are_not_saved(data, tmp_path, monkeypatch):
    rate_that_breaks(monkeypatch, 9, np.inf)  # the losses of steps 5 to 9 are finite
    with pytest.raises(NonFiniteError) as caught:
        train_tiny(data, tmp_path / "run", method="supervised", devices=1)
    assert "a parameter became NaN or Inf at step 9" in str(caught.value)
    assert load(tmp_path / "run").step == 5


def test_a_folder_that_cannot_be_made_is_a_disk_error(data, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskError, match=r"run could not be written \(Not a directory\)"):
        train_tiny(data, tmp_path / "file" / "run", method="supervised", devices=1)


@pytest.fixture
def tiny_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("a file system of fixed size cannot be mounted here")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_a_disk_that_fills_up_is_a_disk_error(data, tiny_disk):
    with without_learning(), pytest.raises(DiskError, match="make room"):
        train_tiny(data, tiny_disk / "run", method="supervised", devices=1)


def test_what_cannot_work_is_found_before_anything_is_written(data, tmp_path):
    for changed in (
        {"views__weak__pad": 9},
        {"optim__schedule": "cosnie"},
        {"data__mean": "(0.5,0.5)"},
        {"devices": 3},
    ):
        with pytest.raises(InputError):
            train_tiny(data, tmp_path / "run", **changed)
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("batches", "expected"),
    [
        (0, "algorithm.queue_batches=0 must be at least 1"),
        (4 * 10**6, "the run needs more on each: memory"),
        (10**7, r"longer than 2\*\*31"),
    ],
)
def test_a_memory_of_the_wrong_size_is_refused(batches, expected, data, tmp_path):
    flags = [f"--config.algorithm.queue_batches={batches}", "--config.model.depth=4"]
    config, _ = from_flags(f"comatch:npz:{data},labels=16,size=paper", flags)
    with pytest.raises(InputError, match=expected):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("only_steps")
def test_the_default_folder_is_named_after_the_configuration(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    quick = {"method": "supervised", "devices": 1, "steps": 5}
    with without_learning():
        train_tiny(data, None, **quick)
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.startswith("supervised-npz-colours-16-s0-")
    assert loop.finished(configuration(data, **quick), folder) is not None
