"""Thresholds and weights against NumPy, and what holds whatever the predictions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import numpy_softmax, quick_jit
from hypothesis import given, settings
from hypothesis import strategies as st
from on_devices import assert_same_on_four

from jaxmatch.functional import thresholds
from jaxmatch.functional.thresholds import Gaussian, SelfAdaptive

BATCH, CLASSES = 8, 4
SEEDS = st.integers(0, 2**32 - 1)
learning_effect = quick_jit(thresholds.learning_effect)
update_averages = quick_jit(thresholds.update_self_adaptive)
update_gaussian = quick_jit(thresholds.update_gaussian)
weight_of = quick_jit(thresholds.truncated_gaussian_weight)
fairness = quick_jit(jax.value_and_grad(thresholds.self_adaptive_fairness))


def logits_of(random, scale=2.0):
    return random.normal(0, scale, (BATCH, CLASSES)).astype(np.float32)


@settings(max_examples=50, deadline=None)
@given(
    counts=st.lists(st.integers(0, 10**6), min_size=CLASSES, max_size=CLASSES),
    left=st.integers(0, 10**6),
)
def test_learning_effects_are_shares_of_the_largest_count(counts, left):
    counts = np.array(counts, np.int32)
    plain, warm = (np.asarray(learning_effect(counts, unselected)) for unselected in (0, left))
    assert np.all((plain >= 0) & (plain <= 1) & (warm <= plain))
    np.testing.assert_allclose(plain.max(), counts.max() > 0, rtol=1e-6)
    np.testing.assert_allclose(warm * max(counts.max(), left), counts, rtol=1e-6)


def test_flexible_thresholds_are_convex_between_0_and_the_threshold():
    effect = jnp.linspace(0, 1, 11)
    limits = np.asarray(thresholds.flexible_thresholds(0.9, effect))
    assert limits[0] == 0
    assert limits[-1] == pytest.approx(0.9)
    assert np.all(np.diff(limits) > 0)
    assert np.all(np.diff(limits, 2) > 0)
    np.testing.assert_allclose(limits[5], 0.9 / 3, rtol=1e-6)


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS, momentum=st.sampled_from((0.0, 0.9, 0.999)))
def test_self_adaptive_averages_are_those_of_all_batches(seed, momentum):
    random = np.random.default_rng(seed)
    averages = thresholds.make_self_adaptive(CLASSES)
    expected = [np.full(shape, 1 / CLASSES) for shape in ((), CLASSES, CLASSES)]
    for _ in range(3):
        q = numpy_softmax(logits_of(random))
        averages = update_averages(averages, q, momentum)
        shares = np.bincount(q.argmax(1), minlength=CLASSES) / BATCH
        batch = q.max(1).mean(), q.mean(0), shares
        pairs = zip(expected, batch, strict=True)
        expected = [momentum * old + (1 - momentum) * new for old, new in pairs]
        for ours, theirs in zip(averages, expected, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-6)
    limits = np.asarray(thresholds.self_adaptive_thresholds(averages))
    np.testing.assert_allclose(limits.max(), averages.confidence, rtol=1e-6)
    np.testing.assert_allclose(limits / limits.sum(), averages.probabilities, atol=1e-6)


def numpy_fairness(logits, selected, averages):
    q = numpy_softmax(logits)[selected]
    hard = np.bincount(q.argmax(1), minlength=CLASSES) / len(q)

    def normalized(above, below):
        ratio = np.array([a / b if b else 0 for a, b in zip(above, below, strict=True)])
        return ratio / ratio.sum()

    expected = normalized(averages.probabilities, averages.histogram)
    return np.sum(expected * np.log(normalized(q.mean(0), hard) + 1e-12))


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS, absent=st.booleans())
def test_fairness_is_that_of_the_equations(seed, absent):
    random = np.random.default_rng(seed)
    with jax.enable_x64(True):
        logits = logits_of(random).astype(float)
        selected = random.random(BATCH) < 0.6
        selected[0] = True
        histogram = numpy_softmax(random.normal(size=(1, CLASSES)))[0] * (
            np.arange(CLASSES) > 0 if absent else 1
        )
        averages = SelfAdaptive(
            np.float64(0.5), numpy_softmax(random.normal(size=(1, CLASSES)))[0], histogram
        )
        value, gradient = fairness(logits, selected, averages)
    np.testing.assert_allclose(value, numpy_fairness(logits, selected, averages), rtol=1e-9)
    direction = random.normal(0, 1e-6, logits.shape)
    ahead, behind = (
        numpy_fairness(logits + sign * direction, selected, averages) for sign in (1, -1)
    )
    np.testing.assert_allclose(np.vdot(gradient, direction), (ahead - behind) / 2, atol=1e-10)
    assert not np.any(gradient[~selected])


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_fairness_stays_finite(scale):
    logits = logits_of(np.random.default_rng(0), scale)
    averages = thresholds.make_self_adaptive(CLASSES)
    for selected in (np.zeros(BATCH, bool), np.arange(BATCH) == 3, np.ones(BATCH, bool)):
        value, gradient = fairness(logits, selected, averages)
        assert np.isfinite(value)
        assert np.isfinite(gradient).all()
        assert value <= 0
        if not selected.any():
            assert value == 0
            assert not gradient.any()


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS, momentum=st.sampled_from((0.0, 0.9)), deviations=st.sampled_from((1.0, 2.0)))
def test_gaussian_weights_are_those_of_the_equation(seed, momentum, deviations):
    random = np.random.default_rng(seed)
    gaussian, mean, variance = thresholds.make_gaussian(CLASSES), 1 / CLASSES, 1.0
    for _ in range(3):
        confidence = numpy_softmax(logits_of(random)).max(1)
        gaussian = update_gaussian(gaussian, confidence, momentum)
        mean = momentum * mean + (1 - momentum) * confidence.mean()
        variance = momentum * variance + (1 - momentum) * confidence.var(ddof=1)
        np.testing.assert_allclose(gaussian, (mean, variance), rtol=1e-4)
    weight = np.asarray(weight_of(confidence, gaussian, deviations))
    below = np.minimum(confidence - mean, 0)
    np.testing.assert_allclose(
        weight, np.exp(-(below**2) * deviations**2 / (2 * variance)), rtol=1e-3
    )
    assert np.all(weight[confidence >= gaussian.mean] == 1)
    assert np.all(np.diff(weight[np.argsort(confidence)]) >= 0)


def test_gaussians_of_one_image_or_without_width_stay_finite():
    one = update_gaussian(thresholds.make_gaussian(CLASSES), jnp.array([0.7]), 0.0)
    assert tuple(one) == (np.float32(0.7), 0)
    for variance in (0.0, 1e-40):
        narrow = Gaussian(jnp.float32(0.7), jnp.float32(variance))
        weight = weight_of(jnp.array([0.3, 0.7, 0.9]), narrow, 2.0)
        np.testing.assert_array_equal(weight, [0, 1, 1])


def test_the_relative_threshold_is_a_share_of_the_average_confidence():
    probabilities = jnp.array([[0.5, 0.3, 0.2], [0.1, 0.9, 0.0]])
    assert thresholds.relative_threshold(probabilities, 0.9) == pytest.approx(0.63)


def test_no_gradient_passes_into_the_averages():
    def remembered(logits):
        q = jax.nn.softmax(logits)
        averages = thresholds.update_self_adaptive(thresholds.make_self_adaptive(CLASSES), q, 0.5)
        gaussian = thresholds.update_gaussian(thresholds.make_gaussian(CLASSES), q.max(-1), 0.5)
        return sum(jnp.square(leaf).sum() for leaf in (*averages, *gaussian))

    assert not quick_jit(jax.grad(remembered))(logits_of(np.random.default_rng(0))).any()


def test_device_count():
    logits = logits_of(np.random.default_rng(0))

    def everything(logits, memories):
        averages, gaussian = memories
        q = jax.nn.softmax(logits)
        averages = thresholds.update_self_adaptive(averages, q, 0.9)
        gaussian = thresholds.update_gaussian(gaussian, q.max(-1), 0.9)
        selected = q.max(-1) >= thresholds.self_adaptive_thresholds(averages)[q.argmax(-1)]
        return (
            averages,
            thresholds.self_adaptive_fairness(logits, selected, averages),
            thresholds.truncated_gaussian_weight(q.max(-1), gaussian, 2.0),
            thresholds.relative_threshold(q, 0.9),
        )

    memories = thresholds.make_self_adaptive(CLASSES), thresholds.make_gaussian(CLASSES)
    assert_same_on_four(everything, logits, memories)
