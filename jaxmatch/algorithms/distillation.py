"""Distillation: the student learns the softened predictions of a trained network.

Hinton, Vinyals & Dean, "Distilling the Knowledge in a Neural Network", 2015,
https://arxiv.org/abs/1503.02531; on unlabeled images as SimCLR v2's third step: Chen et al., "Big
Self-Supervised Models are Strong Semi-Supervised Learners", NeurIPS 2020, section 2,
https://arxiv.org/abs/2006.10029.
"""

from typing import Annotated

import jax

from jaxmatch.functional.diagnostics import unlabeled_accuracy
from jaxmatch.functional.losses import cross_entropy
from jaxmatch.settings import Positive, Range, section
from jaxmatch.types import Algorithm, Array, Inputs, Update


@section("algorithm")
class Distillation(Algorithm):
    """The loss is labeled_weight * supervised + (1 - labeled_weight) * distillation.

    The trained network is that of ``config.frozen.teacher``, not the EMA of the run.

    Attributes:
        temperature: tau, which divides the logits of both networks.
        labeled_weight: weight of the supervised loss, 1 - alpha. At 0 labels serve for metrics
            only; labeled images still share the BatchNorm batch.
    """

    temperature: Positive = 1.0
    labeled_weight: Annotated[float, Range(least=0, below=1)] = 0.0

    labeled = ("weak",)
    unlabeled = ("weak",)
    frozen = ("teacher",)
    evaluated = "student"

    def objective(self, given: Inputs) -> tuple[Array, Update]:
        """(1 - alpha) mean H(y, p(w(x))) + alpha mean H(p^T(w(u); tau), p(w(u); tau)) (eqs. 2, 3).

        p(x; tau) = softmax(z(x) / tau); p^T is the frozen network's, which sees the same view.
        """
        (x,), (u,) = given.labeled.views, given.unlabeled.views
        (on_x, on_u), stats = given.student((x, u))
        (teacher,) = given.frozen["teacher"]

        supervised = cross_entropy(on_x.logits, given.labeled.label).mean()
        target = jax.nn.softmax(teacher.logits / self.temperature)  # [b C]
        distillation = cross_entropy(on_u.logits / self.temperature, target).mean()
        loss = self.labeled_weight * supervised + (1 - self.labeled_weight) * distillation
        return loss, Update(
            stats,
            {
                "loss/supervised": supervised,
                "loss/distillation": distillation,
                **unlabeled_accuracy(on_u.logits, given.unlabeled.label),
            },
        )
