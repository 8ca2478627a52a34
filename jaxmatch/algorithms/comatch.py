"""CoMatch: pseudo-labels smoothed by similar images also tell which embeddings belong together.

Li, Xiong & Hoi, "CoMatch: Semi-supervised Learning with Contrastive Graph Regularization",
ICCV 2021, https://arxiv.org/abs/2011.11183.
"""

from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxmatch.functional.alignment import align_by_history, alignment_prior, make_history
from jaxmatch.functional.diagnostics import pseudo_label_metrics
from jaxmatch.functional.losses import cross_entropy
from jaxmatch.functional.memory import Queue, filled, make_queue, push
from jaxmatch.functional.similarity import (
    NEVER,
    inner_products,
    log_similarity,
    normalize,
    pseudo_label_graph,
)
from jaxmatch.models.heads import Activation, Projection
from jaxmatch.settings import Count, NonNegative, Positive, Share, Threshold, Whole, section
from jaxmatch.types import (
    Algorithm,
    Array,
    Batch,
    Heads,
    Inputs,
    Outputs,
    PyTree,
    Spec,
    Target,
    Update,
)

# Bounds the loss of an edge between images whose embeddings are far apart (official code).
SMALLEST = 1e-7


class Memory(NamedTuple):
    """The memory of CoMatch; a row of a queue is {"embedding": [d], "probabilities": [C]}."""

    history: Queue  # average predictions, for alignment
    weak: Queue  # weak views, labeled ones too; their aligned predictions or true labels
    strong: Queue | None  # with a teacher: contrast views and smoothed pseudo-labels


