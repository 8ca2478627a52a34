"""The weak view against recorded ones, by hand, and the distribution of its draws."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import quick_jit

from experiments.parity import augment as parity
from jaxmatch.augment.weak import Draws, Weak
from jaxmatch.errors import InputError

GOLDEN = Path(__file__).parents[1] / "golden" / "augment"


def view(weak, images, offset, flip):
    """Every image with the same offset and flip."""
    b = len(images)
    draws = Draws(jnp.tile(jnp.array(offset, jnp.int32), (b, 1)), jnp.full(b, flip))
    return np.asarray(quick_jit(weak.apply)(images, draws))


def images(height=8, width=8, channels=3):
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (2, height, width, channels)).astype(np.uint8)


def test_recorded():
    rows = parity.replay(GOLDEN / "weak.npz")
    assert len(rows) == 2
    assert all(row.passed for row in rows)


@pytest.mark.slow
def test_recorded_by_products(products):
    test_recorded()


def test_by_hand():
    row = np.arange(1, 5, dtype=np.uint8).reshape(1, 1, 4, 1).repeat(4, 1)
    # Padded by 2 without repeating the edge: 3 2 1 2 3 4 3 2.
    for left, expected in ((0, [3, 2, 1, 2]), (2, [1, 2, 3, 4]), (4, [3, 4, 3, 2])):
        ours = view(Weak(pad=2), row, (2, left), False)
        np.testing.assert_array_equal(ours[0, 0, :, 0], expected)
    flipped_after = view(Weak(pad=2, order="crop_flip"), row, (2, 0), True)
    np.testing.assert_array_equal(flipped_after[0, 0, :, 0], [2, 1, 2, 3])
    flipped_before = view(Weak(pad=2, order="flip_crop"), row, (2, 0), True)
    np.testing.assert_array_equal(flipped_before[0, 0, :, 0], [2, 3, 4, 3])


@pytest.mark.slow
def test_by_hand_by_products(products):
    test_by_hand()


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("order", ["flip_crop", "crop_flip"])
def test_equals_numpy_on_oblong_images(order, flip):
    x, pad, top, left = images(8, 12), 3, 1, 6
    source = x[:, :, ::-1] if flip and order == "flip_crop" else x
    padded = np.pad(source, ((0, 0), (pad, pad), (pad, pad), (0, 0)), mode="reflect")
    expected = padded[:, top : top + 8, left : left + 12]
    expected = expected[:, :, ::-1] if flip and order == "crop_flip" else expected
    np.testing.assert_array_equal(view(Weak(pad=pad, order=order), x, (top, left), flip), expected)


def test_the_middle_offset_is_the_identity_and_levels_are_kept():
    grey = images(channels=1).astype(np.float32) + 0.5
    np.testing.assert_array_equal(view(Weak(pad=2), grey, (2, 2), False), grey)
    np.testing.assert_array_equal(view(Weak(pad=0), grey, (0, 0), False), grey)


def test_offsets_are_uniform_with_both_ends_and_half_are_flipped():
    draws = quick_jit(Weak().draw, static_argnums=1)(jax.random.key(0), (9000, 32, 32, 3))
    for axis in range(2):
        counts = np.bincount(draws.offset[:, axis])
        assert len(counts) == 9  # 0..8: a pad of 4 is an eighth of 32
        assert np.abs(counts - 1000).max() < 150
    assert abs(np.corrcoef(draws.offset.T)[0, 1]) < 0.05
    assert abs(np.mean(draws.flip) - 0.5) < 0.03


def test_flip_off_flips_nothing_and_keeps_the_offsets():
    shape = (200, 96, 96, 3)
    draws = Weak(flip=False).draw(jax.random.key(0), shape)
    assert not draws.flip.any()
    assert draws.offset.max() == 24
    np.testing.assert_array_equal(draws.offset, Weak().draw(jax.random.key(0), shape).offset)


def test_draws_do_not_depend_on_the_order():
    first, second = (
        Weak(order=order).draw(jax.random.key(1), (4, 8, 8, 3))
        for order in ("flip_crop", "crop_flip")
    )
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"order": "crop_flop"}, "unknown views.weak.order 'crop_flop'; did you mean 'crop_flip'"),
        ({"pad": -1}, "pad=-1 must be at least 0"),
        ({"padding": "mirror"}, "unknown views.weak.padding 'mirror'; known: edge, reflect, zero"),
        ({"vertical_flip": 0.5}, "vertical_flip=0.5 must be True or False"),
        ({"rotate90": 90}, "rotate90=90 must be True or False"),
    ],
)
def test_bad_fields(fields, message):
    with pytest.raises(InputError, match=message):
        Weak(**fields)


def test_a_pad_that_reflection_cannot_fill():
    with pytest.raises(InputError, match="use at most 7"):
        Weak(pad=8).draw(jax.random.key(0), (1, 8, 8, 3))


@pytest.mark.parametrize("padding", ["reflect", "edge", "zero"])
@pytest.mark.parametrize("vertical", [False, True])
@pytest.mark.parametrize("order", ["flip_crop", "crop_flip"])
def test_padding_and_vertical_flips_equal_numpy(order, vertical, padding):
    x, pad, top, left = images(8, 12), 3, 1, 6
    weak = Weak(pad=pad, padding=padding, vertical_flip=True, order=order)
    draws = Draws(
        jnp.tile(jnp.array([[top, left]]), (2, 1)), jnp.zeros(2, bool), jnp.full(2, vertical)
    )
    source = x[:, ::-1] if vertical and order == "flip_crop" else x
    mode = {"zero": "constant"}.get(padding, padding)
    padded = np.pad(source, ((0, 0), (pad, pad), (pad, pad), (0, 0)), mode=mode)
    expected = padded[:, top : top + 8, left : left + 12]
    expected = expected[:, ::-1] if vertical and order == "crop_flip" else expected
    np.testing.assert_array_equal(quick_jit(weak.apply)(x, draws), expected)


def test_padding_and_vertical_flips_by_products(products):
    for padding in ("edge", "zero"):
        test_padding_and_vertical_flips_equal_numpy("flip_crop", True, padding)


@pytest.mark.parametrize("turns", range(4))
def test_turns_are_those_of_numpy(turns):
    weak, x = Weak(pad=1, rotate90=True), images()
    draws = Draws(jnp.ones((2, 2), jnp.int32), jnp.zeros(2, bool), None, jnp.full(2, turns))
    found = quick_jit(weak.apply)(x, draws)
    np.testing.assert_array_equal(found, np.rot90(x, turns, (1, 2)))
    oblong = images(4, 6)
    expected = oblong[:, ::-1, ::-1] if turns >= 2 else oblong  # other turns change the shape
    np.testing.assert_array_equal(quick_jit(weak.apply)(oblong, draws), expected)


@pytest.mark.slow
def test_turns_by_products(products):
    test_turns_are_those_of_numpy(1)


@pytest.mark.slow
def test_further_draws_leave_the_others_as_they_are():
    shape = (4000, 16, 16, 3)
    plain, more = (
        quick_jit(weak.draw, static_argnums=1)(jax.random.key(0), shape)
        for weak in (Weak(), Weak(vertical_flip=True, rotate90=True, padding="zero"))
    )
    assert plain.vertical_flip is None
    assert plain.turns is None
    np.testing.assert_array_equal(plain.offset, more.offset)
    np.testing.assert_array_equal(plain.flip, more.flip)
    assert abs(np.mean(more.vertical_flip) - 0.5) < 0.04
    assert abs(np.corrcoef(more.flip, more.vertical_flip)[0, 1]) < 0.06
    assert np.abs(np.bincount(more.turns, minlength=4) - 1000).max() < 140
