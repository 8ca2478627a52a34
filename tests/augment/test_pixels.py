"""Both forms of each operation on pixels against NumPy, and which platform gets which."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import quick_jit

from jaxmatch.augment import pixels

SHAPES = [(1, 3, 28, 28), (3, 2, 32, 32), (4, 2, 24, 40), (3, 1, 96, 96), (1, 1, 224, 224)]
FORMS = {
    "take": (pixels._take_by_products, pixels._take_by_gathers),
    "take_grid": (pixels._take_grid_by_products, pixels._take_grid_by_gathers),
    "count_levels": (pixels._count_by_products, pixels._count_by_scatters),
    "look_up": (pixels._look_up_by_products, pixels._look_up_by_gathers),
}


def operands(name, shape, dtype=np.uint8):
    rng = np.random.default_rng(0)
    c, b, height, width = shape
    planes = rng.integers(0, 256, shape, np.int32)
    planes[:, 0] //= 99  # few levels, so that counts are large
    if name == "take":  # a third of the positions is outside
        row = rng.integers(-height // 4, height + height // 4, shape[1:], np.int32)
        column = rng.integers(-width // 4, width + width // 4, shape[1:], np.int32)
        return planes, row, column
    if name == "take_grid":
        images = rng.integers(0, 256, (b, height, width, c)).astype(dtype)
        row = rng.integers(0, height, (b, height - 3), np.int32)
        return images, row, rng.integers(0, width, (b, width + 2), np.int32)
    if name == "count_levels":
        return (planes,)
    return rng.integers(0, 256, (c, b, 256), np.int32), planes


def by_numpy(name, *given):
    if name == "take":
        planes, row, column = given
        inside = (row >= 0) & (row < planes.shape[2]) & (column >= 0) & (column < planes.shape[3])
        image = np.arange(len(row))[:, None, None]
        return np.where(inside, planes[:, image, row * inside, column * inside], 0)
    if name == "take_grid":
        images, row, column = given
        image = np.arange(len(row))[:, None, None]
        return images[image, row[:, :, None], column[:, None, :]].astype(np.float32)
    if name == "count_levels":
        return np.array([[np.bincount(p.ravel(), minlength=256) for p in c] for c in given[0]])
    table, planes = given
    pairs = zip(table.reshape(-1, 256), planes.reshape(-1, *planes.shape[2:]), strict=True)
    return np.stack([one[plane] for one, plane in pairs]).reshape(planes.shape)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", FORMS)
def test_both_forms_equal_numpy(name, shape):
    given = operands(name, shape)
    expected = by_numpy(name, *given)
    for form in FORMS[name]:
        found = quick_jit(form)(*given)
        assert found.dtype == (jnp.float32 if name == "take_grid" else jnp.int32)
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int32])
def test_grids_keep_every_bit_of_other_images(dtype):
    images, *positions = operands("take_grid", (3, 4, 16, 16), dtype)
    images = images * 257 if dtype == np.int32 else images / dtype(7) - 11
    if dtype == np.float32:
        images[0] *= np.float32(1e-30)
    expected = by_numpy("take_grid", images, *positions)
    for form in FORMS["take_grid"]:
        np.testing.assert_array_equal(quick_jit(form)(images, *positions), expected)


@pytest.mark.parametrize("name", FORMS)
def test_only_a_tpu_multiplies(name):
    traced = jax.jit(getattr(pixels, name)).trace(*operands(name, (3, 2, 16, 16)))
    for platform in ("tpu", "cpu", "cuda"):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        found = set(re.findall(r"stablehlo\.(dot_general|gather|scatter)\b", text))
        moved = {"scatter"} if name == "count_levels" else {"gather"}
        assert found == ({"dot_general"} if platform == "tpu" else moved)
