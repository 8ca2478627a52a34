"""Baselines on the frozen features of a pretrained network: the bar that every run must beat.

Logistic regression, k-NN, label spreading and one round of self-training learn from the labeled
features, the last two from the unlabeled ones, too. The estimators are scikit-learn's. Their
settings are chosen by cross-validation on the labels. Features are scaled to unit length for k-NN
and label spreading (Wu et al., CVPR 2018; Caron et al., "Emerging Properties in Self-Supervised
Vision Transformers", ICCV 2021, section 4.1) and by :class:`~.linear.Scale` for logistic
regression.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier, kneighbors_graph
from sklearn.semi_supervised import LabelSpreading, SelfTrainingClassifier

from jaxmatch.evaluation import linear
from jaxmatch.evaluation.comparison import TITLES
from jaxmatch.evaluation.forward import Answers
from jaxmatch.evaluation.metrics import score
from jaxmatch.evaluation.probe import smallest_class

SHARPNESS = 0.07  # a neighbor's vote weighs exp(cosine similarity / 0.07)
NEIGHBOURS = (1, 3, 5, 10, 20)
SPREADING_NEIGHBOURS = 10
ALPHAS = (0.5, 0.8, 0.95)
USUAL_ALPHA = 0.8
THRESHOLDS = (0.95, 0.8, 0.5, 0.0)  # of self-training; between equally good ones the first counts
USUAL_THRESHOLD = 0.8
MOST_UNLABELED = 2_000  # of the cross-validation of self-training
CHUNK = 1_000  # images that are classified at a time

Classify = Callable[[np.ndarray], np.ndarray]  # features [n d] to probabilities [n C]


class Points(NamedTuple):
    """Features and labels of some images."""

    features: np.ndarray  # [n d] float32
    labels: np.ndarray  # [n] int32; -1 where they are not known or not used


class Sets(NamedTuple):
    """What the baselines learn from, and what they are tested on."""

    labeled: Points
    unlabeled: Points
    held_out: Mapping[str, Points]  # "test" and, if there is one, "validation"
    classes: int


def each(sets: Sets, seed: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the name and the result of each baseline.

    A result has ``title``, ``settings``, and ``test`` and ``validation`` with all metrics of
    :mod:`jaxmatch.evaluation.metrics`; ``validation`` is None without a validation set.

    Args:
        sets: with labeled images of two classes or more.
        seed: of the folds.
    """
    strength = linear.best_strength(*sets.labeled, sets.classes, seed)
    learn = {
        "features_logistic_regression": lambda: _logistic(sets, seed, strength),
        "features_knn": lambda: _knn(sets, seed),
        "features_label_spreading": lambda: _label_spreading(sets, seed),
        "features_self_training": lambda: _self_training(sets, seed, strength),
    }
    for name, fit in learn.items():
        with warnings.catch_warnings():
            # Of fits that stop at their limit, and of classes that no test image has.
            warnings.simplefilter("ignore")
            classify, settings = fit()
            scores = {part: _score(classify, some) for part, some in sets.held_out.items()}
        held_out = {part: scores.get(part) for part in ("test", "validation")}
        yield name, {"title": TITLES[name], "settings": settings, **held_out}


def _score(classify: Classify, part: Points) -> dict[str, float | None]:
    rows = range(0, len(part.features), CHUNK)
    found = np.concatenate([classify(part.features[at : at + CHUNK]) for at in rows])
    return score(Answers(found, np.ones(len(found), bool)), part.labels)


def _logistic(sets: Sets, seed: int, strength: float) -> tuple[Classify, str]:
    fitted = linear.logistic(*sets.labeled, sets.classes, strength)
    return (
        lambda features: softmax(fitted.logits(features), axis=1),
        f"features centered and divided by one number, C={strength:g}{_how(sets, seed)}",
    )


def _knn(sets: Sets, seed: int) -> tuple[Classify, str]:
    features, labels = unit(sets.labeled.features), sets.labeled.labels
    grid = [k for k in NEIGHBOURS if k <= smallest_class(labels)]

    def fit(rows: np.ndarray, neighbours: int) -> KNeighborsClassifier:
        return KNeighborsClassifier(
            neighbours,
            weights=lambda distances: np.exp(-distances / SHARPNESS),
            metric="cosine",
            algorithm="brute",
        ).fit(features[rows], labels[rows])

    def right(neighbours: int, learn: np.ndarray, test: np.ndarray) -> np.ndarray:
        model = fit(learn, min(neighbours, len(learn)))
        return model.predict(features[test]) == labels[test]

    neighbours = _best(grid, right, labels, seed, grid[0])
    model = fit(np.arange(len(labels)), neighbours)
    settings = (
        f"features of unit length, k={neighbours}{_how(sets, seed)}, votes weighted by "
        f"exp(cosine / {SHARPNESS})"
    )
    return _with_all_classes(model, sets.classes, unit), settings


