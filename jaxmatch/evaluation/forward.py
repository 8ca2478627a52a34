"""A network's outputs for many uint8 images, in eval mode and in equal batches."""

import logging
from collections.abc import Callable
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from jaxmatch.data.lazy import MISSING, READ, SUBSTITUTES, Images, LazyImages, left_out
from jaxmatch.data.resident import Table
from jaxmatch.errors import InputError
from jaxmatch.models.inputs import normalize
from jaxmatch.program import Program
from jaxmatch.runtime.compilation import jit
from jaxmatch.runtime.hosts import leader
from jaxmatch.runtime.mesh import from_processes, over_batch, process_share, put, replicated
from jaxmatch.types import Array, Outputs, PyTree

# A multiple of a CPU's vector width on few devices: the last digits of other rows are different,
# and would depend on an image's place in its batch.
BATCH = 512
AT_A_TIME = 500_000  # logits of which the host computes probabilities in one piece: 4 MB

log = logging.getLogger(__name__)


class Answers(NamedTuple):
    """A network's outputs for n images."""

    values: PyTree  # arrays [n ...] in the images' order
    readable: np.ndarray  # [n] bool; the values of unreadable images are arbitrary


def never() -> None:
    """Does nothing between two batches."""


class Evaluate(Protocol):
    """Applies a network to images."""

    def __call__(
        self,
        variables: PyTree,
        images: Array | Images | Table,
        between: Callable[[], None] = never,
    ) -> Answers:
        """The outputs for ``images``, in order.

        Args:
            variables: of the network.
            images: [n h w c] uint8.
            between: called before each batch, equally often in all processes; what it raises ends
                the evaluation.
        """
        ...


def make_logits(program: Program, batch: int = BATCH) -> Evaluate:
    """A function (variables, images [n h w c] uint8) -> logits [n C].

    It leaves out unreadable LazyImages and logs their names once. It raises InputError, in all
    processes, if no image is readable, or, under ``data.strict``, if one is not.

    Args:
        program: its network, input scale, devices and ``data.strict``.
        batch: the number of images that all devices together compute at a time.
    """
    return _make(program, lambda outputs: outputs.logits, batch)


def make_scored(program: Program, batch: int = BATCH) -> Evaluate:
    """As :func:`make_logits`, with values (logits [n C], strangeness [n]) by the method's heads.

    The strangeness is None for a method without such heads
    (:meth:`jaxmatch.types.Algorithm.strangeness`).
    """
    strangeness = program.algorithm.strangeness
    return _make(program, lambda outputs: (outputs.logits, strangeness(outputs)), batch)


