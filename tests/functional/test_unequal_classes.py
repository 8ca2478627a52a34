import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import numpy_softmax

from jaxmatch.functional.alignment import align
from jaxmatch.functional.unequal import class_frequencies, kept_share, prior_shift


@pytest.mark.parametrize("kind", [tuple, jnp.asarray])
def test_frequencies(kind):
    labels = [0, 0, 0, 2, 2, 3]
    found = jax.jit(lambda: class_frequencies(kind(labels), 5))()
    np.testing.assert_allclose(found, [1 / 2, 0, 1 / 3, 1 / 6, 0], rtol=1e-6)


def test_a_shift_by_the_prior_is_bayes_rule():
    random = np.random.default_rng(0)
    logits, prior = random.normal(size=(6, 4)), np.array([0.6, 0.3, 0.08, 0.02])
    with jax.enable_x64(True):
        shifted = jax.nn.softmax(logits + prior_shift(jnp.asarray(prior), 1.0))
        half = prior_shift(jnp.asarray(prior), 0.5)
    expected = numpy_softmax(logits) * prior
    np.testing.assert_allclose(shifted, expected / expected.sum(1, keepdims=True), rtol=1e-12)
    np.testing.assert_allclose(half, np.log(prior) / 2, rtol=1e-12)
    assert np.all(np.isfinite(prior_shift(jnp.array([1.0, 0.0]), 1.0)))


def test_alignment_is_a_shift_by_two_priors():
    random = np.random.default_rng(1)
    logits = random.normal(size=(6, 3)).astype(np.float32)
    average, prior = jnp.array([0.5, 0.3, 0.2]), jnp.array([0.2, 0.2, 0.6])
    shift = prior_shift(prior, 1.0) - prior_shift(average, 1.0)
    np.testing.assert_allclose(
        jax.nn.log_softmax(logits + shift),
        align(jax.nn.log_softmax(logits), average, prior),
        rtol=1e-5,
    )


def test_kept_shares_make_classes_equal():
    frequencies = jnp.array([0.5, 0.0, 0.3, 0.2])
    kept = kept_share(frequencies)
    np.testing.assert_allclose(kept * frequencies, [0.2, 0, 0.2, 0.2], rtol=1e-6)
    assert kept[1] == 1
