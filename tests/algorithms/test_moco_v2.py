"""MoCo v2 against its equation in plain NumPy: queries, keys, the queue and what each may move."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from embeddings import numpy_outputs, slope_along, unit
from helpers import (
    SPEC,
    UNLABELED_BATCH,
    TinyNetwork,
    quick_jit,
    randomized,
    toy_state,
    toy_views,
)

from jaxmatch.algorithms.moco_v2 import MoCoV2, found
from jaxmatch.errors import InputError
from jaxmatch.memory import push
from jaxmatch.models.network import make_network

ALGORITHM = MoCoV2(temperature=0.3, queue=40, projection=5)
TRAINING = replace(SPEC, teacher_trains=True)
PAST = unit(np.random.default_rng(7).normal(size=(10, 5)))


def toy(dtype):
    """(state, batch, network); ten of the queue's forty rows are written."""
    state, batch = toy_state(ALGORITHM, dtype), toy_views(ALGORITHM)
    state = state.replace(memory=push(state.memory, {"embedding": jnp.asarray(PAST, dtype)}))
    return state, batch, make_network(TinyNetwork(heads=ALGORITHM.heads, param_dtype=dtype))


def oracle(query, key):
    """The mean of the paper's equation (1), one image after the other."""
    losses = []
    for q, k in zip(query, key, strict=True):
        positive, negatives = np.exp(q @ k / 0.3), np.exp(PAST @ q / 0.3)
        losses.append(-np.log(positive / (positive + negatives.sum())))
    return np.mean(losses)


def test_value_gradient_and_queue_are_those_of_the_equation():
    with jax.enable_x64(True):
        state, batch, network = toy(jnp.float64)
        (loss, update), gradient = quick_jit(
            jax.value_and_grad(
                lambda params: ALGORITHM.loss(network, params, state, batch, (), TRAINING),
                has_aux=True,
            )
        )(state.params)
    first, second = batch.unlabeled.views
    ((_, key),) = numpy_outputs(state.teacher["params"], second)

    def value(params):
        ((_, query),) = numpy_outputs(params, first)
        return oracle(query, key)

    np.testing.assert_allclose(loss, value(state.params), rtol=1e-12)
    assert update.metrics["loss/contrastive"] == loss
    direction = randomized(jax.tree.map(np.zeros_like, state.params), seed=3, scale=1e-6)
    slope = sum(map(np.vdot, jax.tree.leaves(gradient), jax.tree.leaves(direction)))
    np.testing.assert_allclose(slope, slope_along(value, state.params, direction), rtol=1e-4)
    assert np.any(gradient["projection"]["output"]["kernel"])
    assert not np.any(gradient["classifier"]["kernel"])

    rows = update.memory.rows["embedding"]
    np.testing.assert_allclose(rows[:10], PAST, rtol=1e-12)
    np.testing.assert_allclose(rows[10:34], key, rtol=1e-9)
    assert not np.any(rows[34:])
    assert (update.memory.pointer, update.memory.filled) == (34, 34)
    assert update.teacher_stats is not None


def test_each_network_sees_one_view():
    state, batch, network = toy(jnp.float32)
    calls = []

    def spy(variables, views, train=True):
        calls.append((variables, views, train))
        return network(variables, views, train)

    for spec in (SPEC, TRAINING):
        update = jax.eval_shape(
            lambda params, spec=spec: ALGORITHM.loss(spy, params, state, batch, (), spec)[1],
            state.params,
        )
        (_, first, student_train), (variables, second, teacher_train) = calls[-2:]
        assert first is batch.unlabeled.views[0]
        assert second is batch.unlabeled.views[1]
        assert variables is state.teacher
        assert (student_train, teacher_train) == (True, spec.teacher_trains)
        assert (update.teacher_stats is not None) == spec.teacher_trains


def test_found_counts_only_written_rows_and_needs_a_strict_maximum():
    query = np.array([[1, 0], [0, 1], [0.6, 0.8]], np.float32)
    key = np.array([[1, 0], [1, 0], [0.6, 0.8]], np.float32)
    queue = np.array([[0.8, 0.6], [0.6, 0.8]], np.float32)
    ours = [
        found(query, key, queue, np.array([True, written])).tolist() for written in (False, True)
    ]
    assert ours == [[True, False, True], [True, False, False]]


def test_a_batch_larger_than_the_queue_is_refused():
    algorithm = MoCoV2(queue=UNLABELED_BATCH - 1)
    with pytest.raises(InputError, match=r"batch of 24 keys .* algorithm.queue=23; make"):
        algorithm.init(jax.random.key(0), SPEC)
    assert MoCoV2(queue=UNLABELED_BATCH).init(jax.random.key(0), SPEC).filled == 0


def test_a_temperature_of_zero_is_refused():
    with pytest.raises(InputError, match=r"algorithm.temperature=0 must be above 0"):
        MoCoV2(temperature=0)


def test_it_reads_no_labels_and_reports_the_student():
    assert ALGORITHM.labeled == ()
    assert ALGORITHM.evaluated == "student"
    assert toy_views(ALGORITHM).labeled is None
