"""Metrics of a classifier on held-out images: functions of probabilities and labels, in one table.

A new metric is a function here and its line in :data:`METRICS`. ``jaxmatch evaluate``, its
intervals, ``summary.json`` and, while a run trains, ``metrics.jsonl`` then have it, the last as
``test/<network>/<metric>`` and ``validation/<network>/<metric>``.

The definitions are those of scikit-learn (https://scikit-learn.org/stable/modules/model_evaluation.html).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from scipy.sparse import csr_array

from jaxmatch.evaluation.forward import Answers

BINS = 15  # of the expected calibration error
MANY_CLASSES = 10  # from this number on the five most probable classes are of interest

Measure = Callable[..., Any]
Weights = np.ndarray | None


class Metric(NamedTuple):
    """A number that says how good probabilities are.

    Attributes:
        measure: function of probabilities [n C], whose rows sum to 1, and labels [n], positions in
            0..C-1, with n >= 1. A third argument is for resampling: weights [b n] say how often
            each image counts, and the result is [b]. A value that is not defined is NaN.
        higher_is_better: whether the best classifier has the largest value.
        applies: whether the metric exists for a number of classes.
    """

    measure: Measure
    higher_is_better: bool = True
    applies: Callable[[int], bool] = lambda classes: True


def accuracy(probabilities: np.ndarray, labels: np.ndarray, weights: Weights = None) -> Any:
    """The share of images whose most probable class is their label."""
    return _mean(probabilities.argmax(-1) == labels, weights)


def balanced_accuracy(
    probabilities: np.ndarray, labels: np.ndarray, weights: Weights = None
) -> Any:
    """The mean over classes of the share of their images that are classified correctly.

    Classes without an image do not count.
    """
    hits, _, support = _counts(probabilities, labels, weights)
    return _share(hits, support).sum(-1) / (support > 0).sum(-1)


def macro_f1(probabilities: np.ndarray, labels: np.ndarray, weights: Weights = None) -> Any:
    """The mean over classes of F1 = 2 precision recall / (precision + recall).

    Classes that are neither a label nor a prediction do not count.
    """
    hits, predicted, support = _counts(probabilities, labels, weights)
    number = predicted + support
    return _share(2 * hits, number).sum(-1) / (number > 0).sum(-1)


def weighted_f1(probabilities: np.ndarray, labels: np.ndarray, weights: Weights = None) -> Any:
    """The mean over images of the F1 of their class."""
    hits, predicted, support = _counts(probabilities, labels, weights)
    return (_share(2 * hits, predicted + support) * support).sum(-1) / support.sum(-1)


def negative_log_likelihood(
    probabilities: np.ndarray, labels: np.ndarray, weights: Weights = None
) -> Any:
    """The mean of -log p(label), in nats; p is at least 2.2e-16, as scikit-learn's in float64."""
    chosen = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    return _mean(-np.log(np.clip(chosen, np.finfo(np.float64).eps, 1)), weights)


def expected_calibration_error(
    probabilities: np.ndarray, labels: np.ndarray, weights: Weights = None
) -> Any:
    """The mean distance of confidence and accuracy over 15 bins of confidence of equal width.

    A bin ((i - 1) / 15, i / 15] counts by its number of images. Guo et al., "On Calibration of
    Modern Neural Networks", ICML 2017, https://arxiv.org/abs/1706.04599.
    """
    place, right, confidence = _binned(probabilities, labels)
    gaps = _sums(weights, place, BINS, right - confidence)
    return np.abs(gaps).sum(-1) / (len(labels) if weights is None else weights.sum(-1))


def top_5(probabilities: np.ndarray, labels: np.ndarray, weights: Weights = None) -> Any:
    """The share of images whose label is among their five most probable classes.

    Among equally probable classes the later ones come first.
    """
    chosen = probabilities[np.arange(len(labels)), labels][:, None]
    later = np.arange(probabilities.shape[-1]) > labels[:, None]
    before = (probabilities > chosen) | ((probabilities == chosen) & later)
    return _mean(before.sum(-1) < 5, weights)


def roc_auc(probabilities: np.ndarray, labels: np.ndarray, weights: Weights = None) -> Any:
    """The area under the curve of true against false positives; class 1 of two is the positive one.

    It is the probability that a random image of class 1 has a larger p(1) than one of class 0. A
    tie counts one half. It is not defined if a class has no image.
    """
    scores, place = np.unique(probabilities[:, 1], return_inverse=True)
    of_0, of_1 = (
        _sums(weights, place.reshape(-1), len(scores), labels == label) for label in (0, 1)
    )
    above = (of_1 * (of_0.cumsum(-1) - of_0 / 2)).sum(-1)
    return _share(above, of_1.sum(-1) * of_0.sum(-1), undefined=np.nan)


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


