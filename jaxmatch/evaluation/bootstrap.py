"""Confidence intervals of held-out metrics: percentiles over resampled sets of images.

Efron, "Bootstrap Methods: Another Look at the Jackknife", 1979; the percentile interval is that of
Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxmatch.errors import InputError
from jaxmatch.evaluation.forward import Answers
from jaxmatch.evaluation.metrics import METRICS, applying, class_shares, counted

AT_A_TIME = 4_000_000  # drawn images that are in memory
SHARES = ("precision", "recall", "f1")

Interval = list[float] | None


class Resampling(NamedTuple):
    """How the images of a set are resampled.

    Attributes:
        resamples: the number of resampled sets.
        confidence: the probability that intervals cover the value for all possible images.
        seed: of the draws.
    """

    resamples: int = 1000
    confidence: float = 0.95
    seed: int = 0

    def check(self) -> None:
        """Check the values.

        Raises:
            InputError: if one cannot work.
        """
        if self.resamples < 1:
            raise InputError(f"a bootstrap needs at least one resampled set, not {self.resamples}.")
        if not 0 < self.confidence < 1:
            raise InputError(
                f"confidence={self.confidence:g} is no share between 0 and 1, such as 0.95."
            )


def intervals(
    answers: Answers, labels: np.ndarray, classes: Sequence[str], resampling: Resampling
) -> dict[str, Any]:
    """The interval [low, high] of each metric by its name, and of each class under ``per_class``.

    A resampled set has as many images as the set, drawn with replacement. An interval holds the
    middle share ``resampling.confidence`` of a metric's values in the resampled sets. Sets in which
    it is not defined are left out: the area under ROC of a set without one of the classes, and of a
    class the recall without images, the precision without predictions, and F1 without either. An
    interval is None if no set is left. The probabilities stay as they are: intervals tell how much
    figures depend on the choice of the held-out images, not on the training.

    Args:
        answers: probabilities [n C]; unreadable images do not count.
        labels: [n], true classes; images with an unknown one (-1) do not count.
        classes: the names of the C classes.
        resampling: number of sets, confidence and seed. Equal ones draw the same images.
    """
    probabilities, known = counted(answers, labels)
    names = applying(probabilities.shape[-1])
    values: dict[str, list[np.ndarray]] = {name: [] for name in (*names, *SHARES)}
    for weights in counts(len(known), resampling):
        for name in names:
            values[name].append(METRICS[name].measure(probabilities, known, weights))
        for name, share in zip(SHARES, class_shares(probabilities, known, weights), strict=True):
            values[name].append(share)

    def interval(name: str, *column: int) -> Interval:
        found = np.concatenate(values[name])[:, *column] if values[name] else np.empty(0)
        found = found[~np.isnan(found)]
        tail = (1 - resampling.confidence) / 2
        return np.quantile(found, [tail, 1 - tail]).tolist() if len(found) else None

    of_classes = {
        name: {share: interval(share, number) for share in SHARES}
        for number, name in enumerate(classes)
    }
    return {**{name: interval(name) for name in names}, "per_class": of_classes}


def counts(images: int, resampling: Resampling) -> Iterator[np.ndarray]:
    """How often each image is in each resampled set: [b images] float64, in blocks of sets.

    A set is ``images`` draws of ``numpy.random.default_rng(seed).integers(images)``. There is none
    without images.
    """
    random = np.random.default_rng(resampling.seed)
    block = max(1, AT_A_TIME // max(1, images))
    for start in range(0, resampling.resamples if images else 0, block):
        number = min(block, resampling.resamples - start)
        rows = (random.integers(images, size=images) for _ in range(number))
        yield np.stack([np.bincount(row, minlength=images) for row in rows]).astype(np.float64)
