from itertools import permutations
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import quick_jit
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from PIL import Image, ImageFilter

from experiments.parity.augment_contrast import replay_simclr_color
from jaxmatch.augment.chain import Chain
from jaxmatch.augment.contrast import (
    ColorJitter,
    Contrast,
    Flip,
    GaussianBlur,
    Grayscale,
    RandomResizedCrop,
    Solarize,
    Turn,
)
from jaxmatch.augment.pixels import blur, color, tone
from jaxmatch.errors import InputError

GOLDEN = Path(__file__).parents[1] / "golden" / "augment"
SINGLE = [
    ColorJitter(),
    Grayscale(),
    GaussianBlur(),
    Solarize(),
    Flip(),
    Flip(vertical=True),
]
WHOLE = Contrast(blur=0.5, solarize=0.5)
TRANSFORMS = [*SINGLE, Turn(), RandomResizedCrop(), WHOLE]
NEVER = dict.fromkeys(("flip", "jitter", "grayscale", "blur", "solarize"), 0.0)


def random_images(n=8, side=16):
    return np.random.default_rng(0).integers(0, 256, (n, side, side, 3)).astype(np.uint8)


def name(transform):
    return type(transform).__name__


def drawn(transform, shape):
    return jax.jit(transform.draw, static_argnums=1)(jax.random.key(0), shape)


def test_equals_the_reference_file():
    with np.load(GOLDEN / "simclr_color.npz") as file, np.load(GOLDEN / "inputs.npz") as inputs:
        rows = replay_simclr_color(dict(file), dict(inputs))
    assert len(rows) == 12
    assert all(row.passed for row in rows)
    assert all(row.equal == 1 for row in rows if not row.quantity.startswith("blur_tensor"))


@pytest.mark.parametrize("shift", [-0.5, -0.3, 0.0, 0.07, 0.5])
def test_hue_is_that_of_pil(shift):
    images = random_images(1, 128)
    hsv = np.array(Image.fromarray(images[0]).convert("HSV"))
    hsv[..., 0] += np.array(int(255 * shift) % 256, np.uint8)
    expected = Image.fromarray(hsv, "HSV").convert("RGB")
    ours = jax.jit(color.hue)(tone.planes(images), jnp.array([shift]))
    np.testing.assert_array_equal(ours[:, 0], np.moveaxis(np.asarray(expected), -1, 0))


def test_hue_by_channels_is_the_same():
    levels = jnp.asarray(np.random.default_rng(0).integers(0, 256, (3, 8, 256, 256)), jnp.int32)
    shift = jnp.array([-0.5, -0.31, -0.1, 0, 0.03, 0.1, 0.4, 0.5])
    channels = tuple(levels.astype(jnp.float32))
    ours = jnp.stack(jax.jit(color._hue_by_channels)(channels, shift))
    np.testing.assert_array_equal(ours, jax.jit(color.hue)(levels, shift))


def test_hue_leaves_grey_alone():
    grey = jnp.broadcast_to(jnp.arange(256, dtype=jnp.int32)[None, None, None], (3, 1, 1, 256))
    np.testing.assert_array_equal(jax.jit(color.hue)(grey, jnp.array([0.3])), grey)


@pytest.mark.parametrize("form", ["gathers", "products"])
@pytest.mark.parametrize("with_hue", [True, False])
@pytest.mark.slow
def test_jitter_applies_the_steps_in_each_images_order(with_hue, form, use_form):
    use_form(form)
    orders = np.array(list(permutations(range(4))), np.int32)
    images = tone.planes(random_images(len(orders), 8))
    factors = np.random.default_rng(1).uniform(0.5, 1.5, orders.shape).astype(np.float32)
    factors[:, color.HUE] -= 1
    steps = [color.brightness, color.contrast, color.saturation, color.hue]
    steps = [jax.jit(step) for step in steps]
    ours = jax.jit(color.jitter, static_argnums=3)(images, orders, factors, with_hue)
    for i, order in enumerate(orders):
        expected = images[:, i : i + 1]
        for step in order:
            if with_hue or step != color.HUE:
                expected = steps[step](expected, jnp.asarray(factors[i : i + 1, step]))
        np.testing.assert_array_equal(ours[:, i : i + 1], expected)


