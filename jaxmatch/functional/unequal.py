"""Corrections for unequal classes: frequencies, shifts of logits, and the share that is kept."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxmatch.types import Array


def class_frequencies(labels: Sequence[int] | Array, classes: int) -> Float[Array, "C"]:
    """The share of each class among labels; it is an estimate of the classes' prior.

    >>> print(class_frequencies((0, 0, 0, 1), 2))
    [0.75 0.25]
    """
    if isinstance(labels, Sequence):  # known before anything is traced
        return jnp.asarray(np.bincount(labels, minlength=classes) / len(labels), float)
    return jnp.bincount(labels, length=classes) / jnp.asarray(len(labels), float)


def prior_shift(prior: Float[Array, "C"], tau: float) -> Float[Array, "C"]:
    """tau log prior, which logit adjustment adds to logits in training.

    Menon et al., "Long-tail learning via logit adjustment", ICLR 2021, eq. 10,
    https://arxiv.org/abs/2007.07314. With tau = 1 it is the balanced softmax of Ren et al.,
    "Balanced Meta-Softmax for Long-Tailed Visual Recognition", NeurIPS 2020, eq. 3,
    https://arxiv.org/abs/2007.10740.

    >>> print(prior_shift(jnp.array([0.5, 0.5]), tau=2.0).round(2))
    [-1.39 -1.39]

    Args:
        prior: a class that never occurs may be 0; it gets a large finite shift.
        tau: strength.
    """
    return tau * jnp.log(jnp.maximum(prior, jnp.finfo(prior.dtype).tiny))


def kept_share(frequencies: Float[Array, "C"]) -> Float[Array, "C"]:
    """N_min / N_c: the share of a class that is kept so that all classes are kept equally often.

    Lee et al., "ABC", NeurIPS 2021, section 3.2. The minimum runs over classes that occur.

    >>> print(kept_share(jnp.array([0.5, 0.25, 0.25])))
    [0.5 1.  1. ]
    """
    occurs = frequencies > 0
    least = jnp.min(jnp.where(occurs, frequencies, jnp.inf))
    return jnp.where(occurs, least / jnp.where(occurs, frequencies, 1.0), 1.0)
