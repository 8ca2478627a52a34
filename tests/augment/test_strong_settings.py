"""The settings of the strong view: ops, number, strength, cutout, fill and padding."""

import re
from dataclasses import replace
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import quick_jit
from PIL import Image

from jaxmatch.augment.chain import Chain
from jaxmatch.augment.ops import OPS
from jaxmatch.augment.pixels import affine, geometry
from jaxmatch.augment.randaugment import TABLES, Draws, RandAugment
from jaxmatch.augment.weak import Weak
from jaxmatch.errors import InputError

MANY = (3000, 32, 32, 3)
GREY = np.full((1, 16, 16, 3), 200, np.uint8)


# Tables that differ in kind: one of ranges, one of levels and ops that are not applied.
KINDS = [
    pytest.param(table, marks=() if table == "google" else pytest.mark.slow) for table in TABLES
]


def drawn(strong, shape=MANY, seed=0):
    return _drawn(strong, repr(strong), shape, seed)  # cutout=True and 1.0 are equal, but differ


@lru_cache
def _drawn(strong, text, shape, seed):
    # Not as one program: what one call compiled serves the next, of other settings too.
    return jax.device_get(strong.draw(jax.random.key(seed), shape))


def view(strong, images, *ops, box=(0, 0, 0, 0)):
    """The views of images [b h w 3] after ``ops``, pairs (name, value)."""
    # No more ops than are used: each is compiled.
    strong = replace(strong, ops=tuple(dict.fromkeys(name for name, _ in ops)))
    names, b = strong.policy().names, len(images)
    draws = Draws(
        jnp.tile(jnp.array([names.index(name) for name, _ in ops], jnp.int32), (b, 1)),
        jnp.tile(jnp.array([value for _, value in ops], jnp.float32), (b, 1)),
        jnp.tile(jnp.array(box, jnp.int32), (b, 1)),
    )
    return np.asarray(quick_jit(strong.apply)(images, draws))


def noise(*shape):
    return np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)


@pytest.mark.parametrize(
    "table",
    [pytest.param(each, marks=() if each == "google" else pytest.mark.slow) for each in TABLES],
)
def test_the_defaults_are_the_table_as_published(table):
    plain = RandAugment(table=table)
    assert plain.policy() == TABLES[table]
    spelt = RandAugment(
        table=table,
        ops=TABLES[table].choices[::-1],
        number=TABLES[table].number,
        strength=1.0,
        padding="fill",
    )
    for one, other in zip(
        drawn(plain, (50, 20, 20, 3)), drawn(spelt, (50, 20, 20, 3)), strict=True
    ):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("table", KINDS)
def test_only_the_named_ops_are_drawn_equally(table):
    strong = RandAugment(table=table, ops=("translate_y", "invert", "solarize_add"), number=4)
    op, names = drawn(strong).op, strong.policy().names
    assert op.shape == (3000, 4)
    rest = 1 - TABLES[table].probability  # of the drawn ops that are not applied
    expected = {"invert": (1 - rest) / 3, "solarize_add": (1 - rest) / 3, "identity": rest}
    for name in names:
        share = (op == names.index(name)).mean()
        assert share == pytest.approx(expected.get(name, (1 - rest) / 3), abs=0.025)
    assert set(names) - {"identity"} == {"translate_y", "invert", "solarize_add"}


def test_an_op_that_is_not_applied_changes_nothing():
    strong = RandAugment(table="google", ops=("invert",), cutout=False)
    images = noise(64, 8, 8, 3)
    draws = drawn(strong, images.shape)
    names = strong.policy().names
    assert names == ("invert", "identity")
    inverted = (draws.op == 0).sum(1) % 2 == 1
    assert 0 < inverted.sum() < 64
    expected = np.where(inverted[:, None, None, None], 255 - images, images)
    np.testing.assert_array_equal(quick_jit(strong.apply)(images, draws), expected)


