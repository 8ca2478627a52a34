"""Clusters of many embeddings on the devices that hold them, by Lloyd's k-means.

Lloyd, "Least Squares Quantization in PCM", IEEE Transactions on Information Theory 28 (1982). The
prototypes of PCL: Li et al., "Prototypical Contrastive Learning of Unsupervised Representations",
ICLR 2021, https://arxiv.org/abs/2005.04966.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int, Key

from jaxmatch.errors import InputError
from jaxmatch.functional.similarity import inner_products
from jaxmatch.types import Array

# The distances of all points to so many centroids are in memory at a time.
CENTROIDS_AT_A_TIME = 1024


class Clusters(NamedTuple):
    """A partition of n points into k clusters."""

    centroids: Float[Array, "k d"]  # at least float32
    assignment: Int[Array, "n"]  # the nearest centroid; of equally near ones the first
    distance: Float[Array, "n"]  # Euclidean, to that centroid
    size: Int[Array, "k"]  # valid points in each cluster
    inertia: Float[Array, ""]  # sum of the squared distances of valid points


@partial(jax.jit, static_argnames=("clusters", "iterations", "restarts"))
def kmeans(
    key: Key[Array, ""],
    points: Float[Array, "n d"],
    clusters: int,
    *,
    iterations: int = 20,
    restarts: int = 1,
    valid: Bool[Array, "n"] | None = None,
) -> Clusters:
    """Find centroids that are the means of the points nearest to them.

    Each restart begins at points drawn without replacement and moves all centroids ``iterations``
    times. An empty cluster's centroid moves to the point farthest from its own centroid, a second
    one to the second farthest, and so on. The restart of the smallest inertia is returned. Points
    may be split over devices, which then exchange only the centroids, their sums and a distance
    for each point.

    >>> points = jnp.array([[0.0], [1.0], [8.0], [9.0]])
    >>> found = kmeans(jax.random.key(0), points, 2)
    >>> print(jnp.sort(found.centroids[:, 0]), found.size, found.inertia)
    [0.5 8.5] [2 2] 1.0

    Args:
        key: typed PRNG key of the draws.
        points: the embeddings.
        clusters: k, at least 1 and at most the number of valid points.
        iterations: 0 or more.
        restarts: at least 1.
        valid: the other points, such as padding, change nothing. By default all are valid.

    Raises:
        InputError: if there are fewer points than clusters, or no cluster or restart.
    """
    if not 1 <= clusters <= len(points) or restarts < 1:
        raise InputError(
            f"k-means with {clusters} clusters of {len(points)} points and {restarts} restarts; "
            "give at least 1 restart, at least 1 cluster and at most as many clusters as points."
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


def assign(
    points: Float[Array, "n d"], valid: Bool[Array, "n"], centroids: Float[Array, "k d"]
) -> Clusters:
    """Assign each point to its nearest centroid.

    >>> points = jnp.array([[0.0], [3.0], [9.0]])
    >>> found = assign(points, jnp.ones(3, bool), jnp.array([[0.0], [8.0]]))
    >>> print(found.assignment, found.distance, found.size)
    [0 0 1] [0. 3. 1.] [2 1]
    """
    assignment = nearest(points, centroids)
    distance = jnp.linalg.norm(points - centroids[assignment], axis=1)
    size = jax.ops.segment_sum(valid.astype(jnp.int32), assignment, len(centroids))
    inertia = jnp.where(valid, jnp.square(distance), 0.0).sum()
    return Clusters(centroids, assignment, distance, size, inertia)


def nearest(points: Float[Array, "n d"], centroids: Float[Array, "k d"]) -> Int[Array, "n"]:
    """The index of the nearest centroid of each point; of equally near ones the first.

    >>> print(nearest(jnp.array([[1.0], [4.0]]), jnp.array([[0.0], [2.0], [5.0]])))
    [0 2]
    """
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
        scores = jnp.square(centroids).sum(1) / 2 - inner_products(points, centroids)  # [n width]
        here = scores.argmin(1).astype(jnp.int32)
        least = scores.min(1)
        nearer = least < score
        return (jnp.where(nearer, least, score), jnp.where(nearer, start + here, index)), None

    unknown = jnp.full(len(points), jnp.inf, points.dtype), jnp.zeros(len(points), jnp.int32)
    starts = width * jnp.arange(blocks, dtype=jnp.int32)
    (_, index), _ = jax.lax.scan(compare, unknown, (padded.reshape(blocks, width, -1), starts))
    return index


def move(
    points: Float[Array, "n d"], valid: Bool[Array, "n"], found: Clusters
) -> Float[Array, "k d"]:
    """The means of the clusters; an empty one gets the point farthest from its own centroid.

    >>> points = jnp.array([[0.0], [2.0], [9.0]])
    >>> found = assign(points, jnp.ones(3, bool), jnp.array([[2.0], [99.0]]))
    >>> print(move(points, jnp.ones(3, bool), found).round(2)[:, 0])
    [3.67 9.  ]
    """
    count = len(found.centroids)
    total = jax.ops.segment_sum(jnp.where(valid[:, None], points, 0.0), found.assignment, count)
    mean = total / jnp.maximum(found.size, 1)[:, None]
    empty = found.size == 0
    farthest = jax.lax.top_k(jnp.where(valid, found.distance, -1.0), count)[1]  # [k]
    return jnp.where(empty[:, None], points[farthest[jnp.cumsum(empty) - 1]], mean)
