"""What a run gathers between two lines of its log: sums of metrics, and its time by kind."""

import time
from pathlib import Path
from typing import Any

from jaxmatch.runtime.dispatch import means
from jaxmatch.runtime.json_files import read_object, write_json


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
            sums: (total, count) of each metric, as :func:`saved_sums` returns them.
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

    def save(self, file: Path, step: int) -> None:
        """Write the sums to ``file``, if there are any."""
        if self._sums:
            write_json(file, {"step": step, "sums": self._sums})

    def _lap(self) -> float:
        now, before = time.monotonic(), self._since
        self._since = now
        return now - before


def saved_sums(file: Path, step: int) -> dict[str, list[float]]:
    """The sums that :meth:`Interval.save` wrote to ``file`` at ``step``; none after another step.

    A run that was stopped between two lines goes on with them, so that its next line has the means
    that it would have had.
    """
    saved = read_object(file) if step else None
    return saved.get("sums", {}) if saved is not None and saved.get("step") == step else {}
