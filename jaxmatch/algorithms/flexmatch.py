"""FlexMatch: the threshold of a class rises with the number of examples that the class has won.

Zhang et al., "FlexMatch: Boosting Semi-Supervised Learning with Curriculum Pseudo Labeling",
NeurIPS 2021, https://arxiv.org/abs/2110.08263.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxmatch.algorithms._consistency import pseudo_label, weak_strong, weighted_cross_entropy
from jaxmatch.functional.diagnostics import pseudo_label_metrics
from jaxmatch.functional.memory import last_of_each
from jaxmatch.functional.per_example import PerExample, make_rows, read, write
from jaxmatch.functional.thresholds import flexible_thresholds, learning_effect
from jaxmatch.settings import NonNegative, Positive, Share, section
from jaxmatch.types import Algorithm, Array, Inputs, Spec, Update

# No example has this index, whatever the padding of the rows.
NOWHERE = jnp.iinfo(jnp.int32).max


class Memory(NamedTuple):
    """The last confident prediction for each unlabeled example, and how many there are of each."""

    selected: PerExample  # row "label" int32 [], -1 before the first
    counts: Array  # [C] int32


@section("algorithm")
class FlexMatch(Algorithm):
    """The loss is supervised + unlabeled_weight * unsupervised.

    Attributes:
        threshold: tau, the largest that the threshold of a class can be; an example counts for its
            class once its weak view has been predicted with at least this probability.
        threshold_warmup: examples never predicted so hold all thresholds down (section 3.2 of the
            paper), until some class has won more than are left.
        unlabeled_weight: lambda.
        hard_labels: train on the argmax; otherwise on the distribution softmax(z / temperature).
        temperature: T of soft labels; 1 leaves them unsharpened.
    """

    threshold: Share = 0.95
    threshold_warmup: bool = True
    unlabeled_weight: NonNegative = 1.0
    hard_labels: bool = True
    temperature: Positive = 1.0

    labeled = ("weak",)
    unlabeled = ("weak", "strong")

    def init(self, key: Array, spec: Spec) -> Memory:
        """No example has been predicted confidently, so all thresholds are 0."""
        return Memory(
            make_rows(spec.unlabeled, label=jnp.int32(-1)), jnp.zeros(spec.classes, jnp.int32)
        )

    def objective(self, given: Inputs) -> tuple[Array, Update]:
        """mean H(y, p(w(x))) + lambda mean 1[max q >= tau_c] H(c, p(s(u))), c = argmax q.

        With q = p(w(u)) and tau_c = tau beta_c / (2 - beta_c) from the examples that each class
        had won before this step.
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
    """Examples predicted confidently move to the class of the prediction.

    Only the counts of the two classes change, so the cost does not grow with the number of
    examples. Of several confident predictions for one example the last in batch order counts.

    Args:
        memory: before this step.
        index: [b] int32 of the examples.
        label: [b] predicted classes.
        confident: [b] bool, which predictions are remembered.
    """
    old = read(memory.selected, index)["label"]
    row = last_of_each(jnp.where(confident, index, NOWHERE), NOWHERE)
    classes, moved = jnp.arange(len(memory.counts)), (row != NOWHERE)[:, None]
    won, lost = ((which[:, None] == classes) & moved for which in (label, old))
    return Memory(
        write(memory.selected, row, {"label": label}),
        memory.counts + won.sum(0, dtype=jnp.int32) - lost.sum(0, dtype=jnp.int32),
    )
