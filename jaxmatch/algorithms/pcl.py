"""PCL: beside MoCo's task, a view finds the prototype of its image's cluster among others.

Li et al., "Prototypical Contrastive Learning of Unsupervised Representations", ICLR 2021,
https://arxiv.org/abs/2005.04966. Here with MoCo v2's head and views, as the authors' second
version.
"""

from functools import partial
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
from jax.nn import logsumexp

from jaxmatch.algorithms.moco_v2 import MoCoV2
from jaxmatch.errors import InputError
from jaxmatch.functional.clustering import kmeans
from jaxmatch.functional.memory import Queue
from jaxmatch.functional.similarity import NEVER, inner_products, normalize
from jaxmatch.random import stream
from jaxmatch.settings import LARGEST, Count, Range, Whole, section
from jaxmatch.types import Array, Batch, Embed, Inputs, PyTree, Ratio, Spec, TrainState, Update

# Of k-means, as in the authors' code.
ITERATIONS, RESTARTS = 20, 5


class Prototypes(NamedTuple):
    """One clustering of all n images into k clusters."""

    centroids: Array  # [k d] unit rows
    concentration: Array  # [k] phi, positive: the temperature of each prototype
    assignment: Array  # [n] int32, the cluster of each image


class Memory(NamedTuple):
    """The memory of PCL."""

    queue: Queue
    clusterings: tuple[Prototypes, ...]
    clustered: Array  # [] bool, whether there are clusters yet


@section("algorithm")
class PCL(MoCoV2):
    """The loss is MoCo's InfoNCE plus the mean ProtoNCE over several clusterings; no label is read.

    Every ``refresh_steps`` steps k-means clusters the teacher's embeddings of all images again.

    Attributes:
        queue: length of the queue in keys, at least the batch.
        clusters: number k of clusters of each clustering, at most the number of images.
        negatives: number of prototypes without an image in the batch that a query is compared with
            in each clustering.
        refresh_steps: steps from one clustering to the next.
        start_step: clusters and ProtoNCE begin at the first multiple of ``refresh_steps`` from
            this step on.
    """

    queue: Count = 16384
    clusters: tuple[Annotated[int, Range(least=2, most=LARGEST)], ...] = (25_000, 50_000, 100_000)
    negatives: Count = 16_384
    refresh_steps: Count = 4992
    start_step: Whole = 0

    def __post_init__(self) -> None:
        """Refuse an empty list of clusterings."""
        if not self.clusters:
            raise InputError("algorithm.clusters=() leaves nothing to compare; give at least one.")

    def init(self, key: Array, spec: Spec) -> PyTree:
        """A :class:`Memory` with an empty queue and no clusters.

        Raises:
            InputError: if there are more clusters than images.
        """
        if max(self.clusters) > spec.unlabeled:
            raise InputError(
                f"algorithm.clusters={self.clusters} are more than the {spec.unlabeled} images; "
                "give fewer."
            )
        none = tuple(
            Prototypes(
                jnp.zeros((count, self.projection), float),
                jnp.ones(count, float),
                jnp.zeros(spec.unlabeled, jnp.int32),
            )
            for count in self.clusters
        )
        return Memory(super().init(key, spec), none, jnp.zeros((), bool))

    def refresh(self, state: TrainState, embed: Embed) -> Memory:
        """The memory with new clusters of all images."""
        points = normalize(jnp.asarray(embed(state.teacher)["projection"]))  # [n d]
        key = stream(jax.random.fold_in(state.key, state.step), "clusters")
        clusterings = tuple(
            prototypes(jax.random.fold_in(key, number), points, count, self.temperature)
            for number, count in enumerate(self.clusters)
        )
        return state.memory._replace(clusterings=clusterings, clustered=jnp.ones((), bool))

    def draw(self, key: Array, batch: Batch) -> PyTree:
        """MoCo's draws and, for each clustering, a rank [k] in which negatives are taken."""
        ranks = tuple(
            jax.random.uniform(jax.random.fold_in(key, number), (count,))
            for number, count in enumerate(self.clusters)
        )
        return super().draw(stream(key, "shuffle"), batch), ranks

    def objective(self, given: Inputs) -> tuple[Array, Update]:
        """InfoNCE(q, k) + 1/M sum_m ProtoNCE_m(q) (PCL eq. 11), the latter once there are clusters.

        q is the student's embedding of one view, k the teacher's of the other.
        """
        memory, (places, ranks) = given.memory, given.draws
        contrastive, query, update = self.contrast(given, memory.queue, places)
        terms = [
            proto_nce(query, clustering, given.unlabeled.index, rank, self.negatives)
            for clustering, rank in zip(memory.clusterings, ranks, strict=True)
        ]
        costs, hits = (jnp.stack(term) for term in zip(*terms, strict=True))  # [M b]
        prototype = jnp.where(memory.clustered, costs.mean(), 0.0)
        metrics = {
            **update.metrics,
            "loss/prototype": prototype,
            "prototype/accuracy": Ratio(
                (hits & memory.clustered).sum(), memory.clustered * hits.size
            ),
        }
        return contrastive + prototype, update._replace(
            metrics=metrics, memory=memory._replace(queue=update.memory)
        )


