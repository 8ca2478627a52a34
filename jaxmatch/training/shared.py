"""Runs of one process hold equal arrays once, on the host and on the devices."""

from collections.abc import Sequence
from dataclasses import fields

import jax
import numpy as np
from jax.sharding import NamedSharding

from jaxmatch.data.source import Source
from jaxmatch.runtime.mesh import put
from jaxmatch.types import Array, PyTree


class Shared:
    """The arrays that the runs of one process have in common."""

    def __init__(self) -> None:
        """No arrays yet."""
        self._sources: list[Source] = []
        self._arrays: list[tuple[np.ndarray, NamedSharding, Array]] = []  # on host, on devices

    def source(self, source: Source) -> Source:
        """The first data set that was given with the same content as ``source``."""
        for known in self._sources:
            if _same_content(known, source):
                return known
        self._sources.append(source)
        return source

    def put(self, tree: PyTree, sharding: NamedSharding) -> PyTree:
        """Put host arrays on the devices; for equal ones return the same device array.

        Device arrays in ``tree`` are not compared.
        """

        def place(leaf: Array | np.ndarray) -> Array:
            if isinstance(leaf, jax.Array):
                return put(leaf, sharding)
            for host, at, array in self._arrays:
                if at == sharding and _equal(host, leaf):
                    return array
            array = put(leaf, sharding)
            self._arrays.append((leaf, sharding, array))
            return array

        return jax.tree.map(place, tree)


def differing(trees: Sequence[PyTree]) -> PyTree:
    """Which arrays differ between runs: a tree of bool like each of ``trees``.

    All trees must come from one :meth:`Shared.put`, which returns the same array for equal ones.
    """
    return jax.tree.map(lambda first, *others: any(leaf is not first for leaf in others), *trees)


def _same_content(one: Source, other: Source) -> bool:
    pairs = ((getattr(one, each.name), getattr(other, each.name)) for each in fields(Source))
    return all(
        _equal(mine, theirs) if isinstance(mine, np.ndarray) else mine == theirs
        for mine, theirs in pairs
    )


def _equal(one: np.ndarray, other: np.ndarray) -> bool:
    return one is other or (one.dtype == other.dtype and np.array_equal(one, other))
