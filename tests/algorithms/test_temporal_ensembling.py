"""Temporal Ensembling against plain NumPy: several steps of losses, averages and visits."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    CLASSES,
    SPEC,
    UNLABELED,
    TinyNetwork,
    linear_network,
    numpy_cross_entropy,
    numpy_logits,
    numpy_softmax,
    one_hot,
    quick_jit,
    randomized,
    toy_state,
    toy_views,
)

from jaxmatch.algorithms.supervised import Supervised
from jaxmatch.algorithms.temporal_ensembling import TemporalEnsembling
from jaxmatch.errors import InputError
from jaxmatch.models.network import make_network
from jaxmatch.types import Batch, Examples, TrainState

ALPHA = 0.6
# What each step sees: images twice in one batch, again, for the first time.
VISITS = ([0, 1, 2, 2, 3], [2, 3, 2, 3, 63], [2, 9, 0, 2, 3], [2, 2, 2, 2, 2])


def oracle(params, batch, averages, visits, weight):
    """The loss from its equation, given Z [N C] and n [N]."""
    supervised = numpy_cross_entropy(
        numpy_logits(params, batch.labeled.views[0]), one_hot(batch.labeled.label)
    ).mean()
    predictions = numpy_softmax(numpy_logits(params, batch.unlabeled.views[0]))
    errors = []
    for prediction, image in zip(predictions, batch.unlabeled.index, strict=True):
        if visits[image] == 0:
            errors.append(0.0)
            continue
        target = averages[image] / (1 - ALPHA ** visits[image])
        np.testing.assert_allclose(target.sum(), 1, rtol=1e-12)
        errors.append(np.mean((prediction - target) ** 2))
    return supervised + weight * np.mean(errors), predictions


def visit(averages, visits, index, predictions):
    """Z and n after a step; an image that is twice in a batch counts once, with its last view."""
    before, counts = averages.copy(), visits.copy()
    for image, prediction in zip(index, predictions, strict=True):
        averages[image] = ALPHA * before[image] + (1 - ALPHA) * prediction
        visits[image] = counts[image] + 1


def test_several_steps_are_those_of_the_equations():
    algorithm = TemporalEnsembling()
    averages, visits = np.zeros((UNLABELED, CLASSES)), np.zeros(UNLABELED, int)
    with jax.enable_x64(True):
        network = make_network(TinyNetwork(param_dtype=jnp.float64))
        compiled = quick_jit(
            jax.value_and_grad(
                lambda params, state, batch: algorithm.loss(
                    network, params, state, batch, (), SPEC
                ),
                has_aux=True,
            )
        )
        state = toy_state(algorithm, jnp.float64, step=20)
        for number, index in enumerate(VISITS):
            batch = toy_views(algorithm, seed=number)
            images = batch.unlabeled.views[0][: len(index)]
            unlabeled = Examples((images,), None, np.array(index, np.int32))
            batch = batch._replace(unlabeled=unlabeled)
            state = state.replace(params=randomized(state.params, seed=number, scale=0.3))
            weight = 10 * (20 + number) / 40

            (loss, update), gradient = compiled(state.params, state, batch)
            value = partial(oracle, batch=batch, averages=averages, visits=visits, weight=weight)
            expected, predictions = value(state.params)
            np.testing.assert_allclose(loss, expected, rtol=1e-12)

            direction = randomized(jax.tree.map(np.zeros_like, state.params), scale=1e-6)
            ahead = value(jax.tree.map(np.add, state.params, direction))[0]
            behind = value(jax.tree.map(np.subtract, state.params, direction))[0]
            slope = sum(map(np.vdot, jax.tree.leaves(gradient), jax.tree.leaves(direction)))
            np.testing.assert_allclose(slope, (ahead - behind) / 2, rtol=1e-4)

            visit(averages, visits, index, predictions)
            state = state.replace(step=state.step + 1, memory=update.memory)
            rows = jax.device_get(state.memory.rows)
            np.testing.assert_allclose(rows["average"][:UNLABELED], averages, atol=1e-13)
            np.testing.assert_array_equal(rows["visits"][:UNLABELED], visits)
            assert rows["average"].dtype == np.float64
    assert not np.any(rows["visits"][UNLABELED:])
    assert visits[[0, 1, 2, 3, 9, 63]].tolist() == [2, 1, 4, 3, 1, 1]


@pytest.mark.slow  # as in test_mean_teacher.py
def test_running_statistics_come_from_the_labeled_pass_alone():
    network = make_network(TinyNetwork())
    stats = []
    for algorithm in (TemporalEnsembling(), Supervised()):
        state, batch = toy_state(algorithm), toy_views(algorithm)
        loss = quick_jit(partial(algorithm.loss, network, spec=SPEC))
        stats.append(loss(state.params, state, batch, ())[1].stats)
    jax.tree.map(np.testing.assert_array_equal, *stats)
    assert np.any(stats[0]["norm"]["mean"])


def linear_steps(algorithm, kernels, index):
    """The unsupervised loss of each step of a linear network on one image, [steps]."""
    images = np.eye(CLASSES, dtype=np.float32)[:1]
    labeled = Examples((images,), np.zeros(1, np.int32))
    batch = Batch(labeled, Examples((images,), None, index))
    state = TrainState(
        step=jnp.int32(99),
        key=None,
        params=None,
        stats={},
        teacher=None,
        optimizer=None,
        memory=algorithm.init(jax.random.key(0), SPEC),
        policy=(),
    )
    loss = quick_jit(partial(algorithm.loss, linear_network, spec=SPEC))
    losses = []
    for kernel in kernels:
        _, update = loss({"kernel": kernel}, state, batch, ())
        state = state.replace(memory=update.memory)
        losses.append(float(update.metrics["loss/unsupervised"]))
    return losses


def kernels_of(scales):
    return [np.diag([scale, 0, 0, 0]).astype(np.float32) for scale in scales]


@pytest.mark.parametrize("momentum", [0.0, 0.6, 0.99])
def test_a_constant_prediction_is_its_own_target(momentum):
    algorithm = TemporalEnsembling(momentum=momentum)
    losses = linear_steps(algorithm, kernels_of([2.0] * 5), np.array([7], np.int32))
    np.testing.assert_allclose(losses, np.zeros(5), atol=1e-10)


def test_without_momentum_the_target_is_the_last_prediction():
    scales = [0.0, 2.0, 1.0]
    algorithm = TemporalEnsembling(momentum=0.0)
    losses = linear_steps(algorithm, kernels_of(scales), np.array([7], np.int32))
    logits = np.array([[scale, 0, 0, 0] for scale in scales])
    expected = np.mean(np.diff(numpy_softmax(logits), axis=0) ** 2, 1)
    np.testing.assert_allclose(losses, [0, *expected], rtol=1e-5)


def test_examples_need_numbers():
    with pytest.raises(InputError, match=r"unlabeled\.index"):
        linear_steps(TemporalEnsembling(), kernels_of([1.0]), None)


@pytest.mark.parametrize("momentum", [-0.1, 1.0])
def test_a_momentum_that_cannot_work_is_refused(momentum):
    with pytest.raises(InputError, match=f"momentum={momentum}"):
        TemporalEnsembling(momentum=momentum)
