"""Mean Teacher against plain NumPy: value, gradient, ramp, the teacher's pass and statistics."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    BN_DECAY,
    SPEC,
    TinyNetwork,
    assert_close,
    numpy_cross_entropy,
    numpy_logits,
    numpy_softmax,
    one_hot,
    quick_jit,
    randomized,
    toy_state,
    toy_views,
)

from jaxmatch.algorithms.mean_teacher import MeanTeacher
from jaxmatch.algorithms.supervised import Supervised
from jaxmatch.models.network import make_network


def oracle(params, teacher, batch, weight):
    """The loss from its equation, of the student's and the teacher's parameters."""
    (x,), (first, second) = batch.labeled.views, batch.unlabeled.views
    supervised = numpy_cross_entropy(numpy_logits(params, x), one_hot(batch.labeled.label)).mean()
    target = numpy_softmax(numpy_logits(teacher, first))
    prediction = numpy_softmax(numpy_logits(params, second))
    return supervised + weight * np.mean((prediction - target) ** 2)


@pytest.mark.parametrize(
    ("step", "ramp"), [(10, 0.25), pytest.param(90, 1.0, marks=pytest.mark.slow)]
)
def test_value_and_gradient_are_those_of_the_equation(step, ramp):
    with jax.enable_x64(True):
        algorithm = MeanTeacher()
        state, batch = toy_state(algorithm, jnp.float64, step), toy_views(algorithm)
        network = make_network(TinyNetwork(param_dtype=jnp.float64))
        (loss, update), gradient = quick_jit(
            jax.value_and_grad(
                lambda params: algorithm.loss(network, params, state, batch, (), SPEC), has_aux=True
            )
        )(state.params)

    value = partial(oracle, teacher=state.teacher["params"], batch=batch, weight=50 * ramp)
    np.testing.assert_allclose(update.metrics["optim/ramp"], ramp, rtol=1e-12)
    np.testing.assert_allclose(loss, value(state.params), rtol=1e-12)

    direction = randomized(jax.tree.map(np.zeros_like, state.params), seed=3, scale=1e-6)
    ahead = value(jax.tree.map(np.add, state.params, direction))
    behind = value(jax.tree.map(np.subtract, state.params, direction))
    slope = sum(map(np.vdot, jax.tree.leaves(gradient), jax.tree.leaves(direction)))
    np.testing.assert_allclose(slope, (ahead - behind) / 2, rtol=1e-4)


@quick_jit
def loss_of(state, batch):
    network = make_network(TinyNetwork())
    return MeanTeacher().loss(network, state.params, state, batch, (), SPEC)


def test_the_term_vanishes_only_where_weights_and_views_agree():
    state, batch = toy_state(MeanTeacher(), step=50), toy_views(MeanTeacher())
    first, second = batch.unlabeled.views
    same_weights = state.replace(teacher={**state.teacher, "params": state.params})
    same_views = batch._replace(unlabeled=batch.unlabeled._replace(views=(first, first)))

    def term(state, batch):
        return loss_of(state, batch)[1].metrics["loss/unsupervised"]

    assert term(same_weights, same_views) == 0
    assert term(same_weights, batch) > 0
    assert term(state, same_views) > 0
    assert not np.array_equal(first, second)


def test_the_teacher_normalises_by_its_batch():
    state, batch = toy_state(MeanTeacher(), step=50), toy_views(MeanTeacher())
    other = {**state.teacher, "batch_stats": randomized(state.teacher["batch_stats"])}
    value, update = loss_of(state, batch)
    # Sums are taken around the running mean, so its value may show in their rounding.
    assert_close(loss_of(state.replace(teacher=other), batch)[0], value, 1e-6)
    assert update.teacher_stats is None


def test_running_statistics_come_from_the_labeled_pass_alone():
    state, batch = toy_state(MeanTeacher()), toy_views(MeanTeacher())
    stats = loss_of(state, batch)[1].stats
    supervised = quick_jit(partial(Supervised().loss, make_network(TinyNetwork()), spec=SPEC))
    jax.tree.map(
        np.testing.assert_array_equal, stats, supervised(state.params, state, batch, ())[1].stats
    )
    assert np.any(stats["norm"]["mean"])


def test_a_teacher_with_statistics_of_its_own_gets_them_from_its_view():
    state, batch = toy_state(MeanTeacher()), toy_views(MeanTeacher())
    old = randomized(state.teacher["batch_stats"])
    state = state.replace(teacher={**state.teacher, "batch_stats": old})
    spec = replace(SPEC, teacher_trains=True)
    loss = quick_jit(partial(MeanTeacher().loss, make_network(TinyNetwork()), spec=spec))
    found = loss(state.params, state, batch, ())[1].teacher_stats["norm"]["mean"]

    windows = np.lib.stride_tricks.sliding_window_view(batch.unlabeled.views[0], (3, 3), (1, 2))
    mean = np.einsum("bhwcij,ijco->bhwo", windows, state.teacher["params"]["conv"]["kernel"])
    expected = BN_DECAY * old["norm"]["mean"] + (1 - BN_DECAY) * mean.mean((0, 1, 2))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
