"""One program for one device or many: the mesh, the shardings and the choice of device count."""

import logging
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxmatch.errors import InputError, suggest
from jaxmatch.types import PyTree, Rows

log = logging.getLogger(__name__)

PLACEMENTS = ("auto", "replicated", "sharded")
# Per-example memories up to this size are cheaper to keep on every device than to exchange.
SPREAD_BYTES = 64 * 2**20
# What a program may use of a TPU's memory, by the kind of chip: the compiler's own limits (libtpu
# 0.0.42). A chip that is at hand tells it; these are for those that are only described.
MEMORY = {
    "TPU v4": int(30.75 * 2**30),
    "TPU v5 lite": int(15.75 * 2**30),
    "TPU v5": int(95.74 * 2**30),
    "TPU v6 lite": int(31.25 * 2**30),
}


def make_mesh(devices: int, *batches: int, present: Sequence[Any] | None = None) -> Mesh:
    """A 1-D mesh over which every batch size of ``batches`` divides.

    Args:
        devices: how many devices to use; 0 takes all, or on a CPU (where the devices are only
            threads) the largest number that divides the batches.
        batches: global batch sizes.
        present: the devices to choose from; None for all that JAX sees.

    Raises:
        InputError: if the devices do not exist or do not divide the batches.
    """
    present, processes = list(present or jax.devices()), jax.process_count()
    count = devices or len(present)
    if count > len(present):
        raise InputError(f"devices={count} asked for, but JAX sees {len(present)}; lower it.")
    if count % processes:
        raise InputError(f"devices={count} is not a multiple of the {processes} processes.")
    divisor = int(np.gcd.reduce([batch for batch in batches if batch] or [count]))
    if divisor % count:
        if devices or present[0].platform != "cpu":
            raise InputError(
                f"batch sizes {', '.join(map(str, batches))} do not divide over {count} devices; "
                f"change data.batch_size or set devices to a divisor of {divisor}."
            )
        count = max(
            (n for n in range(processes, count + 1, processes) if divisor % n == 0), default=0
        )
        if not count:
            raise InputError(
                f"batch sizes {', '.join(map(str, batches))} do not divide over {processes} "
                "processes; change data.batch_size or use fewer."
            )
        log.warning(
            "Using %d of %d CPU devices, as the batch divides by no more.", count, len(present)
        )
    if count > 1 and present[0].platform == "cpu" and "NPROC" not in os.environ:
        log.warning(
            "%d CPU devices may wait for each other forever; call "
            "jaxmatch.runtime.compilation.prepare_process() before JAX computes anything.",
            count,
        )
    if processes > 1:  # as many of each
        each = count // processes
        present = [
            device
            for process in range(processes)
            for device in [one for one in present if one.process_index == process][:each]
        ]
    return jax.make_mesh((count,), ("data",), (AxisType.Auto,), devices=present[:count])


def check_memory(mesh: Mesh, trees: Mapping[str, PyTree], placement: str = "auto") -> None:
    """Refuse arrays that no device has room for, before any is made.

    ``trees`` are shapes by name, each a part of the last one; what :func:`state_shardings` puts on
    each device counts. Where a device does not tell its memory, nothing is refused. Raises
    InputError with the sizes in bytes.
    """
    limit = memory_limit(mesh)
    sizes = {name: device_bytes(tree, mesh, placement) for name, tree in trees.items()}
    if limit is not None and max(sizes.values()) > limit:
        listed = ", ".join(f"{name} {size:,} bytes" for name, size in sizes.items())
        raise InputError(
            f"a device has {limit:,} bytes, but the run needs more on each: {listed}; make the "
            "banks, queues or the network smaller."
        )


def memory_limit(mesh: Mesh) -> int | None:
    """Bytes that a program may hold on each device; None where a device does not tell.

    CPU devices share the machine's memory.
    """
    device = mesh.devices.flat[0]
    if device.platform == "cpu":
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // mesh.size
    try:  # only a device of this process tells, and only one that is there
        told = (mesh.local_devices[0].memory_stats() or {}).get("bytes_limit")
    except (IndexError, jax.errors.JaxRuntimeError):
        told = None
    return told or MEMORY.get(device.device_kind)


