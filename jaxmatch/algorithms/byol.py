"""BYOL: the student predicts the projection that the teacher gives the other view.

Grill et al., "Bootstrap Your Own Latent: A New Approach to Self-Supervised Learning", NeurIPS 2020,
https://arxiv.org/abs/2006.07733.
"""

import jax.numpy as jnp

from jaxmatch.functional.diagnostics import feature_spread
from jaxmatch.functional.similarity import normalize
from jaxmatch.models.heads import PredictedProjection
from jaxmatch.settings import Count, section
from jaxmatch.types import Algorithm, Array, Heads, Inputs, Update


@section("algorithm")
class BYOL(Algorithm):
    """The loss is the mean distance of both views' predictions from the teacher's projections.

    No label is read. The teacher starts as a copy of the student; that of the authors has initial
    weights of its own. Theirs runs in train mode (``ema.statistics="own"``).

    Attributes:
        projection: width of the projections and predictions.
        hidden: width of the layer within the projector and within the predictor.
    """

    projection: Count = 256
    hidden: Count = 4096

    labeled = ()
    unlabeled = ("contrast", "second")
    evaluated = "student"

    @property
    def heads(self) -> Heads:
        """The projector g and the predictor q, which are not evaluated."""
        return {"projection": PredictedProjection(self.hidden, self.projection)}

    def objective(self, given: Inputs) -> tuple[Array, Update]:
        """mean |n(q(z_1)) - n(z'_2)|^2 + |n(q(z_2)) - n(z'_1)|^2, n(x) = x / |x| (eqs. 2, 3).

        z_v and z'_v are the student's and the teacher's projection of view v.
        """
        student, stats = given.student(given.unlabeled.views)
        teacher, teacher_stats = given.teacher(given.unlabeled.views)
        first, second = (outputs.heads["projection"] for outputs in student)  # [b 2 d]
        target_first, target_second = (outputs.heads["projection"][:, 0] for outputs in teacher)
        errors = regression(first[:, 1], target_second) + regression(second[:, 1], target_first)
        loss = errors.mean()
        return loss, Update(
            stats,
            {"loss/regression": loss, **feature_spread(first[:, 0])},
            (),
            teacher_stats,
        )


def regression(prediction: Array, target: Array) -> Array:
    """Squared distance of the directions, 2 - 2 cos(prediction, target) (eq. 2).

    Args:
        prediction, target: [b d], not normalised (no gradient is stopped here).

    Returns:
        [b], in [0, 4], at least float32.
    """
    return jnp.square(normalize(prediction) - normalize(target)).sum(-1)
