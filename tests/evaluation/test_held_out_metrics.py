"""Held-out metrics: scikit-learn's definitions, and what counts."""

import json

import numpy as np
import pytest
from sklearn import metrics as theirs
from sklearn.calibration import calibration_curve

from jaxmatch.evaluation import metrics
from jaxmatch.evaluation.forward import Answers

ORACLES = {
    "accuracy": lambda p, y: theirs.accuracy_score(y, p.argmax(-1)),
    "balanced_accuracy": lambda p, y: theirs.balanced_accuracy_score(y, p.argmax(-1)),
    "macro_f1": lambda p, y: theirs.f1_score(y, p.argmax(-1), average="macro"),
    "weighted_f1": lambda p, y: theirs.f1_score(y, p.argmax(-1), average="weighted"),
    # In float64, since scikit-learn's least probability is that of the dtype.
    "negative_log_likelihood": lambda p, y: theirs.log_loss(
        y, p / p.sum(-1, keepdims=True, dtype=np.float64), labels=np.arange(p.shape[1])
    ),
    "top_5": lambda p, y: theirs.top_k_accuracy_score(y, p, k=5, labels=np.arange(p.shape[1])),
    "roc_auc": lambda p, y: theirs.roc_auc_score(y, p[:, 1]),
}


def predictions(classes, images, seed, without=()):
    """Probabilities float32 and labels, better than chance; no image is of a class ``without``."""
    random = np.random.default_rng(seed)
    labels = random.choice(np.setdiff1d(np.arange(classes), without), images)
    logits = random.normal(size=(images, classes)) + 2 * np.eye(classes)[labels]
    odds = np.exp(logits.round(1))  # rounded, so that there are ties
    return (odds / odds.sum(-1, keepdims=True)).astype(np.float32), labels


def answers(probabilities):
    return Answers(probabilities, np.ones(len(probabilities), bool))


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(
    ("classes", "images", "without"),
    [(2, 50, ()), (3, 40, ()), (9, 30, (4,)), (10, 200, (0, 9)), (40, 100, range(20, 40))],
)
@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
def test_scikit_learns_definitions(classes, images, without, seed):
    found, labels = predictions(classes, images, seed, without)
    scores = metrics.score(answers(found), labels)
    expected = {"expected_calibration_error", *ORACLES}
    expected -= {"roc_auc"} if classes != 2 else set()
    expected -= {"top_5"} if classes < 10 else set()
    assert scores.keys() == expected
    for name in expected & ORACLES.keys():
        oracle = ORACLES[name](found, labels)
        assert scores[name] == pytest.approx(oracle, rel=1e-6), name
    names = [f"class {number}" for number in range(classes)]
    whole = metrics.evaluation(answers(found), labels, names)
    numbers = np.arange(classes)
    matrix = theirs.confusion_matrix(labels, found.argmax(-1), labels=numbers)
    assert whole["confusion"] == matrix.tolist()
    rows = theirs.precision_recall_fscore_support(
        labels, found.argmax(-1), labels=numbers, zero_division=0
    )
    for name, *row in zip(names, *rows, strict=True):
        keys = ("precision", "recall", "f1", "support")
        assert whole["per_class"][name] == pytest.approx(dict(zip(keys, row, strict=True)))
    right, confidence = found.argmax(-1) == labels, found.max(-1)
    curve = calibration_curve(right, confidence, n_bins=15)
    bins = whole["reliability"]
    for key, expected_of_bins in zip(("accuracy", "confidence"), curve, strict=True):
        filled = [value for value in bins[key] if value is not None]
        assert filled == pytest.approx(expected_of_bins, rel=1e-6)
        assert [value is None for value in bins[key]] == [not count for count in bins["count"]]
    assert sum(bins["count"]) == images
    assert json.loads(json.dumps(whole)) == whole


def test_calibration_error_by_hand():
    found = np.array([[0.9, 0.1], [0.9, 0.1], [0.3, 0.7], [0.3, 0.7], [1.0, 0.0]], np.float32)
    scores = metrics.score(answers(found), np.array([0, 1, 1, 1, 0]))
    # bins of confidence .9 (one of two right), .7 (both right) and 1 (right)
    error = (2 * abs(0.5 - 0.9) + 2 * abs(1 - 0.7) + 0) / 5
    assert scores["expected_calibration_error"] == pytest.approx(error, rel=1e-6)
    bins = metrics.reliability(found, np.array([0, 1, 1, 1, 0]))
    assert bins["count"] == [0] * 10 + [2, 0, 0, 2, 1]
    assert bins["accuracy"] == [None] * 10 + [1.0, None, None, 0.5, 1.0]
    assert bins["confidence"][10::3] == pytest.approx([0.7, 0.9])


