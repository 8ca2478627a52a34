"""Intervals of held-out metrics: against SciPy's bootstrap and scikit-learn, and their coverage."""

import json
import time

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as theirs

from jaxmatch.errors import InputError
from jaxmatch.evaluation import bootstrap
from jaxmatch.evaluation.bootstrap import SHARES, Resampling, intervals
from jaxmatch.evaluation.forward import Answers
from jaxmatch.evaluation.metrics import METRICS, applying


def made(classes, images, seed=0):
    """Probabilities float32 [n C], with ties, and labels [n]."""
    random = np.random.default_rng(seed)
    labels = random.integers(classes, size=images)
    logits = random.normal(size=(images, classes)) + 1.5 * np.eye(classes)[labels]
    odds = np.exp(logits.round(1))
    return (odds / odds.sum(-1, keepdims=True)).astype(np.float32), labels


def found(probabilities, labels, resampling=Resampling(50)):  # noqa: B008 - a tuple
    names = [f"class {number}" for number in range(probabilities.shape[1])]
    answers = Answers(probabilities, np.ones(len(labels), bool))
    return intervals(answers, labels, names, resampling)


def sampled(images, resampling):
    """The rows of the images of each resampled set."""
    random = np.random.default_rng(resampling.seed)
    return [random.integers(images, size=images) for _ in range(resampling.resamples)]


def ends(values, confidence=0.95):
    known = [value for value in values if not np.isnan(value)]
    tail = 50 * (1 - confidence)
    return np.percentile(known, [tail, 100 - tail])


ORACLES = {
    "accuracy": lambda p, y: theirs.accuracy_score(y, p.argmax(-1)),
    "balanced_accuracy": lambda p, y: theirs.balanced_accuracy_score(y, p.argmax(-1)),
    "macro_f1": lambda p, y: theirs.f1_score(y, p.argmax(-1), average="macro"),
    "weighted_f1": lambda p, y: theirs.f1_score(y, p.argmax(-1), average="weighted"),
    "negative_log_likelihood": lambda p, y: theirs.log_loss(y, p, labels=np.arange(p.shape[1])),
    "top_5": lambda p, y: theirs.top_k_accuracy_score(y, p, k=5, labels=np.arange(p.shape[1])),
    "roc_auc": lambda p, y: theirs.roc_auc_score(y, p[:, 1]) if 0 < y.sum() < len(y) else np.nan,
}


@pytest.mark.parametrize(("classes", "images"), [(2, 40), (2, 4), (4, 30), (10, 60)])
@pytest.mark.filterwarnings("ignore:A single label was found")
@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
def test_the_intervals_are_those_of_scikit_learn_on_the_same_sets(classes, images, monkeypatch):
    monkeypatch.setattr(bootstrap, "AT_A_TIME", 7 * images)  # several blocks
    probabilities, labels = made(classes, images)
    resampling = Resampling(15, 0.9, seed=3)
    mine = found(probabilities, labels, resampling)
    assert mine.keys() == {*applying(classes), "per_class"}
    sets = [(probabilities[rows], labels[rows]) for rows in sampled(images, resampling)]
    for name in applying(classes):
        if name in ORACLES:
            expected = ends([ORACLES[name](*each) for each in sets], 0.9)
        else:
            expected = ends([METRICS[name].measure(*each) for each in sets], 0.9)
        assert mine[name] == pytest.approx(expected, rel=1e-6), name
    shares = [
        theirs.precision_recall_fscore_support(
            y, p.argmax(-1), labels=range(classes), zero_division=np.nan
        )[:3]
        for p, y in sets
    ]
    for number, row in enumerate(mine["per_class"].values()):
        for column, share in enumerate(SHARES):
            expected = ends([each[column][number] for each in shares], 0.9)
            assert row[share] == pytest.approx(expected), (number, share)
    json.dumps(mine, allow_nan=False)


def test_scipys_percentile_bootstrap_has_the_same_interval():
    probabilities, labels = made(3, 80)
    right = (probabilities.argmax(-1) == labels).astype(float)
    expected = stats.bootstrap(
        (right,),
        np.mean,
        n_resamples=400,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    mine = found(probabilities, labels, Resampling(400))["accuracy"]
    assert mine == pytest.approx([expected.low, expected.high])


@pytest.mark.slow
def test_an_interval_covers_the_probability_of_a_known_binomial_case():
    random = np.random.default_rng(0)
    truth, images, times = 0.7, 100, 120
    covered = 0
    for seed in range(times):
        right = random.random(images) < truth
        probabilities = np.where(right[:, None], [0.2, 0.8], [0.8, 0.2]).astype(np.float32)
        low, high = found(probabilities, np.ones(images, int), Resampling(150, 0.9, seed))[
            "accuracy"
        ]
        covered += low <= truth <= high
    # Of 120 intervals of 90% this many cover it but for one time in a thousand.
    assert stats.binom.ppf(0.0005, times, 0.9) <= covered <= stats.binom.ppf(0.9995, times, 0.9)


def test_equal_seeds_give_equal_intervals_and_others_do_not():
    probabilities, labels = made(3, 50)
    first, second = (found(probabilities, labels) for _ in range(2))
    assert first == second
    assert first != found(probabilities, labels, Resampling(50, seed=1))


def test_what_is_not_defined_is_left_out_or_none():
    probabilities, labels = made(3, 12)
    labels = np.where(labels == 2, 1, labels)
    probabilities[:, 2] = 0  # neither a label nor a prediction
    row = found(probabilities, labels)["per_class"]["class 2"]
    assert row == {"precision": None, "recall": None, "f1": None}
    one, of_one = made(2, 8)[0], np.ones(8, int)
    assert found(one, of_one)["roc_auc"] is None
    low, _ = found(*_rare())["per_class"]["class 1"]["recall"]
    assert low == 1.0  # sets without the only image of the class do not count as recall 0
    nothing = intervals(Answers(one, np.zeros(8, bool)), of_one, ["a", "b"], Resampling(5))
    assert nothing["accuracy"] is None
    assert nothing["per_class"]["a"]["f1"] is None


def _rare():
    labels = np.array([0] * 19 + [1])
    return np.eye(2, dtype=np.float32)[labels], labels


def test_images_that_do_not_count_are_not_drawn():
    probabilities, labels = made(3, 40)
    readable = np.arange(40) % 4 > 0
    unknown = np.where(np.arange(40) % 5, labels, -1)
    names = ["a", "b", "c"]
    counted = readable & (unknown >= 0)
    mine = intervals(Answers(probabilities, readable), unknown, names, Resampling(50))
    rest = Answers(probabilities[counted], np.ones(counted.sum(), bool))
    assert mine == intervals(rest, labels[counted], names, Resampling(50))


@pytest.mark.parametrize(
    ("resampling", "problem"),
    [
        (Resampling(0), "at least one resampled set, not 0"),
        (Resampling(10, 95.0), "confidence=95 is no share between 0 and 1"),
        (Resampling(10, 1.0), "confidence=1 is no share"),
    ],
)
def test_other_numbers_are_refused(resampling, problem):
    with pytest.raises(InputError, match=problem):
        resampling.check()


@pytest.mark.slow
def test_ten_thousand_images_take_seconds():
    begun = time.monotonic()
    found(*made(10, 10_000), Resampling())
    assert time.monotonic() - begun < 20
