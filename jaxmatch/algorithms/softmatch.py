"""SoftMatch: a pseudo-label counts less, the further its confidence is below the average.

Chen et al., "SoftMatch: Addressing the Quantity-Quality Trade-off in Semi-supervised Learning",
ICLR 2023, https://arxiv.org/abs/2301.10921.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxmatch.algorithms._consistency import pseudo_label, weak_strong, weighted_cross_entropy
from jaxmatch.functional.alignment import Marginal, align, make_marginal, update_marginal
from jaxmatch.functional.diagnostics import pseudo_label_metrics
from jaxmatch.functional.thresholds import (
    Gaussian,
    make_gaussian,
    truncated_gaussian_weight,
    update_gaussian,
)
from jaxmatch.functional.unequal import class_frequencies
from jaxmatch.settings import Momentum, NonNegative, Positive, section
from jaxmatch.types import Algorithm, Array, Inputs, Spec, Update


class Memory(NamedTuple):
    """Moving averages over the steps."""

    gaussian: Gaussian  # of the aligned confidences
    marginal: Marginal  # of the predictions on weak views
    prior: Marginal  # of the predictions on labeled images; constant if the prior is uniform


@section("algorithm")
class SoftMatch(Algorithm):
    """The loss is supervised + unlabeled_weight * unsupervised.

    Attributes:
        deviations: n; the weight of a pseudo-label falls as a Gaussian with the standard deviation
            of the confidences divided by n.
        momentum: m, the share of the old averages that stays at each step.
        prior: class frequencies that predictions are aligned to: "uniform", or "labeled", the
            moving average of the predictions on labeled images, or "labels", their frequencies.
        unlabeled_weight: weight of the unsupervised loss, lambda_u.
        hard_labels: the target is the argmax of the prediction; otherwise it is the distribution
            softmax(z / temperature).
        temperature: T of soft targets; 1 does not sharpen them.
    """

    deviations: Positive = 2.0
    momentum: Momentum = 0.999
    prior: Literal["uniform", "labeled", "labels"] = "uniform"
    unlabeled_weight: NonNegative = 1.0
    hard_labels: bool = True
    temperature: Positive = 1.0

    labeled = ("weak",)
    unlabeled = ("weak", "strong")

    def init(self, key: Array, spec: Spec) -> Memory:
        """The confidence 1 / C, a wide Gaussian, and uniform averages."""
        uniform = jnp.full(spec.classes, 1 / spec.classes, float)
        return Memory(
            make_gaussian(spec.classes),
            make_marginal(spec.classes),
            make_marginal(spec.classes, uniform),
        )

    def objective(self, given: Inputs) -> tuple[Array, Update]:
        """mean H(y, p(w(x))) + lambda_u mean weight(max q') H(c, p(s(u))), c = argmax q.

        q = p(w(u)) and q' is q after alignment, which only the weight uses. All averages include
        this step.
        """
        gaussian, marginal, prior = given.memory
        on = weak_strong(given)
        log_weak = jax.nn.log_softmax(on.weak)
        marginal = update_marginal(marginal, jnp.exp(log_weak), self.momentum)
        if self.prior == "labeled":
            on_labeled = jax.nn.softmax(jax.lax.stop_gradient(on.labeled))
            prior = update_marginal(prior, on_labeled, self.momentum)
        target_prior = prior.average
        if self.prior == "labels":
            target_prior = class_frequencies(given.spec.labels, given.spec.classes)
        log_aligned = align(log_weak, marginal.average, target_prior)

        confidence = jnp.exp(log_aligned).max(-1)
        gaussian = update_gaussian(gaussian, confidence, self.momentum)
        weight = truncated_gaussian_weight(confidence, gaussian, self.deviations)
        target = pseudo_label(on.weak, self.hard_labels, self.temperature)
        unsupervised = weighted_cross_entropy(on.strong, target, weight)
        loss = on.supervised + self.unlabeled_weight * unsupervised
        return loss, Update(
            on.stats,
            {
                "loss/supervised": on.supervised,
                "loss/unsupervised": unsupervised,
                "pseudo/threshold": gaussian.mean,
                **pseudo_label_metrics(on.weak, weight, given.unlabeled.label, on.strong),
            },
            Memory(gaussian, marginal, prior),
        )
