"""Similarities between embeddings, and between embeddings and classes, in log space.

SimMatch: Zheng et al., "SimMatch: Semi-supervised Learning with Similarity Matching", CVPR 2022,
https://arxiv.org/abs/2203.06915. CoMatch: Li, Xiong & Hoi, "CoMatch: Semi-supervised Learning with
Contrastive Graph Regularization", ICCV 2021, https://arxiv.org/abs/2011.11183.
"""

import jax
import jax.numpy as jnp

from jaxmatch.functional.alike import split_alike
from jaxmatch.functional.one_hot import look_up, sum_by
from jaxmatch.types import Array

# Finite, so that a weight of zero times it is zero; its exponential is zero in any precision.
NEVER = -1e30


def normalize(x: Array, epsilon: float = 1e-12) -> Array:
    """x / max(|x|, epsilon) along the last axis; a zero vector stays zero, with a finite gradient.

    Args:
        x: [... d].
        epsilon: smallest norm that is divided by.

    Returns:
        [... d], at least float32.
    """
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    square = jnp.sum(jnp.square(x), -1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(square, epsilon**2))


def inner_products(rows: Array, others: Array) -> Array:
    """rows_i . others_j, [b d] and [n d] to [b n], at least float32."""
    dtype = jnp.promote_types(jnp.result_type(rows, others), jnp.float32)
    # Accelerators would round float32 factors to fewer bits, and a temperature magnifies that.
    return jnp.matmul(rows.astype(dtype), others.astype(dtype).T, precision="highest")


def log_similarity(
    queries: Array, keys: Array, temperature: float, valid: Array | None = None
) -> Array:
    """log softmax_j(queries_i . keys_j / temperature) over the valid keys.

    Args:
        queries: [b d].
        keys: [n d].
        temperature: positive.
        valid: [n] or [b n] bool, which keys take part; the others get :data:`NEVER`, or an equal
            share each where none is valid. By default all.

    Returns:
        [b n], at least float32.
    """
    scores = inner_products(queries, keys) / temperature
    if valid is not None:
        scores = jnp.where(valid, scores, NEVER)
    return jax.nn.log_softmax(scores)


def unfold(log_instance: Array, log_semantic: Array, labels: Array) -> Array:
    """Semantic into instance similarity: log of q_j p_{y_j} / sum_k q_k p_{y_k} (SimMatch eq. 7).

    Args:
        log_instance: log q [b n].
        log_semantic: log p [b C].
        labels: y [n] int32.

    Returns:
        [b n].
    """
    # Where the bank is spread over the devices, the looked-up values would else move, not the few
    # that they are looked up from.
    log_instance, semantic = split_alike(log_instance, look_up(log_semantic, labels))
    return jax.nn.log_softmax(log_instance + semantic)


def aggregate(instance: Array, labels: Array, classes: int) -> Array:
    """Instance into semantic similarity: a_c = sum of q_j over j with y_j = c (SimMatch eq. 9).

    Args:
        instance: q [b n].
        labels: y [n] int32.
        classes: C.

    Returns:
        [b C].
    """
    return sum_by(instance, labels, classes)


def pseudo_label_graph(probabilities: Array, threshold: float) -> Array:
    """CoMatch's target graph: p p^T with unit diagonal, weak edges cut, rows summing to 1 (eq. 6).

    Args:
        probabilities: p [b C].
        threshold: T_c; smaller entries become 0. The diagonal stays for thresholds up to 1.

    Returns:
        [b b].
    """
    weights = inner_products(probabilities, probabilities)
    weights = jnp.where(jnp.eye(len(weights), dtype=bool), 1.0, weights)
    weights = jnp.where(weights >= threshold, weights, 0.0)
    return weights / weights.sum(1, keepdims=True)
