"""Named random streams: every use of randomness has a key of its own, none is ever consumed."""

from zlib import crc32

import jax

from jaxmatch.types import Array


def stream(key: Array, name: str) -> Array:
    """The key of the stream ``name`` under ``key`` (both typed PRNG keys)."""
    return jax.random.fold_in(key, crc32(name.encode()))