RANGES = [
    ("torchssl", "rotate", 0.5, -15, 15),
    ("torchssl", "shear_x", 0.1, -0.03, 0.03),
    ("torchssl", "translate_x", 0.5, -0.15 * 32, 0.15 * 32),
    ("torchssl", "brightness", 0.5, 0.525, 0.975),
    ("torchssl", "posterize", 0.25, 7, 8),
    ("torchssl", "solarize", 0.5, 128, 256),
    ("torchssl", "equalize", 0.3, 0.3, 0.3),
    ("torchssl", "solarize_add", 0.5, 0, 55),
    ("google", "rotate", 0.5, -13.5, 13.5),
    ("google", "brightness", 0.5, 0.64, 1.36),
    ("google", "solarize", 0.5, 141, 243.5),
    ("simmatch", "contrast", 0.5, 0.57, 0.93),
    ("eman", "translate_y", 0.5, -6, 6),  # .2025 of 32, cut
    ("eman", "posterize", 0.5, 6, 7.5),
    ("eman", "invert", 0.1, 1, 1),
    ("google", "blur", 1.0, 1, 1),
    ("google", "solarize_add", 1.0, 11, 99),
]
# One program draws all ops of a table at one strength.
DRAWN_TOGETHER = [("google", 0.5)]


@pytest.mark.parametrize(
    ("table", "name", "strength", "least", "largest"),
    [
        pytest.param(*each, marks=() if (each[0], each[2]) in DRAWN_TOGETHER else pytest.mark.slow)
        for each in RANGES
    ],
)
def test_strength_moves_the_ends_of_the_range(table, name, strength, least, largest):
    ops = tuple(other for of, other, at, *_ in RANGES if (of, at) == (table, strength))
    strong = RandAugment(table=table, ops=ops, strength=strength, number=3)
    draws = drawn(strong)
    own = draws.value[draws.op == strong.policy().names.index(name)]
    assert own.min() == pytest.approx(least, abs=0.01 * max(1, largest - least))
    assert own.max() == pytest.approx(largest, abs=0.01 * max(1, largest - least))


@pytest.mark.parametrize("table", [pytest.param("torchssl", marks=pytest.mark.slow), "eman"])
def test_strength_zero_changes_nothing(table):
    ops = tuple(name for name in OPS if name != "invert")
    strong = RandAugment(table=table, ops=ops, number=4, strength=0.0, cutout=False)
    images = noise(64, 12, 12, 3)
    draws = drawn(strong, images.shape)
    np.testing.assert_array_equal(quick_jit(strong.apply)(images, draws), images)


def test_without_ops_there_is_only_the_cutout():
    strong = RandAugment(number=0, cutout=True)
    draws = drawn(strong, (20, 16, 16, 3))
    assert draws.op.shape == (20, 0)
    images = np.tile(GREY, (20, 1, 1, 1))
    views = np.asarray(quick_jit(strong.apply)(images, draws))
    top, left, bottom, right = draws.box[0]
    expected = GREY[0].astype(float)
    expected[top:bottom, left:right] = (125, 123, 114)
    np.testing.assert_array_equal(views[0], expected)
    assert (views != 200).any()


# The one without a cutout of its own, which has one in this test.
@pytest.mark.parametrize(
    "table",
    [pytest.param(each, marks=() if each == "eman" else pytest.mark.slow) for each in TABLES],
)
def test_cutout_off_and_on(table):
    usual = drawn(RandAugment(table=table))
    off = drawn(RandAugment(table=table, cutout=False))
    assert not off.box.any()
    for part in ("op", "value"):  # the other draws stay
        np.testing.assert_array_equal(getattr(off, part), getattr(usual, part))
    kept = view(RandAugment(table=table, cutout=False), GREY, ("identity", 1.0), box=(2, 2, 9, 9))
    np.testing.assert_array_equal(kept, 200)
    on = drawn(RandAugment(table=table, cutout=True)).box
    if table == "eman":
        assert (on[:, 2:] - on[:, :2]).max() == 16
        cut = view(RandAugment(table=table, cutout=True), GREY, ("identity", 1.0), box=(2, 2, 9, 9))
        np.testing.assert_array_equal(cut[0, 2:9, 2:9], 0)
    else:
        np.testing.assert_array_equal(on, usual.box)


@pytest.mark.parametrize(
    ("table", "share", "most"),
    [
        pytest.param("google", 0.25, 8, marks=pytest.mark.slow),
        pytest.param("eman", 1.0, 32, marks=pytest.mark.slow),
        ("torchssl", 0.25, 9),
    ],
)
def test_cutout_as_a_share_of_the_side(table, share, most):
    box = drawn(RandAugment(table=table, cutout=share)).box
    assert (box[:, 2:] - box[:, :2]).max() in (most, most - 1)
    none = drawn(RandAugment(table=table, cutout=0.0)).box
    assert not none.any()


