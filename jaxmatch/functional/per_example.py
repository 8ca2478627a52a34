"""What a method remembers of each unlabeled example: rows read and written by ``unlabeled.index``.

Temporal Ensembling keeps predictions, FlexMatch selected labels. A pool of 10^6 examples and 1,000
classes makes gigabytes, so rows of a large pool are spread over the devices
(:func:`jaxmatch.runtime.mesh.state_shardings`).
"""

import jax
import jax.numpy as jnp
from flax import struct

from jaxmatch.errors import InputError
from jaxmatch.functional.memory import last_of_each, padded
from jaxmatch.types import Array, PyTree


@struct.dataclass
class PerExample:
    """A row for each example, in index order, and some that pad them."""

    rows: PyTree  # leaves [n ...], n a multiple of memory.MULTIPLE


def make_rows(count: int, **start: Array) -> PerExample:
    """Rows for ``count`` examples by name; ``start`` are the values of one row."""

    def repeated(value: Array) -> Array:
        value = jnp.asarray(value)
        return jnp.broadcast_to(value, (padded(count), *value.shape))

    return PerExample({name: repeated(value) for name, value in start.items()})


def read(memory: PerExample, index: Array | None) -> PyTree:
    """The rows [b ...] of the examples ``index`` [b] int32; InputError without indices."""
    return jax.tree.map(lambda rows: rows[_checked(index)], memory.rows)


def write(memory: PerExample, index: Array | None, values: PyTree) -> PerExample:
    """Row index[i] becomes values[i]; of several i with the same index the last one wins.

    No gradient passes into the memory. Raises InputError without indices.
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
