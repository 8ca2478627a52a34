"""Quirks of the references that neither a preset memory nor an option of the library reaches."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp

from experiments.parity.entries import Override
from experiments.parity.functions_alignment import USB_EPSILON
from jaxmatch.algorithms import comatch, simmatch, simmatch_v2
from jaxmatch.functional import alignment, memory
from jaxmatch.functional.memory import Queue
from jaxmatch.functional.similarity import normalize
from jaxmatch.types import Array, Inputs, PyTree, Update


def align_with_epsilon() -> Override:
    """USB adds 1e-6 to both averages, which beside a queue of mostly zeros does not cancel."""
    library = alignment.align

    def align(log_probabilities: Array, marginal: Array, prior: Array | None = None) -> Array:
        return library(log_probabilities, marginal + USB_EPSILON, prior)

    return Override(alignment, "align", align)


def normalize_across_batch() -> Override:
    """USB's bank stores columns and normalises its default axis, which is that of the batch."""
    return Override(memory, "normalize", lambda embeddings: normalize(embeddings.T).T)


def no_alignment() -> Override:
    """SimMatchV2 without alignment."""

    def align_by_average(
        average: Array, log_probabilities: Array, momentum: float, prior: Array | None = None
    ) -> tuple[Array, Array]:
        del momentum, prior
        return log_probabilities, average

    return Override(simmatch_v2, "align_by_average", align_by_average)


def drop_infinite_loss() -> Override:
    """SimMatchV2's queue starts with probabilities of 0, whose infinite loss becomes 0.

    The library's queue starts without rows; the loss of rows that say nothing is finite and has no
    gradient.
    """
    library = simmatch_v2.SimMatchV2.objective

    def objective(self: simmatch_v2.SimMatchV2, given: Inputs) -> tuple[Array, Update]:
        value, update = library(self, given)
        silent = ~jnp.any(given.memory.queue.rows["probabilities"])
        metrics: dict[str, Any] = dict(update.metrics)
        term = jnp.where(silent, metrics["loss/node_edge"], 0.0)
        metrics["loss/node_edge"] -= term
        return value - self.node_edge_weight * term, update._replace(metrics=metrics)

    return Override(simmatch_v2.SimMatchV2, "objective", objective)


def usb_forward(together: bool, teacher: bool) -> Override:
    """USB's passes for SimMatch.

    Args:
        together: one pass over all views; otherwise one each in the order labeled, weak, strong
            (the library's separate passes take targets last).
        teacher: what enters the bank is seen with the teacher's parameters, but in train mode and
            with the student's running statistics, which are updated once more.
    """

    def forward(self: simmatch.SimMatch, given: Inputs) -> simmatch.Forward:
        views, stats, seen = given.batch.views, given.state.stats, []
        for group in [views] if together else [(view,) for view in views]:
            outputs, stats = given.student(group, stats)
            seen += outputs
        on_x, on_weak, on_strong = seen
        remembered = on_x
        if teacher:
            average = jax.lax.stop_gradient(given.state.teacher["params"])
            (remembered,), stats = given._replace(params=average).student(views[:1], stats)
        return simmatch.Forward(on_x, on_weak, on_strong, remembered, stats)

    return Override(simmatch.SimMatch, "forward", forward)


def two_temperatures(teacher: float, student: float) -> Override:
    """The authors' SimMatch has a temperature for each of the two similarities."""
    library, temperatures = simmatch.log_similarity, itertools.cycle((teacher, student))

    def log_similarity(queries: Array, keys: Array, temperature: float, valid: Array) -> Array:
        del temperature
        return library(queries, keys, next(temperatures), valid)

    return Override(simmatch, "log_similarity", log_similarity)


def push_without_wrap(batches: int) -> Override:
    """USB drops rows that overrun its queue's end, yet moves the pointer as if they had wrapped.

    USB pushes the ``batches`` of one step at once, the library one after the other: the pointer
    starts inside the queue and may leave it until the next step.
    """
    calls = [0]

    def push(queue: Queue, rows: PyTree) -> Queue:
        size, count = (jax.tree.leaves(tree)[0].shape[0] for tree in (queue.rows, rows))
        start = queue.pointer % size if calls[0] % batches == 0 else queue.pointer
        calls[0] += 1
        at = start + jnp.arange(count)
        written = jax.tree.map(
            lambda old, new: old.at[at].set(jax.lax.stop_gradient(new), mode="drop"),
            queue.rows,
            rows,
        )
        return Queue(written, start + count, queue.filled)

    return Override(comatch, "push", push)
