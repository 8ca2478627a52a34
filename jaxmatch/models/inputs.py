"""The input of networks from the levels of images."""

from collections.abc import Sequence

import jax.numpy as jnp

from jaxmatch.types import Array


def normalize(levels: Array, mean: Sequence[float], std: Sequence[float]) -> Array:
    """Network input (levels / 255 - mean) / std from levels 0..255 [b h w c]; at least float32."""
    wide = levels.astype(jnp.promote_types(levels.dtype, jnp.float32))
    return (wide / 255 - jnp.asarray(mean, wide.dtype)) / jnp.asarray(std, wide.dtype)
