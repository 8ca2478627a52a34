"""Metrics of a classifier on held-out images: functions of probabilities and labels, in one table.

A new metric is a function here and its line in :data:`METRICS`. ``jaxmatch evaluate`` and
``summary.json`` then have it. While a run trains it records only the metrics :data:`RECORDED`, and
that of ``keep_best``, as ``test/<network>/<metric>`` and ``validation/<network>/<metric>``.

The definitions are those of scikit-learn (https://scikit-learn.org/stable/modules/model_evaluation.html).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from jaxmatch.evaluation.forward import Answers

BINS = 15  # of the expected calibration error
MANY_CLASSES = 10  # from this number on the five most probable classes are of interest


class Metric(NamedTuple):
    """A number that says how good probabilities are.

    Attributes:
        measure: function of probabilities [n C], whose rows sum to 1, and labels [n], positions in
            0..C-1, with n >= 1.
        higher_is_better: whether the best classifier has the largest value.
        applies: whether the metric exists for a number of classes.
    """

    measure: Callable[[np.ndarray, np.ndarray], float | None]
    higher_is_better: bool = True
    applies: Callable[[int], bool] = lambda classes: True


def accuracy(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """The share of images whose most probable class is their label."""
    return float(np.mean(probabilities.argmax(-1) == labels))


def balanced_accuracy(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """The mean over classes of the share of their images that are classified correctly.

    Classes without an image do not count.
    """
    matrix = confusion(probabilities, labels)
    support = matrix.sum(1)
    return float(np.mean(matrix.diagonal()[support > 0] / support[support > 0]))


def macro_f1(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """The mean over classes of F1 = 2 precision recall / (precision + recall).

    Classes that are neither a label nor a prediction do not count.
    """
    matrix = confusion(probabilities, labels)
    return float(np.mean(_scores(matrix)[2][(matrix.sum(0) + matrix.sum(1)) > 0]))


def weighted_f1(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """The mean over images of the F1 of their class."""
    matrix = confusion(probabilities, labels)
    return float(np.average(_scores(matrix)[2], weights=matrix.sum(1)))


def negative_log_likelihood(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """The mean of -log p(label), in nats; p is at least 2.2e-16, as in scikit-learn."""
    chosen = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    return float(-np.log(np.clip(chosen, np.finfo(np.float64).eps, 1)).mean())


def expected_calibration_error(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """The mean distance of confidence and accuracy over 15 bins of confidence of equal width.

    A bin ((i - 1) / 15, i / 15] counts by its number of images. Guo et al., "On Calibration of
    Modern Neural Networks", ICML 2017, https://arxiv.org/abs/1706.04599.
    """
    _, right, confidence = _bins(probabilities, labels)
    return float(np.abs(right - confidence).sum() / len(labels))


def reliability(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, list]:
    """The 15 bins of :func:`expected_calibration_error`, as a reliability diagram shows them.

    Returns:
        ``count``, the numbers of images; ``accuracy`` and ``confidence``, their means over the
        images of each bin, None for a bin without images.
    """
    count, right, confidence = _bins(probabilities, labels)

    def means(sums: np.ndarray) -> list[float | None]:
        pairs = zip(sums.tolist(), count.tolist(), strict=True)
        return [total / number if number else None for total, number in pairs]

    return {"count": count.tolist(), "accuracy": means(right), "confidence": means(confidence)}


def _bins(probabilities: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, ...]:
    """Images, correct images and the sum of confidence [15] in each bin of confidence."""
    confidence = probabilities.max(-1).astype(np.float64)
    right = probabilities.argmax(-1) == labels
    place = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    sums = (np.bincount(place, weights, minlength=BINS) for weights in (right, confidence))
    return np.bincount(place, minlength=BINS), *sums


def top_5(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """The share of images whose label is among their five most probable classes."""
    most = np.argsort(probabilities, axis=-1, kind="stable")[:, -5:]
    return float(np.mean((most == labels[:, None]).any(-1)))


def roc_auc(probabilities: np.ndarray, labels: np.ndarray) -> float | None:
    """The area under the curve of true against false positives; class 1 of two is the positive one.

    It is the probability that a random image of class 1 has a larger p(1) than one of class 0. A
    tie counts one half. None if a class has no image.
    """
    score, positive = probabilities[:, 1], labels == 1
    positives, negatives = int(positive.sum()), int((~positive).sum())
    if not positives or not negatives:
        return None
    _, place, counts = np.unique(score, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place.reshape(-1)]  # mean rank of equal scores
    above = ranks[positive].sum() - positives * (positives + 1) / 2
    return float(above / (positives * negatives))


METRICS: Mapping[str, Metric] = MappingProxyType(
    {
        "accuracy": Metric(accuracy),
        "balanced_accuracy": Metric(balanced_accuracy),
        "macro_f1": Metric(macro_f1),
        "weighted_f1": Metric(weighted_f1),
        "negative_log_likelihood": Metric(negative_log_likelihood, higher_is_better=False),
        "expected_calibration_error": Metric(expected_calibration_error, higher_is_better=False),
        "top_5": Metric(top_5, applies=lambda classes: classes >= MANY_CLASSES),
        "roc_auc": Metric(roc_auc, applies=lambda classes: classes == 2),
    }
)
RECORDED = ("accuracy", "balanced_accuracy")


def confusion(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Numbers of images [C C] int64 by class (row) and most probable class (column)."""
    classes = probabilities.shape[-1]
    pairs = labels.astype(np.int64) * classes + probabilities.argmax(-1)
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def per_class(matrix: np.ndarray, classes: Sequence[str]) -> dict[str, dict[str, float]]:
    """Precision, recall, F1 and number of images ("support") of each class by its name.

    A share of no images is 0. ``matrix`` [C C] is that of :func:`confusion`.
    """
    support = matrix.sum(1)
    return {
        name: {"precision": float(p), "recall": float(r), "f1": float(f), "support": int(count)}
        for name, p, r, f, count in zip(classes, *_scores(matrix), support, strict=True)
    }


def _scores(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Precision, recall and F1 [C] of each class; 0 where they are undefined."""
    hits, predicted, support = matrix.diagonal(), matrix.sum(0), matrix.sum(1)

    def share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
        return np.divide(part, whole, out=np.zeros(len(part)), where=whole > 0)

    return share(hits, predicted), share(hits, support), share(2 * hits, predicted + support)


def score(
    answers: Answers, labels: np.ndarray, names: Iterable[str] = tuple(METRICS)
) -> dict[str, float | None]:
    """The metrics ``names`` of the probabilities in ``answers`` [n C] for true ``labels`` [n].

    Images that are unreadable, or whose label is unknown (-1), do not count. A metric that does not
    exist for this number of classes is left out; without images each one is None.
    """
    probabilities, known = _counted(answers, labels)
    classes = probabilities.shape[-1]
    return {
        name: METRICS[name].measure(probabilities, known) if len(known) else None
        for name in names
        if METRICS[name].applies(classes)
    }


def evaluation(answers: Answers, labels: np.ndarray, classes: Sequence[str]) -> dict[str, Any]:
    """All metrics as :func:`score` gives them, for JSON, then the details behind them.

    These are ``per_class``, ``reliability`` (of :func:`reliability`) and ``confusion``.
    """
    counted = _counted(answers, labels)
    matrix = confusion(*counted)
    return {
        **score(answers, labels),
        "per_class": per_class(matrix, classes),
        "reliability": reliability(*counted),
        "confusion": matrix.tolist(),
    }


def _counted(answers: Answers, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities and labels of the images that count."""
    counted = answers.readable & (labels >= 0)
    return answers.values[counted], labels[counted]
