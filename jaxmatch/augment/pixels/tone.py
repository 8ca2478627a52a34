"""Ops that change levels and move no pixel, on planes: int32 levels 0..255 [3 b h w].

The arithmetic is Pillow's (``ImageOps``, ``ImageEnhance``, ``Image.blend``), with integers wherever
Pillow uses them, so results are equal to the bit. Images are planes because a CPU cannot vectorize
over three channels that come last.
"""

import functools
import operator
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxmatch.augment.pixels import source as pixels
from jaxmatch.types import Array


def planes(images: Array) -> Array:
    """Levels 0..255 [b h w 3] of any dtype, rounded and clipped, as planes."""
    if jnp.issubdtype(images.dtype, jnp.floating):
        images = jnp.rint(images)
    return jnp.moveaxis(jnp.clip(images.astype(jnp.int32), 0, 255), -1, 0)


def blend(first: Array, second: Array, weight: Array) -> Array:
    """``first + weight (second - first)``, clipped to 0..255 and truncated.

    ``weight`` broadcasts against the levels; 0 gives ``first`` and 1 gives ``second``, exactly.
    Beyond 0..1 it extrapolates.
    """
    difference = (second - first).astype(jnp.float32)
    return mix(first.astype(jnp.float32), difference, weight.astype(jnp.float32)).astype(jnp.int32)


def mix(first: Array, difference: Array, weight: Array) -> Array:
    """``first + weight difference``, clipped, for whole numbers in float32."""
    # Pillow rounds the product before the sum, but XLA may use one fused multiply-add. With 12
    # bits in each half of the weight the partial products are exact, so this changes nothing.
    high = lax.bitcast_convert_type(weight, jnp.int32) & ~0xFFF
    high = lax.bitcast_convert_type(high, jnp.float32)
    mixed = first + (high * difference + (weight - high) * difference)
    return jnp.clip(mixed, 0.0, 255.0)


def luma(levels: Array) -> Array:
    """Grey level by ITU-R 601-2, [b h w]: ``(19595 R + 38470 G + 7471 B + 2^15) >> 16``."""
    red, green, blue = levels
    return (19595 * red + 38470 * green + 7471 * blue + 32768) >> 16


def luma_by_channels(channels: tuple[Array, Array, Array]) -> Array:
    """Do what :func:`luma` does for whole numbers in float32, where all sums are exact."""
    red, green, blue = channels
    return jnp.floor((19595 * red + 38470 * green + 7471 * blue + 32768) * 2.0**-16)


def mean_grey(levels: Array) -> Array:
    """Mean of :func:`luma`, rounded half up: [b 1 1]."""
    return mean_of_grey(luma(levels))


