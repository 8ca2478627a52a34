"""Affine maps and boxes: which input pixel each output pixel takes, and which pixels are painted.

A matrix (a, b, c, d, e, f) [b 6] maps the centre of an output pixel to the input,
``x' = a x + b y + c``, ``y' = d x + e y + f``. The arithmetic is Pillow's in 16.16 fixed point, so
both pick the same pixels.
"""

import jax.numpy as jnp
import numpy as np

from jaxmatch.types import Array


def rotation(degrees: Array, size: tuple[int, int]) -> Array:
    """The matrices [b 6] of rotations, counter-clockwise about the centre, by ``degrees`` [b].

    ``size`` is (height, width).
    """
    angle = degrees * (np.pi / 180)
    cosine, sine = jnp.cos(angle), jnp.sin(angle)
    y, x = size[0] / 2, size[1] / 2
    shift_x = x - cosine * x + sine * y
    shift_y = y - sine * x - cosine * y
    return jnp.stack([cosine, -sine, shift_x, sine, cosine, shift_y], -1)


def shear_x(ratio: Array) -> Array:
    """The matrices [b 6] that move row y left by ``ratio`` [b] times y."""
    zero, one = jnp.zeros_like(ratio), jnp.ones_like(ratio)
    return jnp.stack([one, ratio, zero, zero, one, zero], -1)


def shear_y(ratio: Array) -> Array:
    """The matrices [b 6] that move column x up by ``ratio`` [b] times x."""
    zero, one = jnp.zeros_like(ratio), jnp.ones_like(ratio)
    return jnp.stack([one, zero, zero, ratio, one, zero], -1)


def translation_x(left: Array) -> Array:
    """The matrices [b 6] that move the content left by the nearest whole number of pixels [b]."""
    zero, one = jnp.zeros_like(left), jnp.ones_like(left)
    return jnp.stack([one, zero, jnp.floor(left + 0.5), zero, one, zero], -1)


def translation_y(up: Array) -> Array:
    """The matrices [b 6] that move the content up by the nearest whole number of pixels [b]."""
    zero, one = jnp.zeros_like(up), jnp.ones_like(up)
    return jnp.stack([one, zero, zero, zero, one, jnp.floor(up + 0.5)], -1)


def padded(matrix: Array, margin: int) -> Array:
    """The same maps [b 6] of images that have ``margin`` pixels more on each side."""
    a, b, c, d, e, f = (matrix[:, i] for i in range(6))
    return jnp.stack([a, b, c + margin * (1 - a - b), d, e, f + margin * (1 - d - e)], -1)


def continued(position: Array, size: int, padding: str) -> Array:
    """Bring positions of any distance inside of 0..size-1, as the padding says.

    "edge" takes the nearest position inside; "reflect" mirrors, without repeating the edge, as
    often as it takes.
    """
    if padding == "edge":
        return jnp.clip(position, 0, size - 1)
    inside = position % max(1, 2 * (size - 1))
    return size - 1 - jnp.abs(size - 1 - inside)


def source(matrix: Array, size: tuple[int, int]) -> tuple[Array, Array]:
    """Source row and column of each pixel, int32 [b h w] each; they can be outside of the image."""
    row = jnp.arange(size[0], dtype=jnp.int32)[:, None]
    column = jnp.arange(size[1], dtype=jnp.int32)
    return _position(matrix[:, 3:6], row, column), _position(matrix[:, 0:3], row, column)


def _position(coefficients: Array, row: Array, column: Array) -> Array:
    """Whole input position along one axis, int32 [b h w], of each output pixel's centre."""
    along_x, along_y, shift = (coefficients[:, i, None, None] for i in range(3))
    start = _fixed(shift + 0.5 * along_x + 0.5 * along_y)
    return (start + _fixed(along_x) * column + _fixed(along_y) * row) >> 16


def _fixed(value: Array) -> Array:
    return jnp.floor(value * 65536 + 0.5).astype(jnp.int32)


def shifted_box(centre: Array, side: Array, height: int, width: int) -> Array:
    """TorchSSL's cutout, int32 [b 4] (top, left, bottom, right), the last two excluded.

    ``centre`` [b 2] is (y, x). ``centre`` and ``side`` [b] are in pixels and need not be whole. At
    the top and the left the square is shifted into the image; at the bottom and the right it is
    cut off. It spans ``int(side) + 1`` pixels or one more, and none if ``side`` is 0.
    """
    first = jnp.maximum(centre - side[:, None] / 2, 0).astype(jnp.int32)  # [b 2]
    sides = jnp.array([height, width], jnp.int32)
    last = jnp.minimum(first + side[:, None], sides).astype(jnp.int32)
    end = jnp.where(side[:, None] > 0, jnp.minimum(last + 1, sides), first)
    return jnp.concatenate([first, end], -1)


def clipped_box(centre: Array, half: Array | int, height: int, width: int) -> Array:
    """The square [centre - half, centre + half), cut off at every border: int32 [b 4].

    ``centre`` [b 2] is (row, column); with ``half`` 8 this is the 16-pixel cutout of FixMatch.
    """
    half = jnp.broadcast_to(jnp.asarray(half, jnp.int32), centre.shape[:1])[:, None]
    first = jnp.maximum(centre - half, 0)
    end = jnp.minimum(centre + half, jnp.array([height, width], jnp.int32))
    return jnp.concatenate([first, end], -1).astype(jnp.int32)


def fill_box(images: Array, box: Array, fill: Array) -> Array:
    """Paint ``fill`` (a level, or one a channel) over the box [b 4] of each image."""
    height, width = images.shape[1:3]
    return jnp.where(inside_box(box, height, width)[..., None], fill, images)


def inside_box(box: Array, height: int, width: int) -> Array:
    """Which pixels lie in the box [b 4] of each image: bool [b h w]."""
    row = jnp.arange(height, dtype=jnp.int32)[:, None]
    column = jnp.arange(width, dtype=jnp.int32)
    top, left, bottom, right = (box[:, i, None, None] for i in range(4))
    return (row >= top) & (row < bottom) & (column >= left) & (column < right)
