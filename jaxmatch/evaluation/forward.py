"""What given variables say of uint8 images: predictions, features, heads, in equal batches."""

import logging
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from jaxmatch.augment.views import normalize
from jaxmatch.data.lazy import MISSING, READ, SUBSTITUTES, Images, LazyImages
from jaxmatch.data.resident import Table
from jaxmatch.errors import InputError
from jaxmatch.runtime.compilation import jit
from jaxmatch.runtime.hosts import leader
from jaxmatch.runtime.mesh import from_processes, over_batch, process_share, put, replicated
from jaxmatch.types import Array, Network, Outputs, PyTree

BATCH = 500

log = logging.getLogger(__name__)


class Answers(NamedTuple):
    """What a network says of n images."""

    values: Any  # arrays [n ...] in the images' order
    readable: np.ndarray  # [n] bool: the values of the other images mean nothing


Evaluate = Callable[[PyTree, Array | Images | Table], Answers]


def make_predict(
    network: Network,
    mean: Sequence[float],
    std: Sequence[float],
    mesh: Mesh,
    batch: int = BATCH,
    strict: bool = False,
) -> Evaluate:
    """A function (variables, images [n h w c] uint8) -> probabilities [n C], in eval mode.

    An unreadable one of LazyImages is left out and named once; with ``strict`` it is an InputError,
    on all processes, as is a set without any readable image.
    """

    def probabilities(outputs: Outputs) -> Array:
        return jax.nn.softmax(outputs.logits)

    return _make(probabilities, network, mean, std, mesh, batch, strict)


def make_features(
    network: Network,
    mean: Sequence[float],
    std: Sequence[float],
    mesh: Mesh,
    batch: int = BATCH,
    strict: bool = False,
    spread: bool = False,
) -> Evaluate:
    """A function (variables, images [n h w c] uint8) -> pooled features [n d], in eval mode.

    Unreadable images as for :func:`make_predict`. With ``spread`` the features stay on the devices,
    each of which has its share of the rows: an array [p d] split over ``mesh``, p the next multiple
    of its size, so that rows from n on mean nothing.
    """
    return _make(
        lambda outputs: outputs.features, network, mean, std, mesh, batch, strict, spread=spread
    )


def make_embed(
    network: Network,
    mean: Sequence[float],
    std: Sequence[float],
    mesh: Mesh,
    batch: int = BATCH,
    strict: bool = False,
) -> Callable[[PyTree, Array | Images | Table], dict[str, np.ndarray]]:
    """A function (variables, images [n h w c] uint8) -> heads [n ...] by name, in eval mode.

    In place of an unreadable one of LazyImages the next readable one is embedded, as in training;
    it is named once. With ``strict`` it is an InputError, on all processes.
    """
    run = _make(
        lambda outputs: dict(outputs.heads), network, mean, std, mesh, batch, strict, replace=True
    )
    return lambda variables, images: run(variables, images).values


