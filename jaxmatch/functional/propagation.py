"""Label propagation: an image's class by a random walk among its most similar labeled images.

Zhou et al., "Learning with Local and Global Consistency", NeurIPS 2003; in the form of SimMatchV2:
Zheng et al., "SimMatchV2: Semi-Supervised Learning with Graph Consistency", ICCV 2023,
https://arxiv.org/abs/2308.06692.
"""

import math

import jax
import jax.numpy as jnp

from jaxmatch.functional.memory import Bank
from jaxmatch.functional.similarity import NEVER, inner_products
from jaxmatch.types import Array


def propagate(
    embeddings: Array,
    prediction: Array,
    bank: Bank,
    *,
    neighbors: int,
    temperature: float,
    share: float,
) -> Array:
    """First row of (1 - share) (I - share W)^-1 Y for each image, over it and its neighbors.

    The graph of an image has it as its first node and the nearest filled rows of the bank as the
    others. W = softmax_j(f_i . f_j / temperature) without edges from a node to itself; Y has the
    image's prediction, then the neighbors' labels. Where the bank is empty, the prediction.

    Args:
        embeddings: [b d] unit rows.
        prediction: [b C], rows summing to 1.
        bank: of n labeled images.
        neighbors: labeled images in each graph; all of them where the bank has fewer.
        temperature: positive.
        share: alpha, at least 0 and below 1; 0 gives the prediction back.

    Returns:
        [b C], rows summing to 1.
    """
    count = min(neighbors, len(bank.labels))
    scores = jnp.where(bank.filled, inner_products(embeddings, bank.embeddings), NEVER)  # [b n]
    best, nearest = jax.lax.top_k(scores, count)  # [b k]
    valid = best > NEVER  # [b k], which are of rows that are filled
    nodes = jnp.concatenate([embeddings[:, None], bank.embeddings[nearest]], axis=1)  # [b 1+k d]
    walk = jax.nn.softmax(_edges(nodes, valid, temperature))  # [b 1+k 1+k]
    weight = first_row_of_resolvent(walk, share)  # [b 1+k]

    def vote(weight: Array, label: Array) -> Array:
        return jax.ops.segment_sum(weight, label, prediction.shape[1])

    votes = jax.vmap(vote)(weight[:, 1:], bank.labels[nearest])  # [b C]
    propagated = weight[:, :1] * prediction + votes
    return jnp.where(valid.any(1, keepdims=True), propagated, prediction)


def first_row_of_resolvent(walk: Array, share: float) -> Array:
    """First row of (1 - share) (I - share W)^-1, by as many steps as the precision can tell apart.

    The row is what a walk reaches that starts at the first node and goes on with probability
    ``share`` at each step. The iteration x <- share x W + (1 - share) e_1 errs by share^steps; it
    keeps the sum at 1 and, unlike a batched solver, runs on each device for its own images.

    Args:
        walk: W [b m m], rows summing to 1.
        share: at least 0 and below 1.

    Returns:
        [b m].
    """
    start = jnp.zeros_like(walk[:, 0]).at[:, 0].set(1)
    if share == 0:
        return start
    steps = math.ceil(math.log(float(jnp.finfo(walk.dtype).eps)) / math.log(share))

    def step(_: int, row: Array) -> Array:
        return (
            share * jnp.einsum("bi,bij->bj", row, walk, precision="highest") + (1 - share) * start
        )

    return jax.lax.fori_loop(0, steps, step, start)


def _edges(nodes: Array, valid: Array, temperature: float) -> Array:
    """Log weights of the edges [b 1+k 1+k]; none to a node itself or to an invalid neighbor."""
    scores = jnp.einsum("bid,bjd->bij", nodes, nodes, precision="highest") / temperature
    scores = scores.astype(jnp.promote_types(scores.dtype, jnp.float32))
    to = jnp.pad(valid, ((0, 0), (1, 0)), constant_values=True)[:, None]  # [b 1 1+k]
    return jnp.where(to & ~jnp.eye(nodes.shape[1], dtype=bool), scores, NEVER)
