"""MixUp of a pool of images: each becomes a convex combination of itself and a partner.

Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018,
https://arxiv.org/abs/1710.09412; labeled and unlabeled images in one pool as in MixMatch
(Berthelot et al., NeurIPS 2019, https://arxiv.org/abs/1905.02249, section 3.3).
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, Key, Shaped

from jaxmatch.errors import InputError
from jaxmatch.random import stream
from jaxmatch.types import Array


class Mixing(NamedTuple):
    """Weights and partners for each example of a pool; one array for each part of the pool."""

    weight: tuple[Float[Array, "_"], ...]  # in [1/2, 1]: the share of the example itself
    partner: tuple[Int[Array, "_"], ...]  # row of the pool, whose parts follow one another


def draw_mixing(key: Key[Array, ""], sizes: Sequence[int], alpha: float) -> Mixing:
    """Draw weights max(l, 1 - l), l ~ Beta(alpha, alpha), and a permutation as partners.

    >>> mixing = draw_mixing(jax.random.key(0), [2, 3], alpha=0.75)
    >>> [weight.shape for weight in mixing.weight], bool(mixing.weight[0].min() >= 0.5)
    ([(2,), (3,)], True)

    Args:
        key: typed PRNG key.
        sizes: rows of each part of the pool.
        alpha: positive; small values leave most examples almost as they are.
    """
    share = jax.random.beta(stream(key, "weight"), alpha, alpha, (sum(sizes),))
    rows = jnp.arange(sum(sizes), dtype=jnp.int32)
    partner = jax.random.permutation(stream(key, "partner"), rows)
    return in_parts(jnp.maximum(share, 1 - share), partner, sizes)


def in_parts(weight: Float[Array, "n"], partner: Int[Array, "n"], sizes: Sequence[int]) -> Mixing:
    """Cut the weights and partners of the whole pool of n = sum(sizes) rows into its parts.

    >>> print(in_parts(jnp.ones(3), jnp.array([2, 0, 1]), [1, 2]).partner)
    (Array([2], dtype=int32), Array([0, 1], dtype=int32))
    """
    starts = [sum(sizes[:position]) for position in range(len(sizes))]

    # Gathered, not sliced: slices of a split axis move from device to device.
    def cut(whole: Array) -> tuple[Array, ...]:
        return tuple(
            whole[start + jnp.arange(size)] for start, size in zip(starts, sizes, strict=True)
        )

    return Mixing(cut(weight), cut(partner))


def check_same_size(views: Sequence[Array]) -> None:
    """Check that views [b h w c], which are to be joined or added, have one size.

    >>> check_same_size([jnp.zeros((2, 8, 8, 3)), jnp.zeros((7, 8, 8, 3))])

    Raises:
        InputError: if not.
    """
    sizes = dict.fromkeys(view.shape[1:3] for view in views if view.ndim == 4)
    if len(sizes) > 1:
        listed = " and ".join(f"{height} x {width}" for height, width in sizes)
        raise InputError(
            f"this method joins its views, but they have {listed} pixels; leave the size of views "
            "(such as views.contrast.size) None and views.crops empty, and set that of all by "
            "data.image_size."
        )


def mix(parts: Sequence[Array], mixing: Mixing) -> list[Array]:
    """weight * row + (1 - weight) * partner, for images and for label distributions alike.

    >>> mixing = in_parts(jnp.array([0.75, 1.0]), jnp.array([1, 0]), [1, 1])
    >>> print(mix([jnp.array([[0.0]]), jnp.array([[8.0]])], mixing))
    [Array([[2.]], dtype=float32), Array([[8.]], dtype=float32)]

    Args:
        parts: the pool: [b ...] each, floating point and finite; only the sizes b may differ.
        mixing: for parts of the same sizes.

    Returns:
        Arrays like ``parts``.

    Raises:
        InputError: if images have different sizes.
    """
    parts = [jnp.asarray(part) for part in parts]
    check_same_size(parts)
    starts = [sum(map(len, parts[:position])) for position in range(len(parts))]

    # A gather from the joined parts would exchange all images between devices three times.
    # Products with one-hot rows exchange them once, and are exact at this precision.
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


def interleave(chunks: Sequence[Shaped[Array, "b *rest"]]) -> list[Shaped[Array, "b *rest"]]:
    """Exchange rows so that every chunk gets some of the first one's; a second call undoes it.

    The rows of each of the n chunks are cut into the same n blocks. Block k of chunk 0 changes
    places with block k of chunk k, so BatchNorm sees similar mixtures in all chunks (code of
    MixMatch's authors, google-research/mixmatch).

    >>> print(interleave([jnp.array([1, 2]), jnp.array([3, 4])]))
    [Array([1, 4], dtype=int32), Array([3, 2], dtype=int32)]
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
