"""Loss terms against NumPy, in extreme and in double precision."""

import jax
import jax.numpy as jnp
import numpy as np
from helpers import numpy_cross_entropy, numpy_softmax

from jaxmatch.losses import cross_entropy


def test_classes_and_distributions():
    random = np.random.default_rng(0)
    logits = random.normal(0, 3, (7, 5)).astype(np.float32)
    label = random.integers(0, 5, 7)
    target = numpy_softmax(random.normal(size=(7, 5))).astype(np.float32)
    expected = numpy_cross_entropy(logits, np.eye(5)[label])
    np.testing.assert_allclose(cross_entropy(logits, jnp.asarray(label)), expected, rtol=1e-5)
    expected = numpy_cross_entropy(logits, target)
    np.testing.assert_allclose(cross_entropy(logits, jnp.asarray(target)), expected, rtol=1e-5)


def test_huge_logits_stay_finite():
    logits = jnp.array([[1e4, 0.0, -1e4]])
    assert cross_entropy(logits, jnp.array([2]))[0] == 2e4
    assert cross_entropy(logits, jnp.array([0]))[0] == 0
    gradient = jax.grad(lambda logits: cross_entropy(logits, jnp.array([2])).sum())(logits)
    np.testing.assert_allclose(gradient, [[1, 0, -1]], atol=1e-6)


def test_float64_is_kept():
    with jax.enable_x64(True):
        logits = np.random.default_rng(0).normal(size=(3, 4))
        loss = cross_entropy(jnp.asarray(logits), jnp.array([0, 1, 2]))
    assert loss.dtype == np.float64
    expected = numpy_cross_entropy(logits, np.eye(4)[[0, 1, 2]])
    np.testing.assert_allclose(loss, expected, rtol=1e-14)


def test_gradient_is_probabilities_minus_target():
    random = np.random.default_rng(1)
    logits, other = random.normal(size=(2, 6, 4)).astype(np.float32)
    target = numpy_softmax(other)
    gradient = jax.grad(lambda z: cross_entropy(z, jnp.asarray(target)).sum())(logits)
    np.testing.assert_allclose(gradient, numpy_softmax(logits) - target, atol=1e-6)
