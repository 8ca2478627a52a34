"""What contrastive methods remember: a bank with a row a labeled example, and a ring of rows."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.layout import Layout, with_layout_constraint

from jaxmatch.errors import InputError
from jaxmatch.functional.alike import split_by_use
from jaxmatch.functional.similarity import normalize
from jaxmatch.types import Array, PyTree

# Large memories of rows are padded to a multiple of this, so that any usual number of devices
# divides them.
MULTIPLE = 1024
# Elements of a ring from which on a TPU writes it in the order of axes in which it lies.
LARGE = 2**20


def padded(count: int) -> int:
    """The next multiple of :data:`MULTIPLE`."""
    return -(-count // MULTIPLE) * MULTIPLE


class Bank(NamedTuple):
    """An embedding of each labeled example, with its true label from the start.

    Further rows may pad it, which are never filled.
    """

    embeddings: Array  # [n d] unit rows; zeros where not filled
    labels: Array  # [n] int32
    filled: Array  # [n] bool, whether the example has been seen; the others have no vote


def make_bank(labels: Sequence[int], width: int) -> Bank:
    """An empty bank of embeddings of ``width`` for the labeled examples, in index order.

    Padded, with label 0, where that adds less than an eighth.
    """
    count = len(labels)
    rows = padded(count) if count > 8 * MULTIPLE else count
    return Bank(
        jnp.zeros((rows, width), float),
        jnp.asarray(np.pad(np.asarray(labels, np.int32), (0, rows - count))),
        jnp.zeros(rows, bool),
    )


def write(bank: Bank, index: Array, embeddings: Array, label: Array, momentum: float = 0.0) -> Bank:
    """Row index[i] becomes normalize(momentum * row + (1 - momentum) * embeddings[i]).

    A row that was not filled becomes the embedding itself. Of several i with the same index the
    last in batch order wins; all read the bank as it was (SimMatch: Zheng et al., CVPR 2022,
    section 3.4). No gradient passes into the bank.

    Args:
        bank: of n rows.
        index: [b] int32 in 0..n-1.
        embeddings: [b d] unit rows.
        label: [b] int32 true labels.
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


def last_of_each(index: Array, nowhere: int) -> Array:
    """``index`` [b], but ``nowhere`` at positions whose index comes again later in the batch.

    A scatter with repeated indices has no defined winner; with ``nowhere`` out of bounds and
    ``mode="drop"`` the last one wins.
    """
    position = jnp.arange(len(index))
    again = (index[:, None] == index) & (position[:, None] < position)
    return jnp.where(again.any(1), nowhere, index)


class Queue(NamedTuple):
    """The newest rows of a stream, in a ring."""

    rows: PyTree  # leaves [n ...], zeros until written
    pointer: Array  # [] int32, the row written next
    filled: Array  # [] int32, rows written so far, at most n


def make_queue(size: int, **widths: int) -> Queue:
    """An empty ring of ``size`` rows: a vector of the given width for each name.

    Raises InputError where 32-bit positions do not reach.
    """
    if size >= 2**31:
        raise InputError(f"a queue of {size} rows is longer than 2**31 - 1; make it shorter.")
    return Queue(
        {name: jnp.zeros((size, width), float) for name, width in widths.items()},
        jnp.zeros((), jnp.int32),
        jnp.zeros((), jnp.int32),
    )


def push(queue: Queue, rows: PyTree) -> Queue:
    """Append ``rows``, leaves [b ...] like the queue's; the oldest rows make room.

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

    A scatter would have a TPU turn the whole ring to rows, and back.
    """

    def as_it_lies(columns: Array) -> Array:  # else the compiler may take the order of the rows'
        return with_layout_constraint(columns, Layout((0, 1)))

    size, count = len(ring), len(rows)
    # Rows that are split over the devices would go around between them as they are turned.
    columns = split_by_use(rows).T
    wrapped = jnp.maximum(pointer + count - size, 0)  # columns in front
    turned = jnp.roll(columns, wrapped, 1)  # those, then the ones from the pointer on
    place, ring = jnp.arange(count), as_it_lies(ring.T)
    for start, new in ((pointer - wrapped, place >= wrapped), (0, place < wrapped)):
        old = jax.lax.dynamic_slice_in_dim(ring, start, count, 1)
        block = as_it_lies(jnp.where(new, turned, old))
        ring = as_it_lies(jax.lax.dynamic_update_slice_in_dim(ring, block, start, 1))
    return ring.T


def filled(queue: Queue) -> Array:
    """Which rows of the ring have been written, [n] bool; rows fill up from the first."""
    size = jax.tree.leaves(queue.rows)[0].shape[0]
    return jnp.arange(size) < queue.filled
