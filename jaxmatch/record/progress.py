"""The progress of a run for people: a live display on a terminal, plain lines elsewhere, log.txt.

rich (https://rich.readthedocs.io) draws the display.
"""

import contextlib
import logging
import time
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich import progress as bars
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from jaxmatch.errors import DiskError, JaxmatchError
from jaxmatch.record.folder import RunFolder
from jaxmatch.runtime import paths
from jaxmatch.runtime.json_files import disk_error

_SHARES = {
    "pseudo/coverage": "coverage",
    "pseudo/accuracy": "pseudo-label accuracy",
    "contrastive/accuracy": "positives found",
    "test/teacher/accuracy": "teacher accuracy",
    "validation/teacher/accuracy": "validation accuracy",
    "probe/knn": "k-NN accuracy with all labels",
}


NOTED = 0.1  # a larger share of the time in evaluations is shown


class Progress:
    """Shows the progress of a run on stderr and writes it to ``workdir``/log.txt.

    It is a context manager. While it is open, the warnings of all loggers pass through it, so that
    they do not break the display and reach the log.
    """

    def __init__(
        self,
        total_steps: int,
        start_step: int,
        workdir: str | Path,
        title: str,
        alone: bool = True,
    ):
        """Store the settings; the start of the context opens the log and the display.

        Args:
            total_steps: of the run.
            start_step: the steps taken before.
            workdir: the run folder.
            title: the name of the run.
            alone: show a display. If several runs write to the terminal, plain lines are shown,
                which begin with ``title``.
        """
        self._total, self._start = total_steps, start_step
        self._path, self._title = RunFolder(paths.path(workdir)).log, title
        self._alone, self._prefix = alone, "" if alone else f"{title}: "
        self._latest: dict[str, float] = {}
        self._text = Text("compiling the first step")

    def __enter__(self) -> Self:
        """Open log.txt and the display.

        Raises:
            DiskError: if log.txt cannot be written.
        """
        self._console = Console(stderr=True, highlight=False)
        self._root = logging.getLogger()
        self._handlers = list(self._root.handlers)
        try:
            self._file = paths.Growing(self._path)
        except OSError as error:
            raise disk_error(self._path, error) from error
        self._mark = (time.monotonic(), self._start)
        self._seen = False
        self._bar = bars.Progress(
            bars.BarColumn(bar_width=None),
            bars.TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
            bars.TextColumn("{task.fields[speed]}"),
            console=self._console,
            expand=True,
        )
        self._task = self._bar.add_task("", total=self._total, completed=self._start, speed="")
        self._live = Live(get_renderable=self._render, console=self._console)
        self._terminal = self._console.is_terminal and self._alone
        self._handler = handler = _Messages(self, shown=self._terminal or not self._handlers)
        if self._terminal:
            # Other handlers would write to the terminal and break the display.
            self._root.handlers = [handler]
            self._live.start(refresh=True)
        else:
            self._root.addHandler(handler)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Leave the last display on the screen and restore the loggers' handlers.

        A sentence with which the run ends, such as that a loss is not finite, goes to the log.
        """
        if self._terminal:
            self._root.handlers = self._handlers
            self._live.stop()
        else:  # other runs remove their own handlers
            self._root.removeHandler(self._handler)
        if isinstance(error, JaxmatchError):
            with contextlib.suppress(DiskError):  # the first error counts
                self._write(str(error))
        try:
            self._file.close()
        except OSError as problem:
            if error is None:
                raise disk_error(self._path, problem) from problem

    def update(
        self,
        step: int,
        metrics: Mapping[str, float],
        images_per_second: float,
        evaluating: float = 0.0,
    ) -> None:
        """Show ``step`` and its metrics; a metric that is absent keeps its last value.

        Args:
            step: number of steps taken.
            metrics: by name; accuracies and coverage are fractions.
            images_per_second: of training alone.
            evaluating: the share of the time that evaluations took.

        Raises:
            DiskError: if log.txt cannot be written.
        """
        if "pseudo/coverage" in metrics:  # an accuracy of earlier pseudo-labels is out of date
            self._latest.pop("pseudo/accuracy", None)
        self._latest.update(metrics)
        speed = f"{images_per_second:,.0f} images/s, {self._time_left(step)} left"
        if evaluating > NOTED:
            speed += f", {evaluating:.0%} of the time in evaluations"
        self._text = Text(describe(self._latest))
        self._bar.update(self._task, completed=step, speed=speed)
        line = f"step {step}/{self._total}, {speed}: {describe(metrics)}".removesuffix(": ")
        self._write(line)
        if self._terminal:
            self._live.refresh()
        else:
            self._console.print(Text(self._prefix + line), soft_wrap=True)

    def tick(self, step: int) -> None:
        """Move the bar to ``step``."""
        self._bar.update(self._task, completed=step)

    def message(self, text: str) -> None:
        """Show a line of text above the display and write it to the log.

        Raises:
            DiskError: if log.txt cannot be written.
        """
        self._write(text)
        self._console.print(Text(self._prefix + text), soft_wrap=True)

    def note(self, text: str) -> None:
        """Write a line of text to the log only, since it was shown before.

        Raises:
            DiskError: if log.txt cannot be written.
        """
        self._write(text)

    def _time_left(self, step: int) -> timedelta:
        """An estimate from the speed since the first update, so without compilation."""
        now = time.monotonic()
        then, done = self._mark
        if not self._seen:
            self._seen, self._mark = True, (now, step)
        seconds = (now - then) / max(step - done, 1) * (self._total - step)
        return timedelta(seconds=round(seconds))

    def _render(self) -> RenderableType:
        return Group(Text(self._title, style="bold"), self._bar, self._text)

    def flush(self) -> None:
        """Write all of log.txt to the folder.

        Raises:
            DiskError: if it cannot be written.
        """
        try:
            self._file.flush()
        except OSError as error:
            raise disk_error(self._path, error) from error

    def _write(self, text: str) -> None:
        line = f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n"
        try:
            self._file.write(line.encode("utf-8", "backslashreplace"))
        except OSError as error:
            raise disk_error(self._path, error) from error


def describe(metrics: Mapping[str, float]) -> str:
    """The main metrics, as far as they are present, in one line of text.

    Where pseudo-labels are chosen and no true label is known, their accuracy is "unknown".
    """
    terms = {
        name.removeprefix("loss/"): value for name, value in metrics.items() if "loss/" in name
    }
    total = terms.pop("total", None)
    losses = ", ".join(f"{name} {value:.4g}" for name, value in terms.items())
    if total is not None:
        losses = f"loss {total:.4g}" + (f" ({losses})" if losses else "")
    shares = [
        f"{word} {metrics[key]:.1%}" if key in metrics else f"{word} unknown"
        for key, word in _SHARES.items()
        if key in metrics or (key == "pseudo/accuracy" and "pseudo/coverage" in metrics)
    ]
    return ", ".join(filter(None, [losses, *shares]))


class Silent:
    """Replaces :class:`MetricsLog` and :class:`Progress` in processes that write neither."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Do nothing."""

    def update(
        self,
        step: int,
        metrics: Mapping[str, float],
        images_per_second: float,
        evaluating: float = 0.0,
    ) -> None:
        """Do nothing."""

    def tick(self, step: int) -> None:
        """Do nothing."""

    def message(self, text: str) -> None:
        """Do nothing."""

    def note(self, text: str) -> None:
        """Do nothing."""

    def flush(self) -> None:
        """Do nothing."""

    def lines(self) -> list[dict[str, Any]]:
        """No lines: only the process that writes them reads them."""
        return []


SILENT = Silent()


class _Messages(logging.Handler):
    """Passes warnings on to the display and the log."""

    def __init__(self, progress: Progress, shown: bool):
        super().__init__(logging.WARNING)
        self._put = progress.message if shown else progress._write

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(DiskError):  # the next update raises it again and stops the run
            self._put(f"{record.levelname.lower()}: {record.getMessage()}")
