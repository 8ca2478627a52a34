"""AdaMatch: an aligned prediction counts if it is about as confident as those on labeled images.

Berthelot et al., "AdaMatch: A Unified Approach to Semi-Supervised Learning and Domain Adaptation",
ICLR 2022, https://arxiv.org/abs/2106.04732.
"""

from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp

from jaxmatch.algorithms._consistency import pseudo_label, weak_strong, weighted_cross_entropy
from jaxmatch.functional.alignment import Marginal, align, make_marginal, update_marginal
from jaxmatch.functional.diagnostics import pseudo_label_metrics
from jaxmatch.functional.thresholds import relative_threshold
from jaxmatch.settings import Momentum, NonNegative, Positive, Range, section
from jaxmatch.types import Algorithm, Array, Inputs, Spec, Update


class Memory(NamedTuple):
    """Moving averages of predictions on weak views."""

    labeled: Marginal
    unlabeled: Marginal


@section("algorithm")
class AdaMatch(Algorithm):
    """The loss is supervised + unlabeled_weight * unsupervised.

    The form of USB for semi-supervised learning: the passes of FixMatch with alignment and the
    relative threshold. The authors also interpolate labeled logits and ramp the weight up.

    Attributes:
        threshold: tau, a multiple of the average confidence on the labeled images of the batch.
        momentum: the share of the old average predictions that stays at each step.
        unlabeled_weight: weight of the unsupervised loss.
        hard_labels: the target is the argmax of the aligned prediction; otherwise it is that
            prediction, sharpened.
        temperature: T of soft targets; 1 does not sharpen them.
    """

    threshold: Annotated[float, Range(least=0, most=2)] = 0.95
    momentum: Momentum = 0.999
    unlabeled_weight: NonNegative = 1.0
    hard_labels: bool = True
    temperature: Positive = 1.0

    labeled = ("weak",)
    unlabeled = ("weak", "strong")

    def init(self, key: Array, spec: Spec) -> Memory:
        """Uniform averages."""
        uniform = jnp.full(spec.classes, 1 / spec.classes, float)
        return Memory(make_marginal(spec.classes, uniform), make_marginal(spec.classes))

    def objective(self, given: Inputs) -> tuple[Array, Update]:
        """mean H(y, p(w(x))) + lambda mean 1[max q' >= tau mean max p(w(x))] H(q', p(s(u))).

        q' = normalize(p(w(u)) p_l / p_u), with the average predictions p_l on labeled and p_u on
        unlabeled images, which include this step.
        """
        on = weak_strong(given)
        log_weak = jax.nn.log_softmax(on.weak)
        on_labeled = jax.nn.softmax(jax.lax.stop_gradient(on.labeled))
        labeled = update_marginal(given.memory.labeled, on_labeled, self.momentum)
        unlabeled = update_marginal(given.memory.unlabeled, jnp.exp(log_weak), self.momentum)
        log_aligned = align(log_weak, unlabeled.average, labeled.average)

        threshold = relative_threshold(on_labeled, self.threshold)
        confident = jnp.exp(log_aligned).max(-1) >= threshold
        target = pseudo_label(log_aligned, self.hard_labels, self.temperature)
        unsupervised = weighted_cross_entropy(on.strong, target, confident)
        loss = on.supervised + self.unlabeled_weight * unsupervised
        return loss, Update(
            on.stats,
            {
                "loss/supervised": on.supervised,
                "loss/unsupervised": unsupervised,
                "pseudo/threshold": threshold,
                **pseudo_label_metrics(log_aligned, confident, given.unlabeled.label, on.strong),
            },
            Memory(labeled, unlabeled),
        )
