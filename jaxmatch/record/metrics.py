"""The metrics of a run: ``metrics.jsonl``, TensorBoard events and the summary of evaluations.

Each line of ``metrics.jsonl`` is an object whose first key is "step". tensorboardX
(https://github.com/lanpa/tensorboardX), which needs no TensorFlow, writes the events.
"""

import hashlib
import json
import logging
import math
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

from jaxmatch.errors import DiskError, InputError
from jaxmatch.record.folder import RunFolder
from jaxmatch.runtime import paths
from jaxmatch.runtime.json_files import disk_error
from jaxmatch.runtime.paths import Growing, read_whole, reason, write_whole

_log = logging.getLogger(__name__)

WINDOW = 20  # the published tables take mean and median over the last 20 evaluations
PARTS, NETWORKS = ("test", "validation"), ("teacher", "student")
TEST_IMAGES = "test/images"  # how many an evaluation had, in lines of those that had a part
MOST_CONFUSED = 100  # with more classes summary.json has no confusion matrix


class MetricsLog:
    """Appends to the metrics of the run in ``workdir``; a context manager."""

    def __init__(
        self, workdir: str | Path, *, resume_step: int, expected: int = 0, wandb: Any = None
    ):
        """Cut the files to the lines up to ``resume_step`` and open them for appending.

        If lines are damaged, it logs a warning, drops them and keeps a copy of the file.

        Args:
            workdir: the run folder.
            resume_step: the last step to keep; 0 starts new files.
            expected: the step of the last line that must be there; a warning tells if it is not.
            wandb: as :func:`open_wandb` returns it; it gets the same values and is closed at the
                end.

        Raises:
            DiskError: if the folder cannot be written.
        """
        folder = paths.path(workdir)
        self._path = RunFolder(folder).metrics
        self._wandb = wandb
        try:
            self._cut(resume_step, expected)
            self._file = Growing(self._path)
            self._local_events = Growing(
                RunFolder(folder).events / f"events.out.tfevents.{time.time_ns()}"
            )
            self._events = RecordWriter(str(self._local_events.local))
            self._event(file_version="brain.Event:2")
            if resume_step:
                # TensorBoard drops what an interrupted run logged after its last checkpoint.
                start = SessionLog(status=SessionLog.START)
                self._event(step=resume_step + 1, session_log=start)
        except OSError as error:
            raise disk_error(self._path, error) from error

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Append the metrics of ``step``, without NaN and infinite values.

        Raises:
            DiskError: if they cannot be written.
        """
        finite = {name: float(value) for name, value in values.items() if math.isfinite(value)}
        line = json.dumps({"step": int(step), **finite}) + "\n"
        try:
            self._file.write(line.encode())
            for name, value in finite.items():
                self._event(step=int(step), summary=scalar(name, value))
            self._events.flush()
            self._local_events.written()
        except OSError as error:
            raise disk_error(self._path, error) from error
        if self._wandb is not None:
            self._wandb.log(finite, step=int(step))

    def flush(self) -> None:
        """Write all lines to the folder; call it before a checkpoint, which relies on them.

        Raises:
            DiskError: if they cannot be written.
        """
        try:
            self._file.flush()
            self._local_events.flush()
        except OSError as error:
            raise disk_error(self._path, error) from error

    def lines(self) -> list[dict[str, Any]]:
        """All metrics of the run so far, as :func:`read` returns them."""
        return [values for _, values in _lines(self._file.local.read_bytes())[0]]

    def close(self) -> None:
        """Close the files.

        Raises:
            DiskError: if the last lines cannot be written.
        """
        try:
            with self._file, self._local_events, closing(self._events):
                if self._wandb is not None:
                    self._wandb.finish()
        except OSError as error:
            raise disk_error(self._path, error) from error

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close; a full disk does not hide an earlier error."""
        try:
            self.close()
        except DiskError:
            if error is None:
                raise

    def _cut(self, resume_step: int, expected: int) -> None:
        if not self._path.exists():
            content, found, bad = b"", [], 0
        else:
            content = read_whole(self._path)
            found, bad = _lines(content)
        kept = [(text, values["step"]) for text, values in found if values["step"] <= resume_step]
        if resume_step and bad:
            copy = self._path.with_name(f"{self._path.name}.damaged-{time.time_ns()}")
            write_whole(copy, content)
            _log.warning(
                "%s had %d damaged lines, which are dropped; a copy of the old file is %s.",
                self._path,
                bad,
                copy.name,
            )
        if expected and (kept[-1][1] if kept else 0) < expected:
            last = f"those after step {kept[-1][1]}" if kept else "all"
            _log.warning(
                "%s lacks lines up to step %d (%s); they cannot be recovered.",
                self._path,
                expected,
                last,
            )
        if content:
            write_whole(self._path, b"".join(text for text, _ in kept))

    def _event(self, **fields: Any) -> None:
        self._events.write(Event(wall_time=time.time(), **fields).SerializeToString())


def open_wandb(project: str, workdir: Path, config: Mapping[str, Any]) -> Any:
    """The Weights & Biases run of a run folder, continued if it exists (https://wandb.ai).

    It has the folder's name, and its path in the id: stages of several runs have equal names.
    """
    import wandb  # pyright: ignore[reportMissingImports]

    place = hashlib.sha256(str(paths.absolute(workdir)).encode()).hexdigest()
    return wandb.init(
        project=project,
        name=workdir.name,
        id=f"{workdir.name}-{place[:8]}",
        dir=None if paths.in_bucket(workdir) else workdir,
        config=dict(config),
        resume="allow",
    )


