"""The order of a pool's examples: one permutation for each pass, computed position by position.

It is the swap-or-not shuffle of Hoang, Morris and Rogaway, "An Enciphering Scheme Based on a Card
Shuffle" (CRYPTO 2012). The order has no state, so the step alone tells a resumed run how to
continue, with any number of devices, processes and loader workers.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmatch.types import Array

LARGEST = 2**24  # examples in a pool; the arithmetic in `positions` allows no more
ROUNDS = 48  # an element escapes every swap with probability 2**-48

Words = Any  # Array or np.ndarray; results have the type of the arguments


def words(key: Array) -> Array:
    """Draw the random words of one order: [ROUNDS 2] uint32."""
    return jax.random.bits(key, (ROUNDS, 2), jnp.uint32)


def positions(words: Words, step: Array | int, batch: int, count: int) -> Words:
    """The examples of batch number ``step``, out of ``count`` examples: [batch] int32.

    All batches in a row are a sequence of permutations of 0..count-1. Each is drawn from (words,
    pass), so a batch can span passes or hold more than ``count`` examples. The result is exact for
    every int32 step, and no operation reduces over the batch. NumPy words give a NumPy result;
    then ``step`` is an int.

    Raises:
        ValueError: if ``count`` is not in 1..LARGEST.
    """
    if not 0 < count <= LARGEST:
        raise ValueError(f"A pool has 1 to {LARGEST} examples, not {count}.")
    passes, position = _places(words, step, batch, count)
    xp = words.__array_namespace__()
    return shuffle(words, passes, position, count).astype(xp.int32)


def balanced_positions(
    words: Words, step: Array | int, batch: int, labels: Words, classes: int
) -> Words:
    """The examples of batch number ``step`` if each class is drawn equally often: [batch] int32.

    All batches in a row are a sequence of permutations of the classes, and the examples of a class
    come in a sequence of permutations of their own. So in any run of positions the numbers of two
    classes differ by 2 at most, and a batch that ``classes`` divides has equally many of each.

    Args:
        words: from :func:`words`.
        step: of the batch.
        batch: its size.
        labels: [n] class of each example, in 0..classes-1; each class must occur.
        classes: their number.
    """
    xp = words.__array_namespace__()
    # Each pass over the classes has one example of each, so its number counts a class's draws.
    passes, position = _places(words, step, batch, classes)
    chosen = shuffle(mix(words), passes, position, classes).astype(xp.int32)
    by_class = xp.argsort(labels, stable=True).astype(xp.int32)
    first, end = (
        xp.searchsorted(labels[by_class], chosen, side=side).astype(xp.int32)
        for side in ("left", "right")
    )
    size = (end - first).astype(xp.uint32)
    # Classes of one size must not come in the same order.
    own = mix((passes // size) ^ mix(chosen.astype(xp.uint32)))
    return by_class[first + shuffle(words, own, passes % size, size).astype(xp.int32)]


def _places(words: Words, step: Array | int, batch: int, count: int) -> tuple[Words, Words]:
    """The pass and the position in it of each example of a batch, [batch] uint32 each."""
    xp = words.__array_namespace__()
    # step * batch overflows 32 bits: divide it by count digit by digit, in base 256.
    shares = [divmod(batch * 256**power, count) for power in range(4)]
    whole = np.array([quotient % 2**32 for quotient, _ in shares], np.uint32)
    rest = np.array([remainder for _, remainder in shares], np.uint32)
    offset = np.arange(batch, dtype=np.uint32)
    shifts = np.arange(0, 32, 8, dtype=np.uint32)
    digits = (xp.asarray(step).astype(xp.uint32) >> shifts) & 255
    products = digits * rest  # < 2**32 for count <= 2**24
    start = xp.sum(products % count, dtype=xp.uint32) + offset % count  # [batch]
    passes = xp.sum(digits * whole + products // count, dtype=xp.uint32)
    passes = passes + offset // count + start // count  # [batch]
    return passes, start % count


def shuffle(words: Words, passes: Words, position: Words, count: int | Words) -> Words:
    """Element ``position`` of the permutation of 0..count-1 drawn from (words, pass); all uint32.

    ``count`` is one number, or one [batch] for each element.

    In each round x and K - x mod count, with a uniform K, swap or not: a keyed hash of the larger
    of the two decides. A Feistel network would repeat until the whole batch is in range. This is a
    reduction over the batch, so devices would exchange messages.
    """

    # The part that does not depend on earlier rounds, for all rounds at once: [rounds batch].
    tweaks = mix(passes ^ words[:, :1])
    rounds = tweaks, tweaks % count, words[:, 1:] | (passes & 0)

    def swap_or_not(position: Words, one: tuple[Words, Words, Words]) -> Words:
        tweak, offset, key = one
        xp = position.__array_namespace__()
        partner = (offset + (count - position)) % count
        coin = mix(mix(xp.maximum(position, partner) ^ key) + tweak) & 1
        return xp.where(coin == 1, partner, position)

    if isinstance(words, np.ndarray):
        for one in zip(*rounds, strict=True):
            position = swap_or_not(position, one)
        return position

    def swap_all(position: Array, *rounds: Array, unroll: int) -> Array:
        def swap(at: Array, one: Any) -> tuple[Array, None]:
            return swap_or_not(at, one), None

        return jax.lax.scan(swap, position, rounds, unroll=unroll)[0]

    # A round is a few instructions. A loop on a TPU adds several times as many, and a loop on a GPU
    # starts kernels. On a CPU the loop costs less than the compilation of all rounds.
    at_once = partial(swap_all, unroll=ROUNDS)
    by_rounds = partial(swap_all, unroll=1)
    return jax.lax.platform_dependent(
        position, *rounds, tpu=at_once, cuda=at_once, rocm=at_once, default=by_rounds
    )


def mix(word: Words) -> Words:
    """The 32-bit finaliser of MurmurHash3 (Appleby, 2011): a bijection of uint32."""
    word = (word ^ (word >> 16)) * np.uint32(0x85EBCA6B)
    word = (word ^ (word >> 13)) * np.uint32(0xC2B2AE35)
    return word ^ (word >> 16)
