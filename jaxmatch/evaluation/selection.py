"""``config.keep_best``: the metric of the validation set that chooses a run's best checkpoint."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from ml_collections import ConfigDict

from jaxmatch.algorithms import build_algorithm
from jaxmatch.errors import InputError, suggest
from jaxmatch.evaluation.metrics import METRICS
from jaxmatch.runtime.checkpoint import Best

NETWORKS = ("teacher", "student")


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The metric that chooses a checkpoint.

    Attributes:
        network: "teacher" or "student".
        metric: a name in :data:`jaxmatch.evaluation.metrics.METRICS`.
    """

    network: str
    metric: str

    @classmethod
    def of(cls, config: ConfigDict) -> Self | None:
        """The selection ``config.keep_best``; None if that is empty.

        The text is ``validation/[<network>/]<metric>``; the network is by default the one that the
        method reports.

        Raises:
            InputError: if it names no metric of the validation set, or the method reads no labels.
        """
        text = config.keep_best
        if not text:
            return None
        algorithm = build_algorithm(config.algorithm)
        part, _, rest = text.partition("/")
        if part == "test":
            raise InputError(
                f"keep_best={text} would choose the checkpoint by the test set, and its test "
                "accuracy would be too high; hold out images with data.validation=N and give "
                "keep_best=validation/accuracy."
            )
        if not algorithm.labeled:
            raise InputError(
                f"keep_best={text} needs a classifier, but this method reads no labels; leave "
                "keep_best empty."
            )
        network, slash, metric = rest.rpartition("/")
        network = network if slash else algorithm.evaluated
        if part != "validation" or network not in NETWORKS or metric not in METRICS:
            known = [f"validation/{name}" for name in METRICS]
            known += [f"validation/{each}/{name}" for each in NETWORKS for name in METRICS]
            hint = suggest(text, known).removeprefix("known: ")
            raise InputError(f"keep_best={text} is no metric of the validation set; {hint}")
        return cls(network=network, metric=metric)

    @property
    def key(self) -> str:
        """The key of the metric in ``metrics.jsonl``."""
        return f"validation/{self.network}/{self.metric}"

    def check(self, classes: int, images: int) -> None:
        """Check that the metric exists for the validation set of a run.

        Args:
            classes: how many there are.
            images: of the validation set.

        Raises:
            InputError: if it does not.
        """
        if not images:
            raise InputError(
                f"keep_best={self.key} needs a validation set; hold out images with "
                "data.validation=N, or leave keep_best empty."
            )
        if not METRICS[self.metric].applies(classes):
            raise InputError(
                f"keep_best={self.key} does not exist for {classes} classes; choose another, such "
                "as validation/accuracy."
            )

    def improved(self, best: Best | None, step: int, values: Mapping[str, float]) -> Best | None:
        """The evaluation ``values`` of ``step`` as the new best; None if it is not better."""
        value = values.get(self.key)
        if value is None:
            return None
        sign = 1 if METRICS[self.metric].higher_is_better else -1
        if best is not None and sign * value <= sign * best.value:
            return None
        return Best(step, self.key, value)

    def best(self, lines: Sequence[Mapping[str, Any]], steps: Iterable[int]) -> Best | None:
        """The best evaluation in the lines of ``metrics.jsonl`` whose step is among ``steps``.

        Between equal ones the first counts.
        """
        best, present = None, set(steps)
        for line in lines:
            if line["step"] in present:
                best = self.improved(best, line["step"], line) or best
        return best
