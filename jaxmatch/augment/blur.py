"""Gaussian blur with a strength of each image's own, as PIL approximates it and as such.

PIL's is three box blurs an axis with fractional ends (Gwosdek et al., "Theoretical foundations of
Gaussian convolution by extended box filtering", 2011). That is what the published MoCo and SimMatch
results used; it is far from a Gaussian where sigma is below half a pixel.
"""

import math

import jax.numpy as jnp
from jax import lax

from jaxmatch.types import Array

_PASSES = 3
_FRACTION = 24  # bits


def gaussian_blur(levels: Array, sigma: Array, largest: float) -> Array:
    """Blur as ``PIL.ImageFilter.GaussianBlur(sigma)``, equal to its levels.

    Args:
        levels: planes, int32 0..255 [c b h w].
        sigma: [b] pixels, at least float32, at most ``largest``.
        largest: bounds the window that is compiled.

    Returns:
        Planes, int32 [c b h w].
    """
    steps = jnp.arange(math.floor(_box_length(largest**2 / _PASSES) / 2 - 0.5) + 2)
    radius = _box_radius(sigma.astype(jnp.float32))[:, None]
    whole = jnp.floor(radius)
    weight = (2.0**_FRACTION / (2 * radius + 1)).astype(jnp.uint32)
    end = (2**_FRACTION - (2 * whole.astype(jnp.uint32) + 1) * weight) // 2
    weights = jnp.where(steps <= whole, weight, jnp.where(steps == whole + 1, end, 0))

    def blur_rows(levels: Array) -> Array:
        def once(_, levels: Array) -> Array:
            total = _window_sum(levels, weights, "edge")
            return (total + 2 ** (_FRACTION - 1)) >> _FRACTION

        # A loop, because XLA would otherwise compute each pass anew for every tap of the next.
        return lax.fori_loop(0, _PASSES, once, levels)

    levels = blur_rows(levels.astype(jnp.uint32)).swapaxes(-1, -2)
    return blur_rows(levels).swapaxes(-1, -2).astype(jnp.int32)


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


def _box_length(variance):
    """Length of the box with this variance."""
    return (12 * variance + 1) ** 0.5


def _box_radius(sigma: Array) -> Array:
    """Radius [b] of the box, fractional ends included, whose three-fold blur has this sigma."""
    # XLA divides by a constant with a product, which rounds otherwise: so this is none.
    variance = sigma * sigma / jnp.where(sigma >= 0, float(_PASSES), 1.0)
    whole = jnp.floor(_box_length(variance) / 2 - 0.5)
    tripled = 2 * variance + variance  # not 3 *, lest it be contracted with the difference below
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
