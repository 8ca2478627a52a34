"""Whole runs: what they record, and that they end the same however often they are interrupted."""

import json
import os
import random
import shutil
import signal
import subprocess
import time

import jax.numpy as jnp
import numpy as np
import pytest

from jaxmatch import build, load, loop
from jaxmatch.data import splits
from jaxmatch.errors import DiskError, InputError, NonFiniteError, Terminated
from jaxmatch.metrics import read
from jaxmatch.optim import Optim
from helpers import assert_bitwise, assert_close
from tiny_runs import (
    LABELS,
    PERIOD,
    STEPS,
    arguments,
    compiler_cache,
    configuration,
    snapshot,
    start_program,
    state_of,
    train_tiny,
    without_seconds,
    write_data,
)

ALWAYS = {
    "step",
    "loss/total",
    "loss/supervised",
    "optim/learning_rate",
    "optim/gradient_norm",
    "test/teacher/accuracy",
    "test/student/accuracy",
    "time/seconds",
}
PSEUDO = {"loss/unsupervised", "pseudo/coverage"}
KNOWN = {"pseudo/accuracy", "unlabeled/weak_accuracy"}
KEYS = {
    "supervised": ALWAYS,
    "pseudo_label": ALWAYS | PSEUDO | KNOWN | {"optim/ramp"},
    "fixmatch": ALWAYS | PSEUDO | KNOWN | {"unlabeled/strong_accuracy"},
}


@pytest.fixture(scope="module", autouse=True)
def cached():
    with compiler_cache():
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data") / "colours.npz")


@pytest.fixture(scope="module")
def reference(data, tmp_path_factory):
    """A FixMatch run that nothing interrupted; to be read, not changed."""
    workdir = tmp_path_factory.mktemp("reference") / "run"
    train_tiny(data, workdir)
    return workdir


class Crash(Exception):
    pass


def interrupt(monkeypatch, evaluation, action):
    """Do ``action`` in the middle of evaluation number ``evaluation``."""
    evaluate, seen = loop._Run.evaluate, []

    def evaluate_and_act(self, state):
        seen.append(None)
        if len(seen) == evaluation:
            action()
        return evaluate(self, state)

    monkeypatch.setattr(loop._Run, "evaluate", evaluate_and_act)


def crash():
    raise Crash


def assert_same_end(workdir, reference):
    assert_bitwise(state_of(workdir), state_of(reference))
    assert without_seconds(read(workdir)) == without_seconds(read(reference))
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (workdir, reference)]
    for summary in summaries:
        assert summary.pop("seconds") > 0
    assert summaries[0] == summaries[1]