def test_a_certain_mistake_costs_a_finite_amount():
    scores = metrics.score(answers(np.array([[1.0, 0.0]], np.float32)), np.array([1]))
    assert scores["negative_log_likelihood"] == pytest.approx(36.04, abs=0.01)
    assert scores["roc_auc"] is None  # no image is of class 0


def test_only_readable_images_with_a_known_label_count():
    rows = [[0.6, 0.3, 0.1], [0.2, 0.5, 0.3], [0.0, 0.1, 0.9], [0.1, 0.4, 0.5]]
    found = np.array(rows, np.float32)
    labels = np.array([0, 1, 2, 0])

    def accuracy(readable, labels):
        return metrics.score(Answers(found, np.array(readable)), labels, ["accuracy"])

    everything = [True] * 4
    assert accuracy(everything, labels) == {"accuracy": 0.75}
    assert accuracy([False, True, True, True], labels) == {"accuracy": 2 / 3}
    assert accuracy(everything, np.array([0, 1, -1, 0])) == {"accuracy": 2 / 3}
    assert accuracy([False] * 4, labels) == {"accuracy": None}


EQUAL = np.full((6, 10), 0.1, np.float32)
HALVES = np.array([[0.5, 0.5], [0.5, 0.5], [0.2, 0.8], [0.2, 0.8]], np.float32)


@pytest.mark.parametrize(
    ("found", "labels"),
    [
        (EQUAL, np.array([0, 4, 5, 9, 9, 1])),  # ties between all classes
        (HALVES, np.array([0, 1, 1, 0])),  # in the predicted class
        (HALVES, np.array([1, 1, 1, 1])),  # images of one class only, predictions of both
        (HALVES[2:], np.array([1, 1])),  # of one class only, all right
        (np.eye(3, dtype=np.float32)[[1, 1]], np.array([2, 0])),  # all wrong
        (np.eye(12, dtype=np.float32), np.arange(12)[::-1]),
    ],
)
@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
@pytest.mark.filterwarnings("ignore:A single label was found")
def test_scikit_learns_definitions_at_the_edges(found, labels):
    scores = metrics.score(answers(found), labels)
    for name in scores.keys() & ORACLES.keys() - {"roc_auc"}:
        assert scores[name] == pytest.approx(ORACLES[name](found, labels), rel=1e-6), name
    if found.shape[1] == 2:
        both = len(set(labels.tolist())) == 2
        oracle = theirs.roc_auc_score(labels, found[:, 1]) if both else None
        assert scores["roc_auc"] == oracle
    numbers = range(found.shape[1])
    whole = metrics.evaluation(answers(found), labels, [str(number) for number in numbers])
    rows = theirs.precision_recall_fscore_support(
        labels, found.argmax(-1), labels=numbers, zero_division=0
    )
    keys = ("precision", "recall", "f1", "support")
    for number in numbers:
        row = {key: column[number] for key, column in zip(keys, rows, strict=True)}
        assert whole["per_class"][str(number)] == pytest.approx(row)


def test_top_5_begins_at_ten_classes():
    for classes in (9, 10):
        found = np.eye(classes, dtype=np.float32)
        assert ("top_5" in metrics.score(answers(found), np.arange(classes))) == (classes == 10)


def test_without_images_that_count_everything_is_none():
    whole = metrics.evaluation(answers(HALVES), np.full(4, -1), ["a", "b"])
    assert all(whole[name] is None for name in metrics.applying(2))
    assert whole["reliability"] == {"count": [0] * 15, "accuracy": [None] * 15,
                                    "confidence": [None] * 15}  # fmt: skip
    json.dumps(whole, allow_nan=False)


@pytest.mark.parametrize("classes", [2, 12])
def test_weights_stand_for_images_that_occur_several_times(classes):
    found, labels = predictions(classes, 25, 3)
    weights = np.random.default_rng(0).integers(0, 3, (4, 25)).astype(float)
    for name in metrics.applying(classes):
        measure = metrics.METRICS[name].measure
        each = [
            measure(np.repeat(found, row.astype(int), 0), np.repeat(labels, row.astype(int)))
            for row in weights
        ]
        np.testing.assert_allclose(measure(found, labels, weights), each, rtol=1e-12)


def test_a_metric_is_a_function_and_a_line(monkeypatch):
    doubt = metrics.Metric(lambda found, labels: float(1 - found.max(-1).mean()), False)
    monkeypatch.setattr(metrics, "METRICS", metrics.METRICS | {"doubt": doubt})
    found = answers(np.array([[0.75, 0.25], [0.5, 0.5]], np.float32))
    assert metrics.score(found, np.array([0, 1]), ["doubt"]) == {"doubt": 0.375}
