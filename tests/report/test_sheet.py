"""The contact sheet shows what the ops and the views do, and which ops a configuration uses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmatch.augment.chain import Chain
from jaxmatch.augment.contrast import Contrast
from jaxmatch.augment.ctaugment import CTAugment
from jaxmatch.augment.ctaugment_views import CTAugmentOps
from jaxmatch.augment.ops import OPS, apply_chosen
from jaxmatch.augment.pixels import tone
from jaxmatch.augment.randaugment import RandAugment
from jaxmatch.augment.weak import Weak
from jaxmatch.report.sheet import _caption, _drawn_values, contact_sheet, summarize, used_ops

TILE, LABEL, LEFT = 96, 120, 12
ROW = TILE + 24


def pictures(height=18, width=18, count=2):
    rng = np.random.default_rng(0)
    return rng.integers(0, 200, (count, height, width, 3)).astype(np.uint8)


def views(strong, **more):
    return {"weak": Weak(), "strong": Chain(transforms=(Weak(), strong)), **more}


def sheet_of(images, shown):
    return np.asarray(contact_sheet(images, shown, jax.random.key(0), "a title"))


def tile(sheet, top, column, height=18, width=18, scale=5):
    left = LEFT + LABEL + column * (TILE + 6)
    return sheet[top : top + height * scale, left : left + width * scale][::scale, ::scale]


def test_used_ops_come_first_at_their_own_values_and_the_others_follow_faded():
    images = pictures()
    strong = RandAugment(ops=("brightness", "rotate"), strength=0.5, cutout=False, fill=90)
    shown = views(strong)
    sheet = sheet_of(images, shown)
    lines = 1 + len(summarize(shown))
    top = LEFT + 20 * lines + 36  # below the lines of text and the first heading
    np.testing.assert_array_equal(tile(sheet, top, 0), images[0])
    darkest = apply_chosen(
        tone.planes(images[:1]), jnp.zeros(1, int), jnp.full(1, 0.525), ("brightness",)
    )
    np.testing.assert_array_equal(tile(sheet, top, 1), np.moveaxis(darkest[:, 0], 0, -1))
    turned = tile(sheet, top + ROW, 1)
    assert (turned == 90).all(-1).any()  # a corner is filled
    # Then a heading, and the other ops, nearer to white.
    faded = tile(sheet, top + 2 * ROW + 36, 0)
    np.testing.assert_allclose(faded, images[0] * 0.55 + 0.45 * 255, atol=1.5)
    assert sheet.shape[0] > top + len(OPS) * ROW
    whole = (sheet[:, LEFT + LABEL + 7 * (TILE + 6) :] != 255).any((1, 2))
    assert whole.sum() > 4 * 90  # two rows for each of two images


@pytest.mark.parametrize(
    ("shown", "used", "words"),
    [
        (
            views(RandAugment(table="google", cutout=0.25)),
            14,
            ["2 of 14 ops, each with probability 0.5 (padding: level 127.5)", "cutout of 25%"],
        ),
        (
            views(RandAugment(ops=("rotate",), number=1, strength=0.5, padding="edge")),
            1,
            ["1 of 1 ops, at 50% of the published strength (padding: edge)", "used: rotate."],
        ),
        (views(RandAugment(cutout=False)), 14, ["3 of 14 ops", "without a cutout"]),
        (
            views(CTAugmentOps()),
            17,
            ["2 ops at learned strengths", "then by a cutout", "not used: solarize_add."],
        ),
        (views(CTAugmentOps(ctaugment=CTAugment(cutout=False))), 17, ["rescale and cutout)."]),
        ({"weak": Weak(flip=False, padding="zero")}, 0, ["zero), not flipped", "used: none."]),
        (
            {"contrast": Contrast(vertical_flip=0.5, rotate90=True, grayscale=0.0, blur=0.5)},
            0,
            ["8% to 100%", "left and right and top and bottom, turned", "blur in 50%"],
        ),
    ],
    ids=["google", "one op", "no cutout", "ctaugment", "its views alone", "weak", "contrast"],
)
def test_the_summary_names_what_is_used(shown, used, words):
    text = "\n".join(summarize(shown))
    assert [word for word in words if word not in text] == []
    named = text.partition("Ops used: ")[2].partition(".")[0]
    assert len(named.split(", ")) == max(1, used)
    assert "\n\n" not in text


@pytest.mark.slow
@pytest.mark.parametrize(
    "shown",
    [
        pytest.param(views(CTAugmentOps()), marks=pytest.mark.slow),
        pytest.param({"contrast": Contrast(), "small": Contrast(size=8)}, marks=pytest.mark.slow),
        {"weak": Weak()},
    ],
    ids=["ctaugment", "contrast", "weak"],
)
def test_every_kind_of_views_has_a_sheet(shown):
    images = pictures(12, 12, 1)
    sheet = sheet_of(images, shown)
    assert sheet.shape[0] > len(OPS) * ROW


@pytest.mark.slow
def test_oblong_images_keep_their_shape():
    images = pictures(10, 20)
    shown = views(RandAugment(ops=("identity",), cutout=False))
    sheet = sheet_of(images, shown)
    top = LEFT + 20 * (1 + len(summarize(shown))) + 36
    np.testing.assert_array_equal(tile(sheet, top, 0, 10, 20, 4), images[0])
    assert (sheet[top + 41 : top + TILE - 1, LEFT + LABEL : LEFT + LABEL + TILE] == 255).all()


def test_values_and_their_captions():
    policy = RandAugment(table="google", strength=0.5).policy()
    assert _drawn_values(policy, "rotate", (32, 32)) == [-13.5, -7.5, 1.5, 7.5, 13.5]
    assert _drawn_values(policy, "brightness", (32, 32)) == pytest.approx(
        [0.64, 0.82, 1.0, 1.18, 1.36]
    )
    images = pictures(10, 20)
    assert _caption("rotate", -13.5, images) == "-13.5\N{DEGREE SIGN}"
    assert _caption("translate_x", 3.0, images) == "15%"
    assert _caption("translate_y", 3.0, images) == "30%"
    assert _caption("color", 0.5, images) == "0.5"
    assert _caption("color", 0.5, np.full((1, 4, 4, 3), 7, np.uint8)) == "gray: none"
    assert used_ops(None) == ()
