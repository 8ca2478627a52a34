"""Distribution alignment against NumPy and against the averages that it divides by."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import numpy_softmax, quick_jit
from hypothesis import given, settings
from hypothesis import strategies as st
from on_devices import assert_same_on_four

from jaxmatch.functional.alignment import (
    align,
    align_by_average,
    align_by_history,
    make_history,
    make_marginal,
    sharpen,
    update_marginal,
)

BATCH, CLASSES, LENGTH = 8, 4, 3
SEEDS = st.integers(0, 2**32 - 1)
jit_by_history, jit_by_average = quick_jit(align_by_history), quick_jit(align_by_average)
jit_marginal = quick_jit(update_marginal)


def batch_of(random):
    """Log probabilities [b C]."""
    return np.log(numpy_softmax(random.normal(0, 2, (BATCH, CLASSES)))).astype(np.float32)


def numpy_align(log_probabilities, marginal, prior=None):
    scaled = np.exp(log_probabilities) / marginal * (1 if prior is None else prior)
    return scaled / scaled.sum(1, keepdims=True)


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS)
def test_a_batch_that_is_uniform_on_average_stays(seed):
    half = batch_of(np.random.default_rng(seed))[:2]
    balanced = np.concatenate([np.roll(half, shift, axis=1) for shift in range(CLASSES)])
    aligned, _ = jit_by_history(make_history(LENGTH, CLASSES), balanced)
    np.testing.assert_allclose(aligned, balanced, atol=1e-5)


@settings(max_examples=15, deadline=None)
@given(seed=SEEDS, calls=st.integers(1, 2 * LENGTH + 1), learned=st.booleans())
def test_the_history_is_the_last_batches_and_this_one(seed, calls, learned):
    random = np.random.default_rng(seed)
    prior = numpy_softmax(random.normal(size=(1, CLASSES)))[0].astype(np.float32)
    if not learned:
        prior = np.full(CLASSES, 1 / CLASSES, np.float32)
    history, averages = make_history(LENGTH, CLASSES), []
    for _ in range(calls):
        log_probabilities = batch_of(random)
        aligned, history = jit_by_history(history, log_probabilities, prior)
        averages = [*averages, np.exp(log_probabilities).mean(0)][-LENGTH:]
        expected = numpy_align(log_probabilities, np.mean(averages, 0), prior)
        np.testing.assert_allclose(jnp.exp(aligned), expected, atol=1e-5)
        np.testing.assert_allclose(jnp.exp(aligned).sum(1), 1, rtol=1e-5)
    assert history.filled == min(calls, LENGTH)


def test_a_uniform_prior_is_the_default():
    random = np.random.default_rng(0)
    log_probabilities, history = batch_of(random), make_history(LENGTH, CLASSES)
    without, _ = jit_by_history(history, log_probabilities)
    uniform, _ = jit_by_history(history, log_probabilities, jnp.full(CLASSES, 1 / CLASSES))
    np.testing.assert_allclose(without, uniform, atol=1e-6)


def test_rows_not_recorded_do_not_count():
    log_probabilities = batch_of(np.random.default_rng(0))
    empty = make_history(LENGTH, CLASSES)
    garbage = empty._replace(rows={"marginal": jnp.arange(12.0).reshape(LENGTH, CLASSES)})
    expected, _ = jit_by_history(empty, log_probabilities)
    aligned, _ = jit_by_history(garbage, log_probabilities)
    np.testing.assert_array_equal(aligned, expected)


def test_predictions_like_the_marginal_become_the_prior():
    marginal, prior = jnp.array([0.7, 0.2, 0.1]), jnp.array([0.1, 0.3, 0.6])
    aligned = jnp.exp(align(jnp.log(marginal)[None], marginal, prior))
    np.testing.assert_allclose(aligned[0], prior, rtol=1e-5)


@pytest.mark.parametrize("marginal", [[0, 0, 1], [1e-38, 1e-20, 1], [0, 0, 0]])
@pytest.mark.parametrize("prior", [None, [0, 0.5, 0.5]])
def test_extremes_stay_finite(marginal, prior):
    prior = None if prior is None else jnp.array(prior, float)

    def total(logits):
        aligned = align(jax.nn.log_softmax(logits), jnp.array(marginal, float), prior)
        return (aligned**2).sum(), aligned

    logits = jnp.array([[0.0, 0.0, 0.0], [200.0, 0.0, -200.0], [-1e4, 1e4, 0.0]])
    gradient, aligned = quick_jit(jax.grad(total, has_aux=True))(logits)
    assert np.isfinite(aligned).all()
    assert np.isfinite(gradient).all()
    np.testing.assert_allclose(jnp.exp(aligned).sum(1), 1, rtol=1e-6)


@settings(max_examples=15, deadline=None)
@given(seed=SEEDS, momentum=st.sampled_from((0.0, 0.9, 0.999)))
def test_the_moving_average_leaves_out_this_batch(seed, momentum):
    random = np.random.default_rng(seed)
    average = expected = np.full(CLASSES, 1 / CLASSES, np.float32)
    for _ in range(3):
        log_probabilities = batch_of(random)
        aligned, average = jit_by_average(average, log_probabilities, momentum)
        np.testing.assert_allclose(
            jnp.exp(aligned), numpy_align(log_probabilities, expected), atol=1e-5
        )
        mean = np.exp(log_probabilities).mean(0)
        expected = momentum * expected + (1 - momentum) * mean
        np.testing.assert_allclose(average, expected, rtol=1e-5)


def test_no_gradient_passes_into_the_averages():
    log_probabilities = batch_of(np.random.default_rng(0))
    history, average = make_history(LENGTH, CLASSES), jnp.full(CLASSES, 1 / CLASSES)

    def remembered(log_probabilities):
        _, recorded = align_by_history(history, log_probabilities)
        _, moved = align_by_average(average, log_probabilities, 0.9)
        return recorded.rows["marginal"].sum() + (moved**2).sum()

    assert not quick_jit(jax.grad(remembered))(log_probabilities).any()


def test_device_count():
    random = np.random.default_rng(0)
    history = jit_by_history(make_history(LENGTH, CLASSES), batch_of(random))[1]
    average = np.full(CLASSES, 1 / CLASSES, np.float32)

    def aligned(log_probabilities, memories):
        history, average = memories
        return (
            align_by_history(history, log_probabilities),
            align_by_average(average, log_probabilities, 0.9),
        )

    assert_same_on_four(aligned, batch_of(random), (history, average))


@settings(max_examples=15, deadline=None)
@given(seed=SEEDS, momentum=st.sampled_from((0.0, 0.9, 0.999)), started=st.booleans())
def test_a_marginal_begins_where_it_is_told_or_with_the_first_batch(seed, momentum, started):
    random = np.random.default_rng(seed)
    uniform = jnp.full(CLASSES, 1 / CLASSES)
    marginal = make_marginal(CLASSES, uniform if started else None)
    expected = np.asarray(uniform) if started else None
    for _ in range(3):
        probabilities = np.exp(batch_of(random))
        marginal = jit_marginal(marginal, probabilities, momentum)
        mean = probabilities.mean(0)
        expected = mean if expected is None else momentum * expected + (1 - momentum) * mean
        np.testing.assert_allclose(marginal.average, expected, rtol=1e-5)
        assert marginal.started


def test_a_marginal_stops_gradients_and_is_the_same_on_four_devices():
    probabilities = np.exp(batch_of(np.random.default_rng(0)))
    empty = make_marginal(CLASSES)
    moved = lambda rows: (update_marginal(empty, rows, 0.9).average ** 2).sum()  # noqa: E731
    assert not quick_jit(jax.grad(moved))(probabilities).any()
    assert_same_on_four(
        lambda rows, marginal: update_marginal(marginal, rows, 0.9).average, probabilities, empty
    )


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS, temperature=st.sampled_from((0.1, 0.5, 0.9)), scale=st.floats(-5, 5))
def test_sharpening_raises_to_a_power(seed, temperature, scale):
    log_probabilities = batch_of(np.random.default_rng(seed))
    powers = np.exp(np.float64(log_probabilities)) ** (1 / temperature)
    sharp = np.exp(sharpen(log_probabilities + scale, temperature))
    np.testing.assert_allclose(sharp, powers / powers.sum(1, keepdims=True), atol=1e-5)
    np.testing.assert_array_equal(sharp.argmax(1), log_probabilities.argmax(1))
    entropies = [
        -np.sum(np.exp(q) * q, 1)
        for q in (sharpen(log_probabilities, temperature), log_probabilities)
    ]
    assert (entropies[0] <= entropies[1] + 1e-5).all()
    np.testing.assert_allclose(sharpen(log_probabilities, 1.0), log_probabilities, atol=1e-5)


def test_sharpening_certain_rows_stays_finite():
    def total(logits):
        return (jnp.exp(sharpen(jax.nn.log_softmax(logits), 0.01)) ** 2).sum()

    logits = jnp.array([[1e4, 0.0, -1e4], [0.0, 0.0, 0.0]])
    value, gradient = quick_jit(jax.value_and_grad(total))(logits)
    np.testing.assert_allclose(value, 1 + 1 / 3, rtol=1e-5)
    assert np.isfinite(gradient).all()
