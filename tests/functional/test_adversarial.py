"""The virtual adversarial direction against closed forms and numerical derivatives."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import numpy_softmax, quick_jit
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxmatch.functional.adversarial import covariance_product, unit, virtual_adversarial_direction

SHAPE = (3, 2, 2, 2)  # images
KERNEL = np.random.default_rng(0).normal(size=(8, 5))


def linear(kernel, bias=0.0):
    return lambda images: images.reshape(len(images), -1) @ kernel + bias


jit_unit = quick_jit(unit)


def inputs(seed=0, dtype=np.float64):
    return np.random.default_rng(seed).normal(size=(2, *SHAPE)).astype(dtype)


def numpy_direction(kernel, images, noise, bias=0.0):
    """g = K (diag(p) - p p^T) K^T d of a linear network, image by image, over its norm."""
    directions = []
    for p, d in zip(numpy_softmax(linear(kernel, bias)(images)), noise, strict=True):
        g = kernel @ (np.diag(p) - np.outer(p, p)) @ kernel.T @ d.ravel()
        directions.append(g / np.linalg.norm(g))
    return np.stack(directions).reshape(images.shape)


@partial(quick_jit, static_argnums=4)
def find(kernel, bias, images, noise, xi):
    logits_of = linear(kernel, bias)
    return virtual_adversarial_direction(logits_of, images, logits_of(images), noise, xi)


def direction(kernel, images, noise, xi=0.0, bias=0.0):
    kernel, bias = (jnp.asarray(value, images.dtype) for value in (kernel, bias))
    return np.asarray(find(kernel, bias, images, noise, xi))


def test_the_direction_of_a_linear_network():
    images, noise = inputs()
    with jax.enable_x64(True):
        found = direction(KERNEL, images, noise)
        scaled = direction(KERNEL, images, 1e-3 * noise)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, numpy_direction(KERNEL, images, noise), rtol=1e-10)
    np.testing.assert_allclose(scaled, found, rtol=1e-10)


@pytest.mark.parametrize(("xi", "tolerance"), [(1e-2, 1e-1), (1e-4, 1e-3), (1e-6, 1e-5)])
def test_differences_approach_the_exact_direction(xi, tolerance):
    images, noise = inputs(1)
    with jax.enable_x64(True):
        found, exact = direction(KERNEL, images, noise, xi), direction(KERNEL, images, noise)
    assert 0 < np.abs(found - exact).max() < tolerance


def test_float32_keeps_the_direction_of_confident_predictions():
    images, noise = inputs(2, np.float32)
    bias = np.array([30.0, 0, 0, 0, 0])
    assert numpy_softmax(linear(KERNEL, bias)(images)).max(1).min() > 1 - 1e-9
    found = direction(KERNEL, images, noise, bias=bias)
    assert found.dtype == np.float32
    with jax.enable_x64(True):
        wide = (value.astype(np.float64) for value in (images, noise))
        expected = direction(KERNEL, *wide, bias=bias)
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("xi", [0.0, 1e-2])
def test_a_prediction_that_nothing_changes_has_no_direction(xi):
    images, noise = inputs(3, np.float32)
    assert not np.any(direction(np.zeros_like(KERNEL), images, noise, xi))
    certain = direction(1e4 * KERNEL, images, noise, xi)
    assert np.isfinite(certain).all()


def test_both_products_are_with_the_jacobian_of_one_call():
    generator = np.random.default_rng(0)
    first, *others = generator.normal(size=(3, 4, 3)).astype(np.float32)
    images, noise = generator.normal(size=(2, 5, 4)).astype(np.float32)
    kernels = iter([first, *others])  # as if each call dropped other paths
    found = virtual_adversarial_direction(
        lambda x: x @ next(kernels), jnp.asarray(images), images @ first, noise
    )
    np.testing.assert_allclose(found, direction(first, images, noise), rtol=1e-4, atol=1e-5)


def test_no_gradient_passes():
    images, noise = inputs(4, np.float32)

    def total(kernel, images, noise):
        logits_of = linear(kernel)
        return virtual_adversarial_direction(logits_of, images, logits_of(images), noise).sum()

    gradients = quick_jit(jax.grad(total, (0, 1, 2)))(jnp.float32(KERNEL), images, noise)
    assert not any(np.any(gradient) for gradient in gradients)


def test_half_precision_is_widened():
    images, noise = (jnp.asarray(value, jnp.bfloat16) for value in inputs(5))
    assert find(jnp.float32(KERNEL), jnp.float32(0), images, noise, 0.0).dtype == np.float32


def test_the_product_with_the_covariance():
    logits, change = np.random.default_rng(6).normal(size=(2, 7, 4))
    p = numpy_softmax(logits)
    expected = [(np.diag(q) - np.outer(q, q)) @ v for q, v in zip(p, change, strict=True)]
    with jax.enable_x64(True):
        np.testing.assert_allclose(covariance_product(logits, change), expected, atol=1e-14)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**16))
def test_a_step_of_the_power_method_does_not_lose_divergence(seed):
    """The quotient r^T H r / r^T r of a positive semi-definite H grows, or stays."""
    images, noise = inputs(seed, np.float32)
    p = numpy_softmax(linear(KERNEL)(images))

    def quotient(r):
        change = linear(KERNEL)(r) / np.linalg.norm(r.reshape(len(r), -1), axis=1)[:, None]
        return (p * change**2).sum(1) - (p * change).sum(1) ** 2

    before, after = quotient(noise), quotient(direction(KERNEL, images, noise))
    assert np.all(after >= before * (1 - 1e-3))


@settings(max_examples=30, deadline=None)
@given(st.integers(-35, 35), st.integers(0, 2**16))
def test_unit_has_norm_one_at_any_scale(exponent, seed):
    x = np.random.default_rng(seed).normal(size=SHAPE)
    found = np.asarray(jit_unit(jnp.asarray(x * 10.0**exponent, jnp.float32)))
    np.testing.assert_allclose(np.linalg.norm(found.reshape(len(x), -1), axis=1), 1, rtol=1e-5)
    expected = x / np.sqrt(np.square(x).sum((1, 2, 3), keepdims=True))
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)


def test_unit_of_zero_is_zero():
    x = np.zeros((2, 3), np.float32)
    x[1, 0] = -4
    np.testing.assert_array_equal(unit(jnp.asarray(x)), [[0, 0, 0], [-1, 0, 0]])
