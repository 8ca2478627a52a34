"""Follows which checkpoint of a run is the best by ``config.keep_best``."""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxmatch.evaluation.selection import Selection
from jaxmatch.runtime import hosts
from jaxmatch.runtime.checkpoint import Best, Checkpoints


class BestCheckpoint:
    """The best checkpoint of a run so far.

    Process 0 decides for all processes, since only it keeps the metrics.

    Attributes:
        found: the best checkpoint; None before the first evaluation, or without a selection.
    """

    def __init__(self, selection: Selection | None, checkpoints: Checkpoints):
        """Store what selects, and the checkpoints of the run."""
        self.selection, self.checkpoints = selection, checkpoints
        self.found: Best | None = None

    def begin(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Find the best checkpoint of a run that starts or continues, and mark it.

        Only checkpoints that are still there count. A run that falls back behind its best one
        finds it again, because it repeats the same steps.

        Args:
            lines: of ``metrics.jsonl``, up to the restored step; process 0 has them.
        """
        steps, marked = self.checkpoints.steps(), self.checkpoints.best()
        if self.selection is not None:
            selection = self.selection
            self.found = _agreed(hosts.from_leader(lambda: selection.best(lines, steps)))
        if self.found != marked:
            self.checkpoints.mark(self.found)

    def improved(self, step: int, values: Mapping[str, float]) -> Best | None:
        """The checkpoint of ``step`` if its evaluation ``values`` are the best so far."""
        if self.selection is None or self.selection.key not in values:
            return None
        selection, best = self.selection, self.found
        better = _agreed(hosts.from_leader(lambda: selection.improved(best, step, values)))
        self.found = better or best
        return better


def _agreed(values: Sequence[Any] | None) -> Best | None:
    return None if values is None else Best(*values)
