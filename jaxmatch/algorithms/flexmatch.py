"""FlexMatch: the threshold of a class rises with the number of its confident examples.

Zhang et al., "FlexMatch: Boosting Semi-Supervised Learning with Curriculum Pseudo Labeling",
NeurIPS 2021, https://arxiv.org/abs/2110.08263.
"""

from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp

from jaxmatch.algorithms._consistency import pseudo_label, weak_strong, weighted_cross_entropy
from jaxmatch.functional.diagnostics import pseudo_label_metrics
from jaxmatch.functional.memory import last_of_each
from jaxmatch.functional.per_example import PerExample, make_rows, read, write
from jaxmatch.functional.thresholds import flexible_thresholds, learning_effect
from jaxmatch.settings import NonNegative, Positive, Range, section
from jaxmatch.types import Algorithm, Array, Inputs, Spec, Update

# An index that no example has.
NOWHERE = jnp.iinfo(jnp.int32).max


class Memory(NamedTuple):
    """The last confident prediction for each unlabeled example, and the count of each class."""

    selected: PerExample  # row "label" int32 [], -1 before the first
    counts: Array  # [C] int32


@section("algorithm")
class FlexMatch(Algorithm):
    """The loss is supervised + unlabeled_weight * unsupervised.

    Attributes:
        threshold: tau, the largest threshold of a class. An example counts for the predicted class
            of its weak view once that has at least this probability. Above 1 none ever counts, so
            all thresholds stay 0.
        threshold_warmup: divide the counts by the number of examples that count for no class yet,
            while it exceeds the largest count; so all thresholds start low (paper, section 3.2).
        unlabeled_weight: weight of the unsupervised loss, lambda.
        hard_labels: the target is the argmax of the prediction; otherwise it is the distribution
            softmax(z / temperature).
        temperature: T of soft targets; 1 does not sharpen them.
    """

    threshold: Annotated[float, Range(least=0, most=1, beyond=(2, "lets every image count"))] = 0.95
    threshold_warmup: bool = True
    unlabeled_weight: NonNegative = 1.0
    hard_labels: bool = True
    temperature: Positive = 1.0

    labeled = ("weak",)
    unlabeled = ("weak", "strong")

    def init(self, key: Array, spec: Spec) -> Memory:
        """The memory without any confident example; all thresholds are 0."""
        return Memory(
            make_rows(spec.unlabeled, label=jnp.int32(-1)), jnp.zeros(spec.classes, jnp.int32)
        )

    def objective(self, given: Inputs) -> tuple[Array, Update]:
        """mean H(y, p(w(x))) + lambda mean 1[max q >= tau_c] H(c, p(s(u))), c = argmax q.

        q = p(w(u)), and tau_c = tau beta_c / (2 - beta_c) with the learning effect beta_c from the
        counts before this step.
        """
        memory = given.memory
        on = weak_strong(given)
        probabilities = jax.nn.softmax(on.weak)
        confidence, label = probabilities.max(-1), probabilities.argmax(-1)

        unselected = given.spec.unlabeled - memory.counts.sum() if self.threshold_warmup else 0
        effect = learning_effect(memory.counts, unselected)
        thresholds = flexible_thresholds(self.threshold, effect)
        confident = confidence >= thresholds[label]
        target = pseudo_label(on.weak, self.hard_labels, self.temperature)
        unsupervised = weighted_cross_entropy(on.strong, target, confident)
        loss = on.supervised + self.unlabeled_weight * unsupervised
        return loss, Update(
            on.stats,
            {
                "loss/supervised": on.supervised,
                "loss/unsupervised": unsupervised,
                "pseudo/threshold": thresholds.mean(),
                **pseudo_label_metrics(on.weak, confident, given.unlabeled.label, on.strong),
            },
            remember(memory, given.unlabeled.index, label, confidence >= self.threshold),
        )


def remember(memory: Memory, index: Array, label: Array, confident: Array) -> Memory:
    """Count confident examples for their predicted class, and no longer for the one before.

    The cost does not grow with the number of examples. Of several confident predictions for one
    example the last in batch order counts.

    Args:
        memory: the memory before this step.
        index: indices of the examples, [b] int32.
        label: predicted classes, [b].
        confident: which predictions are remembered, [b] bool.
    """
    old = read(memory.selected, index)["label"]
    row = last_of_each(jnp.where(confident, index, NOWHERE), NOWHERE)
    classes, moved = jnp.arange(len(memory.counts)), (row != NOWHERE)[:, None]
    won, lost = ((which[:, None] == classes) & moved for which in (label, old))
    return Memory(
        write(memory.selected, row, {"label": label}),
        memory.counts + won.sum(0, dtype=jnp.int32) - lost.sum(0, dtype=jnp.int32),
    )
