from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from experiments.parity.augment_contrast import replay_resized_crop
from jaxmatch.augment.pixels.resize import METHODS, resize, resize_smooth
from jaxmatch.errors import InputError

GOLDEN = Path(__file__).parents[1] / "golden" / "augment"


def only(*names):
    """A test of these methods, and of all with ``-m slow``."""
    cases = [
        pytest.param(name, marks=() if name in names else pytest.mark.slow) for name in METHODS
    ]
    return pytest.mark.parametrize("method", cases)


def random_images(n, side):
    return np.random.default_rng(0).integers(0, 256, (n, side, side, 3)).astype(np.uint8)


def random_boxes(n, side):
    random = np.random.default_rng(1)
    sides = random.integers(1, side + 1, (n, 2))
    return np.concatenate([random.integers(0, side - sides + 1), sides], 1)


@pytest.mark.slow
def test_equals_the_reference_files():
    with np.load(GOLDEN / "resized_crop.npz") as file, np.load(GOLDEN / "inputs.npz") as inputs:
        rows = replay_resized_crop(dict(file), dict(inputs))
    assert len(rows) == 12
    assert all(row.passed for row in rows)
    assert all(row.equal == 1 for row in rows if row.quantity.startswith("pil"))


@only("nearest", "bilinear", "bicubic")
def test_equals_pil(method):
    # The height never shrinks, so every Pillow version takes the columns first.
    images, boxes = random_images(40, 24), random_boxes(40, 24)
    expected = [
        np.asarray(
            Image.fromarray(image)
            .crop((left, top, left + width, top + height))
            .resize((16, 32), Image.Resampling[method.upper()])
        )
        for image, (top, left, height, width) in zip(images, boxes, strict=True)
    ]
    crop = jax.jit(partial(resize, size=(32, 16), method=method))
    ours = crop(jnp.asarray(images), jnp.asarray(boxes))
    assert ours.dtype == jnp.float32
    difference = np.abs(np.asarray(ours) - np.stack(expected))
    assert np.mean(difference == 0) >= (0.9999 if method in ("lanczos", "hamming") else 1)
    assert difference.max() <= 1


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_equals_pil_by_products(method, products):
    test_equals_pil(method)


@pytest.mark.parametrize("side", [20, 28, 33])
@pytest.mark.parametrize("method", ["nearest", "box"])
def test_ties_between_pixels_fall_as_in_pil(method, side):
    # Every width up to 64: at these sides the errors of float64 decide ties.
    images, widths = random_images(64, 64), np.arange(1, 65)
    expected = [
        np.asarray(
            Image.fromarray(image)
            .crop((0, 0, width, 64))
            .resize((side, 64), Image.Resampling[method.upper()])
        )
        for image, width in zip(images, widths, strict=True)
    ]
    boxes = np.stack([0 * widths, 0 * widths, 0 * widths + 64, widths], axis=1)
    crop = jax.jit(partial(resize, size=(64, side), method=method))
    np.testing.assert_array_equal(crop(jnp.asarray(images), jnp.asarray(boxes)), expected)


@pytest.mark.slow
def test_much_taller_boxes_are_resized_rows_first():
    images, boxes = random_images(60, 48), random_boxes(60, 48)
    ours = np.asarray(resize(jnp.asarray(images), jnp.asarray(boxes), (16, 16), "bilinear"))
    tall = 0
    for image, (top, left, height, width), found in zip(images, boxes, ours, strict=True):
        part = Image.fromarray(image).crop((left, top, left + width, top + height))
        rows_first = height > 16 and height - 16 > 2 * (width - 16)
        between = (width, 16) if rows_first else (16, height)  # one pass a call
        expected = part.resize(between, Image.BILINEAR).resize((16, 16), Image.BILINEAR)
        np.testing.assert_array_equal(found, np.asarray(expected))
        tall += rows_first
    assert 10 < tall < 50


@only("nearest", "bicubic")
def test_whole_image_at_its_own_size_is_the_image(method):
    images = random_images(3, 20)
    box = jnp.tile(jnp.array([0, 0, 20, 20]), (3, 1))
    crop = jax.jit(partial(resize, size=(20, 20), method=method))
    np.testing.assert_array_equal(crop(jnp.asarray(images), box), images)


@pytest.mark.slow
def test_neither_vmap_nor_the_order_of_examples_matters():
    images, boxes = jnp.asarray(random_images(8, 16)), jnp.asarray(random_boxes(8, 16))
    crop = partial(resize, size=(12, 16), method="bicubic")
    jitted = jax.jit(crop)
    views = jitted(images, boxes)
    mapped = jax.jit(jax.vmap(crop))(images.reshape(2, 4, 16, 16, 3), boxes.reshape(2, 4, 4))
    np.testing.assert_array_equal(mapped.reshape(views.shape), views)
    order = np.random.default_rng(0).permutation(8)
    np.testing.assert_array_equal(jitted(images[order], boxes[order]), views[order])


def test_pixels_outside_the_box_have_no_influence():
    images, box = random_images(1, 16), jnp.array([[4, 3, 9, 7]])
    blank = np.zeros_like(images)
    blank[:, 4:13, 3:10] = images[:, 4:13, 3:10]
    for function in (resize, resize_smooth):
        crop = jax.jit(partial(function, size=(8, 8)))
        np.testing.assert_array_equal(crop(jnp.asarray(blank), box), crop(jnp.asarray(images), box))


# PyTorch's bicubic without antialias has another constant than JAX's.
@pytest.mark.parametrize(
    ("method", "name", "antialias"),
    [("bilinear", "linear", True), ("bilinear", "linear", False), ("bicubic", "cubic", True)],
)
def test_smooth_equals_jax_image_on_whole_images(method, name, antialias):
    images = jnp.asarray(random_images(2, 24), jnp.float32) / 255
    box = jnp.tile(jnp.array([0, 0, 24, 24]), (2, 1))
    crop = partial(resize_smooth, size=(16, 30), method=method, antialias=antialias)
    ours = jax.jit(crop)(images, box)
    theirs = jax.image.resize(images, (2, 16, 30, 3), name, antialias=antialias)
    np.testing.assert_allclose(ours, theirs, atol=2e-6)


@pytest.mark.parametrize("function", [resize, resize_smooth])
def test_unknown_method_is_refused_with_the_nearest(function):
    with pytest.raises(InputError, match="did you mean 'bicubic'"):
        function(jnp.zeros((1, 4, 4, 3)), jnp.array([[0, 0, 4, 4]]), (4, 4), "bicubik")