def probabilities(logits: Answers, temperature: float = 1.0) -> Answers:
    """softmax(logits / temperature) [n C] float32 of the ``logits`` [n C] of n images.

    The host computes it in float64, so that it does not depend on devices and batches. The class
    with the largest logit stays the most probable one: where rounding to float32 makes an earlier
    class as probable, its probability is the next larger number.
    """
    values = np.asarray(logits.values)
    parts = np.array_split(values, max(1, values.size // AT_A_TIME))
    return logits._replace(values=np.concatenate([_softmax(part, temperature) for part in parts]))


def _softmax(logits: np.ndarray, temperature: float) -> np.ndarray:
    values = logits.astype(np.float64)
    best = values.argmax(-1)
    with np.errstate(invalid="ignore"):  # those of unreadable images are arbitrary
        values -= values.max(-1, keepdims=True)
        values /= temperature
        np.exp(values, out=values)
        values /= values.sum(-1, keepdims=True)
        found = values.astype(np.float32)
    tied = np.flatnonzero(found.argmax(-1) != best)
    found[tied, best[tied]] = np.nextafter(found[tied, best[tied]], np.float32(1))
    return found


def make_features(program: Program, batch: int = BATCH, spread: bool = False) -> Evaluate:
    """A function (variables, images [n h w c] uint8) -> pooled features [n d].

    Args:
        program: as of :func:`make_logits`, which says what happens to unreadable images.
        batch: as of :func:`make_logits`.
        spread: leave the features on the devices: an array [p d] whose rows are split over the
            mesh. p is the next multiple of the mesh's size; rows from n on are arbitrary.
    """
    return _make(program, lambda outputs: outputs.features, batch, spread=spread)


def make_outputs(program: Program, batch: int = BATCH) -> Evaluate:
    """A function (variables, images [n h w c] uint8) -> {"features": [n d], "logits": [n C]}.

    One pass computes both. Arguments and errors are those of :func:`make_logits`.
    """
    return _make(
        program, lambda outputs: {"features": outputs.features, "logits": outputs.logits}, batch
    )


def make_embed(
    program: Program, batch: int = BATCH
) -> Callable[[PyTree, Array | Images | Table], dict[str, np.ndarray]]:
    """A function (variables, images [n h w c] uint8) -> heads [n ...] by name.

    In place of an unreadable one of LazyImages it embeds the next readable one, as training does,
    and logs the name once. Arguments and errors are those of :func:`make_logits`.
    """
    run = _make(program, lambda outputs: dict(outputs.heads), batch, replace=True)
    return lambda variables, images: run(variables, images).values


def _make(
    program: Program,
    read: Callable[[Outputs], PyTree],
    batch: int,
    *,
    replace: bool = False,
    spread: bool = False,
) -> Evaluate:
    """A function that applies the network to all images and keeps ``read(outputs)``, in order.

    Each device owns a block of successive images and takes some of them in each batch, so that
    outputs that stay on their device are in order. A block that ends early is filled up with
    images whose second output is dropped.

    Each process decodes the lazy images of its own devices. Every process learns which of them
    were not readable.
    """
    mesh, strict = program.mesh, program.config.data.strict
    named: set[str] = set()
    place = over_batch(mesh) if spread else replicated(mesh)

    def answers(variables: PyTree, images: Array) -> PyTree:
        views = normalize(images, program.mean, program.std)
        outputs, _ = program.network(variables, views, train=False)
        return jax.lax.with_sharding_constraint(read(outputs), place)

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

    def run(
        variables: PyTree,
        images: Array | Images | Table,
        between: Callable[[], None] = never,
    ) -> Answers:
        count = len(images)
        each, width = _block(count, batch, mesh.size)
        held: Table | None = None
        if not isinstance(images, LazyImages):
            table = images if isinstance(images, Table) else Table.of(images)
            held = put(table, replicated(mesh))
        first, own = process_share(mesh.size, mesh)
        blocks = each * np.arange(first, first + own)[:, None]
        parts: list[PyTree] = []
        states: list[Array] = []

        def fetch(position: int) -> None:
            """Wait for a batch, so that at most two are queued; move its outputs to the host."""
            if spread:
                jax.block_until_ready(parts[position])
            else:
                parts[position] = jax.device_get(parts[position])

        for start in range(0, each, width):
            between()
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
    """(images of ``count`` that each device owns, images that it computes at a time).

    All devices together compute ``batch`` of them, rounded up to a multiple of ``devices``.
    """
    each = -(-count // devices)
    return each, min(each, -(-batch // devices))


def _joined(parts: list[PyTree], mesh: Mesh, each: int) -> PyTree:
    """Concatenate the parts on each device, and keep the first ``each`` rows there."""
    rows = PartitionSpec("data")

    def join(parts: list[PyTree]) -> PyTree:
        return jax.tree.map(lambda *leaves: jnp.concatenate(leaves)[:each], *parts)

    return jit(jax.shard_map(join, mesh=mesh, in_specs=rows, out_specs=rows))(parts)


def _checked(
    images: LazyImages, state: np.ndarray, strict: bool, replaced: bool, named: set[str]
) -> np.ndarray:
    """Which images are readable [n] bool; logs the others, except those in ``named``.

    All processes pass the same ``state`` [n], so that all of them raise or none.

    Raises:
        InputError: if no image is readable, too many successive ones are not, or, with ``strict``,
            one is not.
    """
    readable = state == READ
    names = images.names(~readable)
    if names and strict:
        listed = left_out(images.records, images.rows[~readable].tolist(), images.levels)
        raise InputError(f"Not readable as images ({listed}).")
    lost = images.names(state == MISSING)
    if lost and (replaced or not readable.any()):
        some = f"{SUBSTITUTES} images from {lost[0]} on" if replaced else f"All {len(lost)} images"
        raise InputError(f"{some} are not readable; is the data set still there?")
    rows = dict(zip(names, images.rows[~readable].tolist(), strict=True))
    new = {name: row for name, row in rows.items() if name not in named}
    named.update(new)
    if new and leader():
        done = "Replaced by the next ones" if replaced else "Left out"
        listed = left_out(images.records, new.values(), images.levels)
        log.warning("%s, not readable as images (%s).", done, listed)
    return readable
