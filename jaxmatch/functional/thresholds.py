"""Thresholds and weights of pseudo-labels that adapt during training.

FlexMatch's thresholds follow the number of confident examples of each class. FreeMatch's and
AdaMatch's follow the confidence of the model. SoftMatch's weights compare a confidence with the
average confidence.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from jaxmatch.types import Array

# FreeMatch's term takes the logarithm of shares that may be 0.
SMALLEST_SHARE = 1e-12


def learning_effect(
    counts: Int[Array, "C"], unselected: Int[Array, ""] | int = 0
) -> Float[Array, "C"]:
    """beta_c = n_c / max(max_k n_k, n_-1), in [0, 1]; 0 for all while nothing is counted.

    Zhang et al., "FlexMatch", NeurIPS 2021, sections 3.1 and 3.2.

    >>> print(learning_effect(jnp.array([4, 1, 0]), unselected=8))
    [0.5   0.125 0.   ]

    Args:
        counts: n, the number of examples whose last confident prediction was each class.
        unselected: n_-1, the number of examples that never had a confident prediction; with 0
            there is no threshold warm-up.
    """
    counts = jnp.asarray(counts, float)
    return counts / jnp.maximum(jnp.maximum(counts.max(), unselected), 1)


def flexible_thresholds(threshold: float, effect: Float[Array, "C"]) -> Float[Array, "C"]:
    """tau_c = tau beta_c / (2 - beta_c), FlexMatch's convex mapping of ``effect`` in [0, 1].

    >>> print(flexible_thresholds(0.9, jnp.array([1.0, 0.5, 0.0])).round(2))
    [0.9 0.3 0. ]
    """
    return threshold * effect / (2 - effect)


class SelfAdaptive(NamedTuple):
    """FreeMatch's moving averages over batches of weak views."""

    confidence: Float[Array, ""]  # of the largest probability
    probabilities: Float[Array, "C"]  # p~, of the prediction
    histogram: Float[Array, "C"]  # h~, of the share of each class among the argmaxes


def make_self_adaptive(classes: int) -> SelfAdaptive:
    """Start all averages at 1 / C.

    >>> print(make_self_adaptive(4).confidence)
    0.25
    """
    uniform = jnp.full(classes, 1 / classes, float)
    return SelfAdaptive(uniform[0], uniform, uniform)


def update_self_adaptive(
    averages: SelfAdaptive, probabilities: Float[Array, "b C"], momentum: float
) -> SelfAdaptive:
    """Let a batch of predictions enter; no gradient passes into the averages.

    >>> batch = jnp.array([[0.9, 0.1]])
    >>> print(update_self_adaptive(make_self_adaptive(2), batch, momentum=0.5).confidence)
    0.7
    """
    probabilities = jax.lax.stop_gradient(probabilities)
    shares = jax.nn.one_hot(probabilities.argmax(-1), probabilities.shape[1]).mean(0)
    batch = SelfAdaptive(probabilities.max(-1).mean(), probabilities.mean(0), shares)
    return SelfAdaptive(*(_moved(*pair, momentum) for pair in zip(averages, batch, strict=True)))


def self_adaptive_thresholds(averages: SelfAdaptive) -> Float[Array, "C"]:
    """tau_c = t p~_c / max_k p~_k with the average confidence t.

    Wang et al., "FreeMatch", ICLR 2023, self-adaptive thresholding.

    >>> averages = SelfAdaptive(jnp.array(0.8), jnp.array([0.6, 0.3]), jnp.array([0.5, 0.5]))
    >>> print(self_adaptive_thresholds(averages))
    [0.8 0.4]
    """
    return averages.confidence * averages.probabilities / averages.probabilities.max()


def self_adaptive_fairness(
    logits: Float[Array, "b C"], selected: Bool[Array, "b"], averages: SelfAdaptive
) -> Float[Array, ""]:
    """FreeMatch's sum_c P_c log Q_c in nats; 0 if nothing is selected.

    P = normalize(p~ / h~) is constant. Q = normalize(a / b) with the average prediction a of the
    selected strong views and the share b of each class among their argmaxes. Ratios over 0 are 0.
    The sum is lowest where Q lacks classes that P expects. TorchSSL and USB add it to the loss with
    a plus sign, and so do we.

    >>> averages = make_self_adaptive(2)
    >>> logits, selected = jnp.array([[2.0, 0.0], [0.0, 2.0]]), jnp.ones(2, bool)
    >>> print(self_adaptive_fairness(logits, selected, averages).round(2))
    -0.69

    Args:
        logits: of strong views; gradients reach them through a.
        selected: which examples are confident.
        averages: of weak views, this batch's included.
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

    mean: Float[Array, ""]
    variance: Float[Array, ""]


def make_gaussian(classes: int) -> Gaussian:
    """Start at mean 1 / C and variance 1.

    >>> print(make_gaussian(4).mean)
    0.25
    """
    return Gaussian(jnp.full((), 1 / classes, float), jnp.ones((), float))


def update_gaussian(gaussian: Gaussian, confidence: Float[Array, "b"], momentum: float) -> Gaussian:
    """Let the mean and the unbiased variance of a batch of confidences enter.

    >>> print(update_gaussian(make_gaussian(2), jnp.array([1.0, 0.8]), momentum=0.5).mean)
    0.7
    """
    confidence = jax.lax.stop_gradient(confidence)
    mean = confidence.mean()
    variance = jnp.square(confidence - mean).sum() / max(1, len(confidence) - 1)
    return Gaussian(
        _moved(gaussian.mean, mean, momentum), _moved(gaussian.variance, variance, momentum)
    )


def truncated_gaussian_weight(
    confidence: Float[Array, "b"], gaussian: Gaussian, deviations: float
) -> Float[Array, "b"]:
    """exp(-min(q - mu, 0)^2 n^2 / (2 sigma^2)), which is 1 from the mean on.

    Chen et al., "SoftMatch", ICLR 2023, truncated Gaussian, with the n of TorchSSL's and USB's
    code.

    >>> gaussian = Gaussian(jnp.array(0.8), jnp.array(0.04))
    >>> print(truncated_gaussian_weight(jnp.array([0.9, 0.6]), gaussian, deviations=2).round(2))
    [1.   0.14]

    Args:
        confidence: q.
        gaussian: mu and sigma^2.
        deviations: n; the Gaussian is n times narrower than sigma.
    """
    below = jnp.minimum(confidence - gaussian.mean, 0.0)
    variance = jnp.maximum(gaussian.variance, jnp.finfo(gaussian.variance.dtype).tiny)
    return jnp.exp(-jnp.square(below * deviations) / (2 * variance))


def relative_threshold(probabilities: Float[Array, "b C"], share: float) -> Float[Array, ""]:
    """``share`` times the average confidence on labeled weak views, in [0, 1].

    Berthelot et al., "AdaMatch", ICLR 2022, relative confidence threshold.

    >>> print(relative_threshold(jnp.array([[0.9, 0.1], [0.3, 0.7]]), 0.9))
    0.72

    Args:
        probabilities: predictions on labeled images.
        share: tau, in (0, 1].
    """
    return share * probabilities.max(-1).mean()


def _moved(average: Array, batch: Array, momentum: float) -> Array:
    return (momentum * average + (1 - momentum) * batch).astype(average.dtype)


def _normalized_ratio(above: Array, below: Array) -> Array:
    """above / below as shares of their sum, each 0 where ``below`` is."""
    ratio = jnp.where(below > 0, above / jnp.where(below > 0, below, 1.0), 0.0)
    total = ratio.sum()
    return ratio / jnp.where(total > 0, total, 1.0)
