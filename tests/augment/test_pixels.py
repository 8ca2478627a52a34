"""Both forms of each operation on pixels against NumPy, and which platform gets which."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import quick_jit
from jax import lax
from jax.experimental import topologies
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxmatch.augment import ops
from jaxmatch.augment.chain import Chain
from jaxmatch.augment.contrast import Contrast
from jaxmatch.augment.ctaugment_views import CTAugmentOps
from jaxmatch.augment.pixels import affine, resize, tone
from jaxmatch.augment.pixels import source as pixels
from jaxmatch.augment.randaugment import TABLES, RandAugment
from jaxmatch.augment.weak import Weak

# The TPU compiler asks no cloud what machine this is.
AHEAD_OF_TIME = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}

SHAPES = [(1, 3, 28, 28), (3, 2, 32, 32), (4, 2, 24, 40), (3, 1, 96, 96), (1, 1, 224, 224)]
FORMS = {
    "take": (pixels._take_by_products, pixels.take_far),
    "take_grid": (pixels._take_grid_by_products, pixels._take_grid_by_gathers),
    "flip": (pixels._flip_by_choice, pixels._flip_by_gathers),
    "count_levels": (pixels._count_by_products, pixels._count_by_scatters),
    "look_up": (pixels._look_up_by_products, pixels._look_up_by_gathers),
    "select_rows": (pixels._select_by_comparison, pixels._select_by_gathers),
}


def operands(name, shape, dtype=np.uint8):
    rng = np.random.default_rng(0)
    c, b, height, width = shape
    planes = rng.integers(0, 256, shape, np.int32)
    planes[:, 0] //= 99  # few levels, so that counts are large
    if name == "take":  # turned about a corner, and sheared
        y, x = np.arange(height)[:, None], np.arange(width)
        angle = rng.uniform(-0.8, 0.8, (b, 1, 1))
        sine, cosine = np.sin(angle), np.cos(angle)
        row, column = cosine * y + sine * x, cosine * x - sine * y
        row[0], column[0] = y + 0.5 * x - height / 3, x + 0.4 * y - 7
        return planes, np.floor(row).astype(np.int32), np.floor(column).astype(np.int32)
    if name == "take_grid":
        images = rng.integers(0, 256, (b, height, width, c)).astype(dtype)
        row = rng.integers(0, height, (b, height - 3), np.int32)
        return images, row, rng.integers(0, width, (b, width + 2), np.int32)
    if name == "flip":
        return rng.normal(size=(b, height, width, c)).astype(np.float32), np.arange(b) % 2 == 0
    if name == "count_levels":
        return (planes,)
    if name == "select_rows":
        table = rng.normal(size=(height, width)).astype(np.float32)
        table[0, 0] = -np.inf
        return table, rng.integers(0, height, (b, c), np.int32)
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
    if name == "flip":
        return np.where(given[1][:, None, None, None], given[0][:, :, ::-1], given[0])
    if name == "select_rows":
        table, index = given
        return table[index]
    if name == "count_levels":
        return np.array([[np.bincount(p.ravel(), minlength=256) for p in c] for c in given[0]])
    table, planes = given
    pairs = zip(table.reshape(-1, 256), planes.reshape(-1, *planes.shape[2:]), strict=True)
    return np.stack([one[plane] for one, plane in pairs]).reshape(planes.shape)


@pytest.mark.parametrize(
    "shape",
    [
        pytest.param(each, marks=() if each[2:] in ((28, 28), (24, 40)) else pytest.mark.slow)
        for each in SHAPES
    ],
    ids=str,
)
@pytest.mark.parametrize("name", FORMS)
def test_both_forms_equal_numpy(name, shape):
    given = operands(name, shape)
    expected = by_numpy(name, *given)
    for form in FORMS[name]:
        found = quick_jit(form)(*given)
        whole = name not in ("take_grid", "flip", "select_rows")
        assert found.dtype == (jnp.int32 if whole else jnp.float32)
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
        multiplied = set() if name in ("flip", "select_rows") else {"dot_general"}
        assert found == (multiplied if platform == "tpu" else moved)


@pytest.mark.parametrize(
    "method",
    [
        pytest.param(each, marks=() if each == "bilinear" else pytest.mark.slow)
        for each in resize.METHODS
    ],
)
def test_resize_by_products_equals_that_by_float32(method, use_form):
    images = np.random.default_rng(0).integers(0, 256, (8, 40, 48, 4)).astype(np.uint8)
    box = np.random.default_rng(1).integers(1, 20, (8, 4), np.int32)
    resized = {}
    for form in ("gathers", "products"):
        use_form(form)
        crop = quick_jit(partial(resize.resize_columns_first, size=(32, 24), method=method))
        resized[form] = np.asarray(crop(images, box))
    np.testing.assert_array_equal(resized["products"], resized["gathers"])


@pytest.mark.parametrize("op", [tone.smooth, tone.blur], ids=["smooth", "blur"])
def test_means_by_products_equal_those_by_shifts(op, use_form):
    planes = np.random.default_rng(0).integers(0, 256, (3, 4, 33, 47), np.int32)
    means = {}
    for form in ("gathers", "products"):
        use_form(form)
        means[form] = np.asarray(quick_jit(op)(planes))
    np.testing.assert_array_equal(means["products"], means["gathers"])


@pytest.mark.slow
@pytest.mark.parametrize("side", [32, 96])
@pytest.mark.parametrize(
    "transform", [CTAugmentOps(), Contrast(blur=0.5, solarize=0.5)], ids=["ctaugment", "contrast"]
)
def test_products_give_the_same_views(transform, side, use_form):
    images = np.random.default_rng(side).integers(0, 256, (8, side, side, 3), np.uint8)
    views = {}
    for form in ("gathers", "products"):
        use_form(form)
        draws = quick_jit(transform.draw, static_argnums=1)(jax.random.key(0), images.shape)
        views[form] = np.asarray(quick_jit(transform.apply)(images, draws))
    np.testing.assert_array_equal(views["products"], views["gathers"])


STRONG = {
    **{name: Chain(transforms=(Weak(), RandAugment(table=name))) for name in TABLES},
    "ctaugment": Chain(transforms=(Weak(), CTAugmentOps())),
    "contrast": Contrast(blur=0.5, solarize=0.5),
}


@pytest.mark.slow
@pytest.mark.parametrize("side", [32, 96])
@pytest.mark.parametrize("name", STRONG)
def test_eight_tpus_move_no_pixel_alone_and_none_between_them(name, side, monkeypatch):
    """The optimized program for TPUs, which need not be here."""
    pytest.importorskip("libtpu")
    for key, value in AHEAD_OF_TIME.items():
        monkeypatch.setenv(key, value)
    devices = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x4").devices
    mesh = jax.make_mesh((8,), ("data",), (AxisType.Auto,), devices=devices)
    split = NamedSharding(mesh, PartitionSpec("data"))

    def view(seed, images):
        key = jax.random.key(seed)
        return STRONG[name].apply(images, STRONG[name].draw(key, images.shape))

    images = jax.ShapeDtypeStruct((64, side, side, 3), np.uint8)
    whole = NamedSharding(mesh, PartitionSpec())
    call = jax.jit(view, in_shardings=(whole, split), out_shardings=split)
    text = call.lower(jax.ShapeDtypeStruct((), np.int32), images).compile().as_text()
    moves = re.findall(r"= \w+\[([\d,]*)\]\S* (?:gather|scatter)\(", text)
    assert max((np.prod([int(n) for n in m.split(",") if n]) for m in moves), default=0) < 10_000
    assert not re.findall(r"all-reduce|all-gather|all-to-all|collective-permute", text)
    assert "convolution" in text or "dot(" in text  # products, as a TPU's program has them


@pytest.mark.slow  # test_strong_settings.py compares whole views
@pytest.mark.parametrize("op", ["shear_x", pytest.param("rotate", marks=pytest.mark.slow)])
def test_a_warp_of_any_size_is_the_same_in_both_forms(op, use_form):
    images = np.random.default_rng(0).integers(0, 256, (2, 96, 96, 3), np.uint8)
    values = jnp.array([70, -130] if op == "rotate" else [0.9, -1.7])
    moved = {}
    for form in ("gathers", "products"):
        use_form(form)
        move = quick_jit(partial(ops.apply_chosen, names=(op,), warp=affine.warp_far))
        moved[form] = np.asarray(move(tone.planes(images), np.zeros(2, int), values))
    np.testing.assert_array_equal(moved["products"], moved["gathers"])


@pytest.mark.parametrize("platform", ["cuda", "default"])
def test_channels_at_once_and_in_turn_are_the_same(monkeypatch, platform):
    """Gathers and scatters as on a GPU and as on a CPU."""
    monkeypatch.setattr(lax, "platform_dependent", lambda *given, **to: to[platform](*given))
    random = np.random.default_rng(0)
    planes = random.integers(0, 256, (3, 4, 6, 5)).astype(np.int32)
    row, column = random.integers(-1, 7, (2, 4, 6, 5)).astype(np.int32)
    table = random.integers(0, 256, (3, 4, 256)).astype(np.int32)
    padded = np.pad(planes, ((0, 0), (0, 0), (1, 2), (1, 3)))
    picked = padded[:, np.arange(4)[:, None, None], row + 1, column + 1]
    given, tables = jnp.asarray(planes), jnp.asarray(table)
    found = pixels.take_far(given, jnp.asarray(row), jnp.asarray(column))
    np.testing.assert_array_equal(found, picked)
    flat = planes.reshape(12, -1)
    counts = np.stack([np.bincount(plane, minlength=256) for plane in flat]).reshape(3, 4, 256)
    np.testing.assert_array_equal(pixels._count_by_scatters(given), counts)
    looked = np.take_along_axis(table.reshape(12, -1), flat, 1).reshape(planes.shape)
    np.testing.assert_array_equal(pixels._look_up_by_gathers(tables, given), looked)


@pytest.mark.parametrize(("platform", "loops"), [("cpu", 1), ("cuda", 0)])
def test_a_gpu_has_no_loop_over_channels(platform, loops):
    planes = jax.ShapeDtypeStruct((3, 4, 6, 5), jnp.int32)
    lowered = jax.jit(pixels.count_levels).trace(planes).lower(lowering_platforms=(platform,))
    assert lowered.as_text().count("stablehlo.while") == loops


@pytest.mark.parametrize("shape", [(1, 5), (7, 9), (32, 32), (2100, 2100), (4096, 2048)])
def test_the_mean_grey_of_any_image_is_exact(shape):
    grey = np.random.default_rng(0).integers(0, 256, (2, *shape), np.int32)
    grey[1] = 255
    total, count = grey.sum((1, 2), dtype=np.int64), grey[0].size
    found = jax.jit(tone.mean_of_grey)(grey)
    np.testing.assert_array_equal(found[:, 0, 0], (2 * total + count) // (2 * count))
