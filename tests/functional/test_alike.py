"""Arrays that are split alike: values, gradients and vmap as without, and one split for both."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxmatch.functional.alike import split_alike, split_by_use

X = np.arange(32, dtype=np.float32).reshape(8, 4)
ORDER = np.arange(8)[::-1]


def energy(x, order=ORDER):
    x, y = split_alike(x, jnp.take(x, order, axis=0))
    return jnp.sum(jnp.sin(x) * jnp.cos(2 * y))


def plain(x, order=ORDER):
    return jnp.sum(jnp.sin(x) * jnp.cos(2 * jnp.take(x, order, axis=0)))


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit])
def test_values_and_gradients_stay(wrap):
    found = wrap(jax.value_and_grad(energy))(X)
    for one, other in zip(found, jax.value_and_grad(plain)(X), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("axes", [(0, None), (1, None), (None, 0), (0, 1)])
def test_vmap(axes):
    mapped = [
        given if axis is None else np.stack([given, given + 1], axis)
        for given, axis in zip((X, 2 * X), axes, strict=True)
    ]
    x, y = jax.vmap(split_alike, in_axes=axes)(*mapped)
    for found, given, axis in zip((x, y), mapped, axes, strict=True):
        expected = np.stack([given] * 2) if axis is None else np.moveaxis(given, axis, 0)
        np.testing.assert_array_equal(found, expected)


def test_a_gather_from_a_whole_array_is_split_as_the_other():
    mesh = jax.make_mesh((4,), ("data",), (AxisType.Auto,))
    split, whole = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())

    def program(function):
        call = jax.jit(function, in_shardings=(split, whole), out_shardings=whole)
        return call.lower(X, ORDER).compile().as_text()

    def alone(x, order):
        return jnp.sum(jnp.sin(jnp.take(x, order, axis=0)))

    def alike(x, order):
        return jnp.sum(jnp.sin(split_alike(x, jnp.take(x, order, axis=0))[1]))

    def sines(text):
        return [line for line in text.splitlines() if " sine(" in line]

    assert all("f32[2,4]" in line for line in sines(program(alike)))
    assert any("f32[8,4]" in line for line in sines(program(alone)))


def test_shapes_must_be_equal():
    with pytest.raises(ValueError, match=r"\(8, 4\) and \(8,\)"):
        split_alike(X, X[:, 0])


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit])
def test_what_is_split_by_use_keeps_values_and_gradients(wrap):
    def energy(x):
        return jnp.sum(jnp.sin(split_by_use(x)))

    found, gradient = wrap(jax.value_and_grad(energy))(X)
    np.testing.assert_allclose(found, np.sin(X).sum(), rtol=1e-4)
    np.testing.assert_allclose(gradient, np.cos(X), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(wrap(jax.vmap(split_by_use, 1, 1))(X), X)
