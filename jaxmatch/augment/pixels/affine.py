"""Nearest-neighbour affine maps of whole images: gathers of single pixels, or shears on a TPU.

A rotation is three shears (Paeth, "A fast algorithm for general raster rotation", 1986), and a
shear moves whole rows or columns. Each shear rounds, so a pixel can end one pixel away from its
place in the map. Integer arithmetic gives this distance, so the final result is exact.
"""

import functools
import math
from collections.abc import Callable
from typing import Literal

import jax.numpy as jnp
from jax import lax
from jax.experimental.layout import Layout, with_layout_constraint

from jaxmatch.augment.pixels import geometry
from jaxmatch.augment.pixels import source as pixels
from jaxmatch.types import Array

STEEPEST = 45  # degrees
# No warp of a published policy takes a pixel from farther outside, as a share of the longer side.
_BEYOND = 0.42
_PACKED = 3  # planes of 8 bits in an int32 that is not negative


def warp(planes: Array, matrix: Array, degrees: int = STEEPEST) -> Array:
    """Fetch each pixel from its position under ``matrix``.

    Images of more than :data:`~jaxmatch.augment.pixels.source.SMALL` pixels a side have limits:
    rotations about the centre by at most ``degrees``, shears by at most a half, and translations
    by at most half a side. :func:`warp_far` has no limits.

    Args:
        planes: int32 0..255 [c b h w].
        matrix: [b 6], see :mod:`jaxmatch.augment.pixels.geometry`.
        degrees: bound of the rotations, at most :data:`STEEPEST`. It changes no pixel.

    Returns:
        Planes, int32 [c b h w]; 0 if the position is outside of the image.
    """
    size = planes.shape[2], planes.shape[3]
    if max(size) <= pixels.SMALL:
        return pixels.take(planes, *geometry.source(matrix, size))
    by_shears = functools.partial(_warp_by_shears, degrees=degrees)
    return pixels.by_platform(by_shears, warp_far, planes, matrix)


def warp_far(planes: Array, matrix: Array) -> Array:
    """Do what :func:`warp` does for any matrix, by gathers on every platform."""
    return pixels.take_far(planes, *geometry.source(matrix, (planes.shape[2], planes.shape[3])))


def warp_continued(
    planes: Array, matrix: Array, padding: Literal["edge", "reflect"], degrees: int = STEEPEST
) -> Array:
    """Fetch each pixel from its position under ``matrix``, in an image that goes on at its edges.

    Limits and arguments are those of :func:`warp`. In large images no position may lie outside by
    more than 0.42 of the longer side.

    Args:
        planes: int32 0..255 [c b h w].
        matrix: [b 6].
        padding: "edge" repeats the outermost pixels; "reflect" mirrors the image at them.
        degrees: bound of the rotations.

    Returns:
        Planes, int32 [c b h w].
    """
    height, width = planes.shape[2:]
    margin = math.ceil(_BEYOND * max(height, width)) + 2
    matrix = geometry.padded(matrix, margin)

    def positions(matrix: Array) -> tuple[Array, Array]:
        row, column = geometry.source(matrix, (height + 2 * margin, width + 2 * margin))
        inner = (slice(None), slice(margin, -margin), slice(margin, -margin))
        return (
            geometry.continued(row[inner] - margin, height, padding),
            geometry.continued(column[inner] - margin, width, padding),
        )

    def by_shears(planes: Array, matrix: Array) -> Array:
        planes = jnp.pad(planes, ((0, 0), (0, 0), *2 * [(margin, margin)]), mode=padding)
        warped = _warp_by_shears(planes, matrix, degrees=degrees)
        return warped[:, :, margin:-margin, margin:-margin]

    def by_gathers(planes: Array, matrix: Array) -> Array:
        return pixels.take_far(planes, *positions(matrix))

    if max(height, width) <= pixels.SMALL:
        return pixels.take(planes, *positions(matrix))
    return pixels.by_platform(by_shears, by_gathers, planes, matrix)


