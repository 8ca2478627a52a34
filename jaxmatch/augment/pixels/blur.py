"""Gaussian blur with one strength for each image: PIL's approximation, and a sampled Gaussian.

PIL's blur is three box blurs along each axis with fractional ends (Gwosdek et al., "Theoretical
foundations of Gaussian convolution by extended box filtering", 2011). The published MoCo and
SimMatch results used it. It is far from a Gaussian if sigma is below half a pixel.
"""

import functools
import math

import jax.numpy as jnp
from jax import lax
from jax.experimental.layout import Layout, with_layout_constraint

from jaxmatch.augment.pixels import source as pixels
from jaxmatch.types import Array

_PASSES = 3
_FRACTION = 24  # bits
_FARTHEST = 64  # pixels that products reach: sums of two units then stay below 2^24


def gaussian_blur(levels: Array, sigma: Array, largest: float) -> Array:
    """Blur as ``PIL.ImageFilter.GaussianBlur(sigma)``, equal to its levels.

    Args:
        levels: planes, int32 0..255 [c b h w].
        sigma: [b] pixels, at least float32, at most ``largest``.
        largest: bound of sigma; it sets the size of the compiled window.

    Returns:
        Planes, int32 [c b h w].
    """
    reach = math.floor(_box_length(largest**2 / _PASSES) / 2 - 0.5) + 1
    radius = _box_radius(sigma.astype(jnp.float32))[:, None]
    whole = jnp.floor(radius)
    weight = (2.0**_FRACTION / (2 * radius + 1)).astype(jnp.uint32)
    end = (2**_FRACTION - (2 * whole.astype(jnp.uint32) + 1) * weight) // 2
    by_products, by_shifts = (
        functools.partial(form, reach=reach) for form in (_boxes_by_products, _boxes)
    )
    if reach > _FARTHEST:
        return by_shifts(levels, whole, weight, end)
    return pixels.by_platform(by_products, by_shifts, levels, whole, weight, end)


