"""Sums over a batch in stages are sums: value, transposed, every derivative, on any devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from on_devices import assert_same_on_four

from jaxmatch.models import onednn
from jaxmatch.models.channels import channel_sums, moments, scale_and_activate, spread

SHAPES = [(6, 8, 4, 3), (6, 7, 3, 3), (4, 1, 1, 3), (5, 3)]


@pytest.mark.parametrize(
    "shape",
    [SHAPES[0], *(pytest.param(each, marks=pytest.mark.slow) for each in SHAPES[1:3]), SHAPES[3]],
)
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
            ours, theirs = (jax.jit(f(each))(x) for each in (curve, plain))
            np.testing.assert_allclose(ours, theirs, rtol=1e-11, atol=1e-12)
        many = np.stack([x, 2 * x])
        ours = jax.jit(jax.vmap(jax.grad(curve)))(many)[1]
        np.testing.assert_allclose(ours, jax.jit(jax.grad(plain))(2 * x))


def test_a_long_sum_keeps_its_digits():
    """A sum one by one would lose three of float32's seven digits here."""
    x = np.full((64, 32, 32, 2), 0.1, np.float32)
    exact = x.astype(np.float64).sum((0, 1, 2))
    np.testing.assert_allclose(channel_sums(x), exact, rtol=1e-6)


def test_four_devices_agree_with_one():
    x = np.random.default_rng(2).normal(size=(8, 8, 4, 3)).astype(np.float32)
    assert_same_on_four(lambda x, _: (channel_sums(x), channel_sums(x * x)), x, tolerance=1e-5)


def plain_scale(x, origin, factor, shift, slope):
    y = (x - origin) * factor + shift
    return jnp.where(y > 0, y, slope * y)


def batch(dtype=np.float64, shape=(4, 8, 4, 3)):
    random = np.random.default_rng(4)
    x = jnp.asarray(random.normal(0.5, 2, shape), dtype)
    return x, *(jnp.asarray(random.normal(size=shape[-1]), np.float64) for _ in range(3))


@pytest.mark.parametrize(
    "slope", [0.1, *(pytest.param(each, marks=pytest.mark.slow) for each in (1.0, 0.0))]
)
def test_scaling_has_the_derivatives_of_its_formula(slope):
    def curve(function):
        return lambda x, factor, shift: jnp.sum(jnp.sin(function(x, factor, shift)))

    with jax.enable_x64(True):
        x, origin, factor, shift = batch()
        given = (x, factor, shift)
        ours, plain = (
            curve(lambda x, factor, shift, f=f: f(x, origin, factor, shift, slope))
            for f in (scale_and_activate, plain_scale)
        )

        def along(f):
            return lambda *given: jax.jvp(f, given, tuple(map(jnp.cos, given)))[1]

        everything = (0, 1, 2)
        for derive in (
            lambda f: f,
            lambda f: jax.grad(f, everything),
            lambda f: along(jax.grad(f, everything)),
            lambda f: jax.grad(along(f), everything),
        ):
            for a, b in zip(
                jax.tree.leaves(jax.jit(derive(ours))(*given)),
                jax.tree.leaves(jax.jit(derive(plain))(*given)),
                strict=True,
            ):
                np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-11)
        many = tuple(jnp.stack([one, 2 * one, -one]) for one in given)
        for derive, values in (
            (lambda f: jax.vmap(jax.grad(f, 1)), many),
            (lambda f: jax.vmap(jax.grad(f), (0, None, None)), (many[0], factor, shift)),
        ):
            found, expected = (jax.jit(derive(each))(*values) for each in (ours, plain))
            np.testing.assert_allclose(found, expected, atol=1e-11)


@pytest.mark.slow  # the next test has both modes
def test_moments_have_the_derivatives_of_their_formula():
    def ours(x):
        first, second = moments(x, origin)
        return jnp.sum(jnp.sin(first) + second**2)

    def plain(x):
        centred = x - origin
        return jnp.sum(jnp.sin(centred.sum((0, 1, 2))) + jnp.square(centred).sum((0, 1, 2)) ** 2)

    with jax.enable_x64(True):
        x, origin, *_ = batch()
        for derive in (
            lambda f: f,
            jax.grad,
            lambda f: jax.grad(lambda x: jax.jvp(f, (x,), (jnp.cos(x),))[1]),
            lambda f: lambda x: jax.vmap(jax.grad(f), -1)(jnp.stack([x, -x], -1)),
        ):
            found, expected = (jax.jit(derive(each))(x) for each in (ours, plain))
            np.testing.assert_allclose(found, expected, rtol=1e-10)


@pytest.mark.parametrize(
    "channels", [1, 33, *(pytest.param(each, marks=pytest.mark.slow) for each in (3, 16, 130))]
)
@pytest.mark.parametrize("dtypes", [(np.float32, np.float32), (jnp.bfloat16, np.float32)])
def test_sums_on_one_device_are_exact_whatever_the_shape(channels, dtypes):
    """In the order of the library or of XLA, a sum of float32 keeps six digits."""
    random = np.random.default_rng(channels)
    shape = (7, 9, 5, channels)
    x, slope_of = (jnp.asarray(random.normal(size=shape), dtype) for dtype in dtypes)
    origin, factor, shift = (
        jnp.asarray(random.normal(size=channels), np.float32) for _ in range(3)
    )

    @jax.jit
    def pulled(x, ct):
        run = lambda *rows: scale_and_activate(x, origin, *rows, 0.1, np.float32)  # noqa: E731
        return jax.vjp(run, factor, shift)[1](ct)

    wide, ct = np.asarray(x, np.float64) - np.asarray(origin), np.asarray(slope_of, np.float64)
    ct = np.where(wide * np.asarray(factor) + np.asarray(shift) > 0, ct, 0.1 * ct)
    exact = ((ct * wide).sum((0, 1, 2)), ct.sum((0, 1, 2)))
    for a, b in zip(pulled(x, slope_of), exact, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-4)
    first, second = jax.jit(moments)(x, origin)
    np.testing.assert_allclose(first, wide.sum((0, 1, 2)), rtol=2e-5, atol=2e-4)
    np.testing.assert_allclose(second, (wide**2).sum((0, 1, 2)), rtol=2e-5)
    assert {a.dtype for a in (first, second)} == {np.dtype(np.float32)}


def test_the_library_sums_on_one_device_where_it_is_there():
    x = np.ones((4, 8, 4, 3), np.float32)
    text = jax.jit(channel_sums).lower(x).as_text()
    assert ("jaxmatch_sums" in text) == onednn.library().present
    with jax.enable_x64(True):
        assert "jaxmatch_sums" not in jax.jit(channel_sums).lower(x.astype(float)).as_text()
