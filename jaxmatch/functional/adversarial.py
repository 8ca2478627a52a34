"""The virtual adversarial direction: the small change of an image that changes its prediction most.

Miyato et al., "Virtual Adversarial Training: A Regularization Method for Supervised and
Semi-Supervised Learning", TPAMI 2018, https://arxiv.org/abs/1704.03976, section 3.3.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxmatch.functional.similarity import normalize
from jaxmatch.types import Array


def virtual_adversarial_direction(
    logits_of: Callable[[Array], Array],
    images: Array,
    logits: Array,
    noise: Array,
    xi: float = 0.0,
) -> Array:
    """One step of the power method, from random directions d to g / |g| of each image.

    With p = softmax(z(x)), the divergence KL(p(x) || p(x + r)) is r^T H r / 2 to second order,
    H = J^T (diag(p) - p p^T) J, J = dz/dx. Where BatchNorm makes a prediction depend on the whole
    batch, so does H.

    Args:
        logits_of: z, from images [b h w c] to logits [b C], at least float32.
        images: x [b h w c].
        logits: z(x) [b C].
        noise: [b h w c], d before it is normalised.
        xi: 0 takes g = H d, from one product with J and one with its transpose. Otherwise g is the
            gradient of the divergence at r = xi d (the paper's approximation); xi must be small
            beside 1 and large beside the rounding of the images, which in float32 takes xi >> 1e-6.

    Returns:
        [b h w c], at least float32, of norm 1 for each image, or 0 where nothing changes its
        prediction; no gradient passes.
    """
    direction = unit(noise)
    # A tangent has to have the type of its primal.
    images = images.astype(direction.dtype)
    if xi == 0:
        _, change = jax.jvp(logits_of, (images,), (direction,))  # [b C]
        _, pull_back = jax.vjp(logits_of, images)
        cotangent = covariance_product(logits, change)
    else:
        moved, pull_back = jax.vjp(logits_of, images + xi * direction)
        cotangent = jax.nn.softmax(moved) - jax.nn.softmax(logits)
    (gradient,) = pull_back(cotangent)
    return jax.lax.stop_gradient(unit(gradient))


def covariance_product(logits: Array, change: Array) -> Array:
    """(diag(p) - p p^T) v [b C] for p = softmax(logits) [b C] and v = change [b C]."""
    probabilities = jax.nn.softmax(logits)
    # A constant added to v changes nothing but rounding: with v = 0 at the largest p, what is left
    # of a confident prediction's product keeps its digits.
    top = jnp.take_along_axis(change, logits.argmax(-1, keepdims=True), axis=-1)
    change = change - top
    return probabilities * (change - jnp.sum(probabilities * change, -1, keepdims=True))


def unit(x: Array) -> Array:
    """Each example of x [b ...] over its norm, however small; zeros stay; at least float32."""
    flat = x.reshape(len(x), -1)
    largest = jnp.abs(flat).max(-1, keepdims=True)
    return normalize(flat / jnp.where(largest > 0, largest, 1.0)).reshape(x.shape)
