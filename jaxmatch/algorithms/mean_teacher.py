"""Mean Teacher: the student follows the predictions of the moving average of its own weights.

Tarvainen & Valpola, "Mean teachers are better role models: Weight-averaged consistency targets
improve semi-supervised deep learning results", NeurIPS 2017, https://arxiv.org/abs/1703.01780.
"""

import jax

from jaxmatch.functional.diagnostics import unlabeled_accuracy
from jaxmatch.functional.losses import cross_entropy, squared_difference
from jaxmatch.optim.schedules import linear_ramp
from jaxmatch.settings import NonNegative, Ramp, section
from jaxmatch.types import Algorithm, Array, Inputs, Update


@section("algorithm")
class MeanTeacher(Algorithm):
    """The loss is supervised + unlabeled_weight * ramp * unsupervised.

    The teacher is the EMA of the run (``config.ema``).

    Attributes:
        unlabeled_weight: weight of the unsupervised loss after the ramp.
        ramp: share of all steps in which that weight rises linearly from 0.
    """

    unlabeled_weight: NonNegative = 50.0
    ramp: Ramp = 0.4

    labeled = ("weak",)
    unlabeled = ("weak", "weak")

    def objective(self, given: Inputs) -> tuple[Array, Update]:
        """mean H(y, p(w(x))) + weight ramp mean (p(w'(u)) - q)^2, q = p'(w(u)) of the teacher p'.

        The last mean runs over images and classes. Each pass is a BatchNorm batch of its own. Only
        the labeled pass updates the student's running statistics, as in the code of FixMatch,
        TorchSSL and USB. In the paper the unsupervised loss covers labeled images, too.
        """
        (x,), (first, second) = given.labeled.views, given.unlabeled.views
        (on_x,), stats = given.student((x,))
        (on_first,), teacher_stats = given.teacher((first,), train=True)
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
            teacher_stats=teacher_stats,
        )
