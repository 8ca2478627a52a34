"""Linear classifiers of frozen features: against scikit-learn, and what the temperature does."""

from functools import partial

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestCentroid

from jaxmatch.evaluation import linear
from jaxmatch.evaluation.linear import Linear, Scale, class_means, logistic


def clusters(seed, each=6, classes=3, width=8, noise=1.0):
    """Features [n d] and labels [n] of classes around random centres, far from the origin."""
    random = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), each).astype(np.int32)
    x = 5 + random.normal(0, 2, (classes, width))[labels]
    x += random.normal(0, noise, (len(labels), width))
    return (x * 3).astype(np.float32), labels


@pytest.mark.parametrize("classes", [2, 3, 5])
@pytest.mark.parametrize("strength", [0.01, 1.0, 100.0])
def test_logistic_regression_is_that_of_scikit_learn(classes, strength):
    x, labels = clusters(0, classes=classes)
    new, _ = clusters(1, classes=classes)
    ours = softmax(logistic(x, labels, classes, strength).logits(new), axis=1)
    scale = Scale.of(x)
    theirs = LogisticRegression(C=strength, max_iter=500).fit(scale.apply(x), labels)
    np.testing.assert_allclose(ours, theirs.predict_proba(scale.apply(new)), atol=1e-6)


def test_the_scale_is_one_number():
    x, _ = clusters(0)
    scaled = Scale.of(x).apply(x)
    np.testing.assert_allclose(scaled.mean(0), 0, atol=1e-6)
    assert np.mean(scaled**2) == pytest.approx(1)
    flat = Scale.of(np.ones((3, 2), np.float32))
    assert flat.scale == 1  # equal features are not divided by 0


@pytest.mark.parametrize("classes", [2, 4])
def test_class_means_are_the_nearest_centroid(classes):
    x, labels = clusters(0, classes=classes, noise=3)
    new, _ = clusters(1, classes=classes, noise=6)
    fitted = class_means(x, labels, classes)
    theirs = NearestCentroid().fit(x, labels).predict(new)
    assert len(set(theirs)) > 1
    np.testing.assert_array_equal(fitted.logits(new).argmax(1), theirs)
    # Differences of logits are those of squared distances over twice the squared scale.
    distances = np.square(new[:, None] - np.stack([x[labels == c].mean(0) for c in range(classes)]))
    expected = -distances.sum(2) / 2 / Scale.of(x).scale ** 2
    found = fitted.logits(new)
    np.testing.assert_allclose(
        found - found[:, :1], expected - expected[:, :1], rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("fit", [class_means, logistic])
def test_a_class_without_a_label_is_not_predicted(fit):
    x, labels = clusters(0, classes=3)
    fitted = fit(x, labels * 2, 6)  # the classes 0, 2 and 4
    logits = fitted.logits(x)
    assert logits.shape == (18, 6)
    np.testing.assert_array_equal(logits.argmax(1), labels * 2)


def test_folds_have_every_class_and_no_label_twice():
    _, labels = clusters(0, each=3)
    parts = linear.folds(labels, 0)
    assert len(parts) == 3
    assert sorted(np.concatenate([test for _, test in parts])) == list(range(9))
    for learn, test in parts:
        assert not set(learn) & set(test)
        assert set(labels[learn]) == set(labels[test]) == {0, 1, 2}
    assert len(linear.folds(np.repeat(np.arange(3), 40), 0)) == linear.FOLDS
    assert linear.folds(np.array([0, 0, 0, 1]), 0) == []  # one image of class 1
    assert linear.folds(np.zeros(9, int), 0) == []
    many = linear.folds(np.arange(9000) % 3, 0)
    assert sum(len(test) for _, test in many) == linear.MOST


def test_the_strength_is_chosen_by_held_out_labels():
    x, labels = clusters(0, each=20)
    random = np.random.default_rng(0).permutation(labels)  # nothing can be learned
    assert linear.best_strength(x, random, 3, 0) == linear.STRENGTHS[0]
    assert linear.best_strength(x, labels, 3, 0) > linear.STRENGTHS[2]
    assert linear.best_strength(x[::20], labels[::20], 3, 0) == linear.USUAL_STRENGTH


@pytest.mark.parametrize("factor", [0.01, 1.0, 50.0])
def test_the_temperature_undoes_a_scale(factor):
    """Whatever the size of the logits, the calibrated classifier is the same."""
    x, labels = clusters(2, each=12, noise=4)
    fit = partial(class_means, classes=3)

    def scaled(x, labels):
        return fit(x, labels).divided(1 / factor)

    usual = linear.temperature(fit, x, labels, 0)
    assert linear.temperature(scaled, x, labels, 0) == pytest.approx(usual * factor, rel=1e-2)


def test_the_temperature_is_calibrated_on_held_out_labels():
    """The mean confidence is near the accuracy, where the raw logits are far too sure."""
    x, labels = clusters(3, each=100, noise=5)
    new, truth = clusters(3, each=2000, noise=5)
    fit = partial(class_means, classes=3)
    found = fit(x, labels)
    warm = found.divided(linear.temperature(fit, x, labels, 0))

    def gap(fitted):
        probabilities = softmax(fitted.logits(new), axis=1)
        right = (probabilities.argmax(1) == truth).mean()
        return abs(probabilities.max(1).mean() - right)

    sharp = found.divided(0.05)
    assert gap(sharp) > 0.1
    assert gap(warm) < 0.05


@pytest.mark.parametrize("each", [1, 5])
def test_the_temperature_is_finite_and_confident_if_everything_is_right(each):
    x, labels = clusters(0, each=each, noise=0.01)
    fit = partial(class_means, classes=3)
    found = linear.temperature(fit, x, labels, 0)
    assert linear.LEAST_TEMPERATURE < found < linear.MOST_TEMPERATURE
    confidence = softmax(fit(x, labels).divided(found).logits(x), axis=1).max(1).mean()
    assert 0.85 < confidence < 1


def test_logits_are_a_product():
    fitted = Linear(np.array([[1.0, 2.0]]), np.array([0.0, 1.0]))
    np.testing.assert_array_equal(fitted.divided(2).logits(np.array([[4.0]])), [[2, 4.5]])
