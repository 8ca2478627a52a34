"""Temporal Ensembling: the average of the past predictions on an image is its target.

Laine & Aila, "Temporal Ensembling for Semi-Supervised Learning", ICLR 2017,
https://arxiv.org/abs/1610.02242.
"""

import jax
import jax.numpy as jnp

from jaxmatch.functional import per_example
from jaxmatch.functional.diagnostics import unlabeled_accuracy
from jaxmatch.functional.losses import cross_entropy, squared_difference
from jaxmatch.optim.schedules import linear_ramp
from jaxmatch.settings import Momentum, NonNegative, Ramp, section
from jaxmatch.types import Algorithm, Array, Inputs, PyTree, Spec, Update


@section("algorithm")
class TemporalEnsembling(Algorithm):
    """The loss is supervised + unlabeled_weight * ramp * unsupervised.

    The paper draws epochs from one pool of labeled and unlabeled images. Here labeled images have
    a batch of their own, as in the other methods, and each unlabeled image counts its own visits.

    Attributes:
        unlabeled_weight: weight of the unsupervised loss after the ramp.
        ramp: share of all steps in which that weight rises linearly from 0.
        momentum: alpha, the share of the old average that stays at a visit.
    """

    unlabeled_weight: NonNegative = 10.0
    ramp: Ramp = 0.4
    momentum: Momentum = 0.6

    labeled = ("weak",)
    unlabeled = ("weak",)

    def init(self, key: Array, spec: Spec) -> PyTree:
        """Z [N C] and the visits [N] of every unlabeled image, zeros."""
        return per_example.make_rows(
            spec.unlabeled, average=jnp.zeros(spec.classes, float), visits=jnp.zeros((), jnp.int32)
        )

    def objective(self, given: Inputs) -> tuple[Array, Update]:
        """mean H(y, p(w(x))) + weight ramp mean 1[n > 0] (p(w(u)) - Z / (1 - alpha^n))^2.

        n is the number of visits of the image before this one. Then Z becomes
        alpha Z + (1 - alpha) p(w(u)); the division corrects for its start at 0 (algorithm 2). The
        last mean runs over all images of the batch and over classes. Both passes are BatchNorm
        batches of their own, and only the labeled one updates the running statistics.
        """
        (x,), (u,) = given.labeled.views, given.unlabeled.views
        (on_x,), stats = given.student((x,))
        (on_u,), _ = given.student((u,))

        supervised = cross_entropy(on_x.logits, given.labeled.label).mean()
        remembered = per_example.read(given.memory, given.unlabeled.index)
        average, visits = remembered["average"], remembered["visits"]  # [b C], [b]
        seen = visits > 0
        gathered = jnp.where(seen, 1 - self.momentum**visits, 1.0)  # [b] sum of Z's weights
        target = average / gathered[:, None]  # [b C]
        errors = squared_difference(on_u.logits, target)
        unsupervised = jnp.where(seen, errors, 0.0).mean()

        prediction = jax.nn.softmax(on_u.logits)
        visited = {
            "average": self.momentum * average + (1 - self.momentum) * prediction,
            "visits": visits + 1,
        }
        ramp = linear_ramp(given.step, given.spec.steps, self.ramp)
        loss = supervised + self.unlabeled_weight * ramp * unsupervised
        return loss, Update(
            stats,
            {
                "loss/supervised": supervised,
                "loss/unsupervised": unsupervised,
                "optim/ramp": ramp,
                **unlabeled_accuracy(prediction, given.unlabeled.label),
            },
            per_example.write(given.memory, given.unlabeled.index, visited),
        )
