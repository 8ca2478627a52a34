"""Every op against Pillow, recorded and live, and against what can be worked out by hand."""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import quick_jit
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from experiments.parity import augment as parity
from jaxmatch.augment.ops import OPS, apply_chosen
from jaxmatch.augment.pixels import geometry, tone

GOLDEN = Path(__file__).parents[1] / "golden" / "augment"
NAMES = tuple(OPS)
WARPS = tuple(name for name, op in OPS.items() if op.kind == "warp")


def affine(matrix):
    return lambda image, value: image.transform(
        image.size, Image.Transform.AFFINE, [value if m == "v" else m for m in matrix]
    )


# Each op in Pillow, and the range its value is drawn from.
PILLOW = {
    "autocontrast": (lambda image, value: ImageOps.autocontrast(image), 1, 1),
    "blur": (lambda image, value: Image.blend(image, image.filter(ImageFilter.BLUR), value), 0, 1),
    "brightness": (lambda image, value: ImageEnhance.Brightness(image).enhance(value), 0, 2),
    "color": (lambda image, value: ImageEnhance.Color(image).enhance(value), 0, 2),
    "contrast": (lambda image, value: ImageEnhance.Contrast(image).enhance(value), 0, 2),
    "equalize": (lambda image, value: ImageOps.equalize(image), 1, 1),
    "identity": (lambda image, value: image, 0, 1),
    "invert": (lambda image, value: Image.blend(image, ImageOps.invert(image), value), 0, 1),
    "posterize": (lambda image, value: ImageOps.posterize(image, int(value)), 1, 8.99),
    "rotate": (lambda image, value: image.rotate(value), -45, 45),
    "sharpness": (lambda image, value: ImageEnhance.Sharpness(image).enhance(value), 0, 2),
    "shear_x": (affine([1, "v", 0, 0, 1, 0]), -0.3, 0.3),
    "shear_y": (affine([1, 0, 0, "v", 1, 0]), -0.3, 0.3),
    "smooth": (
        lambda image, value: Image.blend(image, image.filter(ImageFilter.SMOOTH), value),
        0,
        1,
    ),
    "solarize": (lambda image, value: ImageOps.solarize(image, value), 0, 256),
    "solarize_add": (
        lambda image, value: image.point(
            lambda level: level + int(value) if level < 128 else level
        ),
        0,
        110,
    ),
    "translate_x": (affine([1, 0, "v", 0, 1, 0]), -20, 20),
    "translate_y": (affine([1, 0, 0, 0, 1, "v"]), -20, 20),
}


def apply_ops(images, op, value, names=NAMES):
    return jnp.moveaxis(apply_chosen(tone.planes(images), op, value, names), 0, -1)


apply_all = jax.jit(apply_ops)
apply_quickly = quick_jit(apply_ops)


def apply_few(images, ops):
    """Each image after its own of ``ops``, pairs (name, value); no other op is compiled."""
    names = tuple(dict.fromkeys(name for name, _ in ops))
    op = np.array([names.index(name) for name, _ in ops])
    value = np.array([value for _, value in ops], np.float32)
    return np.asarray(quick_jit(partial(apply_ops, names=names))(images, op, value))


def by_hand(image, *ops):
    """The first channel of one small image [h w] after each of ``ops``, pairs (name, value)."""
    images = np.tile(np.asarray(image, np.uint8)[None, ..., None], (len(ops), 1, 1, 3))
    return apply_few(images, ops)[..., 0]


