"""Soft assignments that use all prototypes equally, by Sinkhorn-Knopp in log space.

SwAV: Caron et al., "Unsupervised Learning of Visual Features by Contrasting Cluster Assignments",
NeurIPS 2020, section 3.1, https://arxiv.org/abs/2006.09882.
"""

import jax
import jax.numpy as jnp

from jaxmatch.errors import InputError
from jaxmatch.functional.alike import split_alike
from jaxmatch.types import Array


def sinkhorn(
    scores: Array,
    epsilon: float = 0.05,
    iterations: int = 3,
    queue: Array | None = None,
    valid: Array | bool = True,
) -> Array:
    """exp(scores / epsilon), scaled in turn so that columns sum alike and that rows sum to 1.

    No gradient passes into the scores. Rows sum to 1 exactly; the sums of the columns tend to
    b / k with the iterations.

    Args:
        scores: of each example and prototype [b k]; any shift of all of them changes nothing.
        epsilon: weight of the entropy, positive; towards 0 rows become one-hot.
        iterations: at least 1.
        queue: scores of earlier examples [n k], which count in the sums of columns.
        valid: [n] or [] bool, which rows of the queue do.

    Returns:
        [b k], at least float32.

    Raises:
        InputError: if epsilon or the iterations are too small.
    """
    if epsilon <= 0 or iterations < 1:
        raise InputError(
            f"Sinkhorn with epsilon={epsilon} and {iterations} iterations; "
            "give a positive epsilon and at least 1 iteration."
        )

    def scaled(scores: Array) -> Array:
        scores = scores.astype(jnp.promote_types(scores.dtype, jnp.float32))
        return jax.lax.stop_gradient(scores) / epsilon

    batch, past, counts = scaled(scores), None, None
    if queue is not None:
        past, seen = beside(scores, scaled(queue), jnp.broadcast_to(valid, len(queue)))
        counts = seen[..., None]
    for _ in range(iterations):
        column = jax.nn.logsumexp(batch, axis=0)  # [k]
        if past is not None:
            column = jnp.logaddexp(column, jax.nn.logsumexp(past, axis=(0, 1), where=counts))
            past = jax.nn.log_softmax(past - column)
        batch = jax.nn.log_softmax(batch - column)
    return jnp.exp(batch)


def beside(batch: Array, rows: Array, valid: Array) -> tuple[Array, Array]:
    """Deal earlier rows out to the examples of a batch, on the device where each example is.

    Args:
        batch: [b k], of which the places count alone.
        rows: [n k].
        valid: [n] bool.

    Returns:
        The rows [b m k] with m = ceil(n / b), and which of them are valid [b m]; those beyond n
        are not.
    """
    each = -(-len(rows) // len(batch))
    missing = each * len(batch) - len(rows)
    rows = jnp.pad(rows, ((0, missing), (0, 0))).reshape(len(batch), each, -1)
    valid = jnp.pad(valid, (0, missing)).reshape(len(batch), each)
    # Without this each device would balance all rows, as each holds the whole queue.
    like = jnp.broadcast_to(batch[:, None, :1], rows.shape)
    return split_alike(like, rows)[1], valid
