"""The CPU's convolution is Flax's: value, both derivatives, in both modes, on any devices."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxmatch.models.convolution import convolve
from jaxmatch.parallel import make_mesh, over_batch, replicated


def arrays(batch, dtype=np.float64, side=3):
    random = np.random.default_rng(0)
    return (
        random.normal(size=(batch, 7, 6, 3)).astype(dtype),
        random.normal(size=(side, side, 3, 5)).astype(dtype),
    )


def pair(stride, padding="SAME"):
    options = {
        "window_strides": (stride, stride),
        "padding": padding,
        "dimension_numbers": ("NHWC", "HWIO", "NHWC"),
    }
    return partial(convolve, **options), partial(lax.conv_general_dilated, **options)


@pytest.mark.parametrize("batch", [5, 16, 48, 60])  # whole, whole, in three parts, whole
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("side", "padding"), [(3, ((1, 1), (1, 1))), (1, "SAME")])
def test_value_and_derivatives_are_those_of_the_convolution(batch, stride, side, padding):
    with jax.enable_x64(True):
        images, kernel = arrays(batch, side=side)
        ours, theirs = pair(stride, padding)
        np.testing.assert_allclose(ours(images, kernel), theirs(images, kernel), rtol=1e-12)
        directions = (np.cos(images), np.sin(kernel))
        for which in ((0,), (1,), (0, 1)):

            def value(function, *varied, which=which):
                given = [images, kernel]
                for position, array in zip(which, varied, strict=True):
                    given[position] = array
                return jnp.sum(jnp.tanh(function(*given)))

            varied = [(images, kernel)[position] for position in which]
            tangents = [directions[position] for position in which]
            for derive in (
                lambda f, varied=varied: jax.grad(f, tuple(range(len(varied))))(*varied),
                lambda f, varied=varied, tangents=tangents: jax.jvp(f, varied, tangents)[1],
            ):
                mine, reference = (derive(partial(value, f)) for f in (ours, theirs))
                for a, b in zip(jax.tree.leaves(mine), jax.tree.leaves(reference), strict=True):
                    np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


def test_the_gradient_is_taken_in_parts_that_stay_on_their_devices():
    images, kernel = arrays(64, np.float32)
    ours, _ = pair(1)

    def gradient(images, kernel):
        return jax.grad(lambda kernel: jnp.sum(jnp.sin(ours(images, kernel))))(kernel)

    mesh = make_mesh(4, 64)
    places = (over_batch(mesh), replicated(mesh))
    compiled = jax.jit(gradient, in_shardings=places).lower(images, kernel).compile()
    text = compiled.as_text()
    assert len(re.findall(r"= \S+ convolution\(", text)) == 1 + 64 // 16
    for moved in ("all-to-all", "collective-permute", "all-gather"):
        assert moved not in text
    alone = jax.jit(gradient)(images, kernel)
    np.testing.assert_allclose(
        compiled(*jax.device_put((images, kernel), places)), alone, rtol=1e-4, atol=1e-4
    )
