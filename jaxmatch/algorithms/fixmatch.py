"""FixMatch: confident predictions on weak views are the labels of strong views of the same images.

Sohn et al., "FixMatch: Simplifying Semi-Supervised Learning with Consistency and Confidence",
NeurIPS 2020, https://arxiv.org/abs/2001.07685.
"""

from typing import Annotated

import jax
import jax.numpy as jnp

from jaxmatch.functional.diagnostics import pseudo_label_metrics
from jaxmatch.functional.losses import cross_entropy
from jaxmatch.settings import NonNegative, Positive, Range, section
from jaxmatch.types import (
    NO_HEADS,
    Array,
    Batch,
    Network,
    PyTree,
    Spec,
    Target,
    TrainState,
    Update,
    no_draws,
    no_memory,
)


@section("algorithm")
class FixMatch:
    """The loss is supervised + unlabeled_weight * unsupervised.

    Attributes:
        threshold: tau; a weak view labels its strong view if its largest probability, before any
            sharpening, is at least this. Above 1 only the supervised loss is left.
        unlabeled_weight: lambda_u.
        hard_labels: train on the argmax; otherwise on the distribution softmax(z / temperature).
        temperature: T of soft labels; 1 leaves them unsharpened.
    """

    threshold: Annotated[float, Range(least=0, most=1, off=2)] = 0.95
    unlabeled_weight: NonNegative = 1.0
    hard_labels: bool = True
    temperature: Positive = 1.0

    labeled = ("weak",)
    unlabeled = ("weak", "strong")
    heads = NO_HEADS
    evaluated = "teacher"
    init = no_memory
    draw = no_draws

    def loss(
        self,
        network: Network,
        params: PyTree,
        state: TrainState,
        batch: Batch,
        draws: PyTree,
        spec: Spec,
    ) -> tuple[Array, Update]:
        """mean H(y, p(w(x))) + lambda_u mean 1[max q >= tau] H(q, p(s(u))), q = p(w(u)) (eq. 3, 4).

        Both means run over the whole batch, the second over the confident and the others alike.
        """
        del draws, spec
        (x,), (weak, strong) = batch.labeled.views, batch.unlabeled.views
        (on_x, on_weak, on_strong), stats = network(
            state.student(params), (x, Target(weak), strong)
        )

        supervised = cross_entropy(on_x.logits, batch.labeled.label).mean()
        weak_logits = jax.lax.stop_gradient(on_weak.logits)  # [b C]
        confident = jax.nn.softmax(weak_logits).max(-1) >= self.threshold
        if self.hard_labels:
            target = weak_logits.argmax(-1)
        else:
            target = jax.nn.softmax(weak_logits / self.temperature)
        errors = cross_entropy(on_strong.logits, target)
        unsupervised = jnp.where(confident, errors, 0.0).mean()
        loss = supervised + self.unlabeled_weight * unsupervised
        return loss, Update(
            stats,
            {
                "loss/supervised": supervised,
                "loss/unsupervised": unsupervised,
                **pseudo_label_metrics(
                    weak_logits, confident, batch.unlabeled.label, on_strong.logits
                ),
            },
        )
