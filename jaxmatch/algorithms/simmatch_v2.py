"""SimMatchV2: views agree as nodes and as edges of a graph of labeled and unlabeled images.

Zheng et al., "SimMatchV2: Semi-Supervised Learning with Graph Consistency", ICCV 2023,
https://arxiv.org/abs/2308.06692.
"""

from collections.abc import Sequence
from typing import Annotated, Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxmatch.functional import memory
from jaxmatch.functional.alignment import align_by_average, alignment_prior
from jaxmatch.functional.diagnostics import pseudo_label_metrics
from jaxmatch.functional.losses import cross_entropy
from jaxmatch.functional.propagation import propagate
from jaxmatch.functional.similarity import log_similarity, normalize
from jaxmatch.models.heads import Projection
from jaxmatch.settings import Count, Momentum, NonNegative, Positive, Range, Threshold, section
from jaxmatch.types import Algorithm, Array, Batch, Heads, Inputs, Outputs, PyTree, Spec, Update


class Memory(NamedTuple):
    """The memory of SimMatchV2, from outputs of the teacher."""

    bank: memory.Bank  # embeddings of the labeled examples
    queue: memory.Queue  # embeddings [n d] and probabilities [n C] of the last unlabeled ones
    average: Array  # [C] moving average of the predictions, for alignment


