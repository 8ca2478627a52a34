"""Soft assignments that use all prototypes equally, by Sinkhorn-Knopp in log space.

SwAV: Caron et al., "Unsupervised Learning of Visual Features by Contrasting Cluster Assignments",
NeurIPS 2020, section 3.1, https://arxiv.org/abs/2006.09882.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from jaxmatch.errors import InputError
from jaxmatch.functional.alike import split_alike
from jaxmatch.types import Array


def sinkhorn(
    scores: Float[Array, "b k"],
    epsilon: float = 0.05,
    iterations: int = 3,
    queue: Float[Array, "n k"] | None = None,
    valid: Bool[Array, "n"] | Bool[Array, ""] | bool = True,
) -> Float[Array, "b k"]:
    """exp(scores / epsilon), scaled in turns: columns to equal sums, then rows to sums of 1.

    Rows of the result sum to 1 exactly; the sums of the columns tend to b / k with the iterations.
    The result is at least float32. No gradient passes into the scores.

    >>> print(sinkhorn(jnp.array([[1.0, 0.9], [1.0, 0.5]]), epsilon=0.5).round(2))
    [[0.4 0.6]
     [0.6 0.4]]

    Args:
        scores: of each example and prototype; adding a constant to all changes nothing.
        epsilon: weight of the entropy, positive; towards 0 rows become one-hot.
        iterations: at least 1.
        queue: scores of earlier examples, which count in the sums of columns.
        valid: which rows of the queue count.

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


def beside(
    batch: Float[Array, "b k"], rows: Float[Array, "n k"], valid: Bool[Array, "n"]
) -> tuple[Float[Array, "b m k"], Bool[Array, "b m"]]:
    """Deal earlier rows out to the examples of a batch, on the device where each example is.

    >>> rows, valid = beside(jnp.zeros((2, 1)), jnp.arange(3.0)[:, None], jnp.ones(3, bool))
    >>> print(rows[..., 0])
    [[0. 1.]
     [2. 0.]]
    >>> print(valid)
    [[ True  True]
     [ True False]]

    Args:
        batch: only the devices of its examples count, not their values.
        rows: the earlier rows.
        valid: which of them count.

    Returns:
        m = ceil(n / b) rows for each example, and which of them are valid; rows beyond n are not.
    """
    each = -(-len(rows) // len(batch))
    missing = each * len(batch) - len(rows)
    rows = jnp.pad(rows, ((0, missing), (0, 0))).reshape(len(batch), each, -1)
    valid = jnp.pad(valid, (0, missing)).reshape(len(batch), each)
    # Otherwise each device would balance all rows, as each holds the whole queue.
    like = jnp.broadcast_to(batch[:, None, :1], rows.shape)
    return split_alike(like, rows)[1], valid
