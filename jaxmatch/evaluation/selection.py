"""The metric of the validation set that chooses a run's best checkpoint."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
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
        setting: the key of the configuration that says so.
    """

    network: str
    metric: str
    setting: str = "keep_best"

    @classmethod
    def of(cls, config: ConfigDict) -> Self | None:
        """The selection ``config.select`` or ``config.keep_best``; None if both are empty.

        With ``select`` the best checkpoint is also what is loaded by default later
        (:func:`jaxmatch.evaluation.classifier.load`). The text is
        ``validation/[<network>/]<metric>``; the network is by default the one that the method
        reports. While a run trains, its probabilities are not calibrated.

        Raises:
            InputError: if it names no metric of the validation set, the two contradict each other,
                or the method reads no labels.
        """
        key = "select" if config.select else "keep_best"
        text = config[key]
        if not text:
            return None
        if config.keep_best not in ("", text):
            raise InputError(
                f"select={text} and keep_best={config.keep_best} choose different checkpoints; "
                "leave keep_best empty."
            )
        algorithm = build_algorithm(config.algorithm)
        part, _, rest = text.partition("/")
        if part == "test":
            raise InputError(
                f"{key}={text} would choose the checkpoint by the test set, and its test "
                "accuracy would be too high; hold out images with data.validation=N and give "
                f"{key}=validation/accuracy."
            )
        if not algorithm.labeled:
            raise InputError(
                f"{key}={text} needs a classifier, but this method reads no labels; leave {key} "
                "empty."
            )
        network, slash, metric = rest.rpartition("/")
        network = network if slash else algorithm.evaluated
        if part != "validation" or network not in NETWORKS or metric not in METRICS:
            known = [f"validation/{name}" for name in METRICS]
            known += [f"validation/{each}/{name}" for each in NETWORKS for name in METRICS]
            hint = suggest(text, known).removeprefix("known: ")
            raise InputError(f"{key}={text} is no metric of the validation set; {hint}")
        return cls(network=network, metric=metric, setting=key)

    @property
    def key(self) -> str:
        """The key of the metric in ``metrics.jsonl``."""
        return f"validation/{self.network}/{self.metric}"

    def check(self, classes: int, labels: np.ndarray) -> None:
        """Check that the metric exists for the validation set of a run.

        Args:
            classes: how many there are.
            labels: [n] of the validation set.

        Raises:
            InputError: if it does not.
        """
        if not len(labels):
            raise InputError(
                f"{self.setting}={self.key} needs a validation set; hold out images with "
                f"data.validation=N, or leave {self.setting} empty."
            )
        if not METRICS[self.metric].applies(classes):
            raise InputError(
                f"{self.setting}={self.key} does not exist for {classes} classes; choose another, "
                "such as validation/accuracy."
            )
        alike = np.full((len(labels), classes), 1 / classes)
        if np.isnan(METRICS[self.metric].measure(alike, labels)):
            raise InputError(
                f"{self.setting}={self.key} is not defined for this validation set, which lacks a "
                "class; hold out more images, or choose another, such as validation/accuracy."
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