def test_the_run_folder_holds_what_is_promised(reference, data):
    present = {path.name for path in reference.iterdir()}
    assert present == {
        "config.json",
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
        assert summary.pop(network) == {
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


@pytest.mark.parametrize("method", ["supervised", "pseudo_label"])
def test_metrics_of_other_methods(method, data, tmp_path):
    summary = train_tiny(data, tmp_path / "run", method=method, steps=10)
    for line in read(tmp_path / "run"):
        assert set(line) == KEYS[method]
    views = {"supervised": 8, "pseudo_label": 8 + 16}[method]
    assert summary["forward_images"] == 10 * views
    assert summary["images_seen"]["unlabeled"] == (160 if method == "pseudo_label" else 0)


def test_metrics_of_fixmatch(reference):
    for line in read(reference):
        assert set(line) == KEYS["fixmatch"]
        for key, value in line.items():
            if key.endswith(("accuracy", "coverage")):
                assert 0 <= value <= 1, key


def test_accuracies_are_absent_where_labels_are_unknown(tmp_path):
    known = np.arange(64) < LABELS
    data = write_data(tmp_path / "x.npz", y_train=np.where(known, np.arange(64) % 4, -1))
    options = {"chosen": ",labels=all", "data__include_labeled": False, "steps": 5}
    train_tiny(data, tmp_path / "run", method="pseudo_label", **options)
    (line,) = read(tmp_path / "run")
    assert set(line) == ALWAYS | PSEUDO | {"optim/ramp"}
    facts = json.loads((tmp_path / "run" / "config.json").read_text())["facts"]
    assert (len(facts["labels"]), facts["unlabeled"]) == (LABELS, 64 - LABELS)


def test_split_file_validation_set_and_a_batch_larger_than_the_labeled_set(data, tmp_path):
    split = tmp_path / "mine.json"
    split.write_text(json.dumps({"indices": [4, 1, 2, 3]}))
    options = {"chosen": f",split={split}", "data__validation": 12, "method": "supervised"}
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Crash):
        interrupt(patch, 2, crash)
        train_tiny(data, tmp_path / "run", **options)
    split.unlink()  # the run folder has its own
    train_tiny(data, tmp_path / "run", **options)
    assert splits.read(tmp_path / "run" / "split.json").indices.tolist() == [4, 1, 2, 3]
    for line in read(tmp_path / "run"):
        assert set(line) - KEYS["supervised"] == {
            "validation/teacher/accuracy",
            "validation/student/accuracy",
        }
    facts = json.loads((tmp_path / "run" / "config.json").read_text())["facts"]
    assert (facts["labels"], facts["unlabeled"]) == ([0, 1, 2, 3], 64 - 12)


def test_a_crashed_run_continues_bitwise(reference, data, tmp_path, monkeypatch, caplog):
    with monkeypatch.context() as patch, pytest.raises(Crash):
        interrupt(patch, 3, crash)  # after the checkpoint of step 10
        train_tiny(data, tmp_path / "run")
    assert not (tmp_path / "run" / "summary.json").exists()
    train_tiny(data, tmp_path / "run")
    assert "from step 10" in caplog.text
    assert_same_end(tmp_path / "run", reference)


def test_sigterm_saves_and_the_same_command_continues(reference, data, tmp_path, monkeypatch):
    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch, pytest.raises(Terminated, match="step 15") as caught:
        interrupt(patch, 2, lambda: os.kill(os.getpid(), signal.SIGTERM))
        train_tiny(data, tmp_path / "run", save_every=10)
    assert caught.value.exit_code == 143
    assert signal.getsignal(signal.SIGTERM) is before
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == ["10", "15"]
    train_tiny(data, tmp_path / "run", save_every=10)
    assert_same_end(tmp_path / "run", reference)


def test_a_damaged_newest_checkpoint_is_passed_over(reference, data, tmp_path, caplog):
    workdir = tmp_path / "run"
    shutil.copytree(reference, workdir)
    (workdir / "summary.json").unlink()
    newest = workdir / "checkpoints" / str(STEPS)
    largest = max(newest.rglob("*"), key=lambda path: path.is_file() and path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-1] + b"!")
    train_tiny(data, workdir)
    assert f"{newest} is damaged" in caplog.text
    assert "from step 15" in caplog.text
    assert_same_end(workdir, reference)


def test_a_lost_summary_is_written_again(reference, data, tmp_path):
    shutil.copytree(reference, tmp_path / "run")
    (tmp_path / "run" / "summary.json").unlink()
    train_tiny(data, tmp_path / "run")
    assert_same_end(tmp_path / "run", reference)


def test_a_complete_run_is_left_alone(reference, data, monkeypatch):
    before = snapshot(reference)
    monkeypatch.setattr(build, "load_data", crash)
    summary = train_tiny(data, reference)
    assert summary == json.loads((reference / "summary.json").read_text())
    assert snapshot(reference) == before


