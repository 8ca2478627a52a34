"""Rotations by quarter turns, whose number a network is asked for.

Gidaris, Singh & Komodakis, "Unsupervised Representation Learning by Predicting Image Rotations",
ICLR 2018, https://arxiv.org/abs/1803.07728.
"""

import jax.numpy as jnp

from jaxmatch.errors import InputError
from jaxmatch.types import Array

QUARTER_TURNS = 4


def all_rotations(images: Array) -> tuple[Array, Array, Array, Array]:
    """Square images [b h h c] turned counter-clockwise by 0, 1, 2 and 3 quarters of a circle.

    Raises:
        InputError: if the images are not square.
    """
    height, width = images.shape[1:3]
    if height != width:
        raise InputError(
            f"images of {height}x{width} pixels cannot be turned; set data.image_size, or choose "
            "a method without rotations."
        )
    flipped, across = images[:, ::-1], images.swapaxes(1, 2)
    return images, across[:, ::-1], flipped[:, :, ::-1], flipped.swapaxes(1, 2)


def rotate(images: Array, quarter_turns: Array) -> Array:
    """Each square image of [b h h c] turned counter-clockwise by its own number of quarters.

    Args:
        images: [b h h c].
        quarter_turns: [b] integers, taken modulo 4.

    Raises:
        InputError: if the images are not square.
    """
    turns = jnp.asarray(quarter_turns)[:, None, None, None] % QUARTER_TURNS
    return jnp.select([turns == k for k in range(QUARTER_TURNS)], all_rotations(images))
