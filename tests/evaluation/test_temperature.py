"""Temperature scaling against independent optima, and the probabilities that it gives."""

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax
from sklearn.calibration import CalibratedClassifierCV
from sklearn.metrics import log_loss

from jaxmatch.evaluation.forward import Answers, probabilities
from jaxmatch.evaluation.temperature import (
    FEW,
    LEAST,
    MOST,
    calibration,
    fit,
    of_networks,
    sentences,
)


def made(classes=5, images=400, seed=0, scale=1.0):
    """Logits of a calibrated classifier, times ``scale``, and labels drawn from its softmax."""
    random = np.random.default_rng(seed)
    logits = 2 * random.normal(size=(images, classes))
    labels = np.array([random.choice(classes, p=row) for row in softmax(logits, -1)])
    return scale * logits, labels


def answers(logits):
    return Answers(logits, np.ones(len(logits), bool))


def cost(logits, labels, temperature):
    return -log_softmax(logits / temperature, -1)[np.arange(len(labels)), labels].mean()


@pytest.mark.parametrize("scale", [0.2, 1.0, 7.0])
@pytest.mark.parametrize(("classes", "seed"), [(2, 0), (5, 1), (30, 2)])
def test_no_other_temperature_has_a_smaller_likelihood(classes, seed, scale):
    logits, labels = made(classes, 300, seed, scale)
    mine = fit(logits, labels)
    theirs = minimize(
        lambda log: cost(logits, labels, np.exp(log[0])), [0.0], method="Nelder-Mead", tol=1e-10
    )
    assert mine == pytest.approx(np.exp(theirs.x[0]), rel=1e-5)
    grid = np.geomspace(LEAST, MOST, 400)
    assert cost(logits, labels, mine) <= min(cost(logits, labels, each) for each in grid) + 1e-12


def test_it_undoes_the_scale_of_logits():
    logits, labels = made(images=20_000)
    assert fit(logits, labels) == pytest.approx(1, abs=0.03)
    assert fit(3 * logits, labels) == pytest.approx(3 * fit(logits, labels), rel=1e-9)
    assert fit(logits + 100 * labels[:, None], labels) == pytest.approx(fit(logits, labels))


def test_large_logits_of_any_dtype_do_no_harm():
    logits, labels = made(scale=3)
    expected = fit(logits, labels)
    assert fit((logits + 1e4).astype(np.float32), labels) == pytest.approx(expected, rel=1e-3)
    broken = np.concatenate([logits, [[np.inf, 0, 0, 0, 0], [np.nan] * 5]])
    assert fit(broken, np.concatenate([labels, [1, 1]])) == pytest.approx(expected)


def test_the_range_where_the_likelihood_has_no_maximum():
    logits, _ = made()
    assert fit(logits, logits.argmax(-1)) == 1.0  # no mistake: it would go to 0
    assert fit(logits, logits.argmin(-1)) == MOST  # worse than chance: to infinity
    assert fit(np.empty((0, 3)), np.empty(0, int)) == 1.0
    assert fit(np.zeros((6, 3)), np.arange(6) % 3) == 1.0  # the same at any temperature
    one_mistake = np.where(np.arange(400), logits.argmax(-1), logits[0].argsort()[-2])
    logits[0, logits[0].argmax()] = logits[0, one_mistake[0]] + 1e-12  # by almost nothing
    assert fit(logits, one_mistake) == LEAST


def test_scikit_learns_temperature_scaling():
    """scikit-learn 1.8 has the method for any classifier with ``decision_function``."""
    if "temperature" not in CalibratedClassifierCV._parameter_constraints["method"][0].options:
        pytest.skip("this scikit-learn has no temperature scaling")
    from sklearn.base import BaseEstimator, ClassifierMixin
    from sklearn.frozen import FrozenEstimator

    class Logits(ClassifierMixin, BaseEstimator):
        def fit(self, x, y):
            self.classes_ = np.unique(y)
            return self

        def decision_function(self, x):
            return x

        def predict(self, x):
            return x.argmax(-1)

    logits, labels = made(scale=3)
    theirs = CalibratedClassifierCV(
        FrozenEstimator(Logits().fit(logits, labels)), method="temperature", ensemble=False
    ).fit(logits, labels)
    mine = probabilities(answers(logits), fit(logits, labels)).values
    np.testing.assert_allclose(mine, theirs.predict_proba(logits), atol=1e-3)


@pytest.mark.parametrize("temperature", [LEAST, 0.7, 1.0, 3.0, MOST])
def test_the_predicted_class_never_changes(temperature):
    random = np.random.default_rng(0)
    logits = random.normal(size=(2000, 10)).astype(np.float32)
    logits[:, 9] = np.nextafter(logits.max(-1), np.float32(np.inf))  # equal after rounding
    logits[::2, 9] += 1e-6
    logits[::3, 3] = logits[::3, 9]  # real ties
    found = probabilities(answers(logits), temperature).values
    np.testing.assert_array_equal(found.argmax(-1), logits.argmax(-1))
    np.testing.assert_allclose(
        found, softmax(logits.astype(np.float64) / temperature, -1), rtol=2e-7, atol=1e-37
    )
    np.testing.assert_allclose(found.sum(-1), 1, rtol=1e-6)
    assert found.dtype == np.float32


def test_what_is_kept_with_a_run():
    logits, labels = made(scale=3)
    found = calibration(answers(logits), labels)
    assert found["temperature"] == fit(logits, labels)
    for when, temperature in (("before", 1.0), ("after", found["temperature"])):
        expected = log_loss(labels, softmax(logits / temperature, -1), labels=range(5))
        assert found[when]["negative_log_likelihood"] == pytest.approx(expected, rel=1e-6)
        assert found[when].keys() == {"negative_log_likelihood", "expected_calibration_error"}
    errors = [found[when]["expected_calibration_error"] for when in ("before", "after")]
    assert errors[1] < errors[0] / 2


def test_images_that_do_not_count_are_left_out():
    logits, labels = made()
    readable, known = np.arange(400) > 20, np.where(np.arange(400) % 3, labels, -1)
    counted = readable & (known >= 0)
    both = {name: Answers(logits, readable) for name in ("teacher", "student")}
    found = of_networks(both, known)
    assert found["images"] == counted.sum()
    expected = calibration(answers(logits[counted]), labels[counted])
    assert found["teacher"] == found["student"] == expected
    assert of_networks(both, np.full(400, -1)) is None


def told(images, temperature):
    each = {"temperature": temperature, "before": {}, "after": {}}
    for part, error in (("before", 0.12), ("after", 0.03)):
        each[part]["expected_calibration_error"] = error
    return sentences({"images": images, "teacher": each}, "teacher")


def test_the_sentences_warn_of_what_means_little():
    first = "probabilities are calibrated: temperature 1.84 (ECE 0.120 -> 0.030 on {} validation"
    assert told(200, 1.8432) == [first.format(200) + " images)"]
    assert told(FEW - 1, 1.8432)[1].startswith("a temperature of 99 validation images means little")
    assert "all 200 validation images are classified correctly" in told(200, 1.0)[0]
    assert "end of its range, 0.05 to 20" in told(200, MOST)[1]
