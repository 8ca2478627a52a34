"""Pseudo-Label: a confident prediction of the network is its label.

Lee, "Pseudo-Label: The Simple and Efficient Semi-Supervised Learning Method for Deep Neural
Networks", ICML 2013 workshop; with the confidence threshold of the FixMatch paper's baseline.
"""

import jax
import jax.numpy as jnp

from jaxmatch.functional.diagnostics import pseudo_label_metrics
from jaxmatch.functional.losses import cross_entropy
from jaxmatch.optim.schedules import linear_ramp
from jaxmatch.settings import NonNegative, Ramp, Threshold, section
from jaxmatch.types import Algorithm, Array, Inputs, Update


@section("algorithm")
class PseudoLabel(Algorithm):
    """The loss is supervised + unlabeled_weight * ramp * unsupervised.

    Attributes:
        threshold: a prediction counts if its largest probability is at least this.
        unlabeled_weight: weight of the unsupervised loss after the ramp.
        ramp: share of all steps in which that weight rises linearly from 0.
    """

    threshold: Threshold = 0.95
    unlabeled_weight: NonNegative = 1.0
    ramp: Ramp = 0.4

    labeled = ("weak",)
    unlabeled = ("weak",)

    def objective(self, given: Inputs) -> tuple[Array, Update]:
        """mean H(y, p(w(x))) + ramp mean 1[max p(w(u)) >= threshold] H(argmax p(w(u)), p(w(u))).

        Labeled and unlabeled images are BatchNorm batches of their own. Only the labeled pass
        updates the running statistics, as in the code of FixMatch, TorchSSL and USB.
        """
        (x,), (u,) = given.labeled.views, given.unlabeled.views
        (on_x,), stats = given.student((x,))
        (on_u,), _ = given.student((u,))

        supervised = cross_entropy(on_x.logits, given.labeled.label).mean()
        target = jax.nn.softmax(jax.lax.stop_gradient(on_u.logits))  # [b C]
        confident = target.max(-1) >= self.threshold
        errors = cross_entropy(on_u.logits, target.argmax(-1))
        unsupervised = jnp.where(confident, errors, 0.0).mean()
        ramp = linear_ramp(given.step, given.spec.steps, self.ramp)
        loss = supervised + self.unlabeled_weight * ramp * unsupervised
        return loss, Update(
            stats,
            {
                "loss/supervised": supervised,
                "loss/unsupervised": unsupervised,
                "optim/ramp": ramp,
                **pseudo_label_metrics(target, confident, given.unlabeled.label),
            },
        )
