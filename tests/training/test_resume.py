"""Runs end the same, bitwise, however often they are interrupted."""

import contextlib
import json
import os
import random
import shutil
import signal
import time
from functools import partial

import pytest
import tiny_runs
from helpers import assert_bitwise, assert_close
from tiny_runs import (
    PERIOD,
    STEPS,
    arguments,
    snapshot,
    start_program,
    state_of,
    without_extras,
    without_seconds,
)

from jaxmatch.data import splits
from jaxmatch.errors import InputError, Terminated
from jaxmatch.evaluation.metrics import applying
from jaxmatch.program import Program
from jaxmatch.record import run_data
from jaxmatch.record.metrics import read
from jaxmatch.runtime.checkpoint import Checkpoints
from jaxmatch.training import run

# With weak views alone a program compiles in half the time; this method has a memory, too.
METHOD = {"method": "temporal_ensembling", "algorithm__ramp": 0.4}
train_tiny = partial(tiny_runs.train_tiny, **METHOD)


@pytest.fixture(scope="module", autouse=True)
def only_steps():
    with without_extras():
        yield


@pytest.fixture(scope="module")
def reference(data, tmp_path_factory):
    """A run that nothing interrupted; to be read, not changed."""
    workdir = tmp_path_factory.mktemp("reference") / "run"
    train_tiny(data, workdir)
    return workdir


class Crash(Exception):
    pass


@contextlib.contextmanager
def interrupted(evaluation, action):
    """Do ``action`` at the start of evaluation number ``evaluation``."""
    evaluate, seen = run.Run.evaluate, []

    def evaluate_and_act(self, *given):
        seen.append(None)
        if len(seen) == evaluation:
            action()
        return evaluate(self, *given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run.Run, "evaluate", evaluate_and_act)
        yield


def crash():
    raise Crash


def assert_same_end(workdir, reference):
    assert_bitwise(state_of(workdir), state_of(reference))
    assert without_seconds(read(workdir)) == without_seconds(read(reference))
    files = [folder / "summary.json" for folder in (workdir, reference)]
    summaries = [json.loads(file.read_text()) for file in files]
    for summary in summaries:
        assert summary.pop("seconds") > 0
    assert summaries[0] == summaries[1]


@pytest.mark.slow
def test_split_file_validation_set_and_batch_larger_than_the_labeled_set(data, tmp_path):
    split = tmp_path / "mine.json"
    split.write_text(json.dumps({"indices": [4, 1, 2, 3]}))
    options = {
        "chosen": f",split={split}",
        "data__validation": 12,
        "method": "supervised",
        "devices": 1,
    }
    with interrupted(2, crash), pytest.raises(Crash):
        tiny_runs.train_tiny(data, tmp_path / "run", **options)
    split.unlink()  # the run folder has its own
    tiny_runs.train_tiny(data, tmp_path / "run", **options)
    assert splits.read(tmp_path / "run" / "split.json").indices.tolist() == [4, 1, 2, 3]
    for line in read(tmp_path / "run"):
        validation = {key for key in line if key.startswith("validation/")}
        assert validation == {
            f"validation/{network}/{metric}"
            for network in ("teacher", "student")
            for metric in applying(4)
        }
    facts = json.loads((tmp_path / "run" / "config.json").read_text())["facts"]
    assert (facts["labels"], facts["unlabeled"]) == ([0, 1, 2, 3], 64 - 12)


@pytest.mark.slow
def test_a_crashed_run_continues_bitwise(reference, data, tmp_path):
    with interrupted(3, crash), pytest.raises(Crash):  # after the checkpoint of step 10
        train_tiny(data, tmp_path / "run")
    assert not (tmp_path / "run" / "summary.json").exists()
    train_tiny(data, tmp_path / "run")
    assert "from the checkpoint of step 10" in (tmp_path / "run" / "log.txt").read_text()
    assert_same_end(tmp_path / "run", reference)


def interrupt(data, workdir):
    with interrupted(3, crash), pytest.raises(Crash):  # after the checkpoint of step 10
        train_tiny(data, workdir)