def read(workdir: str | Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl; none if there is no file.

    An unfinished last line is dropped; so are damaged lines, with a warning.

    Raises:
        InputError: if the file cannot be read.
    """
    file = RunFolder(paths.path(workdir)).metrics
    try:
        found, bad = _lines(read_whole(file))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise InputError(f"{file} cannot be read ({reason(error)}).") from error
    if bad:
        _log.warning("%s has %d damaged lines, which are dropped.", file, bad)
    return [values for _, values in found]


def summarise(
    lines: Sequence[Mapping[str, Any]],
    *,
    algorithm: str,
    evaluated: str,
    steps: int,
    images_seen: Mapping[str, int],
    forward_images: int,
    seconds: float,
    metrics: Mapping[str, Mapping[str, Mapping[str, Any]]] | None = None,
    best: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The content of ``summary.json``; accuracies are fractions.

    ``validation`` exists if the run had a validation set, ``best`` if it kept a best checkpoint,
    with ``test_images`` if its test metrics are of that many images and not of all.

    Args:
        lines: of metrics.jsonl.
        algorithm: the name of the method.
        evaluated: "teacher" or "student", the network that the method reports.
        steps: of the run.
        images_seen: the labeled and unlabeled images drawn.
        forward_images: the images that passed through networks.
        seconds: of the run, over all restarts.
        metrics: all metrics of the last state: {set: {network: {metric: value}}}.
        best: the step, key and value of the checkpoint that ``keep_best`` chose.
    """
    found = {part: _networks(lines, part, (metrics or {}).get(part)) for part in PARTS}
    more: dict[str, Any] = {}
    if any(found["validation"].values()):
        more["validation"] = found["validation"]
    if best is not None:
        more["best"] = {**best, "test": at_step(lines, best["step"])}
        there = (line for line in lines if line["step"] == best["step"])
        if counts := [line[TEST_IMAGES] for line in there if TEST_IMAGES in line]:
            more["best"]["test_images"] = int(counts[-1])
    return {
        "algorithm": algorithm,
        "evaluated": evaluated,
        **found["test"],
        **more,
        "steps": steps,
        "images_seen": dict(images_seen),
        "forward_images": forward_images,
        "seconds": seconds,
    }


def _networks(
    lines: Sequence[Mapping[str, Any]], part: str, metrics: Mapping[str, Mapping[str, Any]] | None
) -> dict[str, dict[str, Any] | None]:
    """The accuracies and metrics of teacher and student on the set ``part``; None without any."""
    found: dict[str, dict[str, Any] | None] = {}
    for network in NETWORKS:
        values = accuracies(lines, f"{part}/{network}/accuracy")
        if values is not None and metrics is not None:
            values |= in_summary(metrics[network])
        found[network] = values
    return found


def for_summary(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Metrics without a confusion matrix that would make the file large."""
    small = len(metrics.get("confusion", ())) <= MOST_CONFUSED
    return {name: value for name, value in metrics.items() if small or name != "confusion"}


def in_summary(found: Mapping[str, Any]) -> dict[str, Any]:
    """Metrics of a network as the summary has them: ``intervals`` lie beside ``metrics``."""
    metrics, own = for_summary(found), {}
    if "intervals" in metrics:
        own["intervals"] = metrics.pop("intervals")
    return {"metrics": metrics, **own}


def at_step(lines: Sequence[Mapping[str, Any]], step: int) -> dict[str, dict[str, float]]:
    """The test metrics that a run recorded at ``step``: {network: {metric: value}}."""
    values = {key: value for line in lines if line["step"] == step for key, value in line.items()}
    found: dict[str, dict[str, float]] = {}
    for key, value in values.items():
        part, _, rest = key.partition("/")
        network, _, metric = rest.partition("/")
        if part == "test" and key != TEST_IMAGES:
            found.setdefault(network, {})[metric] = value
    return found


def accuracies(lines: Sequence[Mapping[str, Any]], key: str) -> dict[str, Any] | None:
    """Last, mean, median and best of the accuracy ``key``; None if no line has it.

    ``mean_20`` and ``median_20`` are taken over the last 20 evaluations, or all if there are fewer.
    ``best`` is the largest value; that of a test accuracy is selected on the test set.
    """
    values = [line[key] for line in lines if key in line]
    if not values:
        return None
    return {
        "last": values[-1],
        "mean_20": fmean(values[-WINDOW:]),
        "median_20": median(values[-WINDOW:]),
        "best": max(values),
        "best_is_test_selection": key.startswith("test/"),
        "evaluations": len(values),
    }


def _lines(content: bytes) -> tuple[list[tuple[bytes, dict[str, Any]]], int]:
    """(text, values) of each intact line of a metrics file, and the number of damaged lines.

    An unfinished last line does not count as damaged: a process was killed while it wrote.
    """
    *texts, _ = content.split(b"\n")
    found = [(text + b"\n", values) for text in texts if (values := _values(text)) is not None]
    return found, len(texts) - len(found)


def _values(text: bytes) -> dict[str, Any] | None:
    """The numbers of a line; None if it is damaged."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(values, dict) or type(values.get("step")) is not int:
        return None
    return values if all(type(value) in (int, float) for value in values.values()) else None
