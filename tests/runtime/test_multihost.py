"""Several real processes of localhost are one run: same state, one record, one resume."""

import json
import os
import signal
import time

import numpy as np
import pytest
from helpers import assert_bitwise, assert_close, on_host
from processes import finish, start
from tiny_runs import arguments, state_of, train_tiny, without_seconds

from jaxmatch.record.metrics import read

pytestmark = pytest.mark.slow

METHODS = {
    "fixmatch": {},
    "simmatch": {},
    "comatch": {},
    "mixmatch": {},
    "ctaugment": {"method": "fixmatch", "augment": "ctaugment"},
}


def words(data, workdir, *, method, **options):
    options = METHODS.get(method, {}) | options
    options.setdefault("method", method)
    if options["method"] == "mixmatch":
        options["data__ratio"] = 1
    found = arguments(data, **options)
    if options["method"] == "mixmatch":
        found = [word for word in found if "threshold" not in word]
    return ["train", *found, f"--workdir={workdir}"]


@pytest.mark.parametrize("method", METHODS)
def test_same_run_on_one_two_and_four_processes(method, data, tmp_path):
    folders = {count: tmp_path / str(count) for count in (1, 2, 4)}
    options = {"method": method, "steps": 8, "steps_per_call": 4, "log_every": 4, "eval_every": 4}
    options |= {"save_every": 8, "devices": 4}
    for count, folder in folders.items():
        command = [*words(data, folder, **options), "--json"]
        said = finish(start(count, 4 // count, command))
        assert [bool(out) for out, _ in said] == [True] + [False] * (count - 1)
    states = {count: on_host(state_of(folder)) for count, folder in folders.items()}
    lines = {count: read(folder) for count, folder in folders.items()}
    for count in (2, 4):
        assert_close(states[count], states[1], 2e-5)
        assert (folders[count] / "split.json").read_text() == (
            folders[1] / "split.json"
        ).read_text()
        assert len(lines[count]) == len(lines[1]) == 2
        for ours, theirs in zip(lines[count], lines[1], strict=True):
            assert ours.keys() == theirs.keys()
            for name in ours.keys() - {"time/seconds"}:
                np.testing.assert_allclose(ours[name], theirs[name], rtol=2e-4, atol=2e-5)


def stop(programs, folder, number, which):
    """Send a signal to one process once the run has logged something; what all of them said."""
    lines = len(read(folder))
    while len(read(folder)) <= lines:
        assert all(program.poll() is None for program in programs), programs[0].communicate()
        time.sleep(0.05)
    programs[which].send_signal(number)
    codes = {signal.SIGTERM: 143, signal.SIGINT: 130}
    return finish(programs, codes[number])


@pytest.fixture(scope="module")
def long_run(data, tmp_path_factory):
    """A run on two processes that nothing interrupted, for each number of steps in a call."""
    made = {}

    def reference(stride):
        if stride not in made:
            made[stride] = tmp_path_factory.mktemp("long") / "run"
            finish(start(2, 1, words(data, made[stride], **long(stride))))
        return made[stride]

    return reference


def long(stride):
    return {
        "method": "fixmatch",
        "devices": 2,
        "steps": 640,
        "steps_per_call": stride,
        "log_every": stride,
        "eval_every": 320,
        "save_every": 320,
        "keep": 9,
    }


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("stride", [1, 5, 64])
def test_one_signal_stops_all_at_one_step_and_the_run_goes_on_bitwise(
    stride, number, data, long_run, tmp_path
):
    folder = tmp_path / "run"
    command = words(data, folder, **long(stride))
    which = int(number == signal.SIGTERM)  # the leader is interrupted, the other one preempted
    for _ in range(2):
        said = stop(start(2, 1, command), folder, number, which)
        (step,) = {
            int(errors.partition("after saving")[0].split()[-1])
            for _, errors in said
            if "at step" in errors
        }
        saved = [int(path.name) for path in (folder / "checkpoints").iterdir()]
        assert max(saved) == step < 640  # on a CPU after any step, whatever the calls
    finish(start(2, 1, command))
    assert_bitwise(state_of(folder), state_of(long_run(stride)))
    assert without_seconds(read(folder)) == without_seconds(read(long_run(stride)))


def test_a_run_goes_on_with_other_processes_and_devices(data, tmp_path):
    whole, folder = tmp_path / "whole", tmp_path / "moved"
    options = long(5) | {"optim__learning_rate": 0.003}  # roundings grow less
    train_tiny(data, whole, **options | {"devices": 4})
    options["devices"] = 0
    stop(start(2, 2, words(data, folder, **options)), folder, signal.SIGTERM, 1)
    finish(start(4, 1, words(data, folder, **options)))
    assert_close(state_of(folder), state_of(whole), 1e-3)
    steps = [line["step"] for line in read(folder)]
    assert steps == [line["step"] for line in read(whole)]


def test_a_host_that_never_joins_is_told_of(data, tmp_path):
    program = start(2, 1, [*words(data, tmp_path / "run", method="fixmatch"), "--join-seconds=5"])
    program[1].kill()
    program[1].communicate()
    _, said = program[0].communicate(timeout=120)
    assert program[0].returncode == 2, said
    assert "not all 2 processes joined" in said
    assert not (tmp_path / "run").exists()


def test_a_folder_that_is_not_shared_is_refused(data, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    both = [words(data, folder, method="fixmatch") for folder in (first, second)]
    programs = start(2, 1, *both)
    for _, said in finish(programs, code=2):
        assert "processes 1 do not see" in said
    assert not second.exists()
    assert not any(first.iterdir())


def test_processes_of_different_seeds_are_refused(data, tmp_path):
    both = [words(data, tmp_path / "run", method="fixmatch", seed=seed) for seed in (0, 1)]
    programs = start(2, 1, *both)
    for _, said in finish(programs, code=2):
        assert "processes 1 have another configuration or data than process 0" in said
    assert not (tmp_path / "run").exists()


def test_the_summary_is_one_and_whole(data, tmp_path):
    options = {"data__validation": 12, "keep_best": "validation/accuracy", "save_every": 20}
    command = words(data, tmp_path / "run", method="fixmatch", keep=1, **options)
    (out, said), (nothing, _) = finish(start(2, 1, [*command, "--json"]))
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert json.loads(out) == summary
    best = summary["best"]
    assert best["value"] == summary["validation"]["teacher"]["best"]
    kept = sorted(int(path.stem) for path in (tmp_path / "run" / "checkpoints").glob("[0-9]*"))
    assert kept == sorted({best["step"], 20})
    assert said.count("12 validation, 24 test images") == 1
    assert said.count("probabilities are calibrated") == 1
    calibration = json.loads((tmp_path / "run" / "calibration.json").read_text())
    assert (calibration["step"], calibration["images"]) == (20, 12)
    assert nothing == ""
    assert os.listdir(tmp_path) == ["run"]


def test_a_killed_process_ends_the_others_and_the_run_goes_on(data, tmp_path):
    whole, folder = tmp_path / "whole", tmp_path / "run"
    options = {"method": "fixmatch", "devices": 2, "steps": 400, "keep": 2}
    options |= {"steps_per_call": 20, "log_every": 20, "eval_every": 100, "save_every": 20}
    command = words(data, folder, **options)
    programs = start(2, 1, command)
    checkpoints = folder / "checkpoints"
    while not (checkpoints.is_dir() and any(path.name.isdigit() for path in checkpoints.iterdir())):
        assert all(program.poll() is None for program in programs), programs[0].communicate()
        time.sleep(0.05)
    programs[1].kill()
    started = time.monotonic()
    programs[1].communicate()
    programs[0].communicate(timeout=240)  # does not wait for ever
    print("the other ended after", time.monotonic() - started, "s with", programs[0].returncode)
    assert programs[0].returncode != 0
    finish(start(2, 1, command))
    finish(start(2, 1, words(data, whole, **options)))
    assert_close(state_of(folder), state_of(whole), 1e-4)
    assert [line["step"] for line in read(folder)] == [line["step"] for line in read(whole)]


# What a process does that cannot read the files of some checkpoints, as of a network file system
# that this host sees late.
BLIND = """
import pathlib
opened = pathlib.Path.open
def fail(self, *arguments, **options):
    if any(f"checkpoints/{{step}}/" in str(self) for step in {steps}):
        raise PermissionError(13, "Permission denied", str(self))
    return opened(self, *arguments, **options)
pathlib.Path.open = fail
"""


@pytest.fixture
def interrupted(data, tmp_path):
    """A complete run of two processes without its summary."""
    finish(start(2, 1, words(data, tmp_path / "run", method="fixmatch", devices=2)))
    (tmp_path / "run" / "summary.json").unlink()
    return tmp_path / "run"


def test_a_checkpoint_that_one_process_cannot_read_all_pass_over(interrupted, data):
    before = state_of(interrupted)
    programs = start(
        2,
        1,
        words(data, interrupted, method="fixmatch", devices=2),
        before=("", BLIND.format(steps=[20, 15])),
    )
    (_, said), _ = finish(programs)
    assert "checkpoints/20 is damaged (process 1 cannot read it" in said
    assert "continuing from the checkpoint of step 10" in said
    assert_bitwise(state_of(interrupted), before)


# What process 0 does whose disk is full once the first line is written.
FULL = """
from jaxmatch.errors import DiskError
from jaxmatch.{module} import {kind}
write = {kind}.{name}
def fail(self, *arguments):
    if any(number >= 10 for number in arguments if isinstance(number, int)):
        raise DiskError("no space is left.")
    return write(self, *arguments)
{kind}.{name} = fail
"""


@pytest.mark.parametrize(
    ("module", "kind", "name"),
    [
        ("record.metrics", "MetricsLog", "write"),
        ("record.progress", "Progress", "update"),
        ("training.interval", "Interval", "save"),
    ],
)
def test_a_full_disk_of_the_leader_ends_every_process(module, kind, name, data, tmp_path):
    hook = FULL.format(module=module, kind=kind, name=name)
    command = words(data, tmp_path / "run", method="fixmatch", devices=2)
    (_, first), (_, second) = finish(start(2, 1, command, before=(hook, "")), code=4)
    assert "no space is left." in first
    assert "process 0 could not go on; its message tells why" in second


@pytest.mark.parametrize("blind", [0, 1])
def test_checkpoints_that_one_process_cannot_read_at_all_end_every_process(
    blind, interrupted, data
):
    hooks = ["", ""]
    hooks[blind] = BLIND.format(steps=[5, 10, 15, 20])
    programs = start(
        2, 1, words(data, interrupted, method="fixmatch", devices=2), before=tuple(hooks)
    )
    for _, said in finish(programs, code=2):
        assert "No intact checkpoint" in said
    assert not (interrupted / "summary.json").exists()


def test_a_damaged_summary_ends_every_process(interrupted, data):
    (interrupted / "summary.json").write_text("{")
    for _, said in finish(start(2, 1, words(data, interrupted, method="fixmatch")), code=2):
        assert "summary.json is damaged" in said


def test_what_process_0_sees_decides_whether_a_run_is_complete(data, tmp_path):
    """The summary, and the checkpoints that make init_from needless, one host sees late."""
    source, folder = tmp_path / "source", tmp_path / "run"
    finish(start(2, 1, words(data, source, method="fixmatch", devices=2)))
    command = [*words(data, folder, method="fixmatch", devices=2), f"--config.init_from={source}"]
    finish(start(2, 1, command))
    before = state_of(folder)
    blind = """
import pathlib
exists, is_dir, iterdir, read = (
    getattr(pathlib.Path, name) for name in ("exists", "is_dir", "iterdir", "read_bytes")
)
def late(path):
    return str(path).endswith(("run/checkpoints", "run/summary.json"))
def read_late(self):
    if late(self):
        raise FileNotFoundError(2, "No such file or directory", str(self))
    return read(self)
pathlib.Path.exists = lambda self, **options: not late(self) and exists(self, **options)
pathlib.Path.is_dir = lambda self, **options: not late(self) and is_dir(self, **options)
pathlib.Path.iterdir = lambda self: iter(()) if late(self) else iterdir(self)
pathlib.Path.read_bytes = read_late
"""
    for _ in range(2):
        (out, _), _ = finish(start(2, 1, [*command, "--json"], before=("", blind)))
        assert json.loads(out)["steps"] == 20
        assert_bitwise(state_of(folder), before)
        (folder / "summary.json").unlink()