def applying(classes: int) -> tuple[str, ...]:
    """The names of the metrics that exist for a number of classes."""
    return tuple(name for name, metric in METRICS.items() if metric.applies(classes))


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
    shares = _class_shares(matrix.diagonal(), matrix.sum(0), support)
    return {
        name: {"precision": float(p), "recall": float(r), "f1": float(f), "support": int(count)}
        for name, p, r, f, count in zip(classes, *shares, support, strict=True)
    }


def class_shares(
    probabilities: np.ndarray, labels: np.ndarray, weights: Weights = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Precision, recall and F1 of each class, each [C], or [b C] with weights [b n].

    A share of no images is NaN.
    """
    return _class_shares(*_counts(probabilities, labels, weights), undefined=np.nan)


def _class_shares(
    hits: np.ndarray, predicted: np.ndarray, support: np.ndarray, undefined: float = 0.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return (
        _share(hits, predicted, undefined),
        _share(hits, support, undefined),
        _share(2 * hits, predicted + support, undefined),
    )


def reliability(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, list]:
    """The 15 bins of :func:`expected_calibration_error`, as a reliability diagram shows them.

    Returns:
        ``count``, the numbers of images; ``accuracy`` and ``confidence``, their means over the
        images of each bin, None for a bin without images.
    """
    place, right, confidence = _binned(probabilities, labels)
    count = np.bincount(place, minlength=BINS).tolist()

    def means(values: np.ndarray) -> list[float | None]:
        pairs = zip(_sums(None, place, BINS, values).tolist(), count, strict=True)
        return [total / number if number else None for total, number in pairs]

    return {"count": count, "accuracy": means(right), "confidence": means(confidence)}


def _binned(
    probabilities: np.ndarray, labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The bin of confidence of each image [n], whether it is correct [n], its confidence [n]."""
    confidence = probabilities.max(-1).astype(np.float64)
    known = np.nan_to_num(confidence)  # a run that diverges has none
    place = np.clip(np.ceil(known * BINS).astype(int) - 1, 0, BINS - 1)
    return place, (probabilities.argmax(-1) == labels).astype(np.float64), confidence


def _counts(
    probabilities: np.ndarray, labels: np.ndarray, weights: Weights
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Correct, predicted and true images of each class: [C], or [b C] with weights [b n]."""
    classes, found = probabilities.shape[-1], probabilities.argmax(-1)
    return (
        _sums(weights, labels, classes, found == labels),
        _sums(weights, found, classes),
        _sums(weights, labels, classes),
    )


def _mean(values: np.ndarray, weights: Weights) -> np.ndarray:
    """The mean of values [n], or the means [b] with weights [b n]."""
    if weights is None:
        return values.mean()
    return (weights * values).sum(-1) / weights.sum(-1)


def _sums(
    weights: Weights, groups: np.ndarray, size: int, values: np.ndarray | None = None
) -> np.ndarray:
    """The sums of values [n] (1 by default) in each group: [size], or [b size] with weights [b n].

    ``groups`` [n] are positions in 0..size-1.
    """
    number = len(groups)
    values = np.ones(number) if values is None else values.astype(np.float64)
    if weights is None:
        return np.bincount(groups, values, minlength=size)
    return weights @ csr_array((values, groups, np.arange(number + 1)), shape=(number, size))


def _share(part: np.ndarray, whole: np.ndarray, undefined: float = 0.0) -> np.ndarray:
    """``part / whole``; ``undefined`` where ``whole`` is 0."""
    return np.divide(part, whole, out=np.full(np.shape(part), undefined), where=whole > 0)


def score(
    answers: Answers, labels: np.ndarray, names: Iterable[str] | None = None
) -> dict[str, float | None]:
    """The metrics ``names`` (by default all) of the probabilities in ``answers`` [n C].

    Images that are unreadable, or whose label in ``labels`` [n] is unknown (-1), do not count. A
    metric that does not exist for this number of classes is left out. One that is not defined for
    these images is None, as each one is without images.
    """
    probabilities, known = counted(answers, labels)
    found: dict[str, float | None] = {}
    for name in METRICS if names is None else names:
        if METRICS[name].applies(probabilities.shape[-1]):
            value = float(METRICS[name].measure(probabilities, known)) if len(known) else np.nan
            found[name] = None if np.isnan(value) else value
    return found


def evaluation(answers: Answers, labels: np.ndarray, classes: Sequence[str]) -> dict[str, Any]:
    """All metrics as :func:`score` gives them, for JSON, then the details behind them.

    These are ``per_class``, ``reliability`` (of :func:`reliability`) and ``confusion``.
    """
    known = counted(answers, labels)
    matrix = confusion(*known)
    return {
        **score(answers, labels),
        "per_class": per_class(matrix, classes),
        "reliability": reliability(*known),
        "confusion": matrix.tolist(),
    }


def counted(answers: Answers, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities and labels of the images that count."""
    counted = answers.readable & (labels >= 0)
    return answers.values[counted], labels[counted]