def test_factors_of_one_and_zero():
    images = tone.planes(random_images(2))
    one, zero = jnp.ones(2), jnp.zeros(2)
    steps = [jax.jit(step) for step in (color.brightness, color.contrast, color.saturation)]
    for step in steps:
        np.testing.assert_array_equal(step(images, one), images)
    black, mean, grey = (step(images, zero) for step in steps)
    assert not black.any()
    assert np.ptp(mean, axis=(0, 2, 3)).max() == 0
    np.testing.assert_array_equal(grey, color.grayscale(images))


def test_blur_is_that_of_pil():
    images = random_images(60, 12)
    sigma = np.linspace(0, 4, 60, dtype=np.float32)
    expected = [
        np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(float(strength))))
        for image, strength in zip(images, sigma, strict=True)
    ]
    ours = jax.jit(blur.gaussian_blur, static_argnums=2)(tone.planes(images), sigma, 4.0)
    np.testing.assert_array_equal(ours, np.moveaxis(np.stack(expected), -1, 0))


@pytest.mark.parametrize(
    "largest",
    [4.0, *(pytest.param(each, marks=pytest.mark.slow) for each in (0.4, 2.0, 12.0, 120.0))],
)
def test_blur_by_products_is_the_same(largest, use_form):
    levels = tone.planes(random_images(12, 28)[:, :, :25])
    sigma = np.linspace(0, largest, 12, dtype=np.float32)
    blurred = {}
    for form in ("gathers", "products"):
        use_form(form)
        blurred[form] = np.asarray(
            quick_jit(blur.gaussian_blur, static_argnums=2)(levels, sigma, largest)
        )
    np.testing.assert_array_equal(blurred["products"], blurred["gathers"])


@pytest.mark.slow
def test_both_are_so_by_products(products):
    test_equals_the_reference_file()
    test_blur_is_that_of_pil()


def test_blurs_leave_a_constant_image_alone():
    images = jnp.full((3, 2, 9, 9), 200, jnp.int32)
    sigma = jnp.array([0.3, 2.0])
    as_pil = jax.jit(blur.gaussian_blur, static_argnums=2)
    np.testing.assert_array_equal(as_pil(images, sigma, 2.0), images)
    smooth = jax.jit(blur.gaussian_blur_smooth, static_argnums=2)
    np.testing.assert_allclose(smooth(images, sigma, 7), images, rtol=1e-6)


# The whole view is compared with its parts below.
@pytest.mark.parametrize(
    "transform",
    [
        pytest.param(each, marks=pytest.mark.slow if each is WHOLE else (), id=name(each))
        for each in TRANSFORMS
    ],
)
def test_transform(transform):
    images = jnp.asarray(random_images())
    draws = drawn(transform, images.shape)
    assert all(leaf.shape[0] == len(images) for leaf in jax.tree.leaves(draws))
    apply = jax.jit(transform.apply)
    views = apply(images, draws)
    assert views.dtype == jnp.float32
    assert views.shape == images.shape
    np.testing.assert_array_equal(views, np.clip(np.rint(views), 0, 255))
    assert np.any(np.asarray(views) != np.asarray(images))
    order = np.random.default_rng(0).permutation(len(images))
    permuted = jax.tree.map(lambda leaf: leaf[order], draws)
    np.testing.assert_array_equal(apply(images[order], permuted), views[order])


@pytest.mark.slow
@pytest.mark.parametrize("transform", TRANSFORMS, ids=name)
def test_neither_jit_nor_vmap_nor_dtype_matters(transform):
    images = jnp.asarray(random_images())
    draws = drawn(transform, images.shape)
    views = jax.jit(transform.apply)(images, draws)
    np.testing.assert_array_equal(transform.apply(images, draws), views)
    np.testing.assert_array_equal(transform.apply(images.astype(jnp.float32), draws), views)
    halves = jax.tree.map(lambda leaf: leaf.reshape(2, 4, *leaf.shape[1:]), (images, draws))
    mapped = jax.jit(jax.vmap(transform.apply))(*halves)
    np.testing.assert_array_equal(mapped.reshape(views.shape), views)


# Those that compile in a moment.
@pytest.mark.parametrize(
    "transform",
    [
        pytest.param(
            each,
            marks=pytest.mark.slow if isinstance(each, ColorJitter | GaussianBlur) else (),
            id=name(each),
        )
        for each in SINGLE
    ],
)
def test_probability(transform):
    shape = (1000, 8, 8, 3)
    chosen = drawn(transform, shape)
    chosen = getattr(chosen, "chosen", chosen)
    assert abs(float(chosen.mean()) - transform.probability) < 0.06
    never = type(transform)(probability=0.0)
    images = jnp.asarray(random_images())
    unchanged = jax.jit(never.apply)(images, drawn(never, images.shape))
    np.testing.assert_array_equal(unchanged, images)