@pytest.mark.slow
def test_a_run_goes_on_with_other_files_periods_and_a_moved_data_set(reference, data, tmp_path):
    interrupt(data, tmp_path / "run")
    shutil.copy(data, tmp_path / "moved.npz")
    changes = {"save_every": STEPS, "keep": 1, "workers": 3, "data__strict": True}
    train_tiny(tmp_path / "moved.npz", tmp_path / "run", **changes)
    assert_same_end(tmp_path / "run", reference)
    recorded = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (recorded["keep"], recorded["data"]["name"]) == (1, f"npz:{tmp_path / 'moved.npz'}")
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").glob("[0-9]*")) == ["20"]
    train_tiny(data, tmp_path / "run", **changes)  # complete, wherever the same data lies
    before = snapshot(tmp_path / "run")
    with pytest.raises(InputError, match=r"gone\.npz"):
        train_tiny(tmp_path / "gone.npz", tmp_path / "run", **changes)
    assert snapshot(tmp_path / "run") == before


@pytest.mark.slow
def test_a_run_goes_on_with_other_logs_and_calls(reference, data, tmp_path):
    interrupt(data, tmp_path / "run")
    train_tiny(data, tmp_path / "run", log_every=STEPS, steps_per_call=1)
    assert [line["step"] for line in read(tmp_path / "run") if "loss/total" in line] == [5, 10, 20]
    assert_close(state_of(tmp_path / "run"), state_of(reference), 1e-4)


@pytest.mark.slow
def test_a_call_cannot_begin_inside_another(data, tmp_path, monkeypatch):
    """On a CPU it can, because the host dispatches each step there."""
    periods = {"eval_every": STEPS, "log_every": STEPS, "method": "supervised", "devices": 1}
    with interrupted(1, crash), pytest.raises(Crash):
        tiny_runs.train_tiny(data, tmp_path / "run", **periods)
    changed = {"save_every": STEPS, "steps_per_call": 4}
    with monkeypatch.context() as patched:
        patched.setattr(Program, "unit", property(lambda program: program.config.steps_per_call))
        with pytest.raises(
            InputError, match=r"checkpoint of step 15 .* a call of steps_per_call=4;"
        ):
            tiny_runs.train_tiny(data, tmp_path / "run", **periods, **changed)
    tiny_runs.train_tiny(data, tmp_path / "run", **periods, **changed)


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"algorithm__ramp": 0.5}, "algorithm.ramp: 0.4 -> 0.5"),
        ({"seed": 3}, "seed: 0 -> 3"),
        ({"eval_every": 10}, "eval_every: 5 -> 10"),
        ({"data__batch_size": 4}, "data.batch_size: 8 -> 4"),
    ],
)
def test_a_run_does_not_go_on_as_another(reference, data, change, difference):
    before = snapshot(reference)
    with pytest.raises(InputError, match=f"another configuration .{difference}.; choose another"):
        train_tiny(data, reference, **change)
    assert snapshot(reference) == before


@pytest.mark.parametrize(
    ("steps", "expected"), [(40, "steps: 20 -> 40, and cannot be extended"), (15, "more steps")]
)
def test_a_run_has_its_length(reference, data, steps, expected):
    before = snapshot(reference)
    with pytest.raises(InputError, match=expected):
        train_tiny(data, reference, steps=steps)
    assert snapshot(reference) == before


HISTORY = {"algorithm__alignment_length": 8}


METHODS = [
    ("simmatch", {"algorithm__instance_start_step": PERIOD, **HISTORY}),
    (
        "comatch",
        {"algorithm__queue_batches": 3, **HISTORY},  # so the ring wraps on either side
    ),
    ("flexmatch", {"augment": "ctaugment"}),
    (
        "pcl",
        {
            "chosen": "",
            "algorithm__queue": 40,
            "algorithm__clusters": "(5,9)",
            "algorithm__refresh_steps": PERIOD,
            "algorithm__start_step": 2 * PERIOD,
        },
    ),
    ("remixmatch", {}),
    ("freematch", {}),
    ("softmatch", {}),
    ("adamatch", {}),
    ("dash", {"algorithm__warmup_steps": PERIOD + 2}),
]


# The killed run below has a memory, too.
@pytest.mark.slow
@pytest.mark.parametrize(("method", "options"), METHODS)
def test_memories_and_policies_continue_bitwise(method, options, data, tmp_path):
    options = {"method": method, **options}
    tiny_runs.train_tiny(data, tmp_path / "whole", **options)
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    (tmp_path / "cut" / "summary.json").unlink()
    for step in (STEPS, STEPS - PERIOD):
        shutil.rmtree(tmp_path / "cut" / "checkpoints" / str(step))
    tiny_runs.train_tiny(data, tmp_path / "cut", **options)
    assert_same_end(tmp_path / "cut", tmp_path / "whole")


