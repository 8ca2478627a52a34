"""Linear classifiers of frozen features from few labels, and the temperature that calibrates them.

Logistic regression is scikit-learn's. Class means are the prototypes of Snell et al., "Prototypical
Networks for Few-shot Learning", NeurIPS 2017 (section 2.3 shows that they are linear). The
temperature follows Guo et al., "On Calibration of Modern Neural Networks", ICML 2017. Everything is
chosen by cross-validation on the labels, and nothing by other images.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold

FOLDS = 5  # of a cross-validation, or as many as the smallest class has images
MOST = 2_000  # images of a cross-validation; more are thinned at random
STRENGTHS = tuple(10.0**power for power in range(-4, 3))  # C of logistic regression
USUAL_STRENGTH = 1.0  # C if a class has one image, which leaves none to test on
ITERATIONS = 500
LEAST_TEMPERATURE, MOST_TEMPERATURE = 1e-3, 1e3
CONFIDENCE = 0.9  # mean confidence on the labeled images themselves if a class has one image
NEVER = 10.0  # a class without a label is this much less likely than any other, in nats


class Linear(NamedTuple):
    """A classifier: its logits are ``features @ kernel + bias``."""

    kernel: np.ndarray  # [d C] float64
    bias: np.ndarray  # [C] float64

    def logits(self, features: np.ndarray) -> np.ndarray:
        """The logits [n C] of ``features`` [n d]."""
        return features.astype(np.float64) @ self.kernel + self.bias

    def divided(self, temperature: float) -> "Linear":
        """The classifier with its logits divided by a number."""
        return Linear(self.kernel / temperature, self.bias / temperature)


Fit = Callable[[np.ndarray, np.ndarray], Linear]  # features [n d] and labels [n] to a classifier


class Scale(NamedTuple):
    """Features minus their mean, over the root of their mean square: one number for all of them.

    A number for each feature would have to be estimated from a few images.
    """

    mean: np.ndarray  # [d]
    scale: float

    @classmethod
    def of(cls, features: np.ndarray) -> "Scale":
        """That of ``features`` [n d]."""
        mean = features.mean(0, dtype=np.float64)
        scale = float(np.sqrt(np.mean(np.square(features - mean))))
        return cls(mean, scale if scale > 0 else 1.0)

    def apply(self, features: np.ndarray) -> np.ndarray:
        """Scaled ``features`` [n d] float64."""
        return (features - self.mean) / self.scale

    def undone(self, fitted: Linear) -> Linear:
        """The classifier of features as they are that equals one of scaled features."""
        kernel = fitted.kernel / self.scale
        return Linear(kernel, fitted.bias - self.mean @ kernel)


def folds(labels: np.ndarray, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Rows to learn from and rows to test on, for each fold of a cross-validation.

    Every fold has images of every class. There are none if a class has one image.

    Args:
        labels: [n].
        seed: of the draws.
    """
    rows = np.sort(np.random.RandomState(seed).permutation(len(labels))[:MOST])
    _, counts = np.unique(labels[rows], return_counts=True)
    count = min(FOLDS, int(counts.min()))
    if count < 2 or len(counts) < 2:
        return []
    parts = StratifiedKFold(count, shuffle=True, random_state=seed).split(rows, labels[rows])
    return [(rows[learn], rows[test]) for learn, test in parts]


def class_means(features: np.ndarray, labels: np.ndarray, classes: int) -> Linear:
    """The classifier -|x - m_c|^2 / 2 of scaled features x, where m_c is the mean of class c.

    Args:
        features: [n d].
        labels: [n] positions of the classes.
        classes: how many there are; one without a label is never predicted.
    """
    scale = Scale.of(features)
    inputs, present = scale.apply(features), np.unique(labels)
    means = np.stack([inputs[labels == number].mean(0) for number in present])
    return scale.undone(_spread(means.T, -np.square(means).sum(1) / 2, present, classes))