def mean_of_grey(grey: Array) -> Array:
    """Mean of grey levels, int32 [b h w], rounded half up: [b 1 1].

    int32 holds all sums up to a side of 2^14, since those of large images are taken by rows.
    """
    height, width = grey.shape[1:]
    pixels = height * width
    half = pixels // 2
    if 255 * pixels + half < 2**31:
        return (grey.sum((1, 2), keepdims=True, dtype=jnp.int32) + half) // pixels
    rows = grey.sum(2, keepdims=True, dtype=jnp.int32)
    whole, rest = (part.sum(1, keepdims=True) for part in (rows // width, rows % width))
    return whole // height + (whole % height * width + rest + half) // pixels


def posterize(levels: Array, bits: Array) -> Array:
    """Keep the top ``int(bits)`` bits [b 1 1], at least one."""
    dropped = 8 - jnp.clip(bits.astype(jnp.int32), 1, 8)
    return (levels >> dropped) << dropped


def solarize(levels: Array, threshold: Array) -> Array:
    """Invert the levels from ``threshold`` [b 1 1] upwards."""
    return jnp.where(levels < threshold, levels, 255 - levels)


def solarize_add(levels: Array, added: Array) -> Array:
    """Raise the levels below 128 by ``added``, at most to 255."""
    raised = jnp.minimum(levels + added.astype(jnp.int32), 255)
    return jnp.where(levels < 128, raised, levels)


def count_below(planes: Array) -> Array:
    """The number of pixels of each plane below each level 0..256: int32 [3 b 257]."""
    below = jnp.cumsum(pixels.count_levels(planes), -1, dtype=jnp.int32)
    return jnp.pad(below, ((0, 0), (0, 0), (1, 0)))


def autocontrast(levels: Array, below: Array) -> Array:
    """Stretch each channel's range to 0..255; ``below`` [3 b 257] is :func:`count_below`.

    ``levels`` broadcasts against [3 b n]. The result is the exact quotient, truncated. Pillow
    divides in double precision, where rounding lowers some whole numbers by one level.
    """
    low = (below == 0).sum(-1, keepdims=True, dtype=jnp.int32) - 1
    high = (below < below[..., -1:]).sum(-1, keepdims=True, dtype=jnp.int32) - 1
    # The half keeps quotients 1/510 away from whole numbers, so their rounding does not matter.
    stretched = (255 * (levels - low) + 0.5).astype(jnp.float32) / jnp.maximum(high - low, 1)
    return jnp.where(high > low, stretched.astype(jnp.int32), levels)


def equalize(below: Array) -> Array:
    """The table that spreads each channel's levels evenly over its pixels: int32 [3 b 256].

    ``below`` [3 b 257] is :func:`count_below`. With ``step = (pixels - count of the highest
    level) // 255``, a level becomes ``(below + step // 2) // step``, at most 255; nothing changes
    if ``step`` is 0. The quotient is exact up to 2^20 pixels.
    """
    step = jnp.where(below < below[..., -1:], below, 0).max(-1, keepdims=True) // 255
    quotient = (below[..., :-1] + step // 2 + 0.5).astype(jnp.float32) / jnp.maximum(step, 1)
    spread = jnp.minimum(quotient, 255).astype(jnp.int32)
    return jnp.where(step > 0, spread, np.arange(256, dtype=np.int32))


def smooth(levels: Array) -> Array:
    """3x3 mean that counts the centre five times; the outermost pixels do not change."""

    def mean(levels: Array, window_sum: Callable[[Array, int], Array]) -> Array:
        total = window_sum(levels, 1) + 4 * levels
        # The half keeps quotients away from whole numbers, so their rounding does not matter.
        whole = (total + 6) // 13 if total.dtype == jnp.int32 else jnp.floor((total + 6.5) / 13)
        return jnp.where(_inner(levels, 1), whole.astype(jnp.int32), levels)

    return _by_windows(mean, levels)


def blur(levels: Array) -> Array:
    """Mean of the 16 pixels two steps away (5x5 ring); the two outermost pixels do not change."""

    def mean(levels: Array, window_sum: Callable[[Array, int], Array]) -> Array:
        ring = (window_sum(levels, 2) - window_sum(levels, 1)).astype(jnp.int32)
        return jnp.where(_inner(levels, 2), (ring + 8) >> 4, levels)

    return _by_windows(mean, levels)


def _by_windows(mean: Callable[..., Array], levels: Array) -> Array:
    """Apply ``mean`` with the window sum that is fast on the platform."""
    by_products, by_shifts = (
        functools.partial(mean, window_sum=form)
        for form in (_window_sum_by_products, _window_sum_by_shifts)
    )
    return pixels.by_platform(by_products, by_shifts, levels)


def _window_sum_by_shifts(levels: Array, reach: int) -> Array:
    """Sums over windows of side ``2 reach + 1``; pixels outside of the image count as 0."""
    width = levels.shape[3]
    rows = _sum_of_rows(jnp.pad(levels, ((0, 0), (0, 0), (reach, reach), (reach, reach))), reach)
    return functools.reduce(operator.add, (rows[..., i : i + width] for i in range(2 * reach + 1)))


def _window_sum_by_products(levels: Array, reach: int) -> Array:
    """The same sums in float32, by products along rows, where shifts are slow."""
    each = jnp.arange(levels.shape[3])
    band = (jnp.abs(each[:, None] - each) <= reach).astype(jnp.bfloat16)
    levels = levels.astype(jnp.bfloat16)
    sums = jnp.einsum("cbhw,wo->cbho", levels, band, preferred_element_type=jnp.float32)
    return _sum_of_rows(jnp.pad(sums, ((0, 0), (0, 0), (reach, reach), (0, 0))), reach)


def _sum_of_rows(padded: Array, reach: int) -> Array:
    height = padded.shape[2] - 2 * reach
    rows = (padded[:, :, i : i + height] for i in range(2 * reach + 1))
    return functools.reduce(operator.add, rows)


def _inner(levels: Array, margin: int) -> np.ndarray:
    """Whether a pixel is at least ``margin`` away from the border: bool [h w]."""
    height, width = levels.shape[2:]
    row, column = np.arange(height)[:, None], np.arange(width)
    inner_row = np.minimum(row, height - 1 - row) >= margin
    return inner_row & (np.minimum(column, width - 1 - column) >= margin)
