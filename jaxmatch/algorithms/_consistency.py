"""Shared by the methods that label strong views by weak views of the same images, as FixMatch."""

from typing import NamedTuple

import jax

from jaxmatch.functional.losses import cross_entropy
from jaxmatch.types import Array, Inputs, PyTree, Target


class WeakStrong(NamedTuple):
    """The logits of one joint pass over labeled, weak and strong views, and the supervised loss."""

    labeled: Array  # [B C] of w(x)
    weak: Array  # [b C] of w(u), without gradient
    strong: Array  # [b C] of s(u)
    supervised: Array  # [] mean H(y, p(w(x)))
    stats: PyTree  # the new BatchNorm statistics


def weak_strong(given: Inputs) -> WeakStrong:
    """Pass labeled, weak and strong views through the student as one batch."""
    (x,), (weak, strong) = given.labeled.views, given.unlabeled.views
    (on_x, on_weak, on_strong), stats = given.student((x, Target(weak), strong))
    supervised = cross_entropy(on_x.logits, given.labeled.label).mean()
    on_weak = jax.lax.stop_gradient(on_weak)
    return WeakStrong(on_x.logits, on_weak.logits, on_strong.logits, supervised, stats)


def pseudo_label(logits: Array, hard: bool, temperature: float) -> Array:
    """The argmax [b] of ``logits`` [b C], or the distribution softmax(z / temperature) [b C]."""
    return logits.argmax(-1) if hard else jax.nn.softmax(logits / temperature)


def weighted_cross_entropy(logits: Array, target: Array, weight: Array) -> Array:
    """mean weight_i H(target_i, softmax(logits_i)) [] over the whole batch.

    Args:
        logits: [b C].
        target: [b] integer classes or [b C] probabilities.
        weight: [b] in [0, 1], or bool.
    """
    return (weight * cross_entropy(logits, target)).mean()
