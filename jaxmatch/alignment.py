"""Distribution alignment: predictions are rescaled so that their average follows a prior.

Berthelot et al., "ReMixMatch", ICLR 2020, section 3.1, https://arxiv.org/abs/1911.09785.
"""

import jax
import jax.numpy as jnp

from jaxmatch.memory import Queue, filled, make_queue, push
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
