"""Replays contrastive losses: solo-learn's NT-Xent and USB's CoMatch."""

from collections.abc import Callable
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from experiments.parity.functions_common import REFERENCE_ONLY, tags
from experiments.parity.rows import Case, Comparison
from jaxmatch.algorithms import comatch as library_comatch
from jaxmatch.functional.losses import nt_xent
from jaxmatch.functional.similarity import normalize
from jaxmatch.types import Array


def comatch(feats_0: Array, feats_1: Array, Q: Array, T: Array) -> Array:
    """CoMatch's term for a recorded graph Q, which stands in for that of the pseudo-labels."""
    algorithm = library_comatch.CoMatch(temperature=float(T))
    with mock.patch.object(library_comatch, "pseudo_label_graph", return_value=Q):
        return algorithm.contrast(Q, feats_0, feats_1, None)


def simclr(case: Case, comparison: Comparison) -> None:
    """Loss and gradient with respect to the embeddings before their normalisation."""
    for tag in tags(case):
        z = jnp.asarray(case[f"in/{tag}/z"])
        index = case[f"in/{tag}/indexes"]
        temperature = float(case[f"in/{tag}/temperature"])
        value, source = _two_views(temperature), "library"
        if not _are_two_views(index):
            value, source = _any_positives(jnp.asarray(index), temperature), REFERENCE_ONLY
        loss, gradient = jax.jit(jax.value_and_grad(value))(z)
        kind = "" if source == "library" else " (many positives)"
        comparison.add(f"out/loss{kind}", tag, loss, case[f"out/{tag}/loss"], source)
        comparison.add(f"grad/z{kind}", tag, gradient, case[f"grad/{tag}/z"], source)


def _are_two_views(index: np.ndarray) -> bool:
    """Whether the rows are one view of each image, then in the same order another."""
    first, second = np.split(index, [len(index) // 2])
    return np.array_equal(first, second) and len(set(first)) == len(first)


def _two_views(temperature: float) -> Callable[[Array], Array]:
    def loss(z: Array) -> Array:
        first, second = jnp.split(normalize(z), 2)
        return nt_xent(first, second, temperature).mean()

    return loss


def _any_positives(index: Array, temperature: float) -> Callable[[Array], Array]:
    """solo-learn's form for several positives: the logarithm of their sum."""
    itself = jnp.eye(len(index), dtype=bool)
    positive = (index[:, None] == index) & ~itself

    def loss(z: Array) -> Array:
        unit = normalize(z)
        powers = jnp.where(itself, 0.0, jnp.exp(unit @ unit.T / temperature))
        return -jnp.log((positive * powers).sum(1) / powers.sum(1)).mean()

    return loss