def tree_bytes(tree: PyTree) -> int:
    """Bytes of all arrays of a tree, or of their shapes; typed keys count as nothing."""
    return sum(
        math.prod(leaf.shape) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
        if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    )


def device_bytes(shapes: PyTree, mesh: Mesh, placement: str = "auto") -> int:
    """Bytes of a state, or a part of one, on each device."""
    shardings = state_shardings(shapes, mesh, placement)
    local = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(sharding.shard_shape(leaf.shape), leaf.dtype),
        shapes,
        shardings,
    )
    return tree_bytes(local)


def state_shardings(shapes: PyTree, mesh: Mesh, placement: str = "auto") -> PyTree:
    """Where each array of a state lives: on every device, or its rows spread over them.

    Only the rows of memories marked as :class:`jaxmatch.types.Rows` are ever spread. Steps then
    exchange arrays of the size of a batch.

    Args:
        shapes: a tree of arrays or their shapes.
        mesh: the devices.
        placement: ``config.memory_placement``: "replicated", "sharded", or "auto", which spreads
            rows with ``split_if_large`` that take more than ``SPREAD_BYTES`` and divide evenly.

    Raises:
        InputError: on an unknown placement, or if "sharded" rows do not divide.
    """
    if placement not in PLACEMENTS:
        hint = suggest(placement, PLACEMENTS)
        raise InputError(f"unknown memory_placement {placement!r}; {hint}")

    def spread(node: PyTree) -> bool:
        if placement == "replicated" or not isinstance(node, Rows):
            return False
        rows = {leaf.shape[0] if leaf.shape else 0 for leaf in jax.tree.leaves(node)}
        uneven = [count for count in rows if count % mesh.size or not count]
        if placement == "auto":
            return node.split_if_large and tree_bytes(node) > SPREAD_BYTES and not uneven
        if uneven:
            raise InputError(
                f"memory_placement=sharded cannot divide {uneven[0]} rows over {mesh.size} devices;"
                " use auto, or another number of devices."
            )
        return True

    def sharding(node: PyTree) -> PyTree:
        one = over_batch(mesh) if spread(node) else replicated(mesh)
        return jax.tree.map(lambda _: one, node)

    return jax.tree.map(sharding, shapes, is_leaf=lambda node: isinstance(node, Rows))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def over_batch(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """Axis number ``axis`` split over the devices."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, "data"))


def put(tree: PyTree, shardings: PyTree) -> PyTree:
    """Arrays that every process holds whole, as global arrays of ``shardings``.

    Each process copies its own part; unlike ``jax.device_put``, nothing is compared between them.
    ``shardings`` is one for all arrays, or a tree of them.
    """
    if jax.process_count() == 1:
        return jax.device_put(tree, shardings)

    def one(leaf: PyTree, sharding: NamedSharding) -> PyTree:
        if isinstance(leaf, jax.Array) and leaf.sharding == sharding:
            return leaf
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            words = one(jax.random.key_data(leaf), sharding)
            return jax.random.wrap_key_data(words, impl=jax.random.key_impl(leaf))
        host = np.asarray(leaf)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    if isinstance(shardings, NamedSharding):
        return jax.tree.map(lambda leaf: one(leaf, shardings), tree)
    return jax.tree.map(one, tree, shardings)


def process_share(batch: int, mesh: Mesh) -> tuple[int, int]:
    """The first of this process's examples in a batch that is split over ``mesh``, and how many."""
    places = [
        place
        for place, device in enumerate(mesh.devices.flat)
        if device.process_index == jax.process_index()
    ]
    each = batch // mesh.size
    return min(places) * each, len(places) * each


def from_processes(rows: np.ndarray, size: int, mesh: Mesh) -> jax.Array:
    """An array [size ...] split over ``mesh``, of which each process has its share of ``rows``."""
    place, shape = over_batch(mesh), (size, *rows.shape[1:])
    with jax.transfer_guard("allow"):  # the train step forbids those that nobody asked for
        return jax.make_array_from_process_local_data(place, rows, shape)


def shard_batch(tree: PyTree, mesh: Mesh, axis: int = 0) -> PyTree:
    """Inside a jitted function: ask that every array of ``tree`` is split along ``axis``."""
    return jax.lax.with_sharding_constraint(tree, over_batch(mesh, axis))
