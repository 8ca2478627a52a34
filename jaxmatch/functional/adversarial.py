"""The virtual adversarial direction: the small change of an image that changes its prediction most.

Miyato et al., "Virtual Adversarial Training: A Regularization Method for Supervised and
Semi-Supervised Learning", TPAMI 2018, https://arxiv.org/abs/1704.03976, section 3.3.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Float

from jaxmatch.functional.similarity import normalize
from jaxmatch.types import Array


def virtual_adversarial_direction(
    logits_of: Callable[[Array], Array],
    images: Float[Array, "b *image"],
    logits: Float[Array, "b C"],
    noise: Float[Array, "b *image"],
    xi: float = 0.0,
) -> Float[Array, "b *image"]:
    """One step of the power method, from a random direction d to g / |g| for each image.

    With p = softmax(z(x)), the divergence KL(p(x) || p(x + r)) is r^T H r / 2 to second order,
    H = J^T (diag(p) - p p^T) J, J = dz/dx. Where BatchNorm makes a prediction depend on the whole
    batch, so does H.

    >>> image, kernel = jnp.ones((1, 2)), jnp.array([[4.0, 0.0], [0.0, 0.0]])
    >>> print(virtual_adversarial_direction(lambda x: x @ kernel, image, image @ kernel, image))
    [[1. 0.]]

    Args:
        logits_of: z, from images [b ...] to logits [b C], at least float32.
        images: x.
        logits: z(x).
        noise: d before it is normalised.
        xi: 0 takes g = H d, from one product with J and one with its transpose. Otherwise g is the
            gradient of the divergence at r = xi d (the paper's approximation). Then xi must be
            small beside 1 and large beside the rounding of the images: xi >> 1e-6 in float32.

    Returns:
        For each image a direction of norm 1, or 0 where nothing changes its prediction; at least
        float32. No gradient passes.
    """
    direction = unit(noise)
    # A tangent has to have the type of its primal.
    images = images.astype(direction.dtype)
    if xi == 0:
        # J and its transpose are of one call: each call may drop other paths of the network.
        _, push = jax.linearize(logits_of, images)
        cotangent = covariance_product(logits, push(direction))
        (gradient,) = jax.linear_transpose(push, images)(cotangent)
    else:
        moved, pull_back = jax.vjp(logits_of, images + xi * direction)
        (gradient,) = pull_back(jax.nn.softmax(moved) - jax.nn.softmax(logits))
    return jax.lax.stop_gradient(unit(gradient))


def covariance_product(
    logits: Float[Array, "b C"], change: Float[Array, "b C"]
) -> Float[Array, "b C"]:
    """(diag(p) - p p^T) v for p = softmax(``logits``) and v = ``change``.

    >>> print(covariance_product(jnp.zeros((1, 2)), jnp.array([[1.0, 0.0]])))
    [[ 0.25 -0.25]]
    """
    probabilities = jax.nn.softmax(logits)
    # A constant added to v changes nothing but rounding. With v = 0 at the largest p, the product
    # of a confident prediction keeps its digits.
    top = jnp.take_along_axis(change, logits.argmax(-1, keepdims=True), axis=-1)
    change = change - top
    return probabilities * (change - jnp.sum(probabilities * change, -1, keepdims=True))


def unit(x: Float[Array, "b *rest"]) -> Float[Array, "b *rest"]:
    """Each example over its norm, however small; zeros stay zeros; at least float32.

    >>> print(unit(jnp.array([[3e-30, 4e-30], [0.0, 0.0]])))
    [[0.6 0.8]
     [0.  0. ]]
    """
    flat = x.reshape(len(x), -1)
    largest = jnp.abs(flat).max(-1, keepdims=True)
    return normalize(flat / jnp.where(largest > 0, largest, 1.0)).reshape(x.shape)