@pytest.mark.parametrize("complete", [True, False])
def test_another_configuration_is_refused(complete, reference, data, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(reference, workdir)
    if not complete:
        (workdir / "summary.json").unlink()
    before = snapshot(workdir)
    with pytest.raises(InputError) as caught:
        train_tiny(data, workdir, algorithm__threshold=0.5, seed=3)
    assert "(algorithm.threshold: 0.4 -> 0.5; seed: 0 -> 3)" in str(caught.value)
    assert snapshot(workdir) == before


def test_folders_that_cannot_be_continued_are_refused(reference, data, tmp_path):
    shutil.copytree(reference, tmp_path / "run")
    (tmp_path / "run" / "config.json").write_text("{")
    with pytest.raises(InputError, match="damaged"):
        train_tiny(data, tmp_path / "run")
    (tmp_path / "run" / "config.json").unlink()
    with pytest.raises(InputError, match=r"without its config\.json"):
        train_tiny(data, tmp_path / "run")


def test_a_changed_split_file_is_refused(reference, data, tmp_path):
    shutil.copytree(reference, tmp_path / "run")
    (tmp_path / "run" / "summary.json").unlink()
    file = tmp_path / "run" / "split.json"
    content = json.loads(file.read_text())
    content["indices"][0] += 4
    file.write_text(json.dumps(content))
    with pytest.raises(InputError, match="hash"):
        train_tiny(data, tmp_path / "run")


def test_one_device_agrees_with_four_and_continues_their_run(reference, data, tmp_path, caplog):
    train_tiny(data, tmp_path / "one", devices=1)
    one, four = (state_of(folder, PERIOD) for folder in (tmp_path / "one", reference))
    assert_close(one, four, 1e-4)
    for key in ("optim/learning_rate", "unlabeled/weak_accuracy"):
        assert read(tmp_path / "one")[0][key] == pytest.approx(read(reference)[0][key], rel=1e-6)
    shutil.copytree(reference, tmp_path / "four")
    (tmp_path / "four" / "summary.json").unlink()
    shutil.rmtree(tmp_path / "four" / "checkpoints" / str(STEPS))
    train_tiny(data, tmp_path / "four", devices=1)
    assert "from step 15" in caplog.text
    assert_close(state_of(tmp_path / "four"), state_of(reference), 1e-4)


def rate_that_breaks(monkeypatch, step, value):
    """The learning rate becomes ``value`` at ``step``."""
    monkeypatch.setattr(
        Optim, "rate", lambda self, steps: lambda count: jnp.where(count < step, 0.03, value)
    )


def test_a_loss_that_is_not_finite_stops_the_run(data, tmp_path, monkeypatch):
    rate_that_breaks(monkeypatch, 6, 1e30)
    with pytest.raises(NonFiniteError) as caught:
        train_tiny(data, tmp_path / "run")
    assert "loss/supervised became NaN or Inf at step 7" in str(caught.value)
    assert "the last good checkpoint is that of step 5" in str(caught.value)
    found = load(tmp_path / "run")
    assert found.step == 5
    assert np.isfinite(found.predict(np.zeros((2, 8, 8, 3), np.uint8)).probabilities).all()
    assert [line["step"] for line in read(tmp_path / "run")] == [5]


def test_parameters_that_are_not_finite_are_not_saved(data, tmp_path, monkeypatch):
    rate_that_breaks(monkeypatch, 9, np.inf)  # the losses of steps 5 to 9 are finite
    with pytest.raises(NonFiniteError) as caught:
        train_tiny(data, tmp_path / "run")
    assert "a parameter became NaN or Inf at step 9" in str(caught.value)
    assert load(tmp_path / "run").step == 5


def test_a_folder_that_cannot_be_made_is_a_disk_error(data, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskError, match="config.json could not be written"):
        train_tiny(data, tmp_path / "file" / "run")


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
    with pytest.raises(DiskError, match="make room"):
        train_tiny(data, tiny_disk / "run")


def killed_at(words, workdir, delay):
    """Start the program and kill it ``delay`` seconds after its first line of metrics."""
    lines = len(read(workdir))
    process = start_program(words)
    while process.poll() is None and len(read(workdir)) <= lines:
        time.sleep(0.005)
    time.sleep(delay)
    process.kill()
    error = process.communicate()[1]
    assert process.returncode in (0, -signal.SIGKILL), error
    return process.returncode


KILLED = {"steps": 120, "steps_per_call": 1, "save_every": 10, "keep": 2}


@pytest.fixture(scope="module")
def long_reference(data, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("long") / "run"
    train_tiny(data, workdir, **KILLED)
    return workdir


def kill_and_compare(data, long_reference, workdir, kills):
    words = ["train", f"--workdir={workdir}", *arguments(data, **KILLED)]
    times = [line["time/seconds"] for line in read(long_reference)]
    moments = [random.uniform(0, (times[-1] - times[0]) / kills) for _ in range(kills)]
    print("killed after", moments)  # shown by pytest where the test fails
    for moment in moments:
        killed_at(words, workdir, moment)
    train_tiny(data, workdir, **KILLED)
    assert_same_end(workdir, long_reference)


def test_a_killed_run_continues_bitwise(data, long_reference, tmp_path):
    kill_and_compare(data, long_reference, tmp_path / "run", 1)


@pytest.mark.slow
@pytest.mark.parametrize("kills", [1, 2, 3, 4])
def test_a_run_killed_again_and_again_continues_bitwise(kills, data, long_reference, tmp_path):
    kill_and_compare(data, long_reference, tmp_path / "run", kills)


def test_what_cannot_work_is_found_before_anything_is_written(data, tmp_path):
    for changed in (
        {"views__weak__pad": 9},
        {"optim__schedule": "cosine"},
        {"data__mean": "(0.5,0.5)"},
        {"devices": 3},
    ):
        with pytest.raises(InputError):
            train_tiny(data, tmp_path / "run", **changed)
        assert not (tmp_path / "run").exists()


def test_the_default_folder_is_named_after_the_configuration(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train_tiny(data, None)
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.startswith("fixmatch-npz-colours-16-s0-")
    assert loop.finished(configuration(data), folder) is not None
