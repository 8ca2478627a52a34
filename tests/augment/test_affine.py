"""Warps by shears against fetching pixel by pixel."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import quick_jit

from jaxmatch.augment.pixels import affine, geometry


def matrices(size, most, n):
    """Rotations, shears and moves of any size up to the limits, which are among them."""
    height, width = size
    kind = np.arange(n) % 5
    share = np.random.default_rng(0).uniform(-1, 1, n)
    share[:10] = np.repeat([1, -1], 5)
    limits = (most, 0.5, 0.5, width // 2, height // 2)
    warps = (
        partial(geometry.rotation, size=size),
        *(geometry.shear_x, geometry.shear_y, geometry.translation_x, geometry.translation_y),
    )
    given = [
        warp(jnp.asarray(share * limit, jnp.float32))
        for warp, limit in zip(warps, limits, strict=True)
    ]
    return jnp.stack(given)[kind, np.arange(n)]


def check(shape, degrees, n):
    planes = np.random.default_rng(1).integers(1, 256, (shape[0], n, *shape[1:]), np.int32)
    given = planes, matrices(shape[1:], degrees, n)
    expected = quick_jit(affine.warp_far)(*given)
    assert (np.asarray(expected) == 0).any()
    found = quick_jit(lambda *given: affine._warp_by_shears(*given, degrees=degrees))(*given)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("shape", "degrees"),
    [
        ((3, 49, 50), 45),
        pytest.param((3, 96, 60), 30, marks=pytest.mark.slow),
        pytest.param((5, 50, 110), 45, marks=pytest.mark.slow),
    ],
)
def test_shears_fetch_the_same_pixels(shape, degrees):
    check(shape, degrees, 100)


@pytest.mark.slow
@pytest.mark.parametrize("degrees", [30, 45])
@pytest.mark.parametrize("side", [96, 224])
def test_shears_fetch_the_same_pixels_in_large_images(side, degrees):
    check((1, side, side), degrees, 1000)


def test_only_a_tpu_shears_and_only_large_images():
    for side, on_tpu in ((48, "dot_general"), (49, None)):
        traced = jax.jit(affine.warp).trace(
            np.zeros((3, 2, side, side), np.int32), np.zeros((2, 6), np.float32)
        )
        for platform, moved in (("tpu", on_tpu), ("cpu", "gather"), ("cuda", "gather")):
            text = traced.lower(lowering_platforms=(platform,)).as_text()
            found = set(re.findall(r"stablehlo\.(dot_general|gather|scatter)\b", text))
            assert found == ({moved} if moved else set())
