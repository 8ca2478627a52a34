"""Rotations by quarter turns; a network learns to tell how many there were.

Gidaris, Singh & Komodakis, "Unsupervised Representation Learning by Predicting Image Rotations",
ICLR 2018, https://arxiv.org/abs/1803.07728.
"""

import jax.numpy as jnp
from jaxtyping import Int, Shaped

from jaxmatch.errors import InputError
from jaxmatch.types import Array

QUARTER_TURNS = 4


def all_rotations(images: Shaped[Array, "b h w c"]) -> tuple[Array, Array, Array, Array]:
    """Square images turned counter-clockwise by 0, 1, 2 and 3 quarters of a circle.

    >>> print(all_rotations(jnp.arange(4).reshape(1, 2, 2, 1))[1][0, ..., 0])
    [[1 3]
     [0 2]]

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


def rotate(
    images: Shaped[Array, "b h w c"], quarter_turns: Int[Array, "b"]
) -> Shaped[Array, "b h w c"]:
    """Each square image turned counter-clockwise by its own number of quarters.

    >>> print(rotate(jnp.arange(4).reshape(1, 2, 2, 1), jnp.array([2]))[0, ..., 0])
    [[3 2]
     [1 0]]

    Args:
        images: of equal height and width.
        quarter_turns: taken modulo 4.

    Raises:
        InputError: if the images are not square.
    """
    turns = jnp.asarray(quarter_turns)[:, None, None, None] % QUARTER_TURNS
    return jnp.select([turns == k for k in range(QUARTER_TURNS)], all_rotations(images))