@section("algorithm")
class SimMatchV2(Algorithm):
    """The loss is supervised + unlabeled_weight * node-node + edge_edge + node_edge, weighted.

    The defaults are those of the authors for ImageNet with 1% of the labels, their only data set
    (with 10% the edge weights are 5). Each strong view after the first has a pass of its own.

    Attributes:
        threshold: tau; an image counts in the node-node loss if the largest aligned probability of
            its weak view is at least this, before propagation.
        unlabeled_weight: weight of the node-node loss, lambda_nn.
        edge_edge_weight: weight of the edge-edge loss, lambda_ee.
        node_edge_weight: weight of the node-edge loss, lambda_ne.
        temperature: t of all similarities between embeddings.
        propagation: alpha, how far labels travel; 0 turns propagation off.
        neighbors: labeled images in the graph of an unlabeled one.
        queue_batches: unlabeled batches that the queue of unlabeled images holds.
        alignment_momentum: the share of the old average prediction that stays.
        alignment_prior: what predictions are aligned to, "uniform" or the class frequencies of the
            "labels".
        projection: width of the embeddings.
        shuffle: permute the teacher's images over the global batch, and its outputs back
            (MoCo's shuffled BatchNorm, as the authors have on ImageNet). Devices exchange these
            images. It has an effect only with ``ema.statistics="own"`` and
            ``model.bn_groups`` above 1.
        strong_views: strong views of each unlabeled image; the losses are means over them.
    """

    threshold: Threshold = 0.7
    unlabeled_weight: NonNegative = 10.0
    edge_edge_weight: NonNegative = 10.0
    node_edge_weight: NonNegative = 10.0
    temperature: Positive = 0.1
    propagation: Annotated[float, Range(least=0, below=1)] = 0.1
    neighbors: Count = 128
    queue_batches: Count = 256
    alignment_momentum: Momentum = 0.9
    alignment_prior: Literal["uniform", "labels"] = "uniform"
    projection: Count = 128
    shuffle: bool = False
    strong_views: Count = 1

    labeled = ("weak",)
    evaluated = "student"

    @property
    def unlabeled(self) -> tuple[str, ...]:
        """A weak view and the strong ones."""
        return ("weak", *["strong"] * self.strong_views)

    @property
    def heads(self) -> Heads:
        """The projection head that the embeddings come from."""
        return {"projection": Projection(features=self.projection)}

    def init(self, key: Array, spec: Spec) -> Memory:
        """An empty bank, an empty queue and a uniform average."""
        size = self.queue_batches * spec.unlabeled_batch
        return Memory(
            memory.make_bank(spec.labels, self.projection),
            memory.make_queue(size, embeddings=self.projection, probabilities=spec.classes),
            jnp.full(spec.classes, 1 / spec.classes, float),
        )

    def draw(self, key: Array, batch: Batch) -> PyTree:
        """With ``shuffle``, the image [n] int32 at each place of the teacher's batch."""
        count = sum(map(len, batch.views[:2]))
        return jax.random.permutation(key, count) if self.shuffle else ()

    def objective(self, given: Inputs) -> tuple[Array, Update]:
        """H(y, p_x) + l_nn 1[max p_w >= tau] H(p', p_s) + l_ee H(r_w, r_s) + l_ne H(p_w, r_s Y).

        All are means. The teacher gives the aligned prediction p_w, p' after propagation over the
        labeled bank, and r_w. r are similarities to the queue, and Y its probabilities. Bank and
        queue are those before this step; while the queue is empty the last two terms are 0.
        """
        bank, queue, average = given.memory
        prior = alignment_prior(given.spec, self.alignment_prior)
        (x,), (weak, *strong) = given.labeled.views, given.unlabeled.views
        places = given.draws if self.shuffle else None
        (teacher_on_x, on_weak), teacher_stats = given.teacher((x, weak), places=places)
        log_aligned, average = align_by_average(
            average, jax.nn.log_softmax(on_weak.logits), self.alignment_momentum, prior
        )
        prediction = jnp.exp(log_aligned)  # [b C]
        confident = prediction.max(-1) >= self.threshold
        target = propagate(
            _embed(on_weak),
            prediction,
            bank,
            neighbors=self.neighbors,
            temperature=self.temperature,
            share=self.propagation,
        )
        edges = jnp.exp(self._log_edges(queue, on_weak))  # [b n]

        on_x, on_strong, stats = _student(given, x, strong)
        supervised = cross_entropy(on_x.logits, given.labeled.label).mean()
        node_node, edge_edge, node_edge = jnp.zeros(()), jnp.zeros(()), jnp.zeros(())
        for on in on_strong:
            errors = cross_entropy(on.logits, target)
            node_node += jnp.where(confident, errors, 0.0).mean() / self.strong_views
            log_edges = self._log_edges(queue, on)
            edge_edge += -(edges * log_edges).sum(-1).mean() / self.strong_views
            voters = queue.rows["probabilities"]
            seen = jnp.matmul(jnp.exp(log_edges), voters, precision="highest")  # [b C]
            log_seen = jnp.log(jnp.maximum(seen, jnp.finfo(seen.dtype).tiny))
            node_edge += -(prediction * log_seen).sum(-1).mean() / self.strong_views
        edge_edge, node_edge = (
            jnp.where(queue.filled > 0, term, 0.0) for term in (edge_edge, node_edge)
        )
        loss = (
            supervised
            + self.unlabeled_weight * node_node
            + self.edge_edge_weight * edge_edge
            + self.node_edge_weight * node_edge
        )
        index = given.labeled.index
        rows = {"embeddings": _embed(on_weak), "probabilities": prediction}
        return loss, Update(
            stats,
            {
                "loss/supervised": supervised,
                "loss/unsupervised": node_node,
                "loss/edge_edge": edge_edge,
                "loss/node_edge": node_edge,
                **pseudo_label_metrics(
                    target, confident, given.unlabeled.label, on_strong[0].logits
                ),
            },
            Memory(
                memory.write(bank, index, _embed(teacher_on_x), bank.labels[index]),
                memory.push(queue, rows),
                average,
            ),
            teacher_stats,
        )

    def _log_edges(self, queue: memory.Queue, outputs: Outputs) -> Array:
        """The log of an image's similarity to each image of the queue, summing to 1, [b n]."""
        keys = queue.rows["embeddings"]
        return log_similarity(_embed(outputs), keys, self.temperature, memory.filled(queue))


def _embed(outputs: Outputs) -> Array:
    return normalize(outputs.heads["projection"])


def _student(
    given: Inputs, x: Array, strong: Sequence[Array]
) -> tuple[Outputs, list[Outputs], PyTree]:
    """Outputs of a joint pass over labeled and first strong views, and of a pass for each other."""
    first, *others = strong
    (on_x, on_first), stats = given.student((x, first))
    on_strong = [on_first]
    for view in others:
        on_view, stats = given.student(view, stats)
        on_strong.append(on_view)
    return on_x, on_strong, stats
