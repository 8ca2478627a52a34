"""FixMatch: a confident prediction on a weak view is the label of a strong view of the image.

Sohn et al., "FixMatch: Simplifying Semi-Supervised Learning with Consistency and Confidence",
NeurIPS 2020, https://arxiv.org/abs/2001.07685.
"""

import jax

from jaxmatch.algorithms._consistency import pseudo_label, weak_strong, weighted_cross_entropy
from jaxmatch.functional.diagnostics import pseudo_label_metrics
from jaxmatch.settings import NonNegative, Positive, Threshold, section
from jaxmatch.types import Algorithm, Array, Inputs, Update


@section("algorithm")
class FixMatch(Algorithm):
    """The loss is supervised + unlabeled_weight * unsupervised.

    Attributes:
        threshold: tau; a weak view labels its strong view if its largest probability is at least
            this, before sharpening. Above 1 the unsupervised loss is 0.
        unlabeled_weight: weight of the unsupervised loss, lambda_u.
        hard_labels: the target is the argmax of the prediction; otherwise it is the distribution
            softmax(z / temperature).
        temperature: T of soft targets; 1 does not sharpen them.
    """

    threshold: Threshold = 0.95
    unlabeled_weight: NonNegative = 1.0
    hard_labels: bool = True
    temperature: Positive = 1.0

    labeled = ("weak",)
    unlabeled = ("weak", "strong")

    def objective(self, given: Inputs) -> tuple[Array, Update]:
        """mean H(y, p(w(x))) + lambda_u mean 1[max q >= tau] H(q, p(s(u))), q = p(w(u)) (eq. 3, 4).

        Both means run over the whole batch: images that are not confident add 0 to the second.
        """
        on = weak_strong(given)
        confident = jax.nn.softmax(on.weak).max(-1) >= self.threshold  # [b]
        target = pseudo_label(on.weak, self.hard_labels, self.temperature)
        unsupervised = weighted_cross_entropy(on.strong, target, confident)
        loss = on.supervised + self.unlabeled_weight * unsupervised
        return loss, Update(
            on.stats,
            {
                "loss/supervised": on.supervised,
                "loss/unsupervised": unsupervised,
                **pseudo_label_metrics(on.weak, confident, given.unlabeled.label, on.strong),
            },
        )
