"""Soft assignments that use all prototypes equally, by Sinkhorn-Knopp in log space.

SwAV: Caron et al., "Unsupervised Learning of Visual Features by Contrasting Cluster Assignments",
NeurIPS 2020, section 3.1, https://arxiv.org/abs/2006.09882.
"""

import jax
import jax.numpy as jnp

from jaxmatch.errors import InputError
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

    # The queue stays apart, since the batch may be split over devices.
    past = jnp.zeros((0, scores.shape[1]), scores.dtype) if queue is None else queue
    counts = jnp.asarray(valid)[..., None]

    def balance(_: Array, shares: tuple[Array, Array]) -> tuple[Array, Array]:
        batch, past = shares
        earlier = jax.nn.logsumexp(past, axis=0, where=counts)  # [k]
        column = jnp.logaddexp(jax.nn.logsumexp(batch, axis=0), earlier)  # [k]
        return jax.nn.log_softmax(batch - column), jax.nn.log_softmax(past - column)

    shares = scaled(scores), scaled(past)
    return jnp.exp(jax.lax.fori_loop(0, iterations, balance, shares)[0])
