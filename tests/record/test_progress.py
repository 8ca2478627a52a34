"""What a person sees of a run, on a terminal and elsewhere, and what log.txt keeps."""

import contextlib
import logging
import os
import pty
import re
import select
import sys
import termios
from pathlib import Path

import pytest

from jaxmatch.errors import DiskError
from jaxmatch.record.progress import Progress, describe

METRICS = {
    "loss/total": 1.23456,
    "loss/supervised": 0.5,
    "loss/unsupervised": 0.73456,
    "pseudo/coverage": 0.85,
    "pseudo/accuracy": 0.9712,
    "optim/learning_rate": 0.03,
    "test/teacher/accuracy": 0.942,
    "test/student/accuracy": 0.9,
}
TEXT = (
    "loss 1.235 (supervised 0.5, unsupervised 0.7346), coverage 85.0%, "
    "pseudo-label accuracy 97.1%, teacher accuracy 94.2%"
)


def log_of(workdir):
    stamp = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ")
    lines = (workdir / "log.txt").read_text().splitlines()
    assert all(stamp.match(line) for line in lines)
    return [stamp.sub("", line) for line in lines]


def test_describe_names_what_is_present():
    assert describe(METRICS) == TEXT
    assert describe({}) == ""
    assert describe({"loss/total": 2.0}) == "loss 2"
    assert describe({"loss/supervised": 2.0}) == "supervised 2"
    assert describe({"pseudo/coverage": 1.0, "time/seconds": 4.0}) == (
        "coverage 100.0%, pseudo-label accuracy unknown"
    )
    assert describe({"test/teacher/accuracy": 0.5}) == "teacher accuracy 50.0%"


def test_plain_lines_without_a_terminal(tmp_path, capsys):
    with Progress(1500, 75, tmp_path / "run", "fixmatch") as progress:
        progress.update(150, METRICS, 1234.56)
        progress.update(225, {}, 1000)
        progress.message("[bold]a note")
    out, err = capsys.readouterr()
    assert out == ""
    first, second, note = err.splitlines()
    assert re.fullmatch(
        r"step 150/1500, 1,235 images/s, \d+:\d\d:\d\d left: " + re.escape(TEXT), first
    )
    assert re.fullmatch(r"step 225/1500, 1,000 images/s, \d+:\d\d:\d\d left", second)
    assert note == "[bold]a note"
    assert log_of(tmp_path / "run") == [first, second, note]


def test_a_resumed_run_appends_to_the_log(tmp_path):
    for step in (1, 2):
        with Progress(2, step - 1, tmp_path, "fixmatch") as progress:
            progress.message(f"run {step}")
    assert log_of(tmp_path) == ["run 1", "run 2"]


def test_time_left_leaves_out_compilation(tmp_path, capsys, monkeypatch):
    clock = iter([0.0, 100.0, 110.0, 120.0])  # entered, compiled, then a step a second
    monkeypatch.setattr("jaxmatch.record.progress.time.monotonic", lambda: next(clock))
    with Progress(100, 0, tmp_path, "fixmatch") as progress:
        for step in (10, 20, 30):
            progress.update(step, {}, 1)
    lines = capsys.readouterr().err.splitlines()
    assert [re.search(r"[\d:]+ left", line)[0] for line in lines] == [
        "0:15:00 left",
        "0:01:20 left",
        "0:01:10 left",
    ]


def test_warnings_of_any_logger_are_shown_and_logged(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # pytest has set some
    with Progress(10, 0, tmp_path, "fixmatch"):
        logging.getLogger("jaxmatch.runtime.checkpoint").warning("the checkpoint %s is damaged", 5)
        logging.getLogger("jaxmatch").info("not for people")
    assert capsys.readouterr().err == "warning: the checkpoint 5 is damaged\n"
    assert log_of(tmp_path) == ["warning: the checkpoint 5 is damaged"]
    assert logging.getLogger().handlers == []


def test_warnings_are_not_shown_twice(tmp_path, capsys, caplog):
    with Progress(10, 0, tmp_path, "fixmatch"):
        logging.getLogger("jaxmatch").warning("once")
    assert capsys.readouterr().err == ""
    assert caplog.messages == ["once"]
    assert log_of(tmp_path) == ["warning: once"]


@contextlib.contextmanager
def terminal(monkeypatch):
    """A pseudo-terminal as stderr; gives a function that reads what was written to it."""
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (40, 100))
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    with os.fdopen(slave, "w") as stream:
        monkeypatch.setattr(sys, "stderr", stream)

        def read():
            stream.flush()
            content = b""
            while select.select([master], [], [], 0.1)[0]:  # it comes in pieces
                content += os.read(master, 4096)
            return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", content.decode())

        yield read
    os.close(master)


def test_a_live_display_on_a_terminal(tmp_path, monkeypatch, caplog):
    with (
        terminal(monkeypatch) as read,
        Progress(1500, 0, tmp_path, "[fixmatch] mnist5k") as progress,
    ):
        assert "compiling the first step" in read()
        progress.update(150, METRICS, 1234.56)
        shown = read()
        progress.update(225, {"loss/total": 0.5}, 1234.56)
        assert "step 225/1500" in (kept := read())
        progress.message("a note that\nhas two lines")
        logging.getLogger("jaxmatch").warning("a warning")
        print("somebody's line", file=sys.stderr)
        messages = read()
    for part in ("[fixmatch] mnist5k\r", "step 150/1500", "1,235 images/s", "left"):
        assert part in shown
    assert "teacher accuracy 94.2%" in " ".join(shown.split())
    assert "loss 0.5 (supervised 0.5" in kept
    assert "teacher accuracy 94.2%" in " ".join(kept.split())
    for part in ("a note that", "has two lines", "warning: a warning", "somebody's line"):
        assert part in messages
    assert "warning: a warning" in (tmp_path / "log.txt").read_text()
    assert caplog.messages == []
    assert logging.getLogger().handlers


def test_disk_errors(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(DiskError, match=r"log\.txt could not be written \(File exists"),
        Progress(10, 0, tmp_path / "file", "fixmatch"),
    ):
        pass
    (tmp_path / "log.txt").symlink_to("/dev/full")

    def fail():
        with Progress(10, 0, tmp_path, "fixmatch") as progress:
            progress.update(1, {}, 1)

    before = list(logging.getLogger().handlers)
    with pytest.raises(DiskError, match=r"log\.txt could not be written \(No space left"):
        fail()
    assert logging.getLogger().handlers == before


def test_a_warning_that_cannot_be_logged_stops_nothing(tmp_path, capsys):
    (tmp_path / "log.txt").symlink_to("/dev/full")
    progress = Progress(10, 0, tmp_path, "fixmatch")
    with pytest.raises(DiskError), progress:
        logging.getLogger("jaxmatch").warning("lost")


def test_nothing_happens_before_the_context_is_entered(tmp_path):
    Progress(10, 0, tmp_path / "run", "fixmatch")
    assert not Path(tmp_path / "run").exists()
