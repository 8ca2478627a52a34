"""Distribution alignment: predictions are rescaled so that their average follows a prior.

Berthelot et al., "ReMixMatch", ICLR 2020, section 3.1, https://arxiv.org/abs/1911.09785.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxmatch.functional.memory import Queue, filled, make_queue, push
from jaxmatch.types import Array


def align(log_probabilities: Array, marginal: Array, prior: Array | None = None) -> Array:
    """log of p_c prior_c / marginal_c, with rows normalised to sum to 1.

    Args:
        log_probabilities: log p [b C].
        marginal: [C], what the model predicts on average; classes it never predicts may be 0.
        prior: [C], what it should predict; uniform by default.

    Returns:
        [b C].
    """
    tiny = jnp.finfo(marginal.dtype).tiny
    shift = -jnp.log(jnp.maximum(marginal, tiny))
    if prior is not None:
        shift += jnp.log(jnp.maximum(prior, tiny))
    return jax.nn.log_softmax(log_probabilities + shift)


def make_history(length: int, classes: int) -> Queue:
    """An empty history of the average predictions of the last ``length`` batches."""
    return make_queue(length, marginal=classes)


def align_by_history(
    history: Queue, log_probabilities: Array, prior: Array | None = None
) -> tuple[Array, Queue]:
    """Record this batch's average, then align by the mean over the recorded ones.

    SimMatch's and CoMatch's form; rows not recorded yet do not count.

    Args:
        history: from :func:`make_history`.
        log_probabilities: [b C]; no gradient passes into the history.
        prior: [C]; uniform by default.

    Returns:
        Aligned log probabilities [b C] and the new history.
    """
    average = jnp.exp(log_probabilities).mean(0)
    history = push(history, {"marginal": average[None]})
    recorded = filled(history)[:, None]
    total = jnp.where(recorded, history.rows["marginal"], 0.0).sum(0)
    return align(log_probabilities, total / history.filled, prior), history


def align_by_average(
    average: Array, log_probabilities: Array, momentum: float, prior: Array | None = None
) -> tuple[Array, Array]:
    """Align by the moving average [C] of earlier batches, then let this batch's average enter it.

    SimMatchV2's form: the current batch only counts from the next step on.
    """
    batch = jax.lax.stop_gradient(jnp.exp(log_probabilities).mean(0))
    aligned = align(log_probabilities, average, prior)
    return aligned, (momentum * average + (1 - momentum) * batch).astype(average.dtype)


class Marginal(NamedTuple):
    """A moving average of the average predictions of batches."""

    average: Array  # [C]
    started: Array  # [] bool; until then the next batch becomes the average


def make_marginal(classes: int, start: Array | None = None) -> Marginal:
    """An average that begins at ``start`` [C], by default at the first batch's."""
    begins = jnp.zeros(classes, float) if start is None else start
    return Marginal(begins, jnp.full((), start is not None))


def update_marginal(marginal: Marginal, probabilities: Array, momentum: float) -> Marginal:
    """Let the average of ``probabilities`` [b C] enter; no gradient passes into it."""
    batch = jax.lax.stop_gradient(probabilities.mean(0))
    kept = jnp.where(marginal.started, momentum, 0.0)
    average = kept * marginal.average + (1 - kept) * batch
    return Marginal(average.astype(marginal.average.dtype), jnp.ones_like(marginal.started))


def sharpen(log_probabilities: Array, temperature: float) -> Array:
    """log of p_c^(1/T), with rows normalised to sum to 1; no normalisation is asked of ``p``.

    MixMatch: Berthelot et al., NeurIPS 2019, eq. 7, https://arxiv.org/abs/1905.02249.

    Args:
        log_probabilities: log p [b C].
        temperature: T, positive; 1 changes nothing, towards 0 rows become one-hot.

    Returns:
        [b C].
    """
    return jax.nn.log_softmax(log_probabilities / temperature)
