"""The record of a run: ``metrics.jsonl``, TensorBoard events and the summary of its evaluations.

Each line of ``metrics.jsonl`` is one object, "step" first; TensorBoard files are written through
tensorboardX (https://github.com/lanpa/tensorboardX), which needs no TensorFlow.
"""

import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from statistics import fmean, median
from types import TracebackType
from typing import Any, Self

from tensorboardX import RecordWriter
from tensorboardX.proto.event_pb2 import (
    Event,  # pyright: ignore[reportAttributeAccessIssue]
    SessionLog,  # pyright: ignore[reportAttributeAccessIssue]
)
from tensorboardX.summary import scalar

from jaxmatch.errors import DiskError

FILE = "metrics.jsonl"
WINDOW = 20  # evaluations that the published tables' mean and median are taken over


class MetricsLog:
    """Appends to the record of a run in ``workdir``; a context manager."""

    def __init__(self, workdir: str | Path, *, resume_step: int, wandb: Any = None):
        """Cut the record to ``step <= resume_step`` (0 = start anew) and open it for appending.

        ``wandb``, as :func:`open_wandb` returns it, is given the same values and closed in the end.
        DiskError where the folder cannot be written.
        """
        self._path = Path(workdir) / FILE
        self._wandb = wandb
        try:
            events = self._path.parent / "events"
            events.mkdir(parents=True, exist_ok=True)
            if self._path.exists():
                kept = [text for step, text in _texts(self._path) if step <= resume_step]
                _replace(self._path, b"".join(kept))
            self._file = self._path.open("ab")
            self._events = RecordWriter(str(events / f"events.out.tfevents.{time.time_ns()}"))
            self._event(file_version="brain.Event:2")
            if resume_step:
                # Tells TensorBoard to drop what an interrupted run had logged after its checkpoint.
                start = SessionLog(status=SessionLog.START)
                self._event(step=resume_step + 1, session_log=start)
        except OSError as error:
            raise _disk_error(self._path, error) from error

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Append the metrics of ``step``; NaN and infinite values are left out.

        DiskError where they cannot be written.
        """
        finite = {name: float(value) for name, value in values.items() if math.isfinite(value)}
        line = json.dumps({"step": int(step), **finite}) + "\n"
        try:
            self._file.write(line.encode())
            self._file.flush()
            for name, value in finite.items():
                self._event(step=int(step), summary=scalar(name, value))
            self._events.flush()
        except OSError as error:
            raise _disk_error(self._path, error) from error
        if self._wandb is not None:
            self._wandb.log(finite, step=int(step))

    def lines(self) -> list[dict[str, Any]]:
        """All metrics of the run so far, as :func:`read`."""
        return read(self._path.parent)

    def close(self) -> None:
        """Close the files; DiskError where the last of it cannot be written."""
        try:
            with closing(self._events), closing(self._file):
                if self._wandb is not None:
                    self._wandb.finish()
        except OSError as error:
            raise _disk_error(self._path, error) from error

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close; a full disk does not hide an error that is already on its way."""
        try:
            self.close()
        except DiskError:
            if error is None:
                raise

    def _event(self, **fields: Any) -> None:
        self._events.write(Event(wall_time=time.time(), **fields).SerializeToString())


def open_wandb(project: str, workdir: Path, config: Mapping[str, Any]) -> Any:
    """The Weights & Biases run of a run folder, continued if it exists (https://wandb.ai)."""
    import wandb  # pyright: ignore[reportMissingImports]

    return wandb.init(
        project=project, id=workdir.name, dir=workdir, config=dict(config), resume="allow"
    )


def read(workdir: str | Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl; unfinished ones are left out, no file gives none."""
    path = Path(workdir) / FILE
    return [json.loads(text) for _, text in _texts(path)] if path.exists() else []


def summarise(
    lines: Sequence[Mapping[str, Any]],
    *,
    algorithm: str,
    evaluated: str,
    steps: int,
    images_seen: Mapping[str, int],
    forward_images: int,
    seconds: float,
) -> dict[str, Any]:
    """What summary.json says of a run with these metrics lines.

    ``evaluated`` ("teacher" or "student") is the network that the method reports, ``images_seen``
    counts the labeled and unlabeled images drawn, ``forward_images`` those through the network.
    Accuracies are fractions; ``mean_20`` and ``median_20`` are over the last 20 evaluations or
    those present; ``best`` is selected on the test set. A network never evaluated has None.
    """
    return {
        "algorithm": algorithm,
        "evaluated": evaluated,
        "teacher": accuracies(lines, "test/teacher/accuracy"),
        "student": accuracies(lines, "test/student/accuracy"),
        "steps": steps,
        "images_seen": dict(images_seen),
        "forward_images": forward_images,
        "seconds": seconds,
    }


def accuracies(lines: Sequence[Mapping[str, Any]], key: str) -> dict[str, Any] | None:
    """The last, mean, median and best of the accuracy ``key``; None where no line has it."""
    values = [line[key] for line in lines if key in line]
    if not values:
        return None
    return {
        "last": values[-1],
        "mean_20": fmean(values[-WINDOW:]),
        "median_20": median(values[-WINDOW:]),
        "best": max(values),
        "best_is_test_selection": True,
        "evaluations": len(values),
    }


def write_json(path: str | Path, value: Any, indent: int | None = 2) -> None:
    """Write a JSON file whole or not at all; DiskError where it cannot be written."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _replace(path, (json.dumps(value, indent=indent) + "\n").encode())
    except OSError as error:
        raise _disk_error(path, error) from error


def _texts(path: Path) -> list[tuple[int, bytes]]:
    """(step, line) of every complete line of a metrics file."""
    texts = []
    for text in path.read_bytes().splitlines(keepends=True):
        try:
            if text.endswith(b"\n"):
                texts.append((int(json.loads(text)["step"]), text))
        except (ValueError, KeyError, TypeError):
            continue
    return texts


def _replace(path: Path, content: bytes) -> None:
    """Replace a file in one move, so that a reader or a kill never meets half of it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def _disk_error(path: Path, error: OSError) -> DiskError:
    return DiskError(
        f"{path} could not be written ({error.strerror or error}): make room or check "
        "the folder's permissions, then run the same command again."
    )