def _make(
    read: Callable[[Outputs], PyTree],
    network: Network,
    mean: Sequence[float],
    std: Sequence[float],
    mesh: Mesh,
    batch: int,
    strict: bool,
    *,
    replace: bool = False,
    spread: bool = False,
) -> Evaluate:
    """What ``read`` takes from the outputs of all images, in their order.

    Each device has a block of successive images, of which each batch takes some, so that answers
    that stay where they are computed are in order. A block that ends early is filled up with images
    whose second answer is dropped.

    Lazy images are decoded here, by each process those of its own devices. Every process learns
    which were not readable.
    """
    named: set[str] = set()
    place = over_batch(mesh) if spread else replicated(mesh)

    def answers(variables: PyTree, images: Array) -> PyTree:
        found = read(network(variables, normalize(images, mean, std), train=False)[0])
        return jax.lax.with_sharding_constraint(found, place)

    @jit
    def one(variables: PyTree, images: Table, start: Array) -> PyTree:
        count = len(images)
        each, width = _block(count, batch, mesh.size)
        blocks = each * jnp.arange(mesh.size)[:, None]
        index = (blocks + start + jnp.arange(width)).reshape(-1) % count
        index = jax.lax.with_sharding_constraint(index, over_batch(mesh))
        return answers(variables, images.take(index))

    @jit
    def decoded(variables: PyTree, images: Array, state: Array) -> tuple[PyTree, Array]:
        state = jax.lax.with_sharding_constraint(state, replicated(mesh))
        return answers(variables, images), state

    def run(variables: PyTree, images: Array | Images | Table) -> Answers:
        count = len(images)
        each, width = _block(count, batch, mesh.size)
        held: Any = None
        if not isinstance(images, LazyImages):
            table = images if isinstance(images, Table) else Table.of(images)
            held = put(table, replicated(mesh))
        first, own = process_share(mesh.size, mesh)
        blocks = each * np.arange(first, first + own)[:, None]
        parts: list[PyTree] = []
        states: list[Array] = []

        def fetch(position: int) -> None:
            """Let a device work on two batches at most, and keep no answers that the host has."""
            if spread:
                jax.block_until_ready(parts[position])
            else:
                parts[position] = jax.device_get(parts[position])

        for start in range(0, each, width):
            if isinstance(images, LazyImages):
                index = (blocks + start + np.arange(width)).reshape(-1) % count
                pixels, state = (
                    from_processes(rows, width * mesh.size, mesh)
                    for rows in images.read(index, replace)
                )
                part, state = decoded(variables, pixels, state)
                states.append(state)
            else:
                part = one(variables, held, np.int32(start))
            parts.append(part)
            if len(parts) > 1:
                fetch(-2)
        fetch(-1)

        def in_order(*rows: np.ndarray) -> np.ndarray:
            split = [part.reshape(mesh.size, width, *part.shape[1:]) for part in rows]
            joined = np.concatenate(split, 1)[:, :each]
            return joined.reshape(-1, *joined.shape[2:])[:count]

        readable = np.ones(count, bool)
        if isinstance(images, LazyImages):
            readable = _checked(images, in_order(*jax.device_get(states)), strict, replace, named)
        if spread:
            return Answers(_joined(parts, mesh, each), readable)
        return Answers(jax.tree.map(in_order, *parts), readable)

    return run


def _block(count: int, batch: int, devices: int) -> tuple[int, int]:
    """How many of ``count`` images a device answers for, and how many at a time.

    All devices together take ``batch`` of them, rounded up to a multiple of their number.
    """
    each = -(-count // devices)
    return each, min(each, -(-batch // devices))


def _joined(parts: list[PyTree], mesh: Mesh, each: int) -> PyTree:
    """The rows of all parts, ``each`` on a device, where they are."""
    rows = PartitionSpec("data")

    def join(parts: list[PyTree]) -> PyTree:
        return jax.tree.map(lambda *leaves: jnp.concatenate(leaves)[:each], *parts)

    return jit(jax.shard_map(join, mesh=mesh, in_specs=rows, out_specs=rows))(parts)


def _checked(
    images: LazyImages, state: np.ndarray, strict: bool, replaced: bool, named: set[str]
) -> np.ndarray:
    """Which images are readable [n] bool; names the others that are not ``named`` yet.

    All processes have the same ``state`` [n], so all raise InputError or none.
    """
    readable = state == READ
    names = images.names(~readable)
    if names and strict:
        raise InputError(f"Not readable as images: {', '.join(names)}.")
    lost = images.names(state == MISSING)
    if lost and (replaced or not readable.any()):
        some = f"{SUBSTITUTES} images from {lost[0]} on" if replaced else f"All {len(lost)} images"
        raise InputError(f"{some} are not readable; is the data set still there?")
    new = [name for name in dict.fromkeys(names) if name not in named]
    named.update(new)
    if new and leader():
        what = "Replaced by the next ones" if replaced else "Left out"
        log.warning("%s, not readable as images: %s", what, ", ".join(new))
    return readable


def accuracy(
    predict: Evaluate, variables: PyTree, images: Array | Images | Table, labels: np.ndarray
) -> float:
    """Share of ``images`` [n h w 3] whose most probable class is their label of ``labels`` [n].

    Unreadable ones do not count.
    """
    found = predict(variables, images)
    return float(np.mean((found.values.argmax(-1) == labels)[found.readable]))