def proto_nce(
    query: Array, clustering: Prototypes, index: Array, rank: Array, negatives: int
) -> tuple[Array, Array]:
    """-log exp(q . c / phi) / sum_j exp(q . c_j / phi_j), c the prototype of the query's image.

    c_j are the prototypes of all images of the batch, so that one of two images of a cluster is a
    false negative of the other as in the authors' code, and those of the ``negatives`` clusters of
    highest ``rank`` [k] that have no image in the batch; of an equal rank all or none.

    Args:
        query: q [b d] unit rows.
        clustering: of all n images.
        index: [b] int32, which image each query is of.
        rank: [k], 0 or more.
        negatives: at least 1.

    Returns:
        Nats [b], and bool [b]: the image's own cluster is nearer than all others compared.
    """
    own = clustering.assignment[index]  # [b]
    outside = rank.at[own].set(-1.0)
    lowest = jax.lax.top_k(outside, negatives)[0][-1] if negatives < len(rank) else 0.0
    # Products with all prototypes take a TPU less time than fetching some of them.
    all_logits = inner_products(query, clustering.centroids) / clustering.concentration
    of_others = jnp.where(outside >= jnp.maximum(lowest, 0.0), all_logits, NEVER)  # [b k]
    of_batch = inner_products(query, clustering.centroids[own]) / clustering.concentration[own]
    positive = jnp.sum(jnp.where(jnp.eye(len(own), dtype=bool), of_batch, 0.0), 1)
    everyone = jnp.logaddexp(logsumexp(of_batch, 1), logsumexp(of_others, 1))
    rivals = jnp.where(own[:, None] == own, NEVER, of_batch).max(1)
    return everyone - positive, positive > jnp.maximum(rivals, of_others.max(1))


@partial(jax.jit, static_argnames=("count", "temperature"))
def prototypes(key: Array, points: Array, count: int, temperature: float) -> Prototypes:
    """The clusters of unit ``points`` [n d] with unit centroids and their concentrations."""
    clusters = kmeans(key, points, count, iterations=ITERATIONS, restarts=RESTARTS)
    total = jax.ops.segment_sum(clusters.distance, clusters.assignment, count)
    phi = concentration(total, clusters.size, temperature)
    return Prototypes(
        normalize(clusters.centroids).astype(float), phi.astype(float), clusters.assignment
    )


def concentration(total: Array, size: Array, temperature: float) -> Array:
    """phi = mean distance / log(size + 10) of each cluster, scaled to the mean ``temperature``.

    As in the authors' code a cluster without spread takes the largest phi of the others, and all
    are cut at their 10th and 90th percentiles before they are scaled (PCL section 3.3).

    Args:
        total: [k] sum of the distances of a cluster's points to its centroid.
        size: [k] int32, points of each.
        temperature: tau, positive; also phi where no cluster has a spread.

    Returns:
        [k], positive.
    """
    phi = total / jnp.maximum(size, 1) / jnp.log(size + 10.0)
    spread = (size > 1) & (total > 0)
    phi = jnp.where(spread, phi, jnp.where(spread, phi, 0.0).max())
    phi = jnp.clip(phi, *jnp.percentile(phi, jnp.array([10.0, 90.0])))
    mean = phi.mean()
    return jnp.where(mean > 0, temperature * phi / jnp.where(mean > 0, mean, 1.0), temperature)
