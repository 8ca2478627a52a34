"""One program for one device or many: the mesh, the shardings and the choice of device count."""

import contextlib
import logging
import math
import os
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxmatch.errors import InputError
from jaxmatch.per_example import PerExample
from jaxmatch.types import PyTree

log = logging.getLogger(__name__)

THREADS_A_CORE = 8
# Per-example memories up to this size are cheaper to keep on every device than to exchange.
SPREAD_BYTES = 64 * 2**20


def use_all_cores() -> None:
    """Make one CPU device a core, unless JAX already runs or the user chose a number.

    XLA's CPU convolutions run on one thread a device, so one device would leave cores idle.
    """
    affinity = getattr(os, "sched_getaffinity", None)  # Linux only
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    # A device that waits for another in a reduction keeps a thread of XLA's pool, by default one a
    # core. With a few such waits the other device finds no thread, and the program stands still.
    os.environ.setdefault("NPROC", str(THREADS_A_CORE * cores))
    if "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        return
    if jax.config.jax_num_cpu_devices == -1:  # pyright: ignore[reportAttributeAccessIssue]
        with contextlib.suppress(RuntimeError):  # JAX already runs: keep what it has
            jax.config.update("jax_num_cpu_devices", cores)


def make_mesh(devices: int, *batches: int) -> Mesh:
    """A 1-D mesh over which every batch size of ``batches`` divides.

    Args:
        devices: how many devices to use; 0 takes all, or on a CPU (where the devices are only
            threads) the largest number that divides the batches.
        batches: global batch sizes.

    Raises:
        InputError: if the devices do not exist or do not divide the batches.
    """
    present = jax.devices()
    count = devices or len(present)
    if count > len(present):
        raise InputError(f"devices={count} asked for, but JAX sees {len(present)}; lower it.")
    divisor = int(np.gcd.reduce([batch for batch in batches if batch] or [count]))
    if divisor % count:
        if devices or present[0].platform != "cpu":
            raise InputError(
                f"batch sizes {', '.join(map(str, batches))} do not divide over {count} devices; "
                f"change data.batch_size or set devices to a divisor of {divisor}."
            )
        count = max(n for n in range(1, count + 1) if divisor % n == 0)
        log.warning(
            "Using %d of %d CPU devices, as the batch divides by no more.", count, len(present)
        )
    return jax.make_mesh((count,), ("data",), (AxisType.Auto,), devices=present[:count])


def check_memory(mesh: Mesh, trees: Mapping[str, PyTree]) -> None:
    """Refuse arrays that no device has room for, before any is made.

    ``trees`` are shapes by name, each a part of the last one; what :func:`state_shardings` puts on
    each device counts. Where a device does not tell its memory, nothing is refused. Raises
    InputError with the sizes in bytes.
    """
    device = mesh.devices.flat[0]
    if device.platform == "cpu":
        limit = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // mesh.size
    else:
        limit = (device.memory_stats() or {}).get("bytes_limit")
    sizes = {name: device_bytes(tree, mesh) for name, tree in trees.items()}
    if limit is not None and max(sizes.values()) > limit:
        listed = ", ".join(f"{name} {size:,} bytes" for name, size in sizes.items())
        raise InputError(
            f"a device has {limit:,} bytes, but the run needs more on each: {listed}; make the "
            "banks, queues or the network smaller."
        )


def tree_bytes(tree: PyTree) -> int:
    """Bytes of all arrays of a tree, or of their shapes; typed keys count as nothing."""
    return sum(
        math.prod(leaf.shape) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
        if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    )


def device_bytes(shapes: PyTree, mesh: Mesh) -> int:
    """Bytes of a state, or a part of one, on each device."""
    shardings = state_shardings(shapes, mesh)
    local = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(sharding.shard_shape(leaf.shape), leaf.dtype),
        shapes,
        shardings,
    )
    return tree_bytes(local)


def state_shardings(shapes: PyTree, mesh: Mesh) -> PyTree:
    """Where each array of a state lives: on every device, or spread over them.

    Spread are only the rows of a :class:`~jaxmatch.per_example.PerExample` memory of more than
    ``SPREAD_BYTES`` that the devices divide; steps read and write them by index with exchanges of
    the size of a batch. ``shapes`` is a tree of arrays or their shapes.
    """

    def sharding(node: PyTree) -> PyTree:
        spread = (
            isinstance(node, PerExample)
            and tree_bytes(node) > SPREAD_BYTES
            and all(
                len(leaf.shape) > 0 and leaf.shape[0] % mesh.size == 0
                for leaf in jax.tree.leaves(node)
            )
        )
        one = over_batch(mesh) if spread else replicated(mesh)
        return jax.tree.map(lambda _: one, node)

    return jax.tree.map(sharding, shapes, is_leaf=lambda node: isinstance(node, PerExample))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def over_batch(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """Axis number ``axis`` split over the devices."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, "data"))


def shard_batch(tree: PyTree, mesh: Mesh, axis: int = 0) -> PyTree:
    """Inside a jitted function: ask that every array of ``tree`` is split along ``axis``."""
    return jax.lax.with_sharding_constraint(tree, over_batch(mesh, axis))