@pytest.mark.parametrize("step", [10, STEPS])
def test_a_signal_ends_an_evaluation_which_the_same_command_repeats(
    step, reference, data, tmp_path
):
    before = signal.getsignal(signal.SIGTERM)
    terminate = partial(os.kill, os.getpid(), signal.SIGTERM)
    with (
        interrupted(step // PERIOD, terminate),
        pytest.raises(Terminated, match=f"step {step} after") as caught,
    ):
        train_tiny(data, tmp_path / "run", save_every=STEPS)
    assert caught.value.exit_code == 143
    assert signal.getsignal(signal.SIGTERM) is before
    assert [line["step"] for line in read(tmp_path / "run")] == list(range(PERIOD, step, PERIOD))
    assert {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()} == {str(step)}
    train_tiny(data, tmp_path / "run", save_every=STEPS)
    assert "lacks lines" not in (tmp_path / "run" / "log.txt").read_text()
    assert_same_end(tmp_path / "run", reference)


@pytest.mark.slow
def test_a_repeated_evaluation_finds_the_best_checkpoint(data, tmp_path):
    options = {"data__validation": 12, "keep_best": "validation/balanced_accuracy"}
    train_tiny(data, tmp_path / "whole", **options)
    best = json.loads((tmp_path / "whole" / "summary.json").read_text())["best"]["step"]
    terminate = partial(os.kill, os.getpid(), signal.SIGTERM)
    with interrupted(best // PERIOD, terminate), pytest.raises(Terminated):
        train_tiny(data, tmp_path / "run", **options)
    train_tiny(data, tmp_path / "run", **options)
    assert_same_end(tmp_path / "run", tmp_path / "whole")


@pytest.mark.slow  # runtime/test_checkpoint.py damages each file of a checkpoint
def test_a_damaged_newest_checkpoint_is_passed_over(reference, data, tmp_path, caplog):
    workdir = tmp_path / "run"
    shutil.copytree(reference, workdir)
    (workdir / "summary.json").unlink()
    newest = workdir / "checkpoints" / str(STEPS)
    largest = max(newest.rglob("*"), key=lambda path: path.is_file() and path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-1] + b"!")
    train_tiny(data, workdir)
    assert f"{newest} is damaged" in caplog.text
    assert "from the checkpoint of step 15" in (workdir / "log.txt").read_text()
    assert_same_end(workdir, reference)


def test_a_kill_while_a_checkpoint_is_saved_changes_no_line(data, tmp_path, monkeypatch):
    options = {"log_every": STEPS}  # so that checkpoints lie between two lines
    train_tiny(data, tmp_path / "whole", **options)
    save = Checkpoints.save

    def killed(self, step, *given):
        if step == 3 * PERIOD:
            raise Crash
        save(self, step, *given)

    monkeypatch.setattr(Checkpoints, "save", killed)
    with pytest.raises(Crash):
        train_tiny(data, tmp_path / "run", **options)
    monkeypatch.undo()
    kept = tmp_path / "run" / "interval.json"
    content = json.loads(kept.read_text())
    assert list(content["steps"]) == ["5", "10", "15"]
    content["steps"]["10"]["seconds"] += 1000
    kept.write_text(json.dumps(content))
    train_tiny(data, tmp_path / "run", **options)
    assert "from the checkpoint of step 10" in (tmp_path / "run" / "log.txt").read_text()
    assert_same_end(tmp_path / "run", tmp_path / "whole")
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["seconds"] > 1000


def test_an_extended_run_that_was_killed_at_its_end_has_its_own_summary(
    data, tmp_path, monkeypatch
):
    options = {"optim__schedule": "constant", "method": "supervised"}
    tiny_runs.train_tiny(data, tmp_path / "run", **options, steps=2 * PERIOD)
    monkeypatch.setattr(run.Run, "summary", lambda *given: crash())
    with pytest.raises(Crash):
        tiny_runs.train_tiny(data, tmp_path / "run", **options)
    monkeypatch.undo()
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["steps"] == 2 * PERIOD
    tiny_runs.train_tiny(data, tmp_path / "run", **options)
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["steps"] == STEPS


@pytest.mark.slow  # as in record/test_run_folder.py
def test_a_lost_summary_is_written_again(reference, data, tmp_path):
    shutil.copytree(reference, tmp_path / "run")
    (tmp_path / "run" / "summary.json").unlink()
    train_tiny(data, tmp_path / "run")
    assert_same_end(tmp_path / "run", reference)


def test_a_complete_run_is_left_alone(reference, data, monkeypatch):
    before = snapshot(reference)
    monkeypatch.setattr(run_data, "load", crash)
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
        train_tiny(data, workdir, algorithm__ramp=0.5, seed=3)
    assert "(algorithm.ramp: 0.4 -> 0.5; seed: 0 -> 3)" in str(caught.value)
    assert snapshot(workdir) == before


def test_folders_that_cannot_be_continued_are_refused(reference, data, tmp_path):
    shutil.copytree(reference, tmp_path / "run")
    (tmp_path / "run" / "config.json").write_text("{")
    with pytest.raises(InputError, match="damaged"):
        train_tiny(data, tmp_path / "run")
    (tmp_path / "run" / "config.json").unlink()
    with pytest.raises(InputError, match=r"without config\.json"):
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


@pytest.mark.slow
def test_one_device_agrees_with_four_and_continues_their_run(data, tmp_path):
    reference, train = tmp_path / "reference", partial(tiny_runs.train_tiny, method="pseudo_label")
    train(data, reference)
    train(data, tmp_path / "one", devices=1)
    one, four = (state_of(folder, PERIOD) for folder in (tmp_path / "one", reference))
    assert_close(one, four, 1e-4)
    for key in ("optim/learning_rate", "unlabeled/weak_accuracy"):
        assert read(tmp_path / "one")[0][key] == pytest.approx(read(reference)[0][key], rel=1e-6)
    shutil.copytree(reference, tmp_path / "four")
    (tmp_path / "four" / "summary.json").unlink()
    shutil.rmtree(tmp_path / "four" / "checkpoints" / str(STEPS))
    train(data, tmp_path / "four", devices=1)
    assert "from the checkpoint of step 15" in (tmp_path / "four" / "log.txt").read_text()
    assert_close(state_of(tmp_path / "four"), state_of(reference), 1e-4)


def killed_at(words, workdir, delay):
    """Start the program and kill it ``delay`` seconds after its first line of metrics."""
    lines = len(read(workdir))
    process = start_program(words)
    while process.poll() is None and len(read(workdir)) <= lines:
        time.sleep(0.005)
    time.sleep(delay)
    process.kill()
    error = process.communicate()[1]
    assert process.returncode == -signal.SIGKILL, error  # else it ended before the kill


KILLED = {
    "method": "fixmatch",  # whose strong views draw the most
    "steps": 200,
    "steps_per_call": 1,
    "save_every": 10,
    "keep": 2,
}


@pytest.fixture(scope="module")
def long_reference(data, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("long") / "run"
    tiny_runs.train_tiny(data, workdir, **KILLED)
    return workdir


def kill_and_compare(data, reference, workdir, kills, options):
    words = ["train", f"--workdir={workdir}", *arguments(data, **options)]
    times = [line["time/seconds"] for line in read(reference)]
    # Together at most half of a run, so that each kill comes before the end.
    moments = [random.uniform(0, (times[-1] - times[0]) / 2 / kills) for _ in range(kills)]
    print("killed after", moments)  # shown by pytest where the test fails
    for moment in moments:
        killed_at(words, workdir, moment)
    tiny_runs.train_tiny(data, workdir, **options)
    assert_same_end(workdir, reference)


def test_a_killed_run_continues_bitwise(data, reference, tmp_path):
    workdir = tmp_path / "run"
    words = ["train", f"--workdir={workdir}", *arguments(data, **METHOD)]
    killed_at(words, workdir, 0)
    assert read(workdir)[-1]["step"] < STEPS
    train_tiny(data, workdir)
    assert_same_end(workdir, reference)


@pytest.mark.slow
@pytest.mark.parametrize("kills", [1, 2, 3, 4])
def test_a_run_killed_again_and_again_continues_bitwise(kills, data, long_reference, tmp_path):
    kill_and_compare(data, long_reference, tmp_path / "run", kills, KILLED)
