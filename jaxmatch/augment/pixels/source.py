"""Moves, counts and replaces pixels: by gathers and scatters, or by products with zeros and ones.

A TPU moves one element at a time in a gather or scatter, and multiplies matrices at full speed. A
CPU does the opposite, and a GPU would write the zeros and ones to memory. So each operation has two
forms with equal results, and the platform of the compiled program chooses one.

The products are exact, although a TPU rounds their factors to bfloat16. One factor is 0 or 1. The
other is a whole number of at most 8 bits, perhaps times a power of two. Terms of a sum that are not
0 have no bit in common. Counts are sums of ones in float32, which are exact up to 2^24 pixels.

The axes of channels and images stay apart: devices that share the images would exchange a product
over a merged axis.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxmatch.types import Array, PyTree

_BYTE = 8  # bits that bfloat16 holds exactly
_NIBBLE = 16  # base of the two digits by which levels are counted
_OCTAL = 8  # base of the low digit by which levels are looked up: fewer products to select from
_PACKED = 3  # channels of 8 bits that a float32 holds exactly
SMALL = 48  # side in pixels up to which products move single pixels fast


def by_platform(
    products: Callable[..., Array], gathers: Callable[..., Array], *operands: PyTree
) -> Array:
    """Apply the form for the platform of the compilation: products on TPUs, else gathers."""
    return lax.platform_dependent(*operands, tpu=products, default=gathers)


def take(planes: Array, row: Array, column: Array) -> Array:
    """Fetch each pixel from a position of its own; fast on a TPU up to a side of :data:`SMALL`.

    Args:
        planes: int32 0..255 [c b h w].
        row: int32 [b h w], the row that each pixel comes from.
        column: int32 [b h w], and the column.

    Returns:
        Planes, int32 [c b h w]; 0 where the position is outside of the image.
    """
    return by_platform(_take_by_products, take_far, planes, row, column)


def take_grid(images: Array, row: Array, column: Array) -> Array:
    """Fetch rows and columns: ``out[b, i, j] = images[b, row[b, i], column[b, j]]``.

    Args:
        images: [b h w c], uint8 or any values that float32 holds.
        row: int32 [b i], 0..h-1.
        column: int32 [b j], 0..w-1.

    Returns:
        Float32 [b i j c].
    """
    return by_platform(_take_grid_by_products, _take_grid_by_gathers, images, row, column)


def flip(images: Array, chosen: Array) -> Array:
    """Mirror the ``chosen``, bool [b], of the images [b h w c] of any dtype, left and right."""
    return by_platform(_flip_by_choice, _flip_by_gathers, images, chosen)


def flip_vertically(images: Array, chosen: Array) -> Array:
    """Mirror the ``chosen``, bool [b], of the images [b h w c] of any dtype, top and bottom."""
    return flip(images.swapaxes(1, 2), chosen).swapaxes(1, 2)


def turn(images: Array, turns: Array) -> Array:
    """Turn each image counter-clockwise about its centre.

    Args:
        images: [b h w c] of any dtype.
        turns: int32 [b], quarter turns 0..3; of images that are not square 2 and 3 are half turns,
            and 0 and 1 are none.

    Returns:
        Images of the same shape and dtype.
    """
    if images.shape[1] != images.shape[2]:
        turns = turns & 2
    odd = turns & 1 == 1
    transposed = images.swapaxes(1, 2) if images.shape[1] == images.shape[2] else images
    images = jnp.where(odd[:, None, None, None], transposed, images)
    images = flip_vertically(images, (turns == 1) | (turns == 2))
    return flip(images, turns >= 2)


def count_levels(planes: Array) -> Array:
    """The number of pixels of each level in each plane: int32 [c b h w] to int32 [c b 256]."""
    return by_platform(_count_by_products, _count_by_scatters, planes)


def select_rows(table: Array, index: Array) -> Array:
    """``table[index]`` for a small table [n ...] and a few indices 0..n-1."""
    return by_platform(_select_by_comparison, _select_by_gathers, table, index)


def look_up(table: Array, planes: Array) -> Array:
    """Replace each level by the table's entry for it.

    Args:
        table: int32 0..255 [c b 256], a table for each plane.
        planes: int32 0..255 [c b h w].

    Returns:
        Planes, int32 [c b h w].
    """
    return by_platform(_look_up_by_products, _look_up_by_gathers, table, planes)


def _take_by_products(planes: Array, row: Array, column: Array) -> Array:
    """Multiply over the rows of all channels, then select from the columns.

    Powers of two keep the channels apart in a sum.
    """
    c, b, height, width = planes.shape
    row, column = row.reshape(b, -1), column.reshape(b, -1)
    columns = column[..., None] == jnp.arange(width, dtype=jnp.int32)
    taken = []
    for start in range(0, c, _PACKED):
        part = planes[start : start + _PACKED]
        unit = np.float32(256) ** np.arange(len(part), dtype=np.float32)[:, None, None, None]
        stacked = jnp.moveaxis(part.astype(jnp.float32) * unit, 0, 1)
        stacked = stacked.reshape(b, -1, width).astype(jnp.bfloat16)  # [b channels*h w]
        here = np.tile(np.arange(height, dtype=np.int32), len(part))
        rows = (row[..., None] == here).astype(jnp.bfloat16)
        sums = jnp.einsum("bpm,bmw->bpw", rows, stacked, preferred_element_type=jnp.float32)
        packed = jnp.where(columns, sums, 0).sum(-1).astype(jnp.int32)
        taken += [(packed >> 8 * place) & 255 for place in range(len(part))]
    return jnp.stack(taken).reshape(planes.shape)


def take_far(planes: Array, row: Array, column: Array) -> Array:
    """Do what :func:`take` does, by gathers on every platform."""
    c, b, height, width = planes.shape
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    inside = inside.reshape(b, -1)
    index = jnp.where(inside, (row * width + column).reshape(b, -1), 0)

    def one(plane: Array) -> Array:
        return jnp.where(inside, _gather(plane, index), 0)

    return _each_channel(one, planes.reshape(c, b, -1)).reshape(planes.shape)


def _take_grid_by_products(images: Array, row: Array, column: Array) -> Array:
    rows, columns = _one_hot(row, images.shape[1]), _one_hot(column, images.shape[2])

    def one(part: Array) -> Array:
        part = _pick("bih,bhwc->biwc", rows, part)
        return _pick("bjw,biwc->bijc", columns, part).astype(jnp.float32)

    return sum(map(one, _exact_parts(images)[1:]), start=one(_exact_parts(images)[0]))


def _take_grid_by_gathers(images: Array, row: Array, column: Array) -> Array:
    b, height, width, c = images.shape
    index = row[:, :, None] * width + column[:, None, :]
    taken = _gather(images.reshape(b, height * width, c), index.reshape(b, -1, 1))
    return taken.reshape(*index.shape, c).astype(jnp.float32)


def _flip_by_choice(images: Array, chosen: Array) -> Array:
    return jnp.where(chosen[:, None, None, None], images[:, :, ::-1], images)


def _flip_by_gathers(images: Array, chosen: Array) -> Array:
    column = jnp.arange(images.shape[2], dtype=jnp.int32)
    column = jnp.where(chosen[:, None], column[::-1], column)[:, None, :, None]
    return jnp.take_along_axis(images, column, 2, mode="promise_in_bounds")


def _count_by_products(planes: Array) -> Array:
    c, b = planes.shape[:2]
    high, low = _digits(planes, _NIBBLE)
    counts = jnp.einsum("kbph,kbpl->kbhl", high, low, preferred_element_type=jnp.float32)
    return counts.astype(jnp.int32).reshape(c, b, -1)


def _count_by_scatters(planes: Array) -> Array:
    c, b = planes.shape[:2]

    def histogram(levels: Array) -> Array:
        counts = jnp.zeros(_NIBBLE**2, jnp.int32)
        return counts.at[levels].add(1, mode="promise_in_bounds")

    return _each_channel(jax.vmap(histogram), planes.reshape(c, b, -1))


def _look_up_by_products(table: Array, planes: Array) -> Array:
    high, low = _digits(planes, _OCTAL)
    table = table.reshape(*table.shape[:2], -1, _OCTAL)
    return _only(_pick("kbph,kbhl->kbpl", high, table) * low).reshape(planes.shape)


def _look_up_by_gathers(table: Array, planes: Array) -> Array:
    flat = planes.reshape(*planes.shape[:2], -1)
    return _each_channel(_gather, table, flat).reshape(planes.shape)


def _select_by_comparison(table: Array, index: Array) -> Array:
    index = index.reshape(*index.shape, *(1,) * table.ndim)
    each = jnp.arange(len(table), dtype=index.dtype).reshape(-1, *(1,) * (table.ndim - 1))
    return jnp.where(index == each, table, 0).sum(-table.ndim, dtype=table.dtype)


def _select_by_gathers(table: Array, index: Array) -> Array:
    return table.at[index].get(mode="promise_in_bounds")


def _each_channel(function: Callable[..., Array], *operands: Array) -> Array:
    """Apply ``function`` to each entry of the operands' first axis.

    A CPU does it in a loop: otherwise XLA fuses the gathers with the arithmetic around them, which
    the CPU then cannot vectorize. A GPU does all at once, because each turn of a loop starts a
    kernel.
    """
    at_once = jax.vmap(function)

    def in_turn(*operands: Array) -> Array:
        return lax.map(lambda one: function(*one), operands)

    return lax.platform_dependent(*operands, cuda=at_once, rocm=at_once, default=in_turn)


def _gather(rows: Array, index: Array) -> Array:
    """``rows[b, index[b, i]]``."""
    return jnp.take_along_axis(rows, index, 1, mode="promise_in_bounds")


def _one_hot(index: Array, size: int) -> Array:
    """1 at the index [...] and 0 elsewhere: bfloat16 [... size]; all 0 if it is outside."""
    return (index[..., None] == jnp.arange(size, dtype=index.dtype)).astype(jnp.bfloat16)


def _digits(planes: Array, base: int) -> tuple[Array, Array]:
    """High and low digit of each level, one-hot in bfloat16 [c b h*w 256/base] and [.. base]."""
    flat = planes.reshape(*planes.shape[:2], -1)
    shift = base.bit_length() - 1
    return _one_hot(flat >> shift, 256 // base), _one_hot(flat & (base - 1), base)


def _pick(equation: str, one_hot: Array, values: Array) -> Array:
    """Select whole numbers of at most 8 bits by a product; it is exact in bfloat16."""
    values = values.astype(jnp.bfloat16)
    return jnp.einsum(equation, one_hot, values, preferred_element_type=jnp.bfloat16)


def _only(values: Array) -> Array:
    """The only value of the last axis that is not 0, if there is one, else 0: as int32."""
    return values.sum(-1, dtype=jnp.float32).astype(jnp.int32)


def _exact_parts(images: Array) -> list[Array]:
    """Arrays of 8 significant bits each, largest first; their sum is the images."""
    if images.dtype == jnp.uint8:
        return [images]
    rest, parts = images.astype(jnp.float32), []
    for _ in range(3):  # a float32 has 24 significant bits
        parts.append(lax.reduce_precision(rest, 8, _BYTE - 1))
        rest = rest - parts[-1]
    return parts
