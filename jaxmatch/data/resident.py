"""Small data sets live on the device as uint8, and the order of their examples is a pure function.

Example order: one permutation per pass, evaluated pointwise by the swap-or-not shuffle of
Hoang, Morris and Rogaway, "An Enciphering Scheme Based on a Card Shuffle" (CRYPTO 2012).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmatch.data.sources import Source
from jaxmatch.data.splits import Split, locate
from jaxmatch.types import Array, Batch, Examples, PyTree

LARGEST = 2**24  # examples in one resident set, the bound of the arithmetic in `positions`
ROUNDS = 48  # an element escapes every swap with probability 2**-48


HostOrDevice = Array | np.ndarray


class Resident(NamedTuple):
    """A training set; numpy on the host, then replicated over the devices."""

    labeled_images: HostOrDevice  # [n h w c] uint8
    labeled_labels: HostOrDevice  # [n] int32
    unlabeled_images: HostOrDevice  # [u h w c] uint8
    unlabeled_labels: HostOrDevice  # [u] int32, -1 = unknown; only metrics read it
    frozen: PyTree = None  # variables of the run's frozen networks by role, if it has any


def resident(source: Source, split: Split, include_labeled: bool = True) -> Resident:
    """The labeled examples in split order beside the unlabeled pool in storage order.

    The pool is all training images, without the labeled ones if not ``include_labeled``. The
    leaves are host arrays, the pool a view of the source where possible. Raises InputError where
    the split does not fit the source.
    """
    labeled = locate(source, split)
    pool = slice(None) if include_labeled else np.setdiff1d(np.arange(len(source.rows)), labeled)
    return Resident(
        labeled_images=source.images[labeled],
        labeled_labels=source.labels[labeled],
        unlabeled_images=source.images[pool],
        unlabeled_labels=source.labels[pool],
    )


def positions(key: Array, step: Array | int, batch: int, count: int) -> Array:
    """Which of ``count`` examples make up batch number ``step``: [batch] int32.

    The batches of all steps, laid end to end, are one permutation of 0..count-1 after the other,
    each drawn by (key, pass), so a batch may span passes or hold more than ``count`` examples.
    Exact for every int32 step, elementwise and free of reductions over the batch.
    """
    if not 0 < count <= LARGEST:
        raise ValueError(f"A resident set has 1 to {LARGEST} examples, not {count}.")
    # step * batch overflows 32 bits: divide it by count digit by digit, in base 256.
    shares = [divmod(batch * 256**power, count) for power in range(4)]
    whole = np.array([quotient % 2**32 for quotient, _ in shares], np.uint32)
    rest = np.array([remainder for _, remainder in shares], np.uint32)
    offset = np.arange(batch, dtype=np.uint32)
    digits = (jnp.asarray(step).astype(jnp.uint32) >> np.arange(0, 32, 8, dtype=np.uint32)) & 255
    products = digits * rest  # < 2**32 for count <= 2**24
    start = jnp.sum(products % count, dtype=jnp.uint32) + offset % count  # [batch]
    passes = jnp.sum(digits * whole + products // count, dtype=jnp.uint32)
    passes = passes + offset // count + start // count  # [batch]
    return shuffle(key, passes, start % count, count).astype(jnp.int32)


def shuffle(key: Array, passes: Array, position: Array, count: int) -> Array:
    """Element ``position`` of the permutation of 0..count-1 that (key, pass) draws; all uint32.

    In each round x and K - x mod count, K uniform, change places or do not, as a keyed hash of the
    larger of the two says. A Feistel network would have to walk cycles until the whole batch is
    in range, which is a reduction over the batch and so a message between devices.
    """
    words = jax.random.bits(key, (ROUNDS, 2), jnp.uint32)

    def swap_or_not(position: Array, word: Array) -> tuple[Array, None]:
        tweak = mix(passes ^ word[0])
        partner = (tweak % count + (count - position)) % count
        coin = mix(mix(jnp.maximum(position, partner) ^ word[1]) + tweak) & 1
        return jnp.where(coin == 1, partner, position), None

    return jax.lax.scan(swap_or_not, position, words)[0]


def mix(word: Array) -> Array:
    """The 32-bit finaliser of MurmurHash3 (Appleby, 2011): a bijection of uint32."""
    word = (word ^ (word >> 16)) * np.uint32(0x85EBCA6B)
    word = (word ^ (word >> 13)) * np.uint32(0xC2B2AE35)
    return word ^ (word >> 16)


def batch(
    data: Resident, key: Array, step: Array | int, labeled_batch: int, unlabeled_batch: int
) -> Batch:
    """The examples of one step, before augmentation; a batch size of zero gives None.

    ``key`` is the run's, the same at every step. ``data`` is replicated, so that each device
    gathers its own share of a batch that the caller shards.
    """

    def draw(stream: int, size: int, images: HostOrDevice, labels: HostOrDevice) -> Examples | None:
        if size == 0:
            return None
        index = positions(jax.random.fold_in(key, stream), step, size, len(images))
        return Examples(
            views=(jnp.asarray(images).at[index].get(mode="promise_in_bounds"),),
            label=jnp.asarray(labels).at[index].get(mode="promise_in_bounds"),
            index=index,
        )

    return Batch(
        labeled=draw(0, labeled_batch, data.labeled_images, data.labeled_labels),
        unlabeled=draw(1, unlabeled_batch, data.unlabeled_images, data.unlabeled_labels),
    )
