"""The record of a run: what is written, what a resume cuts, and the summary."""

import json
import math
import os
import resource
import signal
import struct
import subprocess
import sys
from pathlib import Path
from statistics import fmean, median
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, strategies
from tensorboardX.proto.event_pb2 import Event, SessionLog

from jaxmatch.errors import DiskError
from jaxmatch.record.metrics import MetricsLog, open_wandb, read, summarise
from jaxmatch.runtime.json_files import write_json


def write_steps(workdir, first, last, resume_step=0):
    with MetricsLog(workdir, resume_step=resume_step) as record:
        for step in range(first, last + 1):
            record.write(step, {"loss/total": 1 / step, "test/teacher/accuracy": step / 100})


def events(workdir):
    """All TensorBoard events, read as TFRecords: length, its checksum, data, its checksum."""
    found = []
    for path in sorted((workdir / "events").iterdir()):
        content = path.read_bytes()
        while content:
            (length,) = struct.unpack("<Q", content[:8])
            found.append(Event.FromString(content[12 : 12 + length]))
            content = content[16 + length :]
    return found


def test_lines_are_strict_json_with_the_step_first(tmp_path):
    values = {
        "loss/total": np.float32(0.5),
        "pseudo/coverage": jnp.float32(0.25),
        "pseudo/accuracy": math.nan,
        "loss/huge": math.inf,
        "count": 3,
    }
    with MetricsLog(tmp_path / "run", resume_step=0) as record:
        record.write(75, values)
        text = (tmp_path / "run" / "metrics.jsonl").read_text()
        assert record.lines() == read(tmp_path / "run")
    assert text == '{"step": 75, "loss/total": 0.5, "pseudo/coverage": 0.25, "count": 3.0}\n'
    assert read(tmp_path / "nothing") == []


@given(strategies.floats(allow_nan=False, allow_infinity=False))
def test_values_survive_to_the_last_bit(tmp_path_factory, value):
    workdir = tmp_path_factory.mktemp("run")
    with MetricsLog(workdir, resume_step=0) as record:
        record.write(1, {"x": value})
        assert struct.pack("d", record.lines()[0]["x"]) == struct.pack("d", value)


def test_resume_cuts_to_the_restored_step(tmp_path):
    write_steps(tmp_path, 1, 6)
    whole = (tmp_path / "metrics.jsonl").read_bytes()
    write_steps(tmp_path, 5, 6, resume_step=4)
    assert (tmp_path / "metrics.jsonl").read_bytes() == whole
    write_steps(tmp_path, 1, 2, resume_step=0)
    assert [line["step"] for line in read(tmp_path)] == [1, 2]


@pytest.mark.parametrize(
    "half", [b'{"step": 4, "loss', b'{"step": 4}', b"\x00\x00", b'{"st": 4}\n', b"4\n"]
)
def test_a_half_written_last_line_is_dropped(tmp_path, half):
    write_steps(tmp_path, 1, 3)
    whole = (tmp_path / "metrics.jsonl").read_bytes()
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(half)
    assert [line["step"] for line in read(tmp_path)] == [1, 2, 3]
    MetricsLog(tmp_path, resume_step=9).close()
    assert (tmp_path / "metrics.jsonl").read_bytes() == whole


@pytest.mark.slow  # training/test_resume.py kills a run and compares its lines
def test_a_killed_process_loses_no_line(tmp_path):
    root = str(Path(__file__).resolve().parents[2])
    code = (
        f"import os, signal, sys; sys.path.insert(0, {root!r})\n"
        "from jaxmatch.record.metrics import MetricsLog\n"
        f"record = MetricsLog({str(tmp_path)!r}, resume_step=0)\n"
        "for step in (1, 2, 3): record.write(step, {'x': step})\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", code], env=environment)
    assert done.returncode == -signal.SIGKILL
    assert read(tmp_path) == [{"step": step, "x": step} for step in (1, 2, 3)]
    assert len(events(tmp_path)) == 4


def test_tensorboard_events(tmp_path):
    write_steps(tmp_path, 1, 2)
    version, *scalars = events(tmp_path)
    assert version.file_version == "brain.Event:2"
    assert [
        (event.step, event.summary.value[0].tag, event.summary.value[0].simple_value)
        for event in scalars
    ] == [
        (1, "loss/total", 1.0),
        (1, "test/teacher/accuracy", np.float32(0.01)),
        (2, "loss/total", 0.5),
        (2, "test/teacher/accuracy", np.float32(0.02)),
    ]


def test_a_resume_at_once_keeps_the_earlier_events_and_marks_the_restart(tmp_path):
    write_steps(tmp_path, 1, 2)
    write_steps(tmp_path, 2, 2, resume_step=1)
    assert len(list((tmp_path / "events").iterdir())) == 2
    (restart,) = [event for event in events(tmp_path) if event.HasField("session_log")]
    assert (restart.step, restart.session_log.status) == (2, SessionLog.START)


def facts():
    return {
        "algorithm": "fixmatch",
        "evaluated": "teacher",
        "steps": 1500,
        "images_seen": {"labeled": 12_000, "unlabeled": 84_000},
        "forward_images": 180_000,
        "seconds": 12.5,
    }