def _warp_by_shears(planes: Array, matrix: Array, *, degrees: int = STEEPEST) -> Array:
    """Warp by three shears; the channels of a pixel move together, as one number."""
    height, width = planes.shape[2:]
    first, second, third = _shears(matrix, (height, width))
    row, column = geometry.source(matrix, (height, width))
    # The distance of the wanted pixel after the shears: at most one.
    middle = column - first(row)
    down = row - second(middle) - jnp.arange(height, dtype=jnp.int32)[:, None]
    across = middle - third(row - second(middle)) - jnp.arange(width, dtype=jnp.int32)
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    most = max(height, width) // 2 + 1
    slope = math.tan(math.radians(degrees) / 2)  # of the first and the third
    gentle = math.ceil(slope * (height / 2 + 1) + 0.5)
    # A pixel that begins and ends inside of the image goes at most this far outside between.
    beyond = 1 / (2 - slope * math.sin(math.radians(degrees))) - 0.5
    margin = math.ceil(beyond * width) + 3

    def rows(size: int, start: int) -> Array:
        return jnp.arange(start, start + size, dtype=jnp.int32)[None]

    def sheared(packed: Array) -> Array:
        packed = _row_major(lax.optimization_barrier(packed))
        packed = _row_major(packed.transpose(2, 0, 1))  # [w b h]
        wide = width + 2 * margin
        packed = _moved(packed, -margin, wide, first(rows(height, 0)), most)
        packed = _row_major(packed.transpose(2, 1, 0))  # [h b w]
        packed = _moved(packed, -1, height + 2, second(rows(wide, -margin)), most)
        packed = _row_major(packed.transpose(2, 1, 0))
        packed = _moved(packed, margin - 1, width + 2, third(rows(height + 2, -1)), gentle)
        packed = _row_major(packed.transpose(1, 2, 0))  # [b h w]
        out = jnp.zeros((), packed.dtype)
        for i in (-1, 0, 1):
            for j in (-1, 0, 1):
                near = packed[:, 1 + i : 1 + i + height, 1 + j : 1 + j + width]
                out = jnp.where((down == i) & (across == j), near, out)
        return jnp.where(inside, out, 0)

    warped = []
    for start in range(0, len(planes), _PACKED):
        part = tuple(planes[start : start + _PACKED])
        out = sheared(functools.reduce(lambda high, low: (high << 8) | low, part[::-1]))
        warped += [(out >> 8 * place) & 255 for place in range(len(part))]
    return jnp.stack(warped)


def _shears(matrix: Array, size: tuple[int, int]) -> list[Callable[[Array], Array]]:
    """Three functions from a position [b ...] to the shift of the column, the row and the column.

    Up to one pixel, an output pixel (i, j) comes from the row ``i' = i + second(j')`` and the
    column ``j'' = j' + first(i')``, with ``j' = j + third(i)``.
    """
    a, b, c, d, e, f = (matrix[:, i] for i in range(6))
    column, row = c + (a + b) / 2 - 0.5, f + (d + e) / 2 - 0.5  # source of the first pixel
    last = jnp.where(d == 0, 0, b / (1 + a))
    first = jnp.where(d == 0, b, last)
    start_last = -last * (size[0] - 1) / 2  # none at the centre
    start_second = row - d * start_last
    start_first = column - first * row - start_last

    def shear(slope: Array, start: Array) -> Callable[[Array], Array]:
        # These bounds avoid an overflow; beyond them no part of the image is visible.
        start = jnp.clip(start, -(2.0**13), 2.0**13)
        slope, start = (jnp.round(65536 * one).astype(jnp.int32) for one in (slope, start + 0.5))

        def moves(position: Array) -> Array:
            shape = (-1, *(1,) * (position.ndim - 1))
            return (slope.reshape(shape) * position + start.reshape(shape)) >> 16

        return moves

    return [shear(first, start_first), shear(d, start_second), shear(last, start_last)]


def _moved(planes: Array, first: int, count: int, shift: Array, most: int) -> Array:
    """``out[k] = planes[first + k + shift]``, 0 outside; the shift is applied bit by bit.

    Args:
        planes: [n b m].
        first: position of the first output, which may be outside.
        count: number of outputs.
        shift: int32 [b m], at most ``most`` in either direction.
        most: bounds it.

    Returns:
        [count b m].
    """
    bits = (2 * most).bit_length()
    low = most - first
    high = count + 2**bits - 1 - low - len(planes)
    planes = lax.pad(planes, jnp.zeros((), planes.dtype), [(low, high, 0), (0, 0, 0), (0, 0, 0)])
    shift = jnp.clip(shift + most, 0, 2 * most)
    for bit in reversed(range(bits)):
        step, size = 1 << bit, count + (1 << bit) - 1
        own = (shift >> bit) & 1 == 1
        planes = _row_major(jnp.where(own, planes[step : step + size], planes[:size]))
        # Without the barrier XLA computes each step again for both operands of the next.
        planes = lax.optimization_barrier(planes)
    return planes


def _row_major(planes: Array) -> Array:
    """The same planes with their first axis outermost, so that a move along it costs nothing."""
    return with_layout_constraint(planes, Layout(tuple(range(planes.ndim))))
