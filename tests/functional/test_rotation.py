"""Rotations against NumPy's, and as a group."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from on_devices import assert_same_on_four

from jaxmatch.errors import InputError
from jaxmatch.functional.rotation import all_rotations, rotate

IMAGES = np.random.default_rng(0).integers(0, 256, (8, 4, 4, 3)).astype(np.uint8)
jit_rotate = jax.jit(rotate)


def test_all_rotations_are_numpys():
    for k, turned in enumerate(all_rotations(jnp.asarray(IMAGES))):
        assert turned.dtype == np.uint8
        np.testing.assert_array_equal(turned, np.rot90(IMAGES, k, (1, 2)))


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(-9, 9), min_size=8, max_size=8))
def test_each_image_turns_by_its_own_number(turns):
    turned = jit_rotate(IMAGES, np.array(turns, np.int32))
    assert turned.dtype == np.uint8
    for image, k, found in zip(IMAGES, turns, turned, strict=True):
        np.testing.assert_array_equal(found, np.rot90(image, k))


@settings(max_examples=20, deadline=None)
@given(*2 * [st.lists(st.integers(0, 3), min_size=8, max_size=8)])
def test_turns_add_up(first, second):
    first, second = np.array(first, np.int32), np.array(second, np.int32)
    twice = jit_rotate(jit_rotate(IMAGES, first), second)
    np.testing.assert_array_equal(twice, jit_rotate(IMAGES, first + second))


def test_images_that_are_not_square_are_refused():
    wide = jnp.zeros((2, 4, 6, 3))
    with pytest.raises(InputError, match="4x6 pixels cannot be turned"):
        all_rotations(wide)
    with pytest.raises(InputError, match=r"data\.image_size"):
        rotate(wide, jnp.zeros(2, jnp.int32))


def test_device_count():
    turns = np.arange(8, dtype=np.int32)
    batch = (IMAGES.astype(np.float32), turns)
    assert_same_on_four(lambda batch, _: (rotate(*batch), all_rotations(batch[0])), batch)
