"""SimMatch: weak and strong views agree on the class and on the similarity to labeled images.

Zheng et al., "SimMatch: Semi-supervised Learning with Similarity Matching", CVPR 2022,
https://arxiv.org/abs/2203.06915.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxmatch.functional import memory
from jaxmatch.functional.alignment import align_by_history, alignment_prior, make_history
from jaxmatch.functional.diagnostics import pseudo_label_metrics
from jaxmatch.functional.losses import cross_entropy
from jaxmatch.functional.similarity import aggregate, log_similarity, normalize, unfold
from jaxmatch.models.heads import Projection
from jaxmatch.settings import (
    Count,
    Momentum,
    NonNegative,
    Positive,
    Share,
    Threshold,
    Whole,
    section,
)
from jaxmatch.types import (
    Algorithm,
    Array,
    Batch,
    Examples,
    Heads,
    Inputs,
    Outputs,
    PyTree,
    Spec,
    Target,
    Update,
)


class Memory(NamedTuple):
    """The memory of SimMatch."""

    bank: memory.Bank  # embeddings of the labeled examples
    history: PyTree  # memory.Queue of average predictions of the last batches, () if not aligned


class Forward(NamedTuple):
    """The outputs on each view."""

    labeled: Outputs  # of the student
    weak: Outputs  # of the network that gives the targets
    strong: Outputs  # of the student
    remembered: Outputs  # on the labeled views; their embeddings enter the bank
    stats: PyTree
    teacher_stats: PyTree = None


@section("algorithm")
class SimMatch(Algorithm):
    """The loss is supervised + unlabeled_weight * unsupervised + instance_weight * instance.

    Two forms are published. At CIFAR scale (the default) the student gives the targets and the
    bank averages its embeddings; on ImageNet (``teacher=True``, ``bank_momentum=0``) the teacher
    gives both, and the student is what is evaluated.

    Attributes:
        threshold: tau; an image counts if the largest probability of its pseudo-label is at least
            this, after alignment and aggregation.
        unlabeled_weight: weight of the unsupervised loss, lambda_u.
        instance_weight: weight of the instance loss, lambda_in.
        temperature: t of the similarities between embeddings.
        smoothing: alpha, the share of the prediction in the pseudo-label; the rest is the vote of
            similar labeled images. 1 turns aggregation off.
        instance_start_step: the first step with instance loss and aggregation.
        alignment_length: number of last batches whose average prediction alignment divides by; 0
            turns alignment off.
        alignment_prior: what predictions are aligned to, "uniform" or the class frequencies of the
            "labels".
        bank_momentum: the share of the old embedding that stays in the bank.
        teacher: the EMA teacher gives the targets and the embeddings of the bank.
        projection: width of the embeddings.
        shuffle: permute the teacher's images over the global batch, and its outputs back
            (MoCo's shuffled BatchNorm, as the authors have on ImageNet). Devices exchange these
            images. It has an effect only with ``teacher``, ``ema.statistics="own"`` and
            ``model.bn_groups`` above 1.
        aggregate_unfolded: aggregate the unfolded similarity in place of the plain one.
    """

    threshold: Threshold = 0.95
    unlabeled_weight: NonNegative = 1.0
    instance_weight: NonNegative = 1.0
    temperature: Positive = 0.1
    smoothing: Share = 0.9
    instance_start_step: Whole = 1024
    alignment_length: Whole = 32
    alignment_prior: Literal["uniform", "labels"] = "uniform"
    bank_momentum: Momentum = 0.7
    teacher: bool = False
    projection: Count = 128
    shuffle: bool = False
    aggregate_unfolded: bool = False

    labeled = ("weak",)
    unlabeled = ("weak", "strong")

    @property
    def heads(self) -> Heads:
        """The projection head that the embeddings come from."""
        return {"projection": Projection(features=self.projection)}

    @property
    def evaluated(self) -> str:
        """The student if the teacher takes part in training, else the teacher."""
        return "student" if self.teacher else "teacher"

    def init(self, key: Array, spec: Spec) -> Memory:
        """An empty bank and an empty history."""
        length = self.alignment_length
        return Memory(
            memory.make_bank(spec.labels, self.projection),
            make_history(length, spec.classes) if length else (),
        )

    def draw(self, key: Array, batch: Batch) -> PyTree:
        """With ``shuffle``, the image [n] int32 at each place of the teacher's batch."""
        count = sum(map(len, batch.views[:2]))
        return jax.random.permutation(key, count) if self.shuffle else ()

    def objective(self, given: Inputs) -> tuple[Array, Update]:
        """mean H(y, p_x) + lambda_u mean 1[max p' >= tau] H(p', p_s) + lambda_in mean H(q', q_s).

        q are the similarities to the bank as it was before this step, p_w is the aligned prediction
        on the weak view, q' is unfolded from (q_w, p_w), and p' = alpha p_w + (1 - alpha) a with a
        aggregated from q_w.
        """
        on = self.forward(given)
        bank, history = given.memory
        ready = (given.step >= self.instance_start_step) & bank.filled.any()

        log_weak = jax.nn.log_softmax(jax.lax.stop_gradient(on.weak.logits))  # [b C]
        log_aligned, history = self.align(history, log_weak, given.spec)
        log_instance = self.similarity(bank, jax.lax.stop_gradient(on.weak))  # [b n]
        log_unfolded = unfold(log_instance, log_aligned, bank.labels)
        voters = jnp.exp(log_unfolded if self.aggregate_unfolded else log_instance)
        votes = aggregate(voters, bank.labels, given.spec.classes)  # [b C]
        alpha = jnp.where(ready, self.smoothing, 1.0)
        target = alpha * jnp.exp(log_aligned) + (1 - alpha) * votes

        confident = target.max(-1) >= self.threshold
        supervised = cross_entropy(on.labeled.logits, given.labeled.label).mean()
        errors = cross_entropy(on.strong.logits, target)
        unsupervised = jnp.where(confident, errors, 0.0).mean()
        instance_errors = -(jnp.exp(log_unfolded) * self.similarity(bank, on.strong)).sum(-1)
        instance = jnp.where(ready, instance_errors, 0.0).mean()
        loss = supervised + self.unlabeled_weight * unsupervised + self.instance_weight * instance
        return loss, Update(
            on.stats,
            {
                "loss/supervised": supervised,
                "loss/unsupervised": unsupervised,
                "loss/instance": instance,
                # In nats: log C if all classes are predicted equally, 0 after a collapse to one.
                "pseudo/marginal_entropy": jax.scipy.special.entr(jnp.exp(log_weak).mean(0)).sum(),
                **pseudo_label_metrics(target, confident, given.unlabeled.label, on.strong.logits),
            },
            Memory(self.remember(bank, given.labeled, on.remembered), history),
            on.teacher_stats,
        )

    def forward(self, given: Inputs) -> Forward:
        """One pass of the student over all views, or one each of student and teacher."""
        (x,), (weak, strong) = given.labeled.views, given.unlabeled.views
        if not self.teacher:
            (on_x, on_weak, on_strong), stats = given.student((x, Target(weak), strong))
            return Forward(on_x, on_weak, on_strong, on_x, stats)
        (on_x, on_strong), stats = given.student((x, strong))
        places = given.draws if self.shuffle else None
        (teacher_on_x, on_weak), teacher_stats = given.teacher((x, weak), places=places)
        return Forward(on_x, on_weak, on_strong, teacher_on_x, stats, teacher_stats)

    def align(self, history: PyTree, log_probabilities: Array, spec: Spec) -> tuple[Array, PyTree]:
        """Divide predictions [b C] by their average over the last batches, this one included."""
        if not self.alignment_length:
            return log_probabilities, history
        prior = alignment_prior(spec, self.alignment_prior)
        return align_by_history(history, log_probabilities, prior)

    def similarity(self, bank: memory.Bank, outputs: Outputs) -> Array:
        """The log of an image's similarity to each example of the bank, summing to 1, [b n]."""
        embeddings = normalize(outputs.heads["projection"])
        return log_similarity(embeddings, bank.embeddings, self.temperature, bank.filled)

    def remember(self, bank: memory.Bank, labeled: Examples, outputs: Outputs) -> memory.Bank:
        """The bank after the labeled examples of this step have entered it."""
        embeddings = jax.lax.stop_gradient(normalize(outputs.heads["projection"]))
        return memory.write(bank, labeled.index, embeddings, labeled.label, self.bank_momentum)
