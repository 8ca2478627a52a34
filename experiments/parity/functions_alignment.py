"""Replays USB's distribution alignment: its moving averages and its queues of batch averages."""

from collections.abc import Callable
from functools import partial
from unittest import mock

import jax.numpy as jnp

from experiments.parity.rows import Case, Comparison, UnknownCaseError
from jaxmatch.functional import alignment
from jaxmatch.functional.memory import Queue, push
from jaxmatch.types import Array

# USB adds this to both averages; beside a queue of mostly zero rows it does not cancel.
USB_EPSILON = 1e-6
OVERRIDE = "override: align"


def replay(case: Case, comparison: Comparison) -> None:
    """All sequences ``out/<ema or queue>/<target>/<momentum or length>`` of a case."""
    log_unlabeled = jnp.log(jnp.asarray(case["in/probs_x_ulb"]))  # [calls b C]
    log_labeled = jnp.log(jnp.asarray(case["in/probs_x_lb"]))
    given = jnp.asarray(case["in/p_target_gt"])  # [C]
    for tag in sorted({name.rsplit("/", 1)[0] for name in case.names("out/")}):
        hook, target, setting = tag.split("/")
        if hook not in HOOKS or target not in ("uniform", "model", "gt"):
            raise UnknownCaseError(f"there is no replay of alignment {tag!r}")
        uniform = jnp.full_like(given, 1 / len(given))
        prior = given if target == "gt" else uniform
        learned = log_labeled if target == "model" else None
        ours = HOOKS[hook](log_unlabeled, learned, prior, float(setting[1:]))
        theirs = case.under(f"out/{tag}/")
        for name, value in theirs.items():
            source = OVERRIDE if name == "aligned" else "library"
            comparison.add(f"out/{hook}/{name}", tag, ours.get(name, jnp.nan), value, source)


def moving_average(
    log_unlabeled: Array, log_labeled: Array | None, prior: Array, momentum: float
) -> dict[str, Array]:
    """The averages start as the first batch's; a batch enters its average before it is aligned.

    Args:
        log_unlabeled: log probabilities [calls b C].
        log_labeled: [calls b C], whose average is the prior, or None to keep ``prior``.
        prior: [C].
        momentum: of both averages.

    Returns:
        By the names of the file; each led by [calls].
    """
    average, aligned, averages, priors = prior, [], [], []
    for call, log_probabilities in enumerate(log_unlabeled):
        kept = momentum if call else 0.0
        _, average = alignment.align_by_average(average, log_probabilities, kept)
        if log_labeled is not None:
            _, prior = alignment.align_by_average(prior, log_labeled[call], momentum)
        aligned.append(jnp.exp(align(log_probabilities, average, prior)))
        averages.append(average)
        priors.append(prior)
    return {
        "aligned": jnp.stack(aligned),
        "p_model": jnp.stack(averages),
        "p_target": jnp.stack(priors),
    }


def queue(
    log_unlabeled: Array, log_labeled: Array | None, prior: Array, length: float
) -> dict[str, Array]:
    """A queue that counts as full from the start, so that its zero rows enter the mean.

    Arguments as of :func:`moving_average`; returns its names, the last state in place of all.
    """
    classes = len(prior)

    def full(rows: Array) -> Queue:
        return Queue({"marginal": rows}, jnp.int32(0), jnp.int32(length))

    history = full(jnp.zeros((int(length), classes)))
    wanted = full(jnp.tile(prior, (int(length), 1)))
    if log_labeled is not None:
        wanted = full(jnp.zeros((int(length), classes)))
    aligned = []
    with mock.patch.object(alignment, "align", align):
        for call, log_probabilities in enumerate(log_unlabeled):
            if log_labeled is not None:
                wanted = push(wanted, {"marginal": jnp.exp(log_labeled[call]).mean(0)[None]})
            mean = wanted.rows["marginal"].mean(0)
            log_aligned, history = alignment.align_by_history(history, log_probabilities, mean)
            aligned.append(jnp.exp(log_aligned))
    return {
        "aligned": jnp.stack(aligned),
        "p_model_final": history.rows["marginal"],
        "p_target_final": wanted.rows["marginal"],
        "ptr_final": history.pointer[None],
    }


def padded(
    library: Callable[..., Array], log_probabilities: Array, marginal: Array, prior: Array
) -> Array:
    """The library's ``align`` with USB's epsilon added to both averages."""
    return library(log_probabilities, marginal + USB_EPSILON, prior + USB_EPSILON)


align = partial(padded, alignment.align)
HOOKS = {"ema": moving_average, "queue": queue}
