"""Pure loss terms: arrays in, one value an example out; the caller takes the mean."""

import jax
import jax.numpy as jnp

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
