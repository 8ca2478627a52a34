"""Clusters of many embeddings on the devices that hold them, by Lloyd's k-means.

Lloyd, "Least Squares Quantization in PCM", IEEE Transactions on Information Theory 28 (1982). The
prototypes of PCL: Li et al., "Prototypical Contrastive Learning of Unsupervised Representations",
ICLR 2021, https://arxiv.org/abs/2005.04966.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxmatch.errors import InputError
from jaxmatch.functional.similarity import inner_products
from jaxmatch.types import Array

CENTROIDS_AT_A_TIME = 1024  # whose distances to all points exist at a time


class Clusters(NamedTuple):
    """A partition of n points into k clusters."""

    centroids: Array  # [k d], at least float32
    assignment: Array  # [n] int32, the nearest centroid; of equally near ones the first
    distance: Array  # [n] Euclidean, to that centroid
    size: Array  # [k] int32, valid points in each cluster
    inertia: Array  # [] sum of the squared distances of valid points


@partial(jax.jit, static_argnames=("clusters", "iterations", "restarts"))
def kmeans(
    key: Array,
    points: Array,
    clusters: int,
    *,
    iterations: int = 20,
    restarts: int = 1,
    valid: Array | None = None,
) -> Clusters:
    """Centroids that are the means of the points nearest to them.

    Each restart begins at points drawn without replacement and moves all centroids ``iterations``
    times. A centroid that no point is nearest to moves to the point farthest from its own
    centroid, a second one to the second farthest, and so on. The restart of the smallest inertia
    is returned. Points may be split over devices, which then exchange only the centroids, their
    sums and a distance for each point.

    Args:
        key: of the draws; typed PRNG key.
        points: [n d].
        clusters: k, at least 1 and at most the number of valid points.
        iterations: 0 or more.
        restarts: at least 1.
        valid: [n] bool; the other points, such as padding, change nothing. By default all are.

    Raises:
        InputError: if there are fewer points than clusters, or no cluster or restart.
    """
    if not 1 <= clusters <= len(points) or restarts < 1:
        raise InputError(
            f"k-means with {clusters} clusters of {len(points)} points and {restarts} restarts; "
            "give at least 1 restart and between 1 cluster and one for each point."
        )
    points = points.astype(jnp.promote_types(points.dtype, jnp.float32))
    valid = jnp.ones(len(points), bool) if valid is None else valid

    def improve(_: Array, centroids: Array) -> Array:
        return move(points, valid, assign(points, valid, centroids))

    def run(number: Array) -> Clusters:
        lot = jax.random.uniform(jax.random.fold_in(key, number), (len(points),))
        first = jax.lax.top_k(jnp.where(valid, lot, -1.0), clusters)[1]
        centroids = jax.lax.fori_loop(0, iterations, improve, points[first])
        return assign(points, valid, centroids)

    found = jax.lax.map(run, jnp.arange(restarts))
    best = found.inertia.argmin()
    return jax.tree.map(lambda leaf: leaf[best], found)


def assign(points: Array, valid: Array, centroids: Array) -> Clusters:
    """The clusters of ``points`` [n d], of which ``valid`` [n] count, around ``centroids``."""
    assignment = nearest(points, centroids)
    distance = jnp.linalg.norm(points - centroids[assignment], axis=1)
    size = jax.ops.segment_sum(valid.astype(jnp.int32), assignment, len(centroids))
    inertia = jnp.where(valid, jnp.square(distance), 0.0).sum()
    return Clusters(centroids, assignment, distance, size, inertia)


def nearest(points: Array, centroids: Array) -> Array:
    """Index [n] int32 of the nearest of ``centroids`` [k d]; of equally near ones the first."""
    blocks = -(-len(centroids) // CENTROIDS_AT_A_TIME)
    width = -(-len(centroids) // blocks)
    # Copies of the last centroid fill the last block; they are no nearer than itself.
    padded = jnp.pad(centroids, ((0, blocks * width - len(centroids)), (0, 0)), mode="edge")

    def compare(
        best: tuple[Array, Array], block: tuple[Array, Array]
    ) -> tuple[tuple[Array, Array], None]:
        score, index = best
        centroids, start = block
        # Half the squared distance less |x|^2 / 2, which is the same for all centroids.
        scores = jnp.square(centroids).sum(1) / 2 - inner_products(points, centroids)  # [n c]
        here = scores.argmin(1).astype(jnp.int32)
        least = scores.min(1)
        nearer = least < score
        return (jnp.where(nearer, least, score), jnp.where(nearer, start + here, index)), None

    unknown = jnp.full(len(points), jnp.inf, points.dtype), jnp.zeros(len(points), jnp.int32)
    starts = width * jnp.arange(blocks, dtype=jnp.int32)
    (_, index), _ = jax.lax.scan(compare, unknown, (padded.reshape(blocks, width, -1), starts))
    return index


def move(points: Array, valid: Array, found: Clusters) -> Array:
    """The means [k d] of the clusters ``found``; for empty ones the points farthest from theirs."""
    count = len(found.centroids)
    total = jax.ops.segment_sum(jnp.where(valid[:, None], points, 0.0), found.assignment, count)
    mean = total / jnp.maximum(found.size, 1)[:, None]
    empty = found.size == 0
    farthest = jax.lax.top_k(jnp.where(valid, found.distance, -1.0), count)[1]  # [k]
    return jnp.where(empty[:, None], points[farthest[jnp.cumsum(empty) - 1]], mean)
