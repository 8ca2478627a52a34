"""What a run gathers between two lines of its log: sums of metrics, and its time by kind."""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxmatch.runtime.dispatch import means
from jaxmatch.runtime.json_files import damaged, read_object, write_json


class Interval:
    """The metrics and the time since the last line.

    Attributes:
        step: the step of the last line.
        training: seconds of training.
        evaluation: seconds of evaluation.
    """

    def __init__(self, step: int, sums: dict[str, list[float]]):
        """Begin after a line.

        Args:
            step: of that line.
            sums: (total, count) of each metric, as :func:`read_kept` returns them.
        """
        self.step, self._sums = step, sums
        self.training = self.evaluation = 0.0
        self._since = time.monotonic()

    def add(self, sums: dict[str, tuple[Any, Any]]) -> None:
        """Add the (total, count) of each metric of a call."""
        for name, (total, count) in sums.items():
            have = self._sums.setdefault(name, [0.0, 0.0])
            have[0] += float(total)
            have[1] += float(count)

    def means(self) -> dict[str, float]:
        """The means of the metrics."""
        return means({name: (total, count) for name, (total, count) in self._sums.items()})

    def forget(self) -> None:
        """Begin new means."""
        self._sums.clear()

    def trained(self) -> None:
        """Count the time since the last ``trained``, ``evaluated`` or ``paused`` as training."""
        self.training += self._lap()

    def evaluated(self) -> None:
        """Count the time since the last of the three calls as evaluation."""
        self.evaluation += self._lap()

    def paused(self) -> None:
        """Count the time since the last of the three calls as neither."""
        self._lap()

    def begin(self, step: int) -> None:
        """A line of ``step`` was written: count the time anew."""
        self.step, self.training, self.evaluation = step, 0.0, 0.0

    @property
    def evaluation_share(self) -> float:
        """The share of the time that evaluations took."""
        return self.evaluation / max(self.training + self.evaluation, 1e-9)

    def speed(self, step: int, images: int) -> float:
        """Images a second of training alone.

        Args:
            step: the present one.
            images: of a step.
        """
        return (step - self.step) * images / max(self.training, 1e-9)

    def save(self, file: Path, step: int, seconds: float, keep: int) -> None:
        """Add what :func:`read_kept` returns to ``file``.

        The entries of the checkpoints before stay: the save of this step's may fail, or be damaged.

        Args:
            file: of the run.
            step: of the checkpoint that is saved.
            seconds: of the run so far.
            keep: the number of checkpoints that are kept.
        """
        entries = {key: entry for key, entry in _entries(file).items() if key < step}
        entries[step] = {"seconds": seconds, "sums": self._sums}
        newest = sorted(entries)[-keep - 1 :]
        write_json(file, {"steps": {str(key): entries[key] for key in newest}}, indent=None)

    def _lap(self) -> float:
        now, before = time.monotonic(), self._since
        self._since = now
        return now - before


@dataclass(frozen=True, kw_only=True)
class Kept:
    """What a checkpoint lacks for a run to go on as if it had not been stopped.

    Attributes:
        sums: (total, count) of each metric since the last line.
        seconds: of the run until then.
    """

    sums: dict[str, list[float]] = field(default_factory=dict)
    seconds: float = 0.0


def read_kept(file: Path, step: int) -> Kept:
    """What :meth:`Interval.save` wrote to ``file`` at ``step``; nothing at a step without an entry.

    Raises:
        InputError: if the file is damaged.
    """
    entry = _entries(file).get(step, {}) if step else {}
    try:
        sums = {
            str(name): [float(total), float(count)]
            for name, (total, count) in entry.get("sums", {}).items()
        }
        return Kept(sums=sums, seconds=float(entry.get("seconds", 0)))
    except (AttributeError, TypeError, ValueError) as error:
        raise damaged(file, f"its entry of step {step} is no such one") from error


def _entries(file: Path) -> dict[int, Any]:
    """The entries by step; a file of an older version has none."""
    steps = (read_object(file) or {}).get("steps", {})
    if not isinstance(steps, dict):
        raise damaged(file, "its steps are no group")
    return {int(step): entry for step, entry in steps.items() if step.isdecimal()}
