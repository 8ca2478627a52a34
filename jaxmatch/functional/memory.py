"""Memories of contrastive methods: a bank with a row for each labeled example, and a queue."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.layout import Layout, with_layout_constraint
from jaxtyping import Bool, Float, Int

from jaxmatch.errors import InputError
from jaxmatch.functional.alike import split_by_use
from jaxmatch.functional.similarity import normalize
from jaxmatch.types import Array, PyTree

# Large memories of rows are padded to a multiple of this, so that any usual number of devices
# divides them.
MULTIPLE = 1024
# A TPU writes rings of at least so many elements in the order of axes in which they lie.
LARGE = 2**20


def padded(count: int) -> int:
    """The next multiple of :data:`MULTIPLE`.

    >>> padded(1500)
    2048
    """
    return -(-count // MULTIPLE) * MULTIPLE


class Bank(NamedTuple):
    """An embedding of each labeled example, with its true label from the start.

    Rows at the end may be padding, which is never filled.
    """

    embeddings: Float[Array, "n d"]  # unit rows; zeros where not filled
    labels: Int[Array, "n"]
    filled: Bool[Array, "n"]  # whether the example has been seen; the others have no vote
    # A step compares a batch with all rows, which is faster where all are at hand.
    split_if_large = False


def make_bank(labels: Sequence[int], width: int) -> Bank:
    """An empty bank of embeddings of ``width`` for the labeled examples, in index order.

    It is padded, with label 0, where that adds less than an eighth.

    >>> make_bank([0, 1, 1], width=8).embeddings.shape
    (3, 8)
    """
    count = len(labels)
    rows = padded(count) if count > 8 * MULTIPLE else count
    return Bank(
        jnp.zeros((rows, width), float),
        jnp.asarray(np.pad(np.asarray(labels, np.int32), (0, rows - count))),
        jnp.zeros(rows, bool),
    )


def write(
    bank: Bank,
    index: Int[Array, "b"],
    embeddings: Float[Array, "b d"],
    label: Int[Array, "b"],
    momentum: float = 0.0,
) -> Bank:
    """Row index[i] becomes normalize(momentum * row + (1 - momentum) * embeddings[i]).

    A row that was not filled becomes the embedding itself. Of several i with the same index the
    last in batch order wins; all read the bank as it was (SimMatch: Zheng et al., CVPR 2022,
    section 3.4). No gradient passes into the bank.

    >>> bank = write(make_bank([0, 1], 2), jnp.array([1]), jnp.array([[0.6, 0.8]]), jnp.array([1]))
    >>> print(bank.embeddings[1], bank.filled)
    [0.6 0.8] [False  True]

    Args:
        bank: of n rows.
        index: in 0..n-1.
        embeddings: unit rows.
        label: true labels.
        momentum: share of the old embedding that stays.
    """
    embeddings = jax.lax.stop_gradient(embeddings)
    old = bank.embeddings[index]
    mixed = normalize(momentum * old + (1 - momentum) * embeddings)
    new = jnp.where(bank.filled[index][:, None], mixed, embeddings)
    row = last_of_each(index, len(bank.labels))
    return Bank(
        bank.embeddings.at[row].set(new.astype(bank.embeddings.dtype), mode="drop"),
        bank.labels.at[row].set(label.astype(bank.labels.dtype), mode="drop"),
        bank.filled.at[row].set(True, mode="drop"),
    )


def last_of_each(index: Int[Array, "b"], nowhere: int) -> Int[Array, "b"]:
    """``index``, but ``nowhere`` at positions whose index comes again later in the batch.

    A scatter with repeated indices has no defined winner. With ``nowhere`` out of bounds and
    ``mode="drop"`` the last one wins.

    >>> print(last_of_each(jnp.array([3, 1, 3]), nowhere=9))
    [9 1 3]
    """
    position = jnp.arange(len(index))
    again = (index[:, None] == index) & (position[:, None] < position)
    return jnp.where(again.any(1), nowhere, index)


class Queue(NamedTuple):
    """The newest rows of a stream, in a ring."""

    rows: Mapping[str, Array]  # [n ...] each, zeros until written
    pointer: Int[Array, ""]  # the row that is written next
    filled: Int[Array, ""]  # number of rows written so far, at most n


def make_queue(size: int, **widths: int) -> Queue:
    """An empty ring of ``size`` rows: a vector of the given width for each name.

    >>> make_queue(4, key=2).rows["key"].shape
    (4, 2)

    Raises:
        InputError: if 32-bit positions do not reach.
    """
    if size >= 2**31:
        raise InputError(f"a queue of {size} rows is longer than 2**31 - 1; make it shorter.")
    return Queue(
        {name: jnp.zeros((size, width), float) for name, width in widths.items()},
        jnp.zeros((), jnp.int32),
        jnp.zeros((), jnp.int32),
    )


def push(queue: Queue, rows: PyTree) -> Queue:
    """Append ``rows``, [b ...] each, of the queue's names; they replace the oldest rows.

    >>> queue = push(make_queue(3, key=1), {"key": jnp.array([[1.0], [2.0]])})
    >>> queue = push(queue, {"key": jnp.array([[3.0], [4.0]])})
    >>> print(queue.rows["key"][:, 0], queue.pointer, queue.filled)
    [4. 2. 3.] 1 3

    Raises:
        InputError: if there are more rows than the queue holds.
    """
    size, count = (jax.tree.leaves(tree)[0].shape[0] for tree in (queue.rows, rows))
    if count > size:
        raise InputError(
            f"{count} rows cannot enter a queue of {size}; make the queue longer or the batch "
            "smaller."
        )
    return Queue(
        jax.tree.map(
            lambda old, new: _enter(old, queue.pointer, jax.lax.stop_gradient(new)),
            queue.rows,
            rows,
        ),
        (queue.pointer + count) % size,
        jnp.minimum(queue.filled + count, size),
    )


def _enter(ring: Array, pointer: Array, rows: Array) -> Array:
    """``ring`` [n ...] with ``rows`` [b ...] from row ``pointer`` on, then from the first one."""
    rows = rows.astype(ring.dtype)
    if not _by_columns(ring.shape):
        return _enter_by_scatter(ring, pointer, rows)
    return jax.lax.platform_dependent(
        ring, pointer, rows, tpu=_enter_by_columns, default=_enter_by_scatter
    )


def _by_columns(shape: tuple[int, ...]) -> bool:
    """Whether a TPU keeps a large array by columns: its tiles of 8 x 128 then pad it less."""
    if len(shape) != 2 or math.prod(shape) < LARGE:
        return False
    tall, wide = (
        math.prod(-(-side // tile) * tile for side, tile in zip(shape, tiles, strict=True))
        for tiles in ((128, 8), (8, 128))
    )
    return tall < wide


def _enter_by_scatter(ring: Array, pointer: Array, rows: Array) -> Array:
    at = (pointer + jnp.arange(len(rows))) % len(ring)
    return ring.at[at].set(rows, unique_indices=True)


def _enter_by_columns(ring: Array, pointer: Array, rows: Array) -> Array:
    """The same in two blocks of b columns of the transposed ring: up to its end, and in front.

    For a scatter a TPU would transpose the whole ring twice.
    """

    def as_it_lies(columns: Array) -> Array:  # else the compiler may choose the rows' order
        return with_layout_constraint(columns, Layout((0, 1)))

    size, count = len(ring), len(rows)
    # Rows that are split over the devices would move between them as they are rolled.
    columns = split_by_use(rows).T
    wrapped = jnp.maximum(pointer + count - size, 0)  # columns in front
    turned = jnp.roll(columns, wrapped, 1)  # those, then the ones from the pointer on
    place, ring = jnp.arange(count), as_it_lies(ring.T)
    for start, new in ((pointer - wrapped, place >= wrapped), (0, place < wrapped)):
        old = jax.lax.dynamic_slice_in_dim(ring, start, count, 1)
        block = as_it_lies(jnp.where(new, turned, old))
        ring = as_it_lies(jax.lax.dynamic_update_slice_in_dim(ring, block, start, 1))
    return ring.T


def filled(queue: Queue) -> Bool[Array, "n"]:
    """Which rows of the ring have been written; rows fill up from the first.

    >>> print(filled(push(make_queue(3, key=1), {"key": jnp.ones((1, 1))})))
    [ True False False]
    """
    size = jax.tree.leaves(queue.rows)[0].shape[0]
    return jnp.arange(size) < queue.filled
