"""Π-Model: the predictions on two random views of an unlabeled image agree.

Laine & Aila, "Temporal Ensembling for Semi-Supervised Learning", ICLR 2017,
https://arxiv.org/abs/1610.02242; in the form of the FixMatch paper's baseline.
"""

import jax

from jaxmatch.functional.diagnostics import unlabeled_accuracy
from jaxmatch.functional.losses import cross_entropy, squared_difference
from jaxmatch.optim.schedules import linear_ramp
from jaxmatch.settings import NonNegative, Ramp, section
from jaxmatch.types import Algorithm, Array, Inputs, Update


@section("algorithm")
class PiModel(Algorithm):
    """The loss is supervised + unlabeled_weight * ramp * unsupervised.

    Attributes:
        unlabeled_weight: weight of the unsupervised loss after the ramp.
        ramp: share of all steps in which that weight rises linearly from 0.
    """

    unlabeled_weight: NonNegative = 10.0
    ramp: Ramp = 0.4

    labeled = ("weak",)
    unlabeled = ("weak", "weak")

    def objective(self, given: Inputs) -> tuple[Array, Update]:
        """mean H(y, p(w(x))) + weight ramp mean (p(w'(u)) - p(w(u)))^2, no gradient to p(w(u)).

        The last mean runs over images and classes. In the paper both views take gradient; in the
        code of FixMatch, TorchSSL and USB one view is the target. Each pass is a BatchNorm batch of
        its own, and only the labeled one updates the running statistics, as there.
        """
        (x,), (first, second) = given.labeled.views, given.unlabeled.views
        (on_x,), stats = given.student((x,))
        (on_first,) = given.constant_student((first,))
        (on_second,), _ = given.student((second,))

        supervised = cross_entropy(on_x.logits, given.labeled.label).mean()
        target = jax.nn.softmax(on_first.logits)  # [b C]
        unsupervised = squared_difference(on_second.logits, target).mean()
        ramp = linear_ramp(given.step, given.spec.steps, self.ramp)
        loss = supervised + self.unlabeled_weight * ramp * unsupervised
        return loss, Update(
            stats,
            {
                "loss/supervised": supervised,
                "loss/unsupervised": unsupervised,
                "optim/ramp": ramp,
                **unlabeled_accuracy(target, given.unlabeled.label),
            },
        )
