"""Sums of each channel over a batch, and their transpose, in an order that a CPU is fast at.

XLA:CPU rewrites a long sum as a tree of windows, of which it computes each by itself: up to seven
times slower than reading the values once. A sum of a few rows first, then one over what is left,
is neither rewritten nor less exact.
"""

import jax.numpy as jnp
from jax import default_backend, lax

from jaxmatch.types import Array

ROWS = 16  # pixels of the first sum; XLA leaves sums of up to 32 terms as they are


def channel_sums(x: Array) -> Array:
    """The sum over all axes but the last: x [b ... c] -> [c]."""
    stages = _stages(x.shape)
    if not stages:
        return jnp.sum(x, tuple(range(x.ndim - 1)))
    # Without the barrier XLA makes one sum of the two again.
    parts = lax.optimization_barrier(jnp.sum(x.reshape(stages), 2))
    return jnp.sum(parts, (0, 1))


def spread(values: Array, shape: tuple[int, ...]) -> Array:
    """``values`` [c] for every pixel of ``shape`` [b ... c]; its gradient is channel_sums."""
    stages = _stages(shape)
    if not stages:
        return jnp.broadcast_to(values, shape)
    parts = jnp.broadcast_to(values, (*stages[:2], stages[-1]))
    parts = lax.optimization_barrier(parts)
    return jnp.broadcast_to(parts[:, :, None], stages).reshape(shape)


def _stages(shape: tuple[int, ...]) -> tuple[int, int, int, int] | None:
    """``shape`` [b h w c] as [b groups rows c], where a first sum over the rows pays."""
    if default_backend() != "cpu" or len(shape) != 4:
        return None
    batch, height, width, channels = shape
    pixels = height * width
    rows = next(rows for rows in range(ROWS, 0, -1) if pixels % rows == 0)
    return (batch, pixels // rows, rows, channels) if rows > 1 else None
