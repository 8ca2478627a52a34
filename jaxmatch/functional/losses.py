"""Pure loss terms: arrays in, one value an example out; the caller takes the mean."""

import jax
import jax.numpy as jnp
from jax.nn import logsumexp

from jaxmatch.functional.similarity import NEVER, inner_products
from jaxmatch.types import Array


def cross_entropy(logits: Array, target: Array) -> Array:
    """Cross-entropy H(target, softmax(logits)) of each example, in log space.

    Args:
        logits: [b C], at least float32.
        target: [b] integer classes, or [b C] probabilities (no gradient is stopped here).

    Returns:
        [b] nats.
    """
    log_probabilities = jax.nn.log_softmax(logits)
    if target.ndim == 1:
        return -jnp.take_along_axis(log_probabilities, target[:, None], axis=-1)[:, 0]
    return -jnp.sum(target * log_probabilities, axis=-1)


def entropy(logits: Array) -> Array:
    """Entropy -sum_c p_c log p_c of p = softmax(logits), in log space.

    Args:
        logits: [b C], at least float32. Gradients reach both factors.

    Returns:
        [b] nats, in [0, log C].
    """
    log_probabilities = jax.nn.log_softmax(logits)
    return -jnp.sum(jnp.exp(log_probabilities) * log_probabilities, axis=-1)


def kl_divergence(target_logits: Array, logits: Array) -> Array:
    """Kullback-Leibler divergence KL(softmax(target_logits) || softmax(logits)), in log space.

    Args:
        target_logits: [b C], at least float32 (no gradient is stopped here).
        logits: [b C].

    Returns:
        [b] nats, not negative but for rounding.
    """
    log_target, log_probabilities = jax.nn.log_softmax(target_logits), jax.nn.log_softmax(logits)
    return jnp.sum(jnp.exp(log_target) * (log_target - log_probabilities), axis=-1)


def squared_difference(logits: Array, target: Array) -> Array:
    """Squared difference of softmax(logits) and target, averaged over the classes.

    The consistency cost of Laine & Aila, "Temporal Ensembling", ICLR 2017, algorithms 1 and 2.

    Args:
        logits: [b C], at least float32.
        target: [b C] probabilities (no gradient is stopped here).

    Returns:
        [b], in [0, 2 / C].
    """
    return jnp.mean(jnp.square(jax.nn.softmax(logits) - target), axis=-1)


def nt_xent(first: Array, second: Array, temperature: float) -> Array:
    """SimCLR's normalised temperature-scaled cross-entropy, averaged over both views as anchors.

    With z the 2b embeddings and z' the other view of the same image, an anchor costs
    -log exp(z . z' / t) / sum exp(z . z_k / t), where k runs over all but the anchor itself
    (Chen et al., "SimCLR", ICML 2020, eq. 1). The mean over the batch is the paper's loss; the
    authors' code takes the sum of both directions, which is twice that.

    Args:
        first, second: [b d] unit rows; row i of both are views of image i. Gradients reach both.
        temperature: t, positive.

    Returns:
        [b] nats, at least float32.
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
    query: Array, key: Array, queue: Array, temperature: float, valid: Array | None = None
) -> Array:
    """MoCo's InfoNCE: a query finds its own key among the keys of a queue.

    -log exp(q . k / t) / (exp(q . k / t) + sum_n exp(q . k_n / t)), n over the valid rows of the
    queue (He et al., "MoCo", CVPR 2020, eq. 1, https://arxiv.org/abs/1911.05722); 0 without any.

    Args:
        query, key: [b d] unit rows; row i of both are views of image i (no gradient is stopped
            here).
        queue: [n d] unit rows, keys of other images.
        temperature: t, positive.
        valid: [n] bool, which rows of the queue take part; by default all.

    Returns:
        [b] nats, at least float32.
    """
    dtype = jnp.promote_types(jnp.result_type(query, key), jnp.float32)
    positive = jnp.sum(query.astype(dtype) * key, -1) / temperature
    negative = inner_products(query, queue) / temperature
    if valid is not None:
        negative = jnp.where(valid, negative, NEVER)
    return jnp.logaddexp(positive, logsumexp(negative, 1)) - positive


def supervised_contrastive(embeddings: Array, labels: Array, temperature: float) -> Array:
    """An anchor finds all others of its label among all others.

    The mean over the other rows p of the label of row i of
    -log exp(z_i . z_p / t) / sum_{k != i} exp(z_i . z_k / t) (Khosla et al., "Supervised
    Contrastive Learning", NeurIPS 2020, eq. 2, https://arxiv.org/abs/2004.11362); 0 where there
    is no other row of the label.

    Args:
        embeddings: z [b d] unit rows.
        labels: [b] integers.
        temperature: t, positive.

    Returns:
        [b] nats, at least float32.
    """
    itself = jnp.eye(len(embeddings), dtype=bool)
    scores = inner_products(embeddings, embeddings) / temperature  # [b b]
    everyone = logsumexp(jnp.where(itself, NEVER, scores), 1, keepdims=True)
    positive = (labels[:, None] == labels) & ~itself
    total = jnp.sum(jnp.where(positive, everyone - scores, 0.0), 1)
    return total / jnp.maximum(positive.sum(1), 1)