@section("algorithm")
class CoMatch(Algorithm):
    """The loss is supervised + unlabeled_weight * unsupervised + contrastive_weight * contrastive.

    Without a teacher (the CIFAR form) the student sees all views, and the graph spans the batch.
    With one (the ImageNet form) the teacher gives the pseudo-labels and the embeddings of weak and
    contrast views, and the graph spans the batch and a queue of earlier images.

    Attributes:
        threshold: tau; a smoothed pseudo-label is used if its largest probability is at least this.
        graph_threshold: T_c; two images have an edge if the inner product of their pseudo-labels is
            at least this.
        unlabeled_weight: weight of the unsupervised loss, lambda_u.
        contrastive_weight: weight of the contrastive loss after the ramp, lambda_c.
        contrastive_ramp_steps: length of each stage of the ramp; the weight is 1 in the first
            stage, 2 in the second and so on, up to ``contrastive_weight``. 0 is no ramp.
        temperature: t of all similarities.
        smoothing: alpha, the share of an image's own prediction in its pseudo-label.
        smoothing_start_step: the first step that smooths.
        queue_batches: length of the queue in batches of labeled and unlabeled images; only without
            a teacher.
        queue: length of each of the two queues in rows; only with a teacher.
        alignment_length: number of last batches whose average prediction is aligned.
        alignment_prior: what predictions are aligned to, "uniform" or the class frequencies of the
            "labels".
        projection: width of the embeddings.
        activation: activation of the projection head: "leaky_relu", or "relu" as in the official
            code on ImageNet.
        teacher: the EMA teacher takes part in training.
        shuffle: permute the teacher's images over the global batch, and its outputs back
            (MoCo's shuffled BatchNorm, as the authors have on ImageNet). Devices exchange these
            images. It has an effect only with ``teacher``, ``ema.statistics="own"`` and
            ``model.bn_groups`` above 1.
    """

    threshold: Threshold = 0.95
    graph_threshold: Share = 0.8
    unlabeled_weight: NonNegative = 1.0
    contrastive_weight: NonNegative = 1.0
    contrastive_ramp_steps: Whole = 0
    temperature: Positive = 0.2
    smoothing: Share = 0.9
    smoothing_start_step: Whole = 6
    queue_batches: Count = 5
    queue: Count = 30000
    alignment_length: Count = 32
    alignment_prior: Literal["uniform", "labels"] = "uniform"
    projection: Count = 64
    activation: Activation = "leaky_relu"
    teacher: bool = False
    shuffle: bool = False

    labeled = ("weak",)
    unlabeled = ("weak", "strong", "contrast")

    @property
    def heads(self) -> Heads:
        """The projection head."""
        return {"projection": Projection(features=self.projection, activation=self.activation)}

    @property
    def evaluated(self) -> str:
        """The student with a teacher (ImageNet), else the EMA (CIFAR), as in the official code."""
        return "student" if self.teacher else "teacher"

    def init(self, key: Array, spec: Spec) -> Memory:
        """Empty queues and an empty history."""
        batch = spec.labeled_batch + spec.unlabeled_batch
        size = self.queue if self.teacher else self.queue_batches * batch
        queue = partial(make_queue, size, embedding=self.projection, probabilities=spec.classes)
        history = make_history(self.alignment_length, spec.classes)
        return Memory(history, queue(), queue() if self.teacher else None)

    def draw(self, key: Array, batch: Batch) -> PyTree:
        """With ``shuffle``, the image [n] int32 at each place of the teacher's batch."""
        x, weak, _, contrast = batch.views
        count = len(x) + len(weak) + len(contrast)
        return jax.random.permutation(key, count) if self.shuffle else ()

    def objective(self, given: Inputs) -> tuple[Array, Update]:
        """L_x + lambda_u L_u + lambda_c L_c; the queues are read before they are written.

        L_u = mean 1[max p >= tau] H(p, p(s(u))), p aligned and smoothed;
        L_c = mean_i -sum_j Q_ij log S_ij: the graph Q of the pseudo-labels is the target of the
        similarities S from the strong to the contrast views.
        """
        (x,), (weak, strong, contrast) = given.labeled.views, given.unlabeled.views
        teacher_stats = None
        if self.teacher:
            (on_x, on_strong), stats = given.student((x, strong))
            places = given.draws if self.shuffle else None
            targets, teacher_stats = given.teacher((x, weak, contrast), places=places)
            target_x, target_weak, on_contrast = targets
        else:
            views = (x, Target(weak), strong, contrast)
            (on_x, on_weak, on_strong, on_contrast), stats = given.student(views)
            target_x, target_weak = jax.lax.stop_gradient((on_x, on_weak))

        memory: Memory = jax.lax.stop_gradient(given.memory)
        log_own = jax.nn.log_softmax(target_weak.logits)
        prior = alignment_prior(given.spec, self.alignment_prior)
        log_own, history = align_by_history(memory.history, log_own, prior)
        own = jnp.exp(log_own)  # [b C]
        pseudo_label = self.smooth(own, embedding(target_weak), memory.weak, given.step)
        confident = pseudo_label.max(-1) >= self.threshold

        supervised = cross_entropy(on_x.logits, given.labeled.label).mean()
        errors = cross_entropy(on_strong.logits, pseudo_label)
        unsupervised = jnp.where(confident, errors, 0.0).mean()
        contrastive = self.ramp(given.step) * self.contrast(
            pseudo_label, embedding(on_strong), embedding(on_contrast), memory.strong
        )
        loss = (
            supervised
            + self.unlabeled_weight * unsupervised
            + self.contrastive_weight * contrastive
        )

        one_hot = jax.nn.one_hot(given.labeled.label, given.spec.classes, dtype=own.dtype)
        # Two pushes: joined rows would move between devices.
        queue = push(memory.weak, rows(embedding(target_weak), own))
        queue = push(queue, rows(embedding(target_x), one_hot))
        past = memory.strong and push(memory.strong, rows(embedding(on_contrast), pseudo_label))
        return loss, Update(
            stats,
            {
                "loss/supervised": supervised,
                "loss/unsupervised": unsupervised,
                "loss/contrastive": contrastive,
                **pseudo_label_metrics(
                    pseudo_label, confident, given.unlabeled.label, on_strong.logits
                ),
            },
            Memory(history, queue, past),
            teacher_stats,
        )

    def smooth(self, own: Array, embeddings: Array, queue: Queue, step: Array) -> Array:
        """p_i = alpha own_i + (1 - alpha) sum_k a_ik p_k, a_i = softmax_k(z_i . z_k / t).

        Only written rows k vote; before the start step and with none written p is ``own``.

        Args:
            own: aligned predictions [b C].
            embeddings: z of the same weak views [b d].
            queue: of weak views.
            step: [] int32.

        Returns:
            [b C].
        """
        share = jnp.exp(
            log_similarity(
                embeddings, queue.rows["embedding"], self.temperature, valid=filled(queue)
            )
        )
        voted = jnp.matmul(share, queue.rows["probabilities"], precision="highest")
        mixed = self.smoothing * own + (1 - self.smoothing) * voted
        active = (step >= self.smoothing_start_step) & (queue.filled > 0)
        return jnp.where(active, mixed, own)

    def contrast(self, label: Array, strong: Array, contrast: Array, queue: Queue | None) -> Array:
        """mean_i -sum_j Q_ij log(S_ij + 1e-7), over the batch or the batch and a queue.

        Gradients pass into both views, as in the official code.

        Args:
            label: pseudo-labels [b C].
            strong: embeddings [b d], the rows of S.
            contrast: embeddings [b d], the columns of S.
            queue: earlier contrast views, further columns of S.

        Returns:
            [] nats.
        """
        if queue is None:
            graph = pseudo_label_graph(label, self.graph_threshold)
            log_similar = log_similarity(strong, contrast, self.temperature)
        else:
            graph = graph_with_past(label, queue, self.graph_threshold)
            log_similar = log_similarity_with_past(strong, contrast, queue, self.temperature)
        return -(graph * jnp.log(jnp.exp(log_similar) + SMALLEST)).sum(1).mean()

    def ramp(self, step: Array) -> Array | float:
        """The share of ``contrastive_weight`` w at ``step``: min(step // ramp_steps + 1, w) / w."""
        if not self.contrastive_ramp_steps:
            return 1.0
        weight = jnp.asarray(step // self.contrastive_ramp_steps + 1, float)
        return jnp.minimum(weight / self.contrastive_weight, 1.0)


def embedding(outputs: Outputs) -> Array:
    """Unit rows [b d]."""
    return normalize(outputs.heads["projection"])


def rows(embeddings: Array, probabilities: Array) -> dict[str, Array]:
    """What a queue of :class:`Memory` takes: [b d] and [b C]."""
    return {"embedding": embeddings, "probabilities": probabilities}


def graph_with_past(label: Array, queue: Queue, threshold: float) -> Array:
    """:func:`~jaxmatch.functional.similarity.pseudo_label_graph` with columns for earlier images.

    Args:
        label: pseudo-labels [b C].
        queue: of n earlier images; rows not written have probabilities of zero, so no edge.
        threshold: T_c.

    Returns:
        [b b+n], rows summing to 1.
    """
    present = jnp.where(jnp.eye(len(label), dtype=bool), 1.0, inner_products(label, label))
    weights = jnp.concatenate([present, inner_products(label, queue.rows["probabilities"])], 1)
    weights = jnp.where(weights >= threshold, weights, 0.0)
    return weights / weights.sum(1, keepdims=True)


def log_similarity_with_past(
    queries: Array, keys: Array, queue: Queue, temperature: float
) -> Array:
    """:func:`~jaxmatch.functional.similarity.log_similarity` to keys and queue, as one softmax.

    The official code starts with random unit vectors, which repel until they are overwritten.
    Here rows that are not written take no part.

    Args:
        queries: [b d].
        keys: [b d].
        queue: of n earlier keys.
        temperature: positive.

    Returns:
        [b b+n].
    """
    # Columns are joined, since the axis of the keys is split over devices.
    groups = (keys, queue.rows["embedding"])
    scores = jnp.concatenate([inner_products(queries, group) for group in groups], 1)
    valid = jnp.concatenate([jnp.ones(len(keys), bool), filled(queue)])
    return jax.nn.log_softmax(jnp.where(valid, scores / temperature, NEVER))