def logistic(
    features: np.ndarray, labels: np.ndarray, classes: int, strength: float = USUAL_STRENGTH
) -> Linear:
    """Multinomial logistic regression on scaled features, with scikit-learn's C = ``strength``.

    Other arguments are those of :func:`class_means`. There must be two classes or more.
    """
    scale = Scale.of(features)
    model = LogisticRegression(C=strength, max_iter=ITERATIONS)
    model.fit(scale.apply(features), labels)
    kernel, bias = model.coef_.T, model.intercept_
    if len(model.classes_) == 2:  # scikit-learn keeps the difference of both
        kernel, bias = kernel * [[-0.5, 0.5]], bias * np.array([-0.5, 0.5])
    return scale.undone(_spread(kernel, bias, model.classes_, classes))


def _spread(kernel: np.ndarray, bias: np.ndarray, present: np.ndarray, classes: int) -> Linear:
    """A classifier of the classes ``present`` as one of all classes."""
    whole = np.zeros((len(kernel), classes)), np.full(classes, bias.min() - NEVER)
    whole[0][:, present], whole[1][present] = kernel, bias
    return Linear(*whole)


def best_strength(
    features: np.ndarray,
    labels: np.ndarray,
    classes: int,
    seed: int,
    strengths: Sequence[float] = STRENGTHS,
) -> float:
    """The C of logistic regression with the least cross-validated log loss on the labels.

    Between equal ones the smallest counts; without folds it is 1.
    """
    if not folds(labels, seed):
        return USUAL_STRENGTH
    losses = []
    for strength in strengths:
        fit = partial(logistic, classes=classes, strength=strength)
        rows, logits = out_of_fold(fit, features, labels, seed)
        losses.append(log_loss(logits, labels[rows]))
    return strengths[int(np.argmin(losses))]


def out_of_fold(
    fit: Fit, features: np.ndarray, labels: np.ndarray, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Rows [m] and their logits [m C] by classifiers that did not learn from them; none if m = 0.

    Args:
        fit: the classifier.
        features: [n d].
        labels: [n].
        seed: of the folds.
    """
    parts = [
        (test, fit(features[learn], labels[learn]).logits(features[test]))
        for learn, test in folds(labels, seed)
    ]
    if not parts:
        return np.zeros(0, np.int64), np.zeros((0, 0))
    rows, logits = zip(*parts, strict=True)
    return np.concatenate(rows), np.concatenate(logits)


def log_loss(logits: np.ndarray, labels: np.ndarray, smoothing: float = 0.0) -> float:
    """The mean cross-entropy of ``logits`` [n C] with labels [n], whose weight is 1 - smoothing.

    The classes share the rest of the weight equally.
    """
    found = log_softmax(logits, axis=1)
    right = found[np.arange(len(labels)), labels]
    return float(-((1 - smoothing) * right + smoothing * found.mean(1)).mean())


def confidence(logits: np.ndarray) -> float:
    """The mean of the largest probability of ``logits`` [n C]."""
    return float(np.exp(log_softmax(logits, axis=1)).max(1).mean())


def temperature(fit: Fit, features: np.ndarray, labels: np.ndarray, seed: int) -> float:
    """The number that the logits of ``fit`` on all labels must be divided by to be calibrated.

    It minimises the log loss of predictions for held-out labels. If these are all right, the loss
    has no minimum; therefore the targets are smoothed by 1 / (n + 2), as in Platt, "Probabilistic
    Outputs for Support Vector Machines", 1999. If a class has one image, so that none is held out,
    the labeled images themselves get a mean confidence of 0.9.

    Args:
        fit: the classifier.
        features: [n d] of the labeled images.
        labels: [n].
        seed: of the folds.
    """
    rows, logits = out_of_fold(fit, features, labels, seed)
    if len(rows):
        cost = partial(log_loss, labels=labels[rows], smoothing=1 / (len(rows) + 2))
    else:
        logits = fit(features, labels).logits(features)

        def cost(logits: np.ndarray) -> float:
            return abs(confidence(logits) - CONFIDENCE)

    bounds = np.log(LEAST_TEMPERATURE), np.log(MOST_TEMPERATURE)
    grid = np.linspace(*bounds, 61)
    best = grid[int(np.argmin([cost(logits / np.exp(each)) for each in grid]))]
    step = grid[1] - grid[0]
    near = minimize_scalar(
        lambda each: cost(logits / np.exp(each)),
        bounds=(best - step, best + step),
        method="bounded",
    )
    return float(np.clip(np.exp(near.x), LEAST_TEMPERATURE, MOST_TEMPERATURE))
