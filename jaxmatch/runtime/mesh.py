"""The mesh of devices, and the sharding of every array on it, for one device or many."""

import logging
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxmatch.errors import InputError
from jaxmatch.settings import check_value
from jaxmatch.types import PyTree, Rows

log = logging.getLogger(__name__)

Placement = Literal["auto", "replicated", "sharded"]
# "auto" keeps smaller memories on every device, which costs less than exchanges.
SPREAD_BYTES = 64 * 2**20
# The bytes of a TPU's memory that a program may use, by kind of chip: the limits of the compiler
# (libtpu 0.0.42). They are for chips that are only described; a present chip reports its own.
MEMORY = {
    "TPU v4": int(30.75 * 2**30),
    "TPU v5 lite": int(15.75 * 2**30),
    "TPU v5": int(95.74 * 2**30),
    "TPU v6 lite": int(31.25 * 2**30),
}
CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")  # the memory of a container under Linux


def make_mesh(
    devices: int, *batches: int, present: Sequence[Any] | None = None, parts: int = 1
) -> Mesh:
    """A 1-D mesh over which every batch size of ``batches`` divides.

    Args:
        devices: the number of devices; 0 takes all, or on a CPU (whose devices are only threads)
            the largest number that divides the batches.
        batches: global batch sizes; 0 stands for no batch.
        present: the devices to choose from; by default all that JAX sees.
        parts: microbatches into which a device's images are to divide where devices are chosen.

    Raises:
        InputError: if there are fewer devices, or they do not divide the batches.
    """
    present, processes = list(present or jax.devices()), jax.process_count()
    count = devices or len(present)
    if count > len(present):
        raise InputError(f"devices={count}, but JAX sees only {len(present)}; lower it.")
    if count % processes:
        raise InputError(f"devices={count} is not a multiple of the {processes} processes.")
    divisor = int(np.gcd.reduce([batch for batch in batches if batch] or [count]))
    given = bool(devices) or present[0].platform != "cpu"
    if not given and any(batches) and divisor % parts == 0:
        divisor //= parts
    if divisor % count:
        if given:
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
            "Using %d of %d CPU devices, because no more divide the batch.", count, len(present)
        )
    if count > 1 and present[0].platform == "cpu" and "NPROC" not in os.environ:
        log.warning(
            "%d CPU devices may wait for each other forever; call "
            "jaxmatch.runtime.compilation.prepare_process() before JAX computes anything.",
            count,
        )
    if processes > 1:  # equally many of each process
        each = count // processes
        present = [
            device
            for process in range(processes)
            for device in [one for one in present if one.process_index == process][:each]
        ]
    return jax.make_mesh((count,), ("data",), (AxisType.Auto,), devices=present[:count])


def check_memory(mesh: Mesh, trees: Mapping[str, PyTree], placement: Placement = "auto") -> None:
    """Refuse arrays that do not fit into a device's memory, before they are made.

    Nothing is refused if the device does not report its memory.

    Args:
        mesh: the devices.
        trees: shapes by name; each tree is a part of the last one.
        placement: as of :func:`state_shardings`, which says what each device holds.

    Raises:
        InputError: if the largest tree does not fit; the message lists the bytes.
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
    """Bytes that a program may use on each device; None if the device does not report it.

    CPU devices share the machine's memory, or what a container has of it.
    """
    device = mesh.devices.flat[0]
    if device.platform == "cpu":
        return host_memory() // mesh.size
    try:
        limit = (mesh.local_devices[0].memory_stats() or {}).get("bytes_limit")
    except (IndexError, jax.errors.JaxRuntimeError):  # no device of this process, or not present
        limit = None
    return limit or MEMORY.get(device.device_kind)


def host_memory() -> int:
    """Bytes of memory that this process can have: of the machine, or of its control group."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        limit = CGROUP_LIMIT.read_text().strip()
    except OSError:
        return machine
    return min(machine, int(limit)) if limit.isdecimal() else machine


def tree_bytes(tree: PyTree) -> int:
    """Bytes of all arrays of a tree, or of their shapes; typed keys count 0."""
    return sum(
        math.prod(leaf.shape) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
        if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    )


def device_bytes(shapes: PyTree, mesh: Mesh, placement: Placement = "auto") -> int:
    """Bytes of a state, or a part of one, on each device."""
    shardings = state_shardings(shapes, mesh, placement)
    local = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(sharding.shard_shape(leaf.shape), leaf.dtype),
        shapes,
        shardings,
    )
    return tree_bytes(local)


def state_shardings(shapes: PyTree, mesh: Mesh, placement: Placement = "auto") -> PyTree:
    """The sharding of each array of a state: on every device, or its rows split over them.

    Only the rows of memories marked as :class:`jaxmatch.types.Rows` are ever split. Steps then
    exchange arrays of the size of a batch.

    Args:
        shapes: a tree of arrays or their shapes.
        mesh: the devices.
        placement: ``config.memory_placement``: "replicated", "sharded", or "auto", which splits
            rows with ``split_if_large`` that take more than ``SPREAD_BYTES`` and divide evenly.

    Raises:
        InputError: on an unknown placement, or if "sharded" rows do not divide.
    """
    check_value("memory_placement", placement, Placement)

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
    """Turn arrays that every process holds as a whole into global arrays.

    Each process copies its own part. Unlike ``jax.device_put``, it does not compare the arrays of
    the processes.

    Args:
        tree: of arrays.
        shardings: one for all arrays, or a tree of them.
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
    """(first, number) of this process's examples in a batch that is split over ``mesh``."""
    positions = [
        position
        for position, device in enumerate(mesh.devices.flat)
        if device.process_index == jax.process_index()
    ]
    each = batch // mesh.size
    return min(positions) * each, len(positions) * each


def from_processes(rows: np.ndarray, size: int, mesh: Mesh) -> jax.Array:
    """An array [size ...] split over ``mesh``; ``rows`` are those of this process."""
    sharding, shape = over_batch(mesh), (size, *rows.shape[1:])
    with jax.transfer_guard("allow"):  # this transfer is intended; the train step forbids others
        return jax.make_array_from_process_local_data(sharding, rows, shape)


def shard_batch(tree: PyTree, mesh: Mesh, axis: int = 0) -> PyTree:
    """Inside a jitted function: split every array of ``tree`` along ``axis`` over the devices."""
    return jax.lax.with_sharding_constraint(tree, over_batch(mesh, axis))
