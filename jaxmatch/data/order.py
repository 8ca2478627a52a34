"""The order of a pool's examples: one permutation a pass, evaluated pointwise, on host or device.

The swap-or-not shuffle of Hoang, Morris and Rogaway, "An Enciphering Scheme Based on a Card
Shuffle" (CRYPTO 2012). Nothing is kept from step to step, so a run continues in the same order with
any number of devices, processes and loader workers from its step alone.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmatch.types import Array

LARGEST = 2**24  # examples in one pool, the bound of the arithmetic in `positions`
ROUNDS = 48  # an element escapes every swap with probability 2**-48

Words = Any  # Array or np.ndarray, and the results are of the same kind


def words(key: Array) -> Array:
    """What one order is drawn from: [ROUNDS 2] uint32."""
    return jax.random.bits(key, (ROUNDS, 2), jnp.uint32)


def positions(words: Words, step: Array | int, batch: int, count: int) -> Words:
    """Which of ``count`` examples make up batch number ``step``: [batch] int32.

    The batches of all steps, laid end to end, are one permutation of 0..count-1 after the other,
    each drawn by (words, pass), so a batch may span passes or hold more than ``count`` examples.
    Exact for every int32 step, elementwise and free of reductions over the batch. NumPy words are
    computed with NumPy, in which case ``step`` is an int.
    """
    if not 0 < count <= LARGEST:
        raise ValueError(f"A pool has 1 to {LARGEST} examples, not {count}.")
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
    return shuffle(words, passes, start % count, count).astype(xp.int32)


def shuffle(words: Words, passes: Words, position: Words, count: int) -> Words:
    """Element ``position`` of the permutation of 0..count-1 that (words, pass) draws; all uint32.

    In each round x and K - x mod count, K uniform, change places or do not, as a keyed hash of the
    larger of the two says. A Feistel network would have to walk cycles until the whole batch is
    in range, which is a reduction over the batch and so a message between devices.
    """

    # Of all rounds at once, as far as a round does not need the one before: [rounds batch].
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

    # A round of a batch is a few instructions, to which a loop of a TPU adds several times as many,
    # and one of a GPU a start of kernels. On a CPU it costs less than to compile all rounds.
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