def test_the_rest_by_hand():
    images = jnp.asarray(random_images())
    every = jnp.ones(len(images), bool)
    np.testing.assert_array_equal(Flip().apply(images, every), images[:, :, ::-1])
    solarized = Solarize(threshold=100).apply(images, every)
    np.testing.assert_array_equal(solarized, np.where(images < 100, images, 255 - images))
    grey = Grayscale().apply(images, every)
    np.testing.assert_array_equal(grey, grey[..., :1].repeat(3, -1))


def test_crops_lie_inside_and_have_the_asked_area_and_aspect():
    height, width = 60, 90
    transform = RandomResizedCrop(area=(0.1, 0.7))
    boxes = np.asarray(drawn(transform, (4000, height, width, 3)))
    top, left, tall, wide = boxes.T
    assert min(top.min(), left.min()) == 0
    assert (top + tall).max() == height
    assert (left + wide).max() == width
    # The sides are rounded to pixels.
    assert ((tall + 0.5) * (wide + 0.5)).min() >= 0.1 * height * width
    assert ((tall - 0.5) * (wide - 0.5)).max() <= 0.7 * height * width
    assert ((wide + 0.5) / (tall - 0.5)).min() >= 3 / 4
    assert ((wide - 0.5) / (tall + 0.5)).max() <= 4 / 3
    assert abs(np.log(wide / tall).mean()) < 0.02
    assert np.quantile(tall * wide / (height * width), [0.1, 0.9]) == pytest.approx(
        [0.15, 0.58], abs=0.04
    )


def test_corner_of_a_crop_is_uniform_and_reaches_both_ends():
    transform = RandomResizedCrop(area=(0.25, 0.25), aspect=(1.0, 1.0))
    boxes = np.asarray(drawn(transform, (9000, 16, 16, 3)))
    assert (boxes[:, 2:] == 8).all()
    for corner in boxes[:, :2].T:
        counts = np.bincount(corner, minlength=9)
        assert len(counts) == 9
        assert np.abs(counts - 1000).max() < 150


def test_crop_falls_back_to_the_centre():
    transform = RandomResizedCrop(area=(1.0, 1.0))
    wide = drawn(transform, (3, 8, 64, 3))
    np.testing.assert_array_equal(wide, [[0, 26, 8, 11]] * 3)
    tall = drawn(transform, (3, 64, 8, 3))
    np.testing.assert_array_equal(tall, [[26, 0, 11, 8]] * 3)


def test_crop_to_another_size():
    images = jnp.asarray(random_images())
    transform = RandomResizedCrop(size=24, method="bicubic")
    draws = drawn(transform, images.shape)
    assert jax.eval_shape(transform.apply, images, draws).shape == (8, 24, 24, 3)


def test_jitter_draws():
    draws = drawn(ColorJitter(brightness=1.5, hue=0.2), (500, 4, 4, 3))
    np.testing.assert_array_equal(np.sort(draws.order, 1), np.tile(np.arange(4), (500, 1)))
    assert len(np.unique(draws.order, axis=0)) == 24
    low, high = np.min(draws.factors, 0), np.max(draws.factors, 0)
    np.testing.assert_allclose(low, [0, 0.6, 0.6, -0.2], atol=0.02)
    np.testing.assert_allclose(high, [2.5, 1.4, 1.4, 0.2], atol=0.02)


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (ColorJitter, {"hue": 0.6}, "hue"),
        (RandomResizedCrop, {"method": "bilinaer"}, "did you mean 'bilinear'"),
        (RandomResizedCrop, {"area": (0.0, 1.0)}, "area"),
        (RandomResizedCrop, {"area": (0.2, 1.5)}, "area"),
        (RandomResizedCrop, {"aspect": (2.0, 1.0)}, "aspect"),
        (GaussianBlur, {"sigma": (2.0, 0.1)}, "sigma"),
        (Contrast, {"hue": 0.6}, "hue"),
        (Contrast, {"method": "bilinaer"}, "did you mean 'bilinear'"),
        (Contrast, {"method": "lanczos"}, "method"),  # host crops of a stream do not have it
        (Contrast, {"area": (1.0, 0.2)}, "area"),
        (Contrast, {"grayscale": 1.2}, "grayscale=1.2"),
        (Contrast, {"blur": -0.1}, "blur=-0.1"),
        (Contrast, {"size": 0}, "size=0 must be at least 1"),
    ],
)
def test_bad_settings_are_refused(kind, settings, message):
    with pytest.raises(InputError, match=message):
        kind(**settings)