def gaussian_blur_smooth(planes: Array, sigma: Array, kernel: int) -> Array:
    """Convolve with a sampled Gaussian, the border reflected, without rounding (SimCLR, PyTorch).

    Args:
        planes: [c b h w] of any range.
        sigma: [b] pixels, above 0.
        kernel: number of taps, odd, at most twice the image's side less one.

    Returns:
        Planes [c b h w] in their dtype, at least float32.
    """
    planes = planes.astype(jnp.promote_types(planes.dtype, jnp.float32))
    distance = jnp.arange(kernel // 2 + 1) / sigma[:, None]
    weights = jnp.exp(-0.5 * distance**2)
    weights = (weights / (2 * weights.sum(1, keepdims=True) - 1)).astype(planes.dtype)
    rows = _window_sum(planes, weights, "reflect")
    return _window_sum(rows.swapaxes(-1, -2), weights, "reflect").swapaxes(-1, -2)


def _boxes(levels: Array, whole: Array, weight: Array, end: Array, *, reach: int) -> Array:
    """Three boxes along each axis, in 24-bit fixed point, rounded after each.

    Args:
        levels: planes, int32 0..255 [c b h w].
        whole: float32 [b 1], the distance from the centre up to which pixels have whole weight.
        weight: uint32 [b 1], the whole weight.
        end: uint32 [b 1], the weight of the fractional end, one pixel farther.
        reach: the largest distance from the centre that any image needs.

    Returns:
        Planes, int32 [c b h w].
    """
    steps = jnp.arange(reach + 1)
    weights = jnp.where(steps <= whole, weight, jnp.where(steps == whole + 1, end, 0))

    def blur_rows(levels: Array) -> Array:
        def once(_, levels: Array) -> Array:
            total = _window_sum(levels, weights, "edge")
            return (total + 2 ** (_FRACTION - 1)) >> _FRACTION

        # Without the loop XLA computes each pass again for every tap of the next.
        return lax.fori_loop(0, _PASSES, once, levels)

    levels = blur_rows(levels.astype(jnp.uint32)).swapaxes(-1, -2)
    return blur_rows(levels).swapaxes(-1, -2).astype(jnp.int32)


def _boxes_by_products(
    levels: Array, whole: Array, weight: Array, end: Array, *, reach: int
) -> Array:
    """Do what :func:`_boxes` does: products sum the pixels, and float32 weighs them digit by digit.

    All numbers are whole and below 2^24, so nothing is rounded. Levels and counts of pixels are
    exact in bfloat16.
    """
    bits = 12 if 2 * reach + 3 <= 16 else 8
    digits = [
        [((value >> shift) & mask).astype(jnp.float32)[:, :, None] for value in (weight, end)]
        for shift in range(0, _FRACTION, bits)
        for mask in [2**bits - 1 if shift + bits < _FRACTION else 2 ** (bits + 1) - 1]
    ]
    unit = 2.0 ** (255 * (2 * reach - 1)).bit_length()

    def mean(inner: Array, ends: Array) -> Array:
        carried = jnp.zeros((), jnp.float32)
        for position, pair in enumerate(digits):
            half = 2.0 ** (bits - 1) if position == len(digits) - 1 else 0.0
            total = pair[0] * inner + pair[1] * ends + carried + half
            carried = jnp.floor(total * 0.5**bits)
        return _row_major(carried.astype(jnp.bfloat16))

    def blur_along(equation: str, size: int, levels: Array) -> Array:
        def product(band: Array, levels: Array) -> Array:
            sums = jnp.einsum(equation, band, levels, preferred_element_type=jnp.float32)
            return _row_major(sums)

        each = jnp.arange(-reach, size + reach)
        inner, ends = (_band(whole, each, size, reach, far) for far in (False, True))
        levels = mean(product(inner, levels), product(ends, levels))
        # The image now continues beyond its edges, so no pixel counts twice. So one sum has two
        # digits: the sum of the pixels of whole weight, and that of the pixels at the ends.
        distance = jnp.abs(each - jnp.clip(each, 0, size - 1)[:, None])
        band = jnp.where(distance == whole[:, :, None] + 1, unit, 0.0)
        band = jnp.where(distance <= whole[:, :, None], 1.0, band).astype(jnp.bfloat16)
        for rows in (band, band[:, reach:-reach]):
            sums = product(rows, levels)
            ends = jnp.floor(sums / unit)
            levels = mean(sums - unit * ends, ends)
        return levels

    blurred = blur_along("boi,cbhi->cbho", levels.shape[3], levels.astype(jnp.bfloat16))
    return blur_along("boi,cbiw->cbow", levels.shape[2], blurred).astype(jnp.int32)


def _row_major(planes: Array) -> Array:
    """The same planes in the layout of products.

    By itself XLA puts the batch last in the sums, and copies every operand.
    """
    return with_layout_constraint(planes, Layout((0, 1, 2, 3)))


def _band(whole: Array, each: Array, size: int, reach: int, far: bool) -> Array:
    """How often each pixel counts for each output: bfloat16 [b outputs size].

    Pixels up to the distance ``whole`` [b 1] count, or, with ``far``, the pixels one farther. A
    position beyond the edge counts for the edge.
    """
    centre, pixel = jnp.clip(each, 0, size - 1)[:, None], jnp.arange(size)
    counts = jnp.zeros((len(whole), len(each), size), jnp.bfloat16)
    for step in range(-reach, reach + 1):
        distance = jnp.full((), abs(step), whole.dtype)
        chosen = (distance == whole + 1 if far else distance <= whole)[:, :, None]
        source = jnp.clip(centre + step, 0, size - 1)
        counts += (chosen & (source == pixel)).astype(jnp.bfloat16)
    return counts


def _box_length(variance):
    """Length of the box with this variance."""
    return (12 * variance + 1) ** 0.5


def _box_radius(sigma: Array) -> Array:
    """Radius [b] of the box, with fractional ends; three such boxes have the given sigma."""
    # XLA turns division by a constant into a product, which rounds differently; this divisor is
    # no constant.
    variance = sigma * sigma / jnp.where(sigma >= 0, float(_PASSES), 1.0)
    whole = jnp.floor(_box_length(variance) / 2 - 0.5)
    tripled = (
        2 * variance + variance
    )  # 3 * could be fused with the difference below, which rounds differently
    end = (2 * whole + 1) * (whole * (whole + 1) - tripled)
    return whole + end / (6 * (variance - (whole + 1) ** 2))


def _window_sum(planes: Array, weights: Array, border: str) -> Array:
    """Sum along the rows with symmetric ``weights`` [b reach+1], the centre's first."""
    reach, size = weights.shape[1] - 1, planes.shape[-1]
    padded = jnp.pad(planes, [(0, 0)] * (planes.ndim - 1) + [(reach, reach)], mode=border)
    weights = weights[:, :, None, None]

    def shifted(step: int) -> Array:
        return padded[..., reach + step : reach + step + size]

    pairs = (weights[:, i] * (shifted(-i) + shifted(i)) for i in range(1, reach + 1))
    return sum(pairs, start=weights[:, 0] * planes)
