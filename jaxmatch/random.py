"""Named random streams: each use of randomness folds its own name into a key."""

from zlib import crc32

import jax

from jaxmatch.types import Array


def stream(key: Array, name: str) -> Array:
    """The key of the stream ``name`` under ``key``; both are typed PRNG keys."""
    return jax.random.fold_in(key, crc32(name.encode()))