@pytest.mark.slow
def test_a_whole_view_is_its_parts_in_order():
    view = Contrast(
        area=(0.3, 0.9), method="bicubic", brightness=0.1, hue=0.2, blur=0.4, sigma=(0.5, 1.0)
    )
    parts = Chain(
        transforms=(
            RandomResizedCrop(area=(0.3, 0.9), method="bicubic"),
            Flip(),
            ColorJitter(brightness=0.1, hue=0.2),
            Grayscale(),
            GaussianBlur(sigma=(0.5, 1.0), probability=0.4),
        )
    )
    images = jnp.asarray(random_images())
    one, other = (
        quick_jit(lambda key, chain=chain: chain.apply(images, chain.draw(key, images.shape)))
        for chain in (view, parts)
    )
    np.testing.assert_array_equal(one(jax.random.key(4)), other(jax.random.key(4)))


@pytest.mark.slow
def test_a_small_view_is_as_large_as_told():
    view = Contrast(size=11, blur=0.5, solarize=0.5)
    images = jnp.asarray(random_images(4, 16))
    shown = jax.eval_shape(
        lambda key: view.apply(images, view.draw(key, images.shape)), jax.random.key(0)
    )
    assert (shown.shape, shown.dtype) == ((4, 11, 11, 3), jnp.float32)
    plain = Contrast(size=11, area=(0.3, 0.5), **NEVER)
    draws = plain.draw(jax.random.key(4), images.shape)
    crop = RandomResizedCrop(size=11, area=(0.3, 0.5))
    np.testing.assert_array_equal(
        quick_jit(plain.apply)(images, draws), quick_jit(crop.apply)(images, *draws)
    )


@pytest.mark.slow
def test_a_whole_view_leaves_out_what_never_happens():
    images = jnp.asarray(random_images(2, 8))
    unchanged = Contrast(area=(1.0, 1.0), **NEVER)
    draws = drawn(unchanged, images.shape)
    np.testing.assert_array_equal(quick_jit(unchanged.apply)(images, draws), images)
    assert len(draws) == 1
    for name in NEVER:
        view = Contrast(**(NEVER | {name: 1.0}))
        assert (
            len(jax.eval_shape(lambda view=view: view.draw(jax.random.key(0), (2, 8, 8, 3)))) == 2
        )


@pytest.mark.slow
def test_four_devices_equal_one():
    images = random_images()
    whole = Contrast()

    @jax.jit
    def view(images, key):
        return whole.apply(images, whole.draw(key, images.shape))

    key = jax.random.key(3)
    one = view(jax.device_put(images, jax.devices()[0]), key)
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    four = view(jax.device_put(images, NamedSharding(mesh, P("data"))), key)
    assert len(four.sharding.device_set) == 4
    np.testing.assert_array_equal(four, one)


@pytest.mark.slow  # test_weak.py has those of the same functions
@pytest.mark.parametrize("side", [(12, 12), pytest.param((8, 12), marks=pytest.mark.slow)])
def test_vertical_flips_and_turns_are_those_of_numpy(side):
    images = np.random.default_rng(0).integers(0, 256, (64, *side, 3)).astype(np.uint8)
    parts = dict.fromkeys(("flip", "jitter", "grayscale"), 0.0)
    view = Contrast(area=(1.0, 1.0), vertical_flip=0.5, rotate90=True, **parts)
    crop, flip, turn = view._chain().transforms
    assert (flip, turn) == (Flip(probability=0.5, vertical=True), Turn())
    draws = drawn(view, images.shape)
    assert 16 < np.sum(draws[1]) < 48
    assert set(np.asarray(draws[2])) == {0, 1, 2, 3}
    plain = np.asarray(quick_jit(crop.apply)(images, draws[0]))
    found = np.asarray(quick_jit(view.apply)(images, draws))
    for image, other, vertical, turns in zip(plain, found, draws[1], draws[2], strict=True):
        expected = image[::-1] if vertical else image
        turns = int(turns) if side[0] == side[1] else 2 * (int(turns) // 2)
        np.testing.assert_array_equal(other, np.rot90(expected, turns))


def test_the_default_view_has_no_part_more():
    kinds = [type(part) for part in Contrast()._chain().transforms]
    assert kinds == [RandomResizedCrop, Flip, ColorJitter, Grayscale]
    assert not any(part.vertical for part in Contrast()._chain().transforms if type(part) is Flip)
