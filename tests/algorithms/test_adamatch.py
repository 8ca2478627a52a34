"""AdaMatch against plain NumPy, over steps and at its edges."""

import jax
import numpy as np
import pytest
from helpers import CLASSES, SPEC, numpy_cross_entropy, numpy_softmax, one_hot
from weak_strong import assert_value_and_gradient, logits_step

from jaxmatch.algorithms.adamatch import AdaMatch, Memory
from jaxmatch.functional.alignment import Marginal

ON_LABELED = np.array([0.2, 0.25, 0.25, 0.3])
ON_UNLABELED = np.array([0.3, 0.25, 0.25, 0.2])


def aligned(q, unlabeled, labeled):
    scaled = q / unlabeled * labeled
    return scaled / scaled.sum(1, keepdims=True)


@pytest.mark.parametrize("hard", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_value_and_gradient_are_those_of_the_equations(hard):
    algorithm = AdaMatch(
        threshold=1.05, momentum=0.9, unlabeled_weight=1.5, hard_labels=hard, temperature=0.5
    )
    seen = []

    def oracle(fixed, strong):
        on_x, weak, _ = fixed
        q_x, q = numpy_softmax(on_x), numpy_softmax(weak)
        labeled = 0.9 * ON_LABELED + 0.1 * q_x.mean(0)
        unlabeled = 0.9 * ON_UNLABELED + 0.1 * q.mean(0)
        r = aligned(q, unlabeled, labeled)
        mask = r.max(1) >= 1.05 * q_x.max(1).mean()
        sharpened = r**2 / (r**2).sum(1, keepdims=True)
        target = one_hot(r.argmax(1)) if hard else sharpened
        seen.append((mask, labeled, unlabeled))
        return 1.5 * np.mean(mask * numpy_cross_entropy(strong, target))

    started = np.array(True)
    start = Memory(Marginal(ON_LABELED, started), Marginal(ON_UNLABELED, started))
    update = assert_value_and_gradient(algorithm, oracle, lambda _: start)
    mask, labeled, unlabeled = seen[0]
    assert 0 < mask.mean() < 1
    np.testing.assert_allclose(update.metrics["pseudo/coverage"], mask.mean(), rtol=1e-6)
    np.testing.assert_allclose(update.memory.labeled.average, labeled, rtol=1e-12)
    np.testing.assert_allclose(update.memory.unlabeled.average, unlabeled, rtol=1e-12)


def test_the_averages_start_uniform_and_with_the_first_batch():
    algorithm, random = AdaMatch(momentum=0.9), np.random.default_rng(0)
    memory = algorithm.init(jax.random.key(0), SPEC)
    expected = np.full(CLASSES, 1 / CLASSES), None
    for _ in range(2):
        labeled, weak = random.normal(0, 2, (3, CLASSES)), random.normal(0, 2, (6, CLASSES))
        memory = logits_step(algorithm, memory, labeled, weak)[1].memory
        means = numpy_softmax(labeled).mean(0), numpy_softmax(weak).mean(0)
        expected = tuple(
            mean if old is None else 0.9 * old + 0.1 * mean
            for old, mean in zip(expected, means, strict=True)
        )
        np.testing.assert_allclose(memory.labeled.average, expected[0], rtol=1e-5)
        np.testing.assert_allclose(memory.unlabeled.average, expected[1], rtol=1e-5)


def test_the_threshold_follows_the_confidence_on_labeled_images():
    algorithm = AdaMatch(threshold=0.9)
    memory = algorithm.init(jax.random.key(0), SPEC)
    # Each class once, so that alignment changes nothing.
    weak = np.log(np.where(np.eye(CLASSES) == 1, 0.7, 0.1))
    for confidence, coverage in ((0.75, 1.0), (0.82, 0.0)):
        labeled = np.log(np.where(np.eye(CLASSES) == 1, confidence, (1 - confidence) / 3))
        metrics = logits_step(algorithm, memory, labeled, weak)[1].metrics
        np.testing.assert_allclose(metrics["pseudo/threshold"], 0.9 * confidence, rtol=1e-5)
        assert metrics["pseudo/coverage"] == coverage


def test_the_label_is_of_the_aligned_prediction():
    started = np.array(True)
    memory = Memory(
        Marginal(np.float32(np.full(CLASSES, 0.25)), started),
        Marginal(np.float32([0.97, 0.01, 0.01, 0.01]), started),
    )
    weak, strong = np.log([[0.6, 0.3, 0.05, 0.05]]), np.log([[0.4, 0.5, 0.05, 0.05]])
    algorithm = AdaMatch(momentum=0.99999)
    _, update = logits_step(algorithm, memory, np.zeros((2, CLASSES)), weak, strong)
    assert update.metrics["pseudo/coverage"] == 1
    np.testing.assert_allclose(update.metrics["loss/unsupervised"], -np.log(0.5), rtol=1e-5)
