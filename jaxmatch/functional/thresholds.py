"""Which pseudo-labels count, and how much: thresholds and weights that follow the training.

FlexMatch's thresholds follow how many examples each class has won, FreeMatch's and AdaMatch's how
confident the model is, and SoftMatch's weights where a confidence stands among the others.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxmatch.types import Array

# FreeMatch's term takes the logarithm of shares that may be 0.
SMALLEST_SHARE = 1e-12


def learning_effect(counts: Array, unselected: Array | int = 0) -> Array:
    """beta_c = n_c / max(max_k n_k, n_-1), 0 for all while nothing is counted.

    Zhang et al., "FlexMatch", NeurIPS 2021, sections 3.1 and 3.2.

    Args:
        counts: n [C] integers, examples whose last confident prediction was each class.
        unselected: n_-1, examples that never had one; with 0 there is no threshold warm-up.

    Returns:
        [C] in [0, 1].
    """
    counts = jnp.asarray(counts, float)
    return counts / jnp.maximum(jnp.maximum(counts.max(), unselected), 1)


def flexible_thresholds(threshold: float, effect: Array) -> Array:
    """tau_c = tau beta_c / (2 - beta_c), FlexMatch's convex mapping of ``effect`` [C] in [0, 1]."""
    return threshold * effect / (2 - effect)


class SelfAdaptive(NamedTuple):
    """FreeMatch's moving averages over batches of weak views."""

    confidence: Array  # [] of the largest probability
    probabilities: Array  # [C] p~, of the prediction
    histogram: Array  # [C] h~, of the share of each class among the most probable ones


def make_self_adaptive(classes: int) -> SelfAdaptive:
    """All averages at 1 / C."""
    uniform = jnp.full(classes, 1 / classes, float)
    return SelfAdaptive(uniform[0], uniform, uniform)


def update_self_adaptive(
    averages: SelfAdaptive, probabilities: Array, momentum: float
) -> SelfAdaptive:
    """Let a batch of predictions [b C] enter; no gradient passes into the averages."""
    probabilities = jax.lax.stop_gradient(probabilities)
    shares = jax.nn.one_hot(probabilities.argmax(-1), probabilities.shape[1]).mean(0)
    batch = SelfAdaptive(probabilities.max(-1).mean(), probabilities.mean(0), shares)
    return SelfAdaptive(*(_moved(*pair, momentum) for pair in zip(averages, batch, strict=True)))


def self_adaptive_thresholds(averages: SelfAdaptive) -> Array:
    """tau_c = t p~_c / max_k p~_k [C], of the average confidence t.

    Wang et al., "FreeMatch", ICLR 2023, self-adaptive thresholding.
    """
    return averages.confidence * averages.probabilities / averages.probabilities.max()


def self_adaptive_fairness(logits: Array, selected: Array, averages: SelfAdaptive) -> Array:
    """FreeMatch's sum_c P_c log Q_c, which is lowest where Q leaves out what P expects.

    P = normalize(p~ / h~) is constant, Q = normalize(a / b) with the average prediction a of the
    selected strong views and the share b of each class among their most probable ones. Ratios over
    0 are 0. TorchSSL and USB add this to the loss with a plus sign, as is done here.

    Args:
        logits: [b C] of strong views; gradients reach them through a.
        selected: [b] bool.
        averages: of weak views, this batch's included.

    Returns:
        [] nats; 0 if nothing is selected.
    """
    count = jnp.maximum(selected.sum(), 1)
    probabilities = jax.nn.softmax(logits)
    hard = jax.nn.one_hot(probabilities.argmax(-1), logits.shape[1], dtype=logits.dtype)
    average, shares = (
        jnp.where(selected[:, None], rows, 0.0).sum(0) / count for rows in (probabilities, hard)
    )
    expected = _normalized_ratio(averages.probabilities, averages.histogram)
    predicted = _normalized_ratio(average, shares)
    fairness = jnp.sum(expected * jnp.log(predicted + SMALLEST_SHARE))
    return jnp.where(selected.any(), fairness, 0.0)


class Gaussian(NamedTuple):
    """SoftMatch's moving averages over batches of confidences."""

    mean: Array  # []
    variance: Array  # []


def make_gaussian(classes: int) -> Gaussian:
    """Mean 1 / C and variance 1."""
    return Gaussian(jnp.full((), 1 / classes, float), jnp.ones((), float))


def update_gaussian(gaussian: Gaussian, confidence: Array, momentum: float) -> Gaussian:
    """Let the mean and the unbiased variance of a batch of confidences [b] enter."""
    confidence = jax.lax.stop_gradient(confidence)
    mean = confidence.mean()
    variance = jnp.square(confidence - mean).sum() / max(1, len(confidence) - 1)
    return Gaussian(
        _moved(gaussian.mean, mean, momentum), _moved(gaussian.variance, variance, momentum)
    )


def truncated_gaussian_weight(confidence: Array, gaussian: Gaussian, deviations: float) -> Array:
    """exp(-min(q - mu, 0)^2 n^2 / (2 sigma^2)), so 1 from the mean on.

    Chen et al., "SoftMatch", ICLR 2023, truncated Gaussian, with the n of TorchSSL's and USB's
    code.

    Args:
        confidence: q [b].
        gaussian: mu and sigma^2.
        deviations: n, by which the Gaussian is narrower than sigma.

    Returns:
        [b] in [0, 1].
    """
    below = jnp.minimum(confidence - gaussian.mean, 0.0)
    variance = jnp.maximum(gaussian.variance, jnp.finfo(gaussian.variance.dtype).tiny)
    return jnp.exp(-jnp.square(below * deviations) / (2 * variance))


def relative_threshold(probabilities: Array, share: float) -> Array:
    """``share`` of the average confidence on labeled weak views.

    Berthelot et al., "AdaMatch", ICLR 2022, relative confidence threshold.

    Args:
        probabilities: [b C] predictions on labeled images.
        share: tau, in (0, 1].

    Returns:
        [] in [0, 1].
    """
    return share * probabilities.max(-1).mean()


def _moved(average: Array, batch: Array, momentum: float) -> Array:
    return (momentum * average + (1 - momentum) * batch).astype(average.dtype)


def _normalized_ratio(above: Array, below: Array) -> Array:
    """above / below as shares of their sum, each 0 where ``below`` is."""
    ratio = jnp.where(below > 0, above / jnp.where(below > 0, below, 1.0), 0.0)
    total = ratio.sum()
    return ratio / jnp.where(total > 0, total, 1.0)