def natural(count, seed=0, height=32, width=32):
    """Smooth images of all brightnesses and contrasts, some clipped, one constant."""
    rng = np.random.default_rng(seed)
    coarse = rng.normal(size=(count, 3, height // 4, width // 4))
    fine = np.stack(
        [
            [
                np.asarray(Image.fromarray(p.astype(np.float32)).resize((width, height)))
                for p in image
            ]
            for image in coarse
        ]
    )
    levels = fine * 10 ** rng.uniform(0.5, 2.2, (count, 1, 1, 1)) + rng.uniform(
        0, 255, (count, 1, 1, 1)
    )
    levels[0] = 77
    return np.moveaxis(np.clip(levels, 0, 255).astype(np.uint8), 1, -1)


# The comparison with Pillow itself has the same ops.
@pytest.mark.slow
@pytest.mark.parametrize("file", ["usb_ops.npz", "cta_ops.npz"])
def test_recorded(file):
    rows = parity.replay(GOLDEN / file)
    assert len(rows) == 19
    assert not [row for row in rows if not row.passed]


@pytest.mark.slow
@pytest.mark.parametrize("file", ["usb_ops.npz", "cta_ops.npz"])
def test_recorded_by_products(file, products):
    test_recorded(file)


@pytest.mark.slow
def test_the_recorded_comparison_notices_a_change(tmp_path):
    with np.load(GOLDEN / "usb_ops.npz") as file:
        arrays = dict(file)
    arrays["Equalize__y32"][0, 3, 5, 5, 1] ^= 1
    np.savez(tmp_path / "usb_ops.npz", **arrays)
    (tmp_path / "inputs.npz").write_bytes((GOLDEN / "inputs.npz").read_bytes())
    rows = parity.replay(tmp_path / "usb_ops.npz")
    assert [row.quantity for row in rows if not row.passed] == ["Equalize 32"]


def test_all_ops_are_compared_with_pillow():
    assert PILLOW.keys() == OPS.keys()


@pytest.mark.parametrize("name", NAMES)
def test_equals_pillow(name):
    function, low, high = PILLOW[name]
    images = natural(60)
    value = np.random.default_rng(1).uniform(low, high, 60).astype(np.float32)
    ours = np.asarray(apply_all(images, np.full(60, NAMES.index(name)), value))
    theirs = [
        np.asarray(function(Image.fromarray(image), float(v)))
        for image, v in zip(images, value, strict=True)
    ]
    difference = np.abs(ours - np.stack(theirs).astype(int))
    if name == "autocontrast":  # double rounding in Pillow's table
        assert difference.max() <= 1
        assert np.mean(difference == 0) > 0.98
    elif name in ("rotate", "shear_x", "shear_y"):
        assert np.mean(difference == 0) > 0.999
    else:
        assert difference.max() == 0


@pytest.mark.slow  # test_sheet.py and test_weak.py have oblong images
def test_equals_pillow_on_an_oblong_image():
    values = {"rotate": 17.3, "shear_y": 0.21, "translate_x": 5.4, "equalize": 1, "sharpness": 0.3}
    image = natural(2, seed=2, height=24, width=40)[1]
    ours = apply_few(np.stack([image] * 5), values.items())
    for name, out in zip(values, ours, strict=True):
        theirs = PILLOW[name][0](Image.fromarray(image), values[name])
        np.testing.assert_array_equal(out, theirs, err_msg=name)


@pytest.mark.parametrize(
    ("name", "value"),
    [("brightness", 1), ("color", 1), ("contrast", 1), ("sharpness", 1), ("autocontrast", 0),
     ("equalize", 0), ("invert", 0), ("blur", 0), ("smooth", 0), ("posterize", 8),
     ("solarize", 256), ("solarize_add", 0), ("identity", 3), *((name, 0) for name in WARPS)],
)  # fmt: skip
def test_neutral_value_is_the_identity(name, value):
    images = natural(60)
    out = apply_all(images, np.full(60, NAMES.index(name)), np.full(60, value, np.float32))
    np.testing.assert_array_equal(out, images)


@pytest.mark.slow  # Pillow has the same
def test_tone_by_hand():
    row = [0, 1, 100, 127, 128, 255]
    expected = {
        ("invert", 1): [255, 254, 155, 128, 127, 0],
        ("posterize", 1): [0, 0, 0, 0, 128, 128],
        ("posterize", 5.9): [0, 0, 96, 120, 128, 248],
        ("solarize", 128): [0, 1, 100, 127, 127, 0],
        ("solarize_add", 110): [110, 111, 210, 237, 128, 255],
        ("solarize_add", 200): [200, 201, 255, 255, 128, 255],
        ("brightness", 0.5): [0, 0, 50, 63, 64, 127],
        ("brightness", 2): [0, 2, 200, 254, 255, 255],
        ("contrast", 0): [102] * 6,  # the mean is 101.83
        ("autocontrast", 1): row,  # the range is full already
    }
    np.testing.assert_array_equal(by_hand([row], *expected)[:, 0], list(expected.values()))


@pytest.mark.slow  # Pillow does so, too
def test_autocontrast_stretches_each_channel_alone():
    images = np.zeros((1, 1, 3, 3), np.uint8)
    images[0, 0, :, 0] = [10, 20, 30]
    images[0, 0, :, 1] = [7, 7, 7]
    images[0, 0, :, 2] = [200, 225, 251]
    out = apply_few(images, [("autocontrast", 1)])[0, 0]
    np.testing.assert_array_equal(out[:, 0], [0, 127, 255])
    np.testing.assert_array_equal(out[:, 1], [7, 7, 7])
    np.testing.assert_array_equal(out[:, 2], [0, 125, 255])


@pytest.mark.slow  # Pillow has the same
def test_equalize_by_hand():
    # 512 pixels: 256 zeros, then one each of 0..255: step (512 - 1) // 255 = 2.
    image = np.concatenate([np.zeros(256), np.arange(256)]).reshape(16, 32)
    below = np.concatenate([[0], 257 + np.arange(255)])
    table = np.minimum((below + 1) // 2, 255)
    np.testing.assert_array_equal(by_hand(image, ("equalize", 1))[0], table[image.astype(int)])


def test_moves_by_hand():
    image = np.arange(1, 17).reshape(4, 4)
    moves = [
        *(("translate_x", 1), ("translate_y", -2), ("translate_x", 0.49)),
        *(("rotate", 90), ("rotate", 180), ("shear_x", 1)),
    ]
    left, down, nearest, quarter, half, shear = by_hand(image, *moves)
    np.testing.assert_array_equal(left, np.pad(image[:, 1:], ((0, 0), (0, 1))))
    np.testing.assert_array_equal(down, np.pad(image[:2], ((2, 0), (0, 0))))
    np.testing.assert_array_equal(nearest, image)
    np.testing.assert_array_equal(quarter, np.rot90(image))
    np.testing.assert_array_equal(half, np.rot90(image, 2))
    # At its centre, row 1 is 3/2 below the origin: x + 1/2 becomes x + 2.
    np.testing.assert_array_equal(shear[1], [7, 8, 0, 0])


@pytest.mark.slow
def test_jit_eager_and_vmap_agree():
    images, value = natural(len(NAMES)), np.full(len(NAMES), 0.3, np.float32)
    op = np.arange(len(NAMES))
    jitted = apply_all(images, op, value)
    np.testing.assert_array_equal(apply_ops(images, op, value), jitted)
    alone = jax.vmap(lambda *one: apply_quickly(*(a[None] for a in one))[0])
    np.testing.assert_array_equal(alone(images, op, value), jitted)


def test_images_do_not_influence_each_other():
    images = natural(60)
    op = np.arange(60) % len(NAMES)
    value = np.linspace(0.1, 1.9, len(op)).astype(np.float32)
    order = np.random.default_rng(3).permutation(len(op))
    np.testing.assert_array_equal(
        apply_all(images[order], op[order], value[order]), apply_all(images, op, value)[order]
    )


def test_any_dtype_and_range_of_levels():
    levels = np.array([[-40.0, 0.4, 99.6, 127.5, 255.0, 300.0]]).T[None, ..., None].repeat(3, -1)
    rounded = [0, 0, 100, 128, 255, 255]
    for dtype in (np.float32, np.float16):
        out = apply_few(levels.astype(dtype), [("invert", 0)])
        np.testing.assert_array_equal(out[0, :, 0, 0], rounded)
    np.testing.assert_array_equal(
        tone.planes(levels.astype(np.int32))[0, 0, :, 0], [0, 0, 99, 127, 255, 255]
    )
    np.testing.assert_array_equal(tone.planes(np.uint8([[[[9, 8, 7]]]])).ravel(), [9, 8, 7])


@pytest.mark.slow  # a type of numbers that only tests use
def test_float64_changes_nothing():
    images, value = natural(60), np.full(60, 0.3, np.float32)
    op = np.arange(60) % len(NAMES)
    expected = np.asarray(apply_all(images, op, value))
    with jax.enable_x64(True):
        np.testing.assert_array_equal(apply_all(images, op, value), expected)


def test_shifted_box_by_hand():
    centre = jnp.array([[16.0, 16.0], [1.0, 1.0], [31.5, 31.5], [10.0, 20.0]])
    side = jnp.array([8.0, 8.0, 8.0, 0.0])
    boxes = geometry.shifted_box(centre, side, 32, 32).tolist()
    assert boxes[0] == [12, 12, 21, 21]  # both ends are painted
    assert boxes[1] == [0, 0, 9, 9]  # shifted into the image
    assert boxes[2] == [27, 27, 32, 32]  # cut off
    assert boxes[3][0] == boxes[3][2]  # empty


def test_clipped_box_by_hand():
    centre = jnp.array([[16, 16], [0, 3], [31, 31]])
    boxes = geometry.clipped_box(centre, 8, 32, 32).tolist()
    assert boxes == [[8, 8, 24, 24], [0, 0, 8, 11], [23, 23, 32, 32]]


def test_fill_box():
    images = natural(2)
    box = jnp.array([[1, 2, 3, 5], [4, 4, 4, 9]])
    expected = images.copy()
    expected[0, 1:3, 2:5] = (125, 123, 114)
    np.testing.assert_array_equal(
        geometry.fill_box(images, box, jnp.array([125, 123, 114])), expected
    )
