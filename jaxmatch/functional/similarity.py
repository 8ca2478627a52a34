"""Similarities between embeddings, and between embeddings and classes, in log space.

SimMatch: Zheng et al., "SimMatch: Semi-supervised Learning with Similarity Matching", CVPR 2022,
https://arxiv.org/abs/2203.06915. CoMatch: Li, Xiong & Hoi, "CoMatch: Semi-supervised Learning with
Contrastive Graph Regularization", ICCV 2021, https://arxiv.org/abs/2011.11183.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from jaxmatch.functional.alike import split_alike
from jaxmatch.functional.one_hot import look_up, sum_by
from jaxmatch.types import Array

# A log weight of zero: finite, so that zero times it is zero; its exponential is zero in any dtype.
NEVER = -1e30


def normalize(x: Float[Array, "*rows d"], epsilon: float = 1e-12) -> Float[Array, "*rows d"]:
    """x / max(|x|, epsilon) along the last axis, in at least float32.

    A zero vector stays zero, with a finite gradient.

    >>> print(normalize(jnp.array([[3.0, 4.0], [0.0, 0.0]])))
    [[0.6 0.8]
     [0.  0. ]]
    """
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    square = jnp.sum(jnp.square(x), -1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(square, epsilon**2))


def inner_products(rows: Float[Array, "b d"], others: Float[Array, "n d"]) -> Float[Array, "b n"]:
    """rows_i . others_j, at least float32.

    >>> print(inner_products(jnp.array([[1.0, 2.0]]), jnp.array([[3.0, 4.0], [5.0, 6.0]])))
    [[11. 17.]]
    """
    dtype = jnp.promote_types(jnp.result_type(rows, others), jnp.float32)
    # Accelerators would round float32 factors to fewer bits, and a temperature magnifies that.
    return jnp.matmul(rows.astype(dtype), others.astype(dtype).T, precision="highest")


def log_similarity(
    queries: Float[Array, "b d"],
    keys: Float[Array, "n d"],
    temperature: float,
    valid: Bool[Array, "n"] | Bool[Array, "b n"] | None = None,
) -> Float[Array, "b n"]:
    """log softmax_j(queries_i . keys_j / temperature) over the valid keys, at least float32.

    >>> print(jnp.exp(log_similarity(jnp.eye(2), jnp.eye(2), temperature=1.0)).round(2))
    [[0.73 0.27]
     [0.27 0.73]]

    Args:
        queries: embeddings.
        keys: embeddings that they are compared with.
        temperature: positive.
        valid: which keys take part; by default all. The others get :data:`NEVER`; if no key is
            valid, all get equal shares.
    """
    scores = inner_products(queries, keys) / temperature
    if valid is not None:
        scores = jnp.where(valid, scores, NEVER)
    return jax.nn.log_softmax(scores)


def unfold(
    log_instance: Float[Array, "b n"], log_semantic: Float[Array, "b C"], labels: Int[Array, "n"]
) -> Float[Array, "b n"]:
    """Semantic into instance similarity: log of q_j p_{y_j} / sum_k q_k p_{y_k} (SimMatch eq. 7).

    >>> q, p = jnp.array([[0.5, 0.5]]), jnp.array([[0.9, 0.1]])
    >>> print(jnp.exp(unfold(jnp.log(q), jnp.log(p), jnp.array([1, 0]))).round(2))
    [[0.1 0.9]]

    Args:
        log_instance: log q.
        log_semantic: log p.
        labels: y.
    """
    # Where the bank is spread over the devices, the many looked-up values would otherwise move,
    # not the few values of the table.
    log_instance, semantic = split_alike(log_instance, look_up(log_semantic, labels))
    return jax.nn.log_softmax(log_instance + semantic)


def aggregate(
    instance: Float[Array, "b n"], labels: Int[Array, "n"], classes: int
) -> Float[Array, "b C"]:
    """Instance into semantic similarity: a_c = sum of q_j over j with y_j = c (SimMatch eq. 9).

    >>> print(aggregate(jnp.array([[0.5, 0.25, 0.25]]), jnp.array([1, 0, 1]), 2))
    [[0.25 0.75]]

    Args:
        instance: q.
        labels: y.
        classes: C.
    """
    return sum_by(instance, labels, classes)


def pseudo_label_graph(probabilities: Float[Array, "b C"], threshold: float) -> Float[Array, "b b"]:
    """CoMatch's target graph: p p^T with unit diagonal, weak edges cut, rows sum to 1 (eq. 6).

    >>> print(pseudo_label_graph(jnp.array([[1.0, 0.0], [0.5, 0.5]]), 0.4).round(2))
    [[0.67 0.33]
     [0.33 0.67]]

    Args:
        probabilities: p.
        threshold: T_c; smaller entries become 0. The diagonal stays for thresholds up to 1.
    """
    weights = inner_products(probabilities, probabilities)
    weights = jnp.where(jnp.eye(len(weights), dtype=bool), 1.0, weights)
    weights = jnp.where(weights >= threshold, weights, 0.0)
    return weights / weights.sum(1, keepdims=True)
