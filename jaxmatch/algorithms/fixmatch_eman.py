"""FixMatch with an EMA teacher, BatchNorm statistics included, that labels the weak views.

Cai et al., "Exponential Moving Average Normalization for Self-supervised and Semi-supervised
Learning", CVPR 2021, https://arxiv.org/abs/2101.08482.
"""

import jax
import jax.numpy as jnp

from jaxmatch.functional.diagnostics import pseudo_label_metrics
from jaxmatch.functional.losses import cross_entropy
from jaxmatch.settings import NonNegative, Threshold, section
from jaxmatch.types import Algorithm, Array, Inputs, Update


@section("algorithm")
class FixMatchEMAN(Algorithm):
    """The loss is supervised + unlabeled_weight * unsupervised.

    Use it with ``ema.statistics="averaged"``: the teacher normalises by averages of the student's
    running statistics. So the label of a weak view does not depend on the rest of its batch.

    Attributes:
        threshold: tau; a weak view labels its strong view if the teacher's largest probability is
            at least this. FixMatch has 0.95 at CIFAR scale, the paper 0.7 on ImageNet.
        unlabeled_weight: weight of the unsupervised loss, lambda_u; 10 on ImageNet.
    """

    threshold: Threshold = 0.95
    unlabeled_weight: NonNegative = 1.0

    labeled = ("weak",)
    unlabeled = ("weak", "strong")
    evaluated = "student"

    def objective(self, given: Inputs) -> tuple[Array, Update]:
        """mean H(y, p(w(x))) + lambda_u mean 1[max q >= tau] H(argmax q, p(s(u))), q = p'(w(u)).

        p is the student's prediction, p' the teacher's. Both means run over the whole batch:
        images that are not confident add 0 to the second.
        """
        (x,), (weak, strong) = given.labeled.views, given.unlabeled.views
        (on_x, on_strong), stats = given.student((x, strong))
        (on_weak,), teacher_stats = given.teacher((weak,))

        supervised = cross_entropy(on_x.logits, given.labeled.label).mean()
        confident = jax.nn.softmax(on_weak.logits).max(-1) >= self.threshold  # [b]
        errors = cross_entropy(on_strong.logits, on_weak.logits.argmax(-1))
        unsupervised = jnp.where(confident, errors, 0.0).mean()
        loss = supervised + self.unlabeled_weight * unsupervised
        return loss, Update(
            stats,
            {
                "loss/supervised": supervised,
                "loss/unsupervised": unsupervised,
                **pseudo_label_metrics(
                    on_weak.logits, confident, given.unlabeled.label, on_strong.logits
                ),
            },
            teacher_stats=teacher_stats,
        )
