"""Sums over a batch in stages are sums: value, transposed, every derivative, on any devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from on_devices import assert_same_on_four

from jaxmatch.models.channels import channel_sums, spread

SHAPES = [(6, 8, 4, 3), (6, 7, 3, 3), (4, 1, 1, 3), (5, 3)]


@pytest.mark.parametrize("shape", SHAPES)
def test_sums_are_exact_and_spread_is_their_transpose(shape):
    random = np.random.default_rng(0)
    x, row = random.normal(size=shape), random.normal(size=shape[-1])
    with jax.enable_x64(True):
        np.testing.assert_allclose(channel_sums(x), x.sum(tuple(range(x.ndim - 1))), rtol=1e-13)
        np.testing.assert_array_equal(spread(row, shape), np.broadcast_to(row, shape))
        (pulled,) = jax.vjp(lambda row: spread(row, shape), row)[1](jnp.asarray(x))
        np.testing.assert_allclose(pulled, channel_sums(x), rtol=1e-13)
        (pulled,) = jax.vjp(channel_sums, x)[1](jnp.asarray(row))
        np.testing.assert_array_equal(pulled, spread(row, shape))


def test_derivatives_of_both_modes_and_maps_pass_through():
    x = np.random.default_rng(1).normal(size=(4, 8, 4, 3))

    def curve(x):
        mean = channel_sums(x) / 128
        return jnp.sum(jnp.tanh(x * spread(mean, x.shape)) ** 2)

    def plain(x):
        return jnp.sum(jnp.tanh(x * x.mean((0, 1, 2))) ** 2)

    with jax.enable_x64(True):
        direction = np.cos(x)
        for f in (jax.grad, lambda g: lambda x: jax.jvp(jax.grad(g), (x,), (direction,))[1]):
            np.testing.assert_allclose(f(curve)(x), f(plain)(x), rtol=1e-11, atol=1e-12)
        many = np.stack([x, 2 * x])
        np.testing.assert_allclose(jax.vmap(jax.grad(curve))(many)[1], jax.grad(plain)(2 * x))


def test_a_long_sum_keeps_its_digits():
    """A sum one by one would lose three of float32's seven digits here."""
    x = np.full((64, 32, 32, 2), 0.1, np.float32)
    exact = x.astype(np.float64).sum((0, 1, 2))
    np.testing.assert_allclose(channel_sums(x), exact, rtol=1e-6)


def test_four_devices_agree_with_one():
    x = np.random.default_rng(2).normal(size=(8, 8, 4, 3)).astype(np.float32)
    assert_same_on_four(lambda x, _: (channel_sums(x), channel_sums(x * x)), x, tolerance=1e-5)
