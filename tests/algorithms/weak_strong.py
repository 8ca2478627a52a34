"""What tests of methods with FixMatch's passes share: an oracle's check, steps on bare logits."""

from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
from embeddings import echo, slope_along
from helpers import (
    SPEC,
    TinyNetwork,
    numpy_cross_entropy,
    numpy_logits,
    one_hot,
    quick_jit,
    randomized,
    toy_state,
    toy_views,
)

from jaxmatch.models.network import make_network
from jaxmatch.types import Batch, Examples, TrainState


def assert_value_and_gradient(algorithm, oracle, memory=None):
    """Hold the loss from ``memory`` on a toy batch against the equations; returns the update.

    ``oracle`` takes the logits of (x, weak, strong) that targets, masks and memory are made of,
    and the logits on strong views, and returns what is added to the supervised loss.
    """
    with jax.enable_x64(True):
        state, batch = toy_state(algorithm, jnp.float64), toy_views(algorithm)
        if memory is not None:
            state = state.replace(memory=memory(state.memory))
        network = make_network(TinyNetwork(param_dtype=jnp.float64))
        (loss, update), gradient = quick_jit(
            jax.value_and_grad(
                lambda params: algorithm.loss(network, params, state, batch, (), SPEC), has_aux=True
            )
        )(state.params)
    views = (*batch.labeled.views, *batch.unlabeled.views)
    ends = np.cumsum([len(view) for view in views])[:-1]

    def logits(params):
        return np.split(numpy_logits(params, np.concatenate(views)), ends)

    fixed = logits(state.params)

    def value(params):
        on_x, _, on_strong = logits(params)
        supervised = numpy_cross_entropy(on_x, one_hot(batch.labeled.label)).mean()
        return supervised + oracle(fixed, on_strong)

    np.testing.assert_allclose(loss, value(state.params), rtol=1e-12)
    direction = randomized(jax.tree.map(np.zeros_like, state.params), seed=3, scale=1e-6)
    slope = sum(map(np.vdot, jax.tree.leaves(gradient), jax.tree.leaves(direction)))
    np.testing.assert_allclose(slope, slope_along(value, state.params, direction), rtol=1e-4)
    return update


@lru_cache
def _compiled(algorithm, spec):
    return quick_jit(partial(algorithm.loss, echo, spec=spec))


def logits_step(algorithm, memory, labeled, weak, strong=None, *, index=None, spec=SPEC):
    """``algorithm.loss`` where the views are the logits [b C], labeled ones of class 0."""
    labeled, weak = np.asarray(labeled, np.float32), np.asarray(weak, np.float32)
    strong = weak if strong is None else np.asarray(strong, np.float32)
    index = np.arange(len(weak), dtype=np.int32) if index is None else np.int32(index)
    batch = Batch(
        Examples((labeled,), np.zeros(len(labeled), np.int32)),
        Examples((weak, strong), np.zeros(len(weak), np.int32), index),
    )
    state = TrainState(
        step=jnp.int32(0),
        key=None,
        params=None,
        stats={},
        teacher=None,
        optimizer=None,
        memory=memory,
        policy=(),
    )
    return _compiled(algorithm, spec)({}, state, batch, ())
