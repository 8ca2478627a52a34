"""The Π-Model against plain NumPy: value, gradient, ramp and statistics."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    SPEC,
    TinyNetwork,
    numpy_cross_entropy,
    numpy_logits,
    numpy_softmax,
    one_hot,
    quick_jit,
    randomized,
    toy_state,
    toy_views,
)

from jaxmatch.algorithms.pi_model import PiModel
from jaxmatch.algorithms.supervised import Supervised
from jaxmatch.models.network import make_network


def oracle(params, fixed, batch, weight):
    """The loss from its equation; ``fixed`` are the parameters that the targets come from."""
    (x,), (first, second) = batch.labeled.views, batch.unlabeled.views
    supervised = numpy_cross_entropy(numpy_logits(params, x), one_hot(batch.labeled.label)).mean()
    target = numpy_softmax(numpy_logits(fixed, first))
    prediction = numpy_softmax(numpy_logits(params, second))
    return supervised + weight * np.mean((prediction - target) ** 2)


@pytest.mark.parametrize(
    ("step", "ramp"), [(10, 0.25), pytest.param(90, 1.0, marks=pytest.mark.slow)]
)
def test_value_and_gradient_are_those_of_the_equation(step, ramp):
    with jax.enable_x64(True):
        algorithm = PiModel()
        state, batch = toy_state(algorithm, jnp.float64, step), toy_views(algorithm)
        network = make_network(TinyNetwork(param_dtype=jnp.float64))
        (loss, update), gradient = quick_jit(
            jax.value_and_grad(
                lambda params: algorithm.loss(network, params, state, batch, (), SPEC), has_aux=True
            )
        )(state.params)

    value = partial(oracle, fixed=state.params, batch=batch, weight=10 * ramp)
    np.testing.assert_allclose(update.metrics["optim/ramp"], ramp, rtol=1e-12)
    np.testing.assert_allclose(loss, value(state.params), rtol=1e-12)

    direction = randomized(jax.tree.map(np.zeros_like, state.params), seed=3, scale=1e-6)
    ahead = value(jax.tree.map(np.add, state.params, direction))
    behind = value(jax.tree.map(np.subtract, state.params, direction))
    slope = sum(map(np.vdot, jax.tree.leaves(gradient), jax.tree.leaves(direction)))
    np.testing.assert_allclose(slope, (ahead - behind) / 2, rtol=1e-4)


def test_running_statistics_come_from_the_labeled_pass_alone():
    network = make_network(TinyNetwork())
    stats = []
    for algorithm in (PiModel(), Supervised()):
        state, batch = toy_state(algorithm), toy_views(algorithm)
        loss = quick_jit(partial(algorithm.loss, network, spec=SPEC))
        stats.append(loss(state.params, state, batch, ())[1].stats)
    jax.tree.map(np.testing.assert_array_equal, *stats)
    assert np.any(stats[0]["norm"]["mean"])


def test_equal_views_cost_nothing():
    algorithm = PiModel()
    state, batch = toy_state(algorithm, step=50), toy_views(algorithm)
    (view, _) = batch.unlabeled.views
    batch = batch._replace(unlabeled=batch.unlabeled._replace(views=(view, view)))
    loss = quick_jit(partial(algorithm.loss, make_network(TinyNetwork()), spec=SPEC))
    value, update = loss(state.params, state, batch, ())
    assert update.metrics["loss/unsupervised"] == 0
    assert value == update.metrics["loss/supervised"]
