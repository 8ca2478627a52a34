"""Label propagation: an image's class by a random walk among its most similar labeled images.

Zhou et al., "Learning with Local and Global Consistency", NeurIPS 2003; in the form of SimMatchV2:
Zheng et al., "SimMatchV2: Semi-Supervised Learning with Graph Consistency", ICCV 2023,
https://arxiv.org/abs/2308.06692.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from jaxmatch.functional.memory import Bank
from jaxmatch.functional.similarity import NEVER, inner_products
from jaxmatch.types import Array


def propagate(
    embeddings: Float[Array, "b d"],
    prediction: Float[Array, "b C"],
    bank: Bank,
    *,
    neighbors: int,
    temperature: float,
    share: float,
) -> Float[Array, "b C"]:
    """First row of (1 - share) (I - share W)^-1 Y for each image, over it and its neighbors.

    The first node of an image's graph is the image; the others are the nearest filled rows of the
    bank. W = softmax_j(f_i . f_j / temperature) without edges from a node to itself. Y has the
    image's prediction, then the neighbors' labels. If the bank is empty, the result is the
    prediction.

    >>> bank = Bank(jnp.eye(2), jnp.array([0, 1]), jnp.ones(2, bool))
    >>> image, prediction = jnp.array([[0.6, 0.8]]), jnp.array([[0.5, 0.5]])
    >>> settings = {"neighbors": 2, "temperature": 0.1, "share": 0.5}
    >>> print(propagate(image, prediction, bank, **settings).round(2))
    [[0.37 0.63]]

    Args:
        embeddings: unit rows.
        prediction: rows sum to 1.
        bank: of the labeled images.
        neighbors: labeled images in each graph; all of them where the bank has fewer.
        temperature: positive.
        share: alpha, at least 0 and below 1; 0 gives the prediction back.

    Returns:
        Rows that sum to 1.
    """
    count = min(neighbors, len(bank.labels))
    scores = jnp.where(bank.filled, inner_products(embeddings, bank.embeddings), NEVER)  # [b n]
    best, nearest = jax.lax.top_k(scores, count)  # [b k]
    valid = best > NEVER  # [b k], whether the row is filled
    nodes = jnp.concatenate([embeddings[:, None], bank.embeddings[nearest]], axis=1)  # [b 1+k d]
    walk = jax.nn.softmax(_edges(nodes, valid, temperature))  # [b 1+k 1+k]
    weight = first_row_of_resolvent(walk, share)  # [b 1+k]

    def vote(weight: Array, label: Array) -> Array:
        return jax.ops.segment_sum(weight, label, prediction.shape[1])

    votes = jax.vmap(vote)(weight[:, 1:], bank.labels[nearest])  # [b C]
    propagated = weight[:, :1] * prediction + votes
    return jnp.where(valid.any(1, keepdims=True), propagated, prediction)


def first_row_of_resolvent(walk: Float[Array, "b m m"], share: float) -> Float[Array, "b m"]:
    """First row of (1 - share) (I - share W)^-1, to the precision of W's dtype.

    Its entries are the probabilities where a walk ends that starts at the first node and goes on
    with probability ``share`` at each step. The iteration x <- share x W + (1 - share) e_1 errs by
    share^steps. It keeps the sum at 1 and, unlike a batched solver, runs on each device for its own
    images.

    >>> print(first_row_of_resolvent(jnp.array([[[0.0, 1.0], [1.0, 0.0]]]), 0.5).round(2))
    [[0.67 0.33]]

    Args:
        walk: W, rows sum to 1.
        share: at least 0 and below 1.
    """
    start = jnp.zeros_like(walk[:, 0]).at[:, 0].set(1)
    if share == 0:
        return start
    steps = math.ceil(math.log(float(jnp.finfo(walk.dtype).eps)) / math.log(share))

    def step(_: Array, row: Array) -> Array:
        return (
            share * jnp.einsum("bi,bij->bj", row, walk, precision="highest") + (1 - share) * start
        )

    return jax.lax.fori_loop(0, steps, step, start)


def _edges(
    nodes: Float[Array, "b m d"], valid: Bool[Array, "b m-1"], temperature: float
) -> Float[Array, "b m m"]:
    """Log weights of the edges; there are none to a node itself or to an invalid neighbor."""
    scores = jnp.einsum("bid,bjd->bij", nodes, nodes, precision="highest") / temperature
    scores = scores.astype(jnp.promote_types(scores.dtype, jnp.float32))
    to = jnp.pad(valid, ((0, 0), (1, 0)), constant_values=True)[:, None]  # [b 1 m]
    return jnp.where(to & ~jnp.eye(nodes.shape[1], dtype=bool), scores, NEVER)
