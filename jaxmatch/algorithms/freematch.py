"""FreeMatch: thresholds follow the average confidence of the model, over all and by class.

Wang et al., "FreeMatch: Self-adaptive Thresholding for Semi-supervised Learning", ICLR 2023,
https://arxiv.org/abs/2205.07246.
"""

import jax
import jax.numpy as jnp

from jaxmatch.algorithms._consistency import pseudo_label, weak_strong, weighted_cross_entropy
from jaxmatch.errors import InputError
from jaxmatch.functional.diagnostics import pseudo_label_metrics
from jaxmatch.functional.thresholds import (
    SelfAdaptive,
    make_self_adaptive,
    self_adaptive_fairness,
    self_adaptive_thresholds,
    update_self_adaptive,
)
from jaxmatch.settings import Momentum, NonNegative, Positive, Share, section
from jaxmatch.types import Algorithm, Array, Inputs, Spec, Update


@section("algorithm")
class FreeMatch(Algorithm):
    """The loss is supervised + unlabeled_weight * unsupervised + fairness_weight * fairness.

    Attributes:
        momentum: lambda, the share of the old averages that stays at each step.
        clip: the lowest and the highest threshold of a class.
        unlabeled_weight: weight of the unsupervised loss, w_u.
        fairness_weight: weight of the fairness loss, w_f.
        hard_labels: the target is the argmax of the prediction; otherwise it is the distribution
            softmax(z / temperature).
        temperature: T of soft targets; 1 does not sharpen them.
    """

    momentum: Momentum = 0.999
    clip: tuple[Share, Share] = (0.0, 1.0)
    unlabeled_weight: NonNegative = 1.0
    fairness_weight: NonNegative = 0.01
    hard_labels: bool = True
    temperature: Positive = 1.0

    labeled = ("weak",)
    unlabeled = ("weak", "strong")

    def __post_init__(self) -> None:
        """Refuse a lowest threshold above the highest."""
        if self.clip[0] > self.clip[1]:
            raise InputError(
                f"FreeMatch's clip={self.clip} does not bound a threshold; give the lowest and the "
                "highest, such as (0.9, 0.95)."
            )

    def init(self, key: Array, spec: Spec) -> SelfAdaptive:
        """The averages of uniform predictions; each class has the threshold 1 / C."""
        return make_self_adaptive(spec.classes)

    def objective(self, given: Inputs) -> tuple[Array, Update]:
        """mean H(y, p(w(x))) + w_u mean 1[max q >= tau_c] H(c, p(s(u))) + w_f L_f, c = argmax q.

        q = p(w(u)); tau_c = t p~_c / max p~, where the averages include this batch; L_f is the
        fairness term of the confident examples.
        """
        on = weak_strong(given)
        probabilities = jax.nn.softmax(on.weak)
        averages = update_self_adaptive(given.memory, probabilities, self.momentum)

        thresholds = jnp.clip(self_adaptive_thresholds(averages), *self.clip)
        confident = probabilities.max(-1) >= thresholds[probabilities.argmax(-1)]
        target = pseudo_label(on.weak, self.hard_labels, self.temperature)
        unsupervised = weighted_cross_entropy(on.strong, target, confident)
        fairness = self_adaptive_fairness(on.strong, confident, averages)
        loss = (
            on.supervised + self.unlabeled_weight * unsupervised + self.fairness_weight * fairness
        )
        return loss, Update(
            on.stats,
            {
                "loss/supervised": on.supervised,
                "loss/unsupervised": unsupervised,
                "loss/fairness": fairness,
                "pseudo/threshold": thresholds.mean(),
                **pseudo_label_metrics(on.weak, confident, given.unlabeled.label, on.strong),
            },
            averages,
        )
