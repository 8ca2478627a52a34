"""A memory with a row for each unlabeled example, read and written by ``unlabeled.index``.

Temporal Ensembling keeps predictions, FlexMatch keeps selected labels. Predictions of 1,000 classes
for 10^6 examples take gigabytes, so the rows of a large pool are spread over the devices
(:func:`jaxmatch.runtime.mesh.state_shardings`).
"""

from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Int

from jaxmatch.errors import InputError
from jaxmatch.functional.memory import last_of_each, padded
from jaxmatch.types import Array, PyTree


@struct.dataclass
class PerExample:
    """A row for each example, in index order, and rows that pad them."""

    rows: PyTree  # arrays [n ...] by name, n a multiple of memory.MULTIPLE
    split_if_large: ClassVar[bool] = True  # steps exchange only the rows of a batch


def make_rows(count: int, **start: Array) -> PerExample:
    """Rows for ``count`` examples, all equal to the one row ``start``, an array for each name.

    >>> make_rows(5, seen=jnp.int32(0)).rows["seen"].shape
    (1024,)
    """

    def repeated(value: Array) -> Array:
        value = jnp.asarray(value)
        return jnp.broadcast_to(value, (padded(count), *value.shape))

    return PerExample({name: repeated(value) for name, value in start.items()})


def read(memory: PerExample, index: Int[Array, "b"] | None) -> dict[str, Array]:
    """The rows of the examples ``index``: [b ...] for each name.

    >>> read(make_rows(5, seen=jnp.int32(7)), jnp.array([0, 3]))
    {'seen': Array([7, 7], dtype=int32)}

    Raises:
        InputError: if there are no indices.
    """
    return jax.tree.map(lambda rows: rows[_checked(index)], memory.rows)


def write(
    memory: PerExample, index: Int[Array, "b"] | None, values: Mapping[str, Array]
) -> PerExample:
    """Row index[i] becomes values[i]; of several i with the same index the last one wins.

    No gradient passes into the memory.

    >>> memory = make_rows(5, seen=jnp.int32(0))
    >>> memory = write(memory, jnp.array([1, 1]), {"seen": jnp.array([8, 9])})
    >>> print(memory.rows["seen"][:3])
    [0 9 0]

    Raises:
        InputError: if there are no indices.
    """
    rows = len(jax.tree.leaves(memory.rows)[0])
    row = last_of_each(_checked(index), rows)
    values = jax.lax.stop_gradient(values)
    return PerExample(
        jax.tree.map(
            lambda old, new: old.at[row].set(new.astype(old.dtype), mode="drop"),
            memory.rows,
            values,
        )
    )


def _checked(index: Array | None) -> Array:
    if index is None:
        raise InputError(
            "a method that remembers each unlabeled example needs unlabeled.index; let the data "
            "source number its examples."
        )
    return index
