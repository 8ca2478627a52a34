"""MixUp of one pool of images: each becomes a convex combination of itself and a partner.

Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018,
https://arxiv.org/abs/1710.09412; labeled and unlabeled images in one pool as in MixMatch
(Berthelot et al., NeurIPS 2019, https://arxiv.org/abs/1905.02249, section 3.3).
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmatch.random import stream
from jaxmatch.types import Array


class Mixing(NamedTuple):
    """What each example of a pool is mixed with; one array for each part of the pool."""

    weight: tuple[Array, ...]  # [b] each, in [1/2, 1]: the share of the example itself
    partner: tuple[Array, ...]  # [b] int32 each: row of the pool, all parts one after the other


def draw_mixing(key: Array, sizes: Sequence[int], alpha: float) -> Mixing:
    """Weights max(l, 1 - l), l ~ Beta(alpha, alpha), and a permutation of the pool as partners.

    Args:
        key: typed PRNG key.
        sizes: rows of each part of the pool.
        alpha: positive; small ones leave most examples almost as they are.
    """
    share = jax.random.beta(stream(key, "weight"), alpha, alpha, (sum(sizes),))
    rows = jnp.arange(sum(sizes), dtype=jnp.int32)
    partner = jax.random.permutation(stream(key, "partner"), rows)
    return in_parts(jnp.maximum(share, 1 - share), partner, sizes)


def in_parts(weight: Array, partner: Array, sizes: Sequence[int]) -> Mixing:
    """The mixing with weights and partners [n] of the whole pool of n = sum(sizes) rows."""
    starts = [sum(sizes[:position]) for position in range(len(sizes))]

    # Gathered, not sliced: slices of a split axis go from device to device.
    def cut(whole: Array) -> tuple[Array, ...]:
        return tuple(
            whole[start + jnp.arange(size)] for start, size in zip(starts, sizes, strict=True)
        )

    return Mixing(cut(weight), cut(partner))


def mix(parts: Sequence[Array], mixing: Mixing) -> list[Array]:
    """weight * row + (1 - weight) * partner, for images and for label distributions alike.

    Args:
        parts: the pool: [b ...] each, floating point and finite; only the sizes b may differ.
        mixing: of as many parts with the same sizes.

    Returns:
        Arrays like ``parts``.
    """
    parts = [jnp.asarray(part) for part in parts]
    starts = [sum(map(len, parts[:position])) for position in range(len(parts))]

    # A gather from the joined parts would exchange all images between devices three times; products
    # with one-hot rows, exact at this precision, do so once.
    def rows(partner: Array) -> Array:
        found = jnp.zeros((), parts[0].dtype)
        for start, part in zip(starts, parts, strict=True):
            here = (partner[:, None] == start + jnp.arange(len(part))).astype(part.dtype)
            found += jnp.einsum("nm,m...->n...", here, part, precision="highest")
        return found

    def combine(part: Array, weight: Array, partner: Array) -> Array:
        own = weight.astype(part.dtype).reshape(-1, *[1] * (part.ndim - 1))
        return own * part + (1 - own) * rows(partner)

    return [combine(*of_part) for of_part in zip(parts, *mixing, strict=True)]


def interleave(chunks: Sequence[Array]) -> list[Array]:
    """Exchange rows such that every chunk has some of the first one's; applied twice, nothing.

    Of n chunks the rows are cut into n blocks, the same in all. Block k of chunk 0 is exchanged for
    block k of chunk k, so that BatchNorm sees similar mixtures in all of them (MixMatch's authors'
    code, google-research/mixmatch).

    Args:
        chunks: [b ...] each, of one shape.
    """
    first, *others = chunks
    size, count = first.shape[0], len(chunks)
    sizes = [size // count + (block >= count - size % count) for block in range(count)]
    block = np.repeat(np.arange(count), sizes).reshape(-1, *[1] * (first.ndim - 1))
    mixture, exchanged = first, []
    for number, chunk in enumerate(others, start=1):
        mixture = jnp.where(block == number, chunk, mixture)
        exchanged.append(jnp.where(block == number, first, chunk))
    return [mixture, *exchanged]
