"""SoftMatch against plain NumPy, over steps and at its edges."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import CLASSES, SPEC, numpy_cross_entropy, numpy_softmax, one_hot
from weak_strong import assert_value_and_gradient, logits_step

from jaxmatch.algorithms.softmatch import Memory, SoftMatch
from jaxmatch.errors import InputError
from jaxmatch.functional.alignment import Marginal
from jaxmatch.functional.thresholds import Gaussian

UNIFORM = np.full(CLASSES, 1 / CLASSES)
MARGINAL = np.array([0.4, 0.3, 0.2, 0.1])
LABELED = np.zeros((2, CLASSES))


def aligned(q, marginal, prior):
    scaled = q / marginal * prior
    return scaled / scaled.sum(1, keepdims=True)


@pytest.mark.parametrize(
    ("prior", "hard"),
    [("uniform", True), pytest.param("labeled", False, marks=pytest.mark.slow)],
)
def test_value_and_gradient_are_those_of_the_equations(prior, hard):
    algorithm = SoftMatch(
        deviations=3.0,
        momentum=0.9,
        prior=prior,
        unlabeled_weight=1.5,
        hard_labels=hard,
        temperature=0.5,
    )
    seen = []

    def oracle(fixed, strong):
        on_x, weak, _ = fixed
        q = numpy_softmax(weak)
        marginal = 0.9 * MARGINAL + 0.1 * q.mean(0)
        wanted = UNIFORM
        if prior == "labeled":
            wanted = 0.9 * UNIFORM + 0.1 * numpy_softmax(on_x).mean(0)
        top = aligned(q, marginal, wanted).max(1)
        mean = 0.9 * 0.6 + 0.1 * top.mean()
        variance = 0.9 * 0.1 + 0.1 * top.var(ddof=1)
        weight = np.exp(-(np.minimum(top - mean, 0) ** 2) / (2 * variance / 9))
        target = one_hot(q.argmax(1)) if hard else numpy_softmax(weak / 0.5)
        seen.append((weight, mean, variance, marginal, wanted))
        return 1.5 * np.mean(weight * numpy_cross_entropy(strong, target))

    start = Memory(
        Gaussian(np.float64(0.6), np.float64(0.1)),
        Marginal(MARGINAL, np.array(True)),
        Marginal(UNIFORM, np.array(True)),
    )
    update = assert_value_and_gradient(algorithm, oracle, lambda _: start)
    weight, *averages = seen[0]
    assert weight.min() < 0.9
    np.testing.assert_allclose(update.metrics["pseudo/coverage"], weight.mean(), rtol=1e-6)
    gaussian, marginal, wanted = update.memory
    for ours, theirs in zip((*gaussian, marginal.average, wanted.average), averages, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-12)


def start_of(algorithm):
    return algorithm.init(jax.random.key(0), SPEC)


def test_the_first_batch_begins_the_marginal():
    algorithm, random = SoftMatch(momentum=0.9), np.random.default_rng(0)
    batches = [random.normal(0, 2, (6, CLASSES)) for _ in range(2)]
    _, first = logits_step(algorithm, start_of(algorithm), LABELED, batches[0])
    means = [numpy_softmax(batch).mean(0) for batch in batches]
    np.testing.assert_allclose(first.memory.marginal.average, means[0], rtol=1e-5)
    _, second = logits_step(algorithm, first.memory, LABELED, batches[1])
    expected = 0.9 * means[0] + 0.1 * means[1]
    np.testing.assert_allclose(second.memory.marginal.average, expected, rtol=1e-5)
    np.testing.assert_allclose(second.memory.prior.average, UNIFORM, rtol=1e-6)


def test_the_label_is_of_the_unaligned_prediction_and_the_weight_of_the_aligned_one():
    # Class 0 is what the model nearly always predicts: alignment turns the first image to class 1.
    memory = start_of(SoftMatch())._replace(
        gaussian=Gaussian(jnp.float32(0.8), jnp.float32(0.04)),
        marginal=Marginal(jnp.array([0.97, 0.01, 0.01, 0.01]), jnp.array(True)),
    )
    weak = np.log([[0.6, 0.3, 0.05, 0.05], [0.9, 0.04, 0.03, 0.03]])
    strong = np.log([[0.4, 0.5, 0.05, 0.05], [0.4, 0.5, 0.05, 0.05]])
    _, update = logits_step(SoftMatch(momentum=0.99999), memory, LABELED, weak, strong)
    top = aligned(np.exp(weak), np.array([0.97, 0.01, 0.01, 0.01]), UNIFORM).max(1)
    weight = np.exp(-(np.minimum(top - 0.8, 0) ** 2) * 4 / (2 * 0.04))
    expected = np.mean(weight * -np.log(0.4))
    np.testing.assert_allclose(update.metrics["loss/unsupervised"], expected, rtol=1e-3)


def test_every_example_counts_fully_at_first():
    algorithm = SoftMatch()
    weak = np.random.default_rng(0).normal(0, 0.1, (6, CLASSES))
    _, update = logits_step(algorithm, start_of(algorithm), LABELED, weak)
    np.testing.assert_allclose(update.metrics["pseudo/coverage"], 1, rtol=1e-5)


def test_an_unknown_prior_is_refused():
    with pytest.raises(InputError, match=r"unknown algorithm\.prior 'labelled'.*'labeled'"):
        SoftMatch(prior="labelled")