@pytest.mark.parametrize(
    ("fill", "table"),
    [
        ((10, 20, 255), "torchssl"),
        *(
            pytest.param(*each, marks=pytest.mark.slow)
            for each in [
                (0, "torchssl"),
                (0, "google"),
                (90, "google"),
                (90, "torchssl"),
                ((10, 20, 255), "google"),
            ]
        ),
    ],
)
def test_fill_is_what_moves_uncover_and_what_is_cut_out(table, fill):
    strong = RandAugment(table=table, fill=fill)
    found = view(strong, GREY, ("translate_x", 3.0), ("translate_y", -2.0), box=(6, 1, 9, 5))[0]
    expected = np.full((16, 16, 3), 200.0)
    expected[:2] = expected[:, 13:] = expected[6:9, 1:5] = fill
    np.testing.assert_array_equal(found, expected)
    # Later ops change it as they change the image.
    later = view(strong, GREY, ("translate_x", 3.0), ("solarize", 0.0))[0]
    np.testing.assert_array_equal(later[:, 13:], np.broadcast_to(255 - np.array(fill), (16, 3, 3)))
    np.testing.assert_array_equal(later[:, :13], 55)


@pytest.mark.parametrize(
    ("padding", "side"),
    [
        ("reflect", 56),
        pytest.param("edge", 32, marks=pytest.mark.slow),
        pytest.param("edge", 56, marks=pytest.mark.slow),
        pytest.param("reflect", 32, marks=pytest.mark.slow),
    ],
)
def test_moves_continue_the_image_as_numpy_pads(padding, side):
    images, strong = noise(1, side, side, 3), RandAugment(padding=padding, cutout=False)
    padded = np.pad(images[0], ((12, 12), (12, 12), (0, 0)), mode=padding)
    found = view(strong, images, ("translate_x", 9.0), ("translate_y", -7.0))[0]
    moved = np.pad(padded[12:-12, 21 : 21 + side], ((12, 12), (0, 0), (0, 0)), mode=padding)
    np.testing.assert_array_equal(found, moved[5 : 5 + side])


@pytest.mark.parametrize("padding", [pytest.param("edge", marks=pytest.mark.slow), "reflect"])
def test_turns_continue_the_image_as_pillow_turns_a_padded_one(padding):
    images, side, margin = noise(1, 40, 40, 3), 40, 30
    padded = np.pad(images[0], ((margin, margin), (margin, margin), (0, 0)), mode=padding)
    turned = np.asarray(Image.fromarray(padded).rotate(17.0, Image.Resampling.NEAREST))
    found = view(RandAugment(padding=padding, cutout=False), images, ("rotate", 17.0))[0]
    equal = found == turned[margin : margin + side, margin : margin + side]
    assert equal.mean() > 0.999  # a tie may be rounded otherwise, since the margin differs


@pytest.mark.slow
def test_zero_is_black_and_leaves_the_cutout_its_level():
    strong = RandAugment(table="google", padding="zero", fill=90)
    found = view(strong, GREY, ("translate_x", 3.0), box=(6, 1, 9, 5))[0]
    np.testing.assert_array_equal(found[:, 13:], 0)
    np.testing.assert_array_equal(found[6:9, 1:5], 90)
    # Without a fill of its own the cutout keeps the table's level.
    for padding in ("zero", "edge"):
        strong = RandAugment(table="google", padding=padding)
        found = view(strong, GREY, ("identity", 1.0), box=(6, 1, 9, 5))[0]
        np.testing.assert_array_equal(found[6:9, 1:5], 127.5)


@pytest.mark.parametrize(
    ("side", "settings"),
    [
        (32, {"padding": "reflect", "cutout": 0.3, "ops": ("rotate", "shear_y", "equalize")}),
        *(
            pytest.param(side, settings, marks=pytest.mark.slow)
            for side, settings in [
                (32, {"padding": "reflect", "strength": 0.5, "cutout": 0.3}),
                (32, {"fill": (3, 130, 255), "ops": ("rotate", "invert", "blur")}),
                (64, {"padding": "edge"}),
                (64, {"padding": "reflect", "table": "eman"}),
                (64, {"fill": (3, 130, 255), "table": "google"}),
            ]
        ),
    ],
)
def test_products_give_the_same_views(side, settings, use_form):
    strong, images = RandAugment(**settings), noise(32, side, side, 3)
    draws = quick_jit(strong.draw, static_argnums=1)(jax.random.key(0), images.shape)
    views = {}
    for form in ("gathers", "products"):
        use_form(form)
        views[form] = np.asarray(quick_jit(strong.apply)(images, draws))
    np.testing.assert_array_equal(views["products"], views["gathers"])


