"""Distribution alignment: predictions are rescaled so that their average follows a prior.

Berthelot et al., "ReMixMatch", ICLR 2020, section 3.1, https://arxiv.org/abs/1911.09785.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from jaxmatch.functional.memory import Queue, filled, make_queue, push
from jaxmatch.functional.unequal import class_frequencies
from jaxmatch.types import Array, Spec


def align(
    log_probabilities: Float[Array, "b C"],
    marginal: Float[Array, "C"],
    prior: Float[Array, "C"] | None = None,
) -> Float[Array, "b C"]:
    """log of p_c prior_c / marginal_c, with rows normalised to sum to 1.

    >>> aligned = align(jnp.log(jnp.array([[0.5, 0.5]])), jnp.array([0.8, 0.2]))
    >>> print(jnp.exp(aligned).round(2))
    [[0.2 0.8]]

    Args:
        log_probabilities: log p.
        marginal: what the model predicts on average; classes that it never predicts may be 0.
        prior: what it should predict on average; uniform by default.
    """
    tiny = jnp.finfo(marginal.dtype).tiny
    shift = -jnp.log(jnp.maximum(marginal, tiny))
    if prior is not None:
        shift += jnp.log(jnp.maximum(prior, tiny))
    return jax.nn.log_softmax(log_probabilities + shift)


def alignment_prior(spec: Spec, kind: Literal["uniform", "labels"]) -> Float[Array, "C"] | None:
    """The prior of :func:`align`: None for "uniform", else the frequencies of the run's labels.

    >>> print(alignment_prior(Spec(classes=2, steps=1, labels=(0, 0, 0, 1)), "labels"))
    [0.75 0.25]
    """
    return class_frequencies(spec.labels, spec.classes) if kind == "labels" else None


def make_history(length: int, classes: int) -> Queue:
    """An empty history of the average predictions of the last ``length`` batches.

    >>> make_history(8, classes=3).rows["marginal"].shape
    (8, 3)
    """
    return make_queue(length, marginal=classes)


def align_by_history(
    history: Queue,
    log_probabilities: Float[Array, "b C"],
    prior: Float[Array, "C"] | None = None,
) -> tuple[Float[Array, "b C"], Queue]:
    """Record this batch's average, then align by the mean over the recorded ones.

    SimMatch and CoMatch align so. Empty rows of the history do not count.

    >>> batch = jnp.log(jnp.array([[0.8, 0.2], [0.6, 0.4]]))
    >>> aligned, history = align_by_history(make_history(8, classes=2), batch)
    >>> print(history.rows["marginal"][0].round(2), jnp.exp(aligned).round(2)[0])
    [0.7 0.3] [0.63 0.37]

    Args:
        history: from :func:`make_history`.
        log_probabilities: log p; no gradient passes into the history.
        prior: as in :func:`align`.

    Returns:
        Aligned log probabilities and the new history.
    """
    average = jnp.exp(log_probabilities).mean(0)
    history = push(history, {"marginal": average[None]})
    recorded = filled(history)[:, None]
    total = jnp.where(recorded, history.rows["marginal"], 0.0).sum(0)
    return align(log_probabilities, total / history.filled, prior), history


def align_by_average(
    average: Float[Array, "C"],
    log_probabilities: Float[Array, "b C"],
    momentum: float,
    prior: Float[Array, "C"] | None = None,
) -> tuple[Float[Array, "b C"], Float[Array, "C"]]:
    """Align by the moving average of earlier batches, then let this batch's average enter it.

    SimMatchV2 aligns so: the current batch counts from the next step on.

    >>> batch = jnp.log(jnp.array([[0.8, 0.2]]))
    >>> aligned, average = align_by_average(jnp.array([0.5, 0.5]), batch, momentum=0.9)
    >>> print(jnp.exp(aligned).round(2), average.round(2))
    [[0.8 0.2]] [0.53 0.47]

    Returns:
        Aligned log probabilities and the new average.
    """
    batch = jax.lax.stop_gradient(jnp.exp(log_probabilities).mean(0))
    aligned = align(log_probabilities, average, prior)
    return aligned, (momentum * average + (1 - momentum) * batch).astype(average.dtype)


class Marginal(NamedTuple):
    """A moving average of the average predictions of batches."""

    average: Float[Array, "C"]
    started: Bool[Array, ""]  # until then the next batch becomes the average


def make_marginal(classes: int, start: Float[Array, "C"] | None = None) -> Marginal:
    """An average that begins at ``start``, by default at the average of the first batch.

    >>> print(make_marginal(2).started, make_marginal(2, jnp.array([0.5, 0.5])).started)
    False True
    """
    begins = jnp.zeros(classes, float) if start is None else start
    return Marginal(begins, jnp.full((), start is not None))


def update_marginal(
    marginal: Marginal, probabilities: Float[Array, "b C"], momentum: float
) -> Marginal:
    """Let the average of a batch enter; no gradient passes into the average.

    >>> marginal = make_marginal(2, jnp.array([0.5, 0.5]))
    >>> print(update_marginal(marginal, jnp.array([[1.0, 0.0]]), momentum=0.9).average)
    [0.55 0.45]
    """
    batch = jax.lax.stop_gradient(probabilities.mean(0))
    kept = jnp.where(marginal.started, momentum, 0.0)
    average = kept * marginal.average + (1 - kept) * batch
    return Marginal(average.astype(marginal.average.dtype), jnp.ones_like(marginal.started))


def sharpen(log_probabilities: Float[Array, "b C"], temperature: float) -> Float[Array, "b C"]:
    """log of p_c^(1/T), with rows normalised to sum to 1; ``p`` need not be normalised.

    MixMatch: Berthelot et al., NeurIPS 2019, eq. 7, https://arxiv.org/abs/1905.02249.

    >>> print(jnp.exp(sharpen(jnp.log(jnp.array([[0.6, 0.4]])), 0.5)).round(2))
    [[0.69 0.31]]

    Args:
        log_probabilities: log p.
        temperature: T, positive; 1 changes nothing, and towards 0 rows become one-hot.
    """
    return jax.nn.log_softmax(log_probabilities / temperature)
