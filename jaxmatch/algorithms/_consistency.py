"""What methods share that, like FixMatch, label strong views by weak views of the same images."""

from typing import NamedTuple

import jax

from jaxmatch.functional.losses import cross_entropy
from jaxmatch.types import Array, Batch, Network, PyTree, Target, TrainState


class WeakStrong(NamedTuple):
    """One joint pass over labeled, weak and strong views."""

    supervised: Array  # [] mean H(y, p(w(x)))
    labeled: Array  # [B C] logits of w(x), without gradient
    weak: Array  # [b C] logits of w(u), without gradient
    strong: Array  # [b C] logits of s(u)
    stats: PyTree


def weak_strong(network: Network, params: PyTree, state: TrainState, batch: Batch) -> WeakStrong:
    """FixMatch's pass and supervised loss."""
    (x,), (weak, strong) = batch.labeled.views, batch.unlabeled.views
    (on_x, on_weak, on_strong), stats = network(state.student(params), (x, Target(weak), strong))
    supervised = cross_entropy(on_x.logits, batch.labeled.label).mean()
    labeled, on_weak = jax.lax.stop_gradient((on_x.logits, on_weak.logits))
    return WeakStrong(supervised, labeled, on_weak, on_strong.logits, stats)


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