def test_summary_of_many_evaluations():
    accuracies = [0.99, *(0.5 + 0.01 * (7 * index % 25) for index in range(25))]
    lines = [{"step": 1, "loss/total": 2.0}]
    lines += [{"step": 2, "test/teacher/accuracy": value} for value in accuracies]
    lines += [{"step": 3, "test/student/accuracy": 0.25}]
    summary = summarise(lines, **facts())
    assert summary == {
        **facts(),
        "teacher": {
            "last": accuracies[-1],
            "mean_20": fmean(accuracies[-20:]),
            "median_20": median(accuracies[-20:]),
            "best": 0.99,
            "best_is_test_selection": True,
            "evaluations": 26,
        },
        "student": {
            "last": 0.25,
            "mean_20": 0.25,
            "median_20": 0.25,
            "best": 0.25,
            "best_is_test_selection": True,
            "evaluations": 1,
        },
    }


def test_summary_of_a_run_with_a_validation_set_and_a_best_checkpoint():
    lines = [
        {
            "step": step,
            "test/teacher/accuracy": accuracy,
            "test/teacher/balanced_accuracy": accuracy - 0.1,
            "test/student/accuracy": 0.5,
            "validation/teacher/accuracy": accuracy + 0.05,
        }
        for step, accuracy in ((5, 0.7), (10, 0.8), (15, 0.75))
    ]
    full = {"accuracy": 0.75, "macro_f1": 0.7, "confusion": [[1, 0], [0, 1]]}
    large = {"accuracy": 0.5, "confusion": [[0]] * 101}
    metrics = {
        "test": {"teacher": full, "student": large},
        "validation": {"teacher": full, "student": full},
    }
    best = {"step": 10, "key": "validation/teacher/accuracy", "value": 0.85}
    summary = summarise(lines, **facts(), metrics=metrics, best=best)
    assert summary["teacher"]["metrics"] == full
    assert summary["student"]["metrics"] == {"accuracy": 0.5}  # a matrix of many classes is large
    validation = summary["validation"]["teacher"]
    assert (validation["last"], validation["best"]) == (0.8, pytest.approx(0.85))
    assert validation["best_is_test_selection"] is False
    assert validation["metrics"] == full
    assert summary["validation"]["student"] is None
    test = {"teacher": {"accuracy": 0.8, "balanced_accuracy": pytest.approx(0.7)}}
    assert summary["best"] == {**best, "test": test | {"student": {"accuracy": 0.5}}}


def test_the_best_checkpoint_tells_of_how_many_test_images_its_metrics_are():
    lines = [
        {"step": 2, "test/teacher/accuracy": 0.5, "test/images": 8.0},
        {"step": 4, "test/teacher/accuracy": 0.4},  # the end of the run, which then became longer
        {"step": 6, "test/teacher/accuracy": 0.3, "test/images": 8.0},
    ]
    found = {}
    for step in (2, 4, 6):
        best = {"step": step, "key": "validation/accuracy", "value": 1.0}
        found[step] = summarise(lines, **facts(), best=best)["best"]
    assert [best.get("test_images") for best in found.values()] == [8, None, 8]
    assert found[6]["test"] == {"teacher": {"accuracy": 0.3}}


def test_summary_of_a_label_free_run():
    summary = summarise([{"step": 1, "loss/total": 2.0}], **facts())
    assert summary["teacher"] is None
    assert summary["student"] is None


def test_write_json_replaces_whole_files(tmp_path):
    path = tmp_path / "deep" / "config.json"
    write_json(path, {"a": [1, None]})
    write_json(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 2}
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 2}
    assert list(path.parent.iterdir()) == [path]


def test_disk_errors(tmp_path, monkeypatch):
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(DiskError, match=r"config\.json could not be written"):
        write_json(file / "config.json", {})
    with pytest.raises(DiskError, match=r"metrics\.jsonl could not be written"):
        MetricsLog(file / "run", resume_step=0)
    file.unlink()
    monkeypatch.setattr(Path, "write_bytes", lambda *_: os.write(os.open("/dev/full", 1), b"x"))
    with pytest.raises(DiskError, match=r"config\.json could not be written \(No space left"):
        write_json(tmp_path / "config.json", {})
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def full_disk():
    """A limit on the size of files, which refuses further bytes as a full disk does."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk_while_training(tmp_path, full_disk):
    def fill():
        with MetricsLog(tmp_path, resume_step=0) as record:
            for step in range(1, 100):
                record.write(step, {"loss/total": 1 / step})

    full_disk(1000)
    with pytest.raises(DiskError, match=r"metrics\.jsonl could not be written \(File too large"):
        fill()
    steps = [line["step"] for line in read(tmp_path)]
    assert steps == list(range(1, len(steps) + 1))
    assert 5 < len(steps) < 99


def test_close_reports_what_could_not_be_written(tmp_path, full_disk):
    record = MetricsLog(tmp_path, resume_step=0)
    full_disk(5)
    with pytest.raises(DiskError):
        record.write(1, {"x": 1.0})
    with pytest.raises(DiskError):
        record.close()


def test_wandb_is_given_the_same_finite_values_and_closed(tmp_path, monkeypatch):
    logged, finished = [], []
    run = SimpleNamespace(
        log=lambda values, step: logged.append((step, values)), finish=lambda: finished.append(1)
    )
    chosen = []
    monkeypatch.setitem(
        sys.modules, "wandb", SimpleNamespace(init=lambda **given: chosen.append(given) or run)
    )
    for folder in ("a/1_simclr", "b/1_simclr", "b/../a/1_simclr"):
        wandb = open_wandb("project", tmp_path / folder, {"seed": 0})
    assert {each["name"] for each in chosen} == {"1_simclr"}
    assert chosen[0]["id"] == chosen[2]["id"] != chosen[1]["id"]
    with MetricsLog(tmp_path, resume_step=0, wandb=wandb) as record:
        record.write(5, {"loss/total": 1.5, "pseudo/accuracy": math.nan})
    assert logged == [(5, {"loss/total": 1.5})]
    assert finished == [1]
