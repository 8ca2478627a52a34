"""FreeMatch against plain NumPy, over steps and at its edges."""

import jax
import numpy as np
import pytest
from helpers import CLASSES, SPEC, numpy_cross_entropy, numpy_softmax, one_hot
from weak_strong import assert_value_and_gradient, logits_step

from jaxmatch.algorithms.freematch import FreeMatch
from jaxmatch.errors import InputError
from jaxmatch.functional.thresholds import SelfAdaptive

START = SelfAdaptive(
    np.float64(0.55), np.array([0.3, 0.25, 0.25, 0.2]), np.array([0.5, 0.3, 0.2, 0.0])
)
LABELED = np.zeros((2, CLASSES))


def ratio(above, below):
    found = np.array([a / b if b else 0.0 for a, b in zip(above, below, strict=True)])
    return found / found.sum()


def histogram(q):
    return np.bincount(q.argmax(1), minlength=CLASSES) / len(q)


@pytest.mark.parametrize(
    ("clip", "hard"),
    [((0.0, 1.0), True), pytest.param((0.35, 0.5), False, marks=pytest.mark.slow)],
)
def test_value_and_gradient_are_those_of_the_equations(clip, hard):
    algorithm = FreeMatch(
        momentum=0.9,
        clip=clip,
        unlabeled_weight=1.5,
        fairness_weight=0.1,
        hard_labels=hard,
        temperature=0.5,
    )
    seen = []

    def oracle(fixed, strong):
        _, weak, _ = fixed
        q = numpy_softmax(weak)
        t = 0.9 * START.confidence + 0.1 * q.max(1).mean()
        model = 0.9 * START.probabilities + 0.1 * q.mean(0)
        shares = 0.9 * START.histogram + 0.1 * histogram(q)
        limits = np.clip(t * model / model.max(), *clip)
        mask = q.max(1) >= limits[q.argmax(1)]
        target = one_hot(q.argmax(1)) if hard else numpy_softmax(weak / 0.5)
        unsupervised = np.mean(mask * numpy_cross_entropy(strong, target))
        chosen = numpy_softmax(strong)[mask]
        fairness = np.sum(
            ratio(model, shares) * np.log(ratio(chosen.mean(0), histogram(chosen)) + 1e-12)
        )
        seen.append((mask, t, model, shares, fairness))
        return 1.5 * unsupervised + 0.1 * fairness

    update = assert_value_and_gradient(algorithm, oracle, lambda _: START)
    mask, *averages, fairness = seen[0]
    assert 0 < mask.mean() < 1
    np.testing.assert_allclose(update.metrics["pseudo/coverage"], mask.mean(), rtol=1e-6)
    np.testing.assert_allclose(update.metrics["loss/fairness"], fairness, rtol=1e-12)
    for ours, theirs in zip(update.memory, averages, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-12)


def test_without_a_confident_example_only_the_supervised_loss_is_left():
    memory = START._replace(confidence=np.float32(1.0))
    algorithm = FreeMatch(fairness_weight=1.0)
    loss, update = logits_step(algorithm, memory, LABELED, np.zeros((3, CLASSES)))
    assert loss == update.metrics["loss/supervised"]
    assert update.metrics["pseudo/coverage"] == 0
    assert update.metrics["loss/fairness"] == 0


def test_a_guess_is_enough_at_first():
    algorithm = FreeMatch()
    memory = algorithm.init(jax.random.key(0), SPEC)
    weak = np.random.default_rng(0).normal(size=(6, CLASSES))
    assert logits_step(algorithm, memory, LABELED, weak)[1].metrics["pseudo/coverage"] == 1


def test_thresholds_stay_within_their_bounds():
    weak = np.log([[0.92, 0.04, 0.02, 0.02], [0.04, 0.92, 0.02, 0.02], [0.89, 0.07, 0.02, 0.02]])
    for confidence in (0.25, 0.999):
        memory = START._replace(confidence=np.float32(confidence))
        algorithm = FreeMatch(clip=(0.9, 0.91))
        metrics = logits_step(algorithm, memory, LABELED, weak)[1].metrics
        assert 0.9 <= metrics["pseudo/threshold"] <= 0.91
        np.testing.assert_allclose(metrics["pseudo/coverage"], 2 / 3, rtol=1e-6)


@pytest.mark.parametrize("clip", [(0.95, 0.9), (-0.1, 0.5), (0.5, 1.1), (0.5,), (0.1, 0.2, 0.3)])
def test_bounds_that_are_none_are_refused(clip):
    with pytest.raises(InputError, match="clip="):
        FreeMatch(clip=clip)