# The views above go by shears too, with a continued image.
@pytest.mark.slow
@pytest.mark.parametrize("size", [(50, 50), (60, 110)])
@pytest.mark.parametrize("padding", ["edge", "reflect"])
def test_shears_fetch_the_same_pixels_of_a_continued_image(padding, size, use_form):
    width = size[1]
    planes = np.random.default_rng(1).integers(1, 256, (3, 40, *size), np.int32)
    share = np.random.default_rng(2).uniform(-1, 1, 40).astype(np.float32)
    share[:8] = np.repeat([1, -1], 4)
    matrices = np.stack(
        [
            geometry.rotation(30 * share, size),
            geometry.shear_x(0.3 * share),
            geometry.shear_y(0.3 * share),
            geometry.translation_x(0.405 * width * share),
        ]
    )[np.arange(40) % 4, np.arange(40)]
    found = {}
    for form in ("gathers", "products"):
        use_form(form)
        warp = quick_jit(lambda *given: affine.warp_continued(*given, padding, degrees=30))
        found[form] = np.asarray(warp(planes, matrices))
    np.testing.assert_array_equal(found["products"], found["gathers"])
    assert (found["gathers"] > 0).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ops": ("rotat",)}, r"unknown image operation 'rotat'.*did you mean 'rotate'\?"),
        ({"ops": ("rotate", "color", "rotate")}, "names 'rotate' twice"),
        ({"ops": ("cutout",)}, "set views.strong.cutout"),
        ({"ops": ("rotate,color",)}, r"as views.strong.ops=\"\('rotate', 'color'\)\""),
        ({"ops": ("(rotate,)",)}, r"ops=\(rotate,\) as views.strong.ops=\"\('rotate',\)\"\.$"),
        ({"ops": ("(rotate)",)}, r"ops=\(rotate\) as views.strong.ops=\"\('rotate',\)\"\.$"),
        ({"ops": ("(rotate, shear_x)",)}, r"as views.strong.ops=\"\('rotate', 'shear_x'\)\"\.$"),
        ({"ops": ("[rotate,color]",)}, r"as views.strong.ops=\"\('rotate', 'color'\)\"\.$"),
        ({"ops": "rotate"}, "must be a tuple"),
        ({"number": -1}, "number=-1 must be at least 0"),
        ({"number": 2.0}, "must be a whole number"),
        ({"strength": 1.5}, "strength=1.5 must lie between 0 and 1"),
        ({"cutout": 2}, "cutout=2 must lie between 0 and 1"),
        ({"cutout": "yes"}, "must be a number"),
        ({"fill": 256}, "fill=256 must lie between 0 and 255"),
        ({"fill": (1, 2)}, "must have 3 entries"),
        ({"fill": (1, 2, -3)}, "must lie between 0 and 255 in each entry"),
        ({"padding": "edges"}, r"unknown views.strong.padding 'edges'; did you mean 'edge'\?"),
    ],
)
def test_bad_settings_are_one_sentence(settings, message):
    with pytest.raises(InputError, match=message) as caught:
        RandAugment(**settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "side"),
    [
        ({"padding": "reflect"}, 64),
        *(
            pytest.param(*each, marks=pytest.mark.slow)
            for each in [
                ({"fill": 90}, 32),
                ({"padding": "reflect"}, 32),
                ({"padding": "edge"}, 32),
                ({"padding": "edge"}, 64),
                ({"fill": 90}, 64),
            ]
        ),
    ],
)
def test_a_tpu_gathers_no_pixel(settings, side):
    weak = Weak(padding="zero", vertical_flip=True, rotate90=True)
    view = Chain(transforms=(weak, RandAugment(**settings)))

    def draw_and_apply(key, images):
        return view.apply(images, view.draw(key, images.shape))

    traced = jax.jit(draw_and_apply).trace(
        jax.random.key(0), jax.ShapeDtypeStruct((2, side, side, 3), np.uint8)
    )
    found = {
        platform: set(
            re.findall(
                r"stablehlo\.(?:dynamic_)?(gather|scatter)\b",
                traced.lower(lowering_platforms=(platform,)).as_text(),
            )
        )
        for platform in ("tpu", "cpu")
    }
    assert found["tpu"] == set()
    assert "gather" in found["cpu"]
