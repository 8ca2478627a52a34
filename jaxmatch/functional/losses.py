"""Loss terms: arrays in, one value for each example out; the caller takes the mean."""

import jax
import jax.numpy as jnp
from jax.nn import logsumexp
from jaxtyping import Bool, Float, Int

from jaxmatch.functional.similarity import NEVER, inner_products
from jaxmatch.types import Array


def cross_entropy(
    logits: Float[Array, "b C"], target: Int[Array, "b"] | Float[Array, "b C"]
) -> Float[Array, "b"]:
    """Cross-entropy H(target, softmax(logits)) of each example, in nats, in log space.

    >>> print(cross_entropy(jnp.zeros((1, 4)), jnp.array([2])).round(2))
    [1.39]

    Args:
        logits: at least float32.
        target: classes, or probabilities (no gradient is stopped here).
    """
    log_probabilities = jax.nn.log_softmax(logits)
    if target.ndim == 1:
        return -jnp.take_along_axis(log_probabilities, target[:, None], axis=-1)[:, 0]
    return -jnp.sum(target * log_probabilities, axis=-1)


def entropy(logits: Float[Array, "b C"]) -> Float[Array, "b"]:
    """Entropy -sum_c p_c log p_c of p = softmax(logits), in nats, in log space.

    >>> print(entropy(jnp.zeros((1, 2))).round(2))
    [0.69]

    Args:
        logits: at least float32; gradients reach both factors.
    """
    log_probabilities = jax.nn.log_softmax(logits)
    return -jnp.sum(jnp.exp(log_probabilities) * log_probabilities, axis=-1)


def kl_divergence(
    target_logits: Float[Array, "b C"], logits: Float[Array, "b C"]
) -> Float[Array, "b"]:
    """Divergence KL(softmax(target_logits) || softmax(logits)), in nats, in log space.

    >>> print(kl_divergence(jnp.array([[50.0, 0.0]]), jnp.zeros((1, 2))).round(2))
    [0.69]

    Args:
        target_logits: at least float32 (no gradient is stopped here).
        logits: likewise.
    """
    log_target, log_probabilities = jax.nn.log_softmax(target_logits), jax.nn.log_softmax(logits)
    return jnp.sum(jnp.exp(log_target) * (log_target - log_probabilities), axis=-1)


def squared_difference(
    logits: Float[Array, "b C"], target: Float[Array, "b C"]
) -> Float[Array, "b"]:
    """Squared difference of softmax(logits) and target, averaged over the classes: [0, 2 / C].

    The consistency cost of Laine & Aila, "Temporal Ensembling", ICLR 2017, algorithms 1 and 2.

    >>> print(squared_difference(jnp.zeros((1, 2)), jnp.array([[1.0, 0.0]])))
    [0.25]

    Args:
        logits: at least float32.
        target: probabilities (no gradient is stopped here).
    """
    return jnp.mean(jnp.square(jax.nn.softmax(logits) - target), axis=-1)


def nt_xent(
    first: Float[Array, "b d"], second: Float[Array, "b d"], temperature: float
) -> Float[Array, "b"]:
    """SimCLR's normalised temperature-scaled cross-entropy, averaged over both views as anchors.

    With z the 2b embeddings and z' the other view of the same image, an anchor costs
    -log exp(z . z' / t) / sum exp(z . z_k / t), where k runs over all but the anchor itself
    (Chen et al., "SimCLR", ICML 2020, eq. 1). The mean over the batch is the paper's loss; the
    authors' code takes the sum of both directions, which is twice that.

    >>> views = jnp.eye(2)
    >>> print(nt_xent(views, views, temperature=0.5).round(2))
    [0.24 0.24]

    Args:
        first, second: unit rows; row i of both are views of image i. Gradients reach both.
        temperature: t, positive.

    Returns:
        Nats, at least float32.
    """
    itself = jnp.eye(len(first), dtype=bool)

    # The two kinds of similarity stay apart: joining the views would move rows between devices.
    def from_anchors(anchors: Array, others: Array) -> Array:
        across = inner_products(anchors, others) / temperature  # [b b]
        within = jnp.where(itself, NEVER, inner_products(anchors, anchors) / temperature)
        positive = jnp.sum(jnp.where(itself, across, 0.0), 1)
        return jnp.logaddexp(logsumexp(across, 1), logsumexp(within, 1)) - positive

    return (from_anchors(first, second) + from_anchors(second, first)) / 2


def info_nce(
    query: Float[Array, "b d"],
    key: Float[Array, "b d"],
    queue: Float[Array, "n d"],
    temperature: float,
    valid: Bool[Array, "n"] | None = None,
) -> Float[Array, "b"]:
    """MoCo's InfoNCE: a query finds its own key among the keys of a queue.

    -log exp(q . k / t) / (exp(q . k / t) + sum_n exp(q . k_n / t)), n over the valid rows of the
    queue (He et al., "MoCo", CVPR 2020, eq. 1, https://arxiv.org/abs/1911.05722); 0 if no row is
    valid.

    >>> query, queue = jnp.array([[1.0, 0.0]]), jnp.array([[0.0, 1.0]])
    >>> print(info_nce(query, query, queue, temperature=0.5).round(2))
    [0.13]

    Args:
        query, key: unit rows; row i of both are views of image i (no gradient is stopped here).
        queue: unit rows, keys of other images.
        temperature: t, positive.
        valid: which rows of the queue take part; by default all.

    Returns:
        Nats, at least float32.
    """
    dtype = jnp.promote_types(jnp.result_type(query, key), jnp.float32)
    positive = jnp.sum(query.astype(dtype) * key, -1) / temperature
    negative = inner_products(query, queue) / temperature
    if valid is not None:
        negative = jnp.where(valid, negative, NEVER)
    return jnp.logaddexp(positive, logsumexp(negative, 1)) - positive


def supervised_contrastive(
    embeddings: Float[Array, "b d"], labels: Int[Array, "b"], temperature: float
) -> Float[Array, "b"]:
    """An anchor finds the other rows of its label among all other rows.

    Row i costs the mean of -log exp(z_i . z_p / t) / sum_{k != i} exp(z_i . z_k / t) over the other
    rows p of its label (Khosla et al., "Supervised Contrastive Learning", NeurIPS 2020, eq. 2,
    https://arxiv.org/abs/2004.11362), and 0 if there are none.

    >>> print(supervised_contrastive(jnp.eye(3), jnp.array([0, 0, 1]), temperature=0.5).round(2))
    [0.69 0.69 0.  ]

    Args:
        embeddings: z, unit rows.
        labels: of the rows.
        temperature: t, positive.

    Returns:
        Nats, at least float32.
    """
    itself = jnp.eye(len(embeddings), dtype=bool)
    scores = inner_products(embeddings, embeddings) / temperature  # [b b]
    everyone = logsumexp(jnp.where(itself, NEVER, scores), 1, keepdims=True)
    positive = (labels[:, None] == labels) & ~itself
    total = jnp.sum(jnp.where(positive, everyone - scores, 0.0), 1)
    return total / jnp.maximum(positive.sum(1), 1)