def _label_spreading(sets: Sets, seed: int) -> tuple[Classify, str]:
    both = unit(np.concatenate([sets.labeled.features, sets.unlabeled.features]))
    labels = np.concatenate([sets.labeled.labels, sets.unlabeled.labels])
    neighbours = min(SPREADING_NEIGHBOURS, len(both) - 1)
    graph = kneighbors_graph(both, neighbours, mode="connectivity", include_self=True)

    def right(alpha: float, learn: np.ndarray, test: np.ndarray) -> np.ndarray:
        hidden = labels.copy()
        hidden[: len(sets.labeled.labels)] = -1
        hidden[learn] = labels[learn]
        model = LabelSpreading(kernel=lambda *_: graph.copy(), alpha=alpha, max_iter=200)
        return model.fit(both, hidden).transduction_[test] == labels[test]

    alpha = _best(ALPHAS, right, sets.labeled.labels, seed, USUAL_ALPHA)
    model = LabelSpreading(kernel="knn", n_neighbors=neighbours, alpha=alpha, max_iter=200)
    model.fit(both, labels)
    settings = (
        f"features of unit length, graph of {neighbours} neighbors, alpha={alpha:g}"
        f"{_how(sets, seed)}"
    )
    return _with_all_classes(model, sets.classes, unit), settings


def _self_training(sets: Sets, seed: int, strength: float) -> tuple[Classify, str]:
    scale = linear.Scale.of(sets.labeled.features)
    labeled, unlabeled = (scale.apply(part.features) for part in (sets.labeled, sets.unlabeled))
    labels = sets.labeled.labels
    some = np.random.RandomState(seed).permutation(len(unlabeled))[:MOST_UNLABELED]

    def fit(threshold: float, rows: np.ndarray, more: np.ndarray) -> SelfTrainingClassifier:
        base = LogisticRegression(C=strength, max_iter=linear.ITERATIONS)
        model = SelfTrainingClassifier(base, threshold=threshold, max_iter=1)
        hidden = np.full(len(more), -1, labels.dtype)
        return model.fit(
            np.concatenate([labeled[rows], more]), np.concatenate([labels[rows], hidden])
        )

    def right(threshold: float, learn: np.ndarray, test: np.ndarray) -> np.ndarray:
        return fit(threshold, learn, unlabeled[some]).predict(labeled[test]) == labels[test]

    threshold = _best(THRESHOLDS, right, labels, seed, USUAL_THRESHOLD)
    model = fit(threshold, np.arange(len(labels)), unlabeled)
    settings = (
        f"one round of logistic regression, C={strength:g}, on the predictions of confidence above "
        f"{threshold:g}{_how(sets, seed)}"
    )
    return _with_all_classes(model, sets.classes, scale.apply), settings


def _best(
    grid: Any,
    right: Callable[[Any, np.ndarray, np.ndarray], np.ndarray],
    labels: np.ndarray,
    seed: int,
    usual: Any,
) -> Any:
    """The first setting of ``grid`` with the most right answers in a cross-validation.

    ``right`` maps a setting, rows to learn from and rows to test on to which answers are right.
    Without folds it is ``usual``.
    """
    parts = linear.folds(labels, seed)
    if not parts or len(grid) == 1:
        return usual
    hits = [sum(int(right(each, *rows).sum()) for rows in parts) for each in grid]
    return grid[int(np.argmax(hits))]


def _how(sets: Sets, seed: int) -> str:
    """How the setting before it in a text was chosen."""
    count = len(linear.folds(sets.labeled.labels, seed))
    return f" ({count} folds of the labels)" if count else " (fixed: a class has one label)"


def _with_all_classes(model: Any, classes: int, scaled: Classify) -> Classify:
    """The probabilities of a scikit-learn model with a column for every class."""

    def classify(features: np.ndarray) -> np.ndarray:
        known = np.nan_to_num(model.predict_proba(scaled(features)))
        found = np.zeros((len(known), classes))
        found[:, model.classes_] = known
        total = found.sum(1, keepdims=True)
        # Label spreading gives no probabilities to images that no label has reached.
        return np.where(total > 0, found / np.where(total > 0, total, 1), 1 / classes)

    return classify


def unit(features: np.ndarray) -> np.ndarray:
    """Features [n d] of length 1; zeros stay."""
    length = np.linalg.norm(features, axis=1, keepdims=True)
    return features / np.where(length > 0, length, 1)
