"""MoCo v2 against its equation in plain NumPy: queries, keys, the queue and what each may move."""

import re
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
    assert_close,
    quick_jit,
    randomized,
    toy_state,
    toy_views,
)

from jaxmatch.algorithms.moco_v2 import MoCoV2, found
from jaxmatch.config.flags import from_flags
from jaxmatch.data.facts import Facts
from jaxmatch.errors import InputError
from jaxmatch.functional.memory import push
from jaxmatch.models.network import make_network
from jaxmatch.program import Program
from jaxmatch.runtime.mesh import make_mesh, over_batch, replicated

ALGORITHM = MoCoV2(temperature=0.3, queue=40, projection=5)
TRAINING = replace(SPEC, teacher_trains=True)
SHUFFLED = replace(ALGORITHM, shuffle=True)
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


@pytest.mark.slow  # part of the equations
def test_each_network_sees_one_view():
    with jax.enable_x64(True):
        state, batch, network = toy(jnp.float64)
    calls = []

    def spy(variables, views, train=True):
        calls.append((variables, views, train))
        return network(variables, views, train)

    for spec in (SPEC, TRAINING):
        with jax.enable_x64(True):
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


class Grouped(TinyNetwork):
    """The tiny network with BatchNorm over ``bn_groups`` parts of a batch."""

    bn_groups: int = 1


def step_of(algorithm, groups, devices, key=1):
    """(loss, keys, the teacher's statistics) of a step on ``devices``, and its program."""
    state, batch, _ = toy(jnp.float64)
    mesh = make_mesh(devices, UNLABELED_BATCH)
    model = Grouped(heads=algorithm.heads, param_dtype=jnp.float64, bn_groups=groups)
    network = make_network(model, devices)
    rows = ("params", "teacher", "memory")
    given = {name: getattr(state, name) for name in rows}

    def run(given, views):
        now = batch._replace(unlabeled=batch.unlabeled._replace(views=views))
        draws = algorithm.draw(jax.random.key(key), now)
        loss, update = algorithm.loss(
            network, given["params"], state.replace(**given), now, draws, TRAINING
        )
        return loss, update.memory.rows["embedding"][10:34], update.teacher_stats

    shardings = (replicated(mesh), over_batch(mesh))
    views = batch.unlabeled.views
    compiled = quick_jit(run, in_shardings=shardings).lower(given, views).compile()
    return jax.device_get(compiled(*jax.device_put((given, views), shardings))), compiled.as_text()


@pytest.mark.slow
def test_a_shuffle_changes_the_groups_of_the_teacher_alone():
    with jax.enable_x64(True):
        plain, shuffled = (step_of(each, 1, 1)[0] for each in (ALGORITHM, SHUFFLED))
        assert_close(shuffled, plain, 1e-10)  # undone: with one group only the order differs
        apart = [step_of(each, 2, 1)[0] for each in (ALGORITHM, SHUFFLED)]
        assert np.abs(apart[0][1] - apart[1][1]).mean() > 1e-3
        other, _ = step_of(SHUFFLED, 2, 1, key=2)
        assert np.abs(apart[1][1] - other[1]).max() > 1e-3


@pytest.mark.slow
def test_the_keys_of_a_shuffled_batch_are_those_of_the_drawn_groups():
    with jax.enable_x64(True):
        state, batch, _ = toy(jnp.float64)
        order = np.asarray(SHUFFLED.draw(jax.random.key(1), batch))
        (_, keys, _), _ = step_of(SHUFFLED, 2, 1)
    assert sorted(order) == list(range(UNLABELED_BATCH))
    second = batch.unlabeled.views[1]
    for group in np.split(order, 2):
        ((_, expected),) = numpy_outputs(state.teacher["params"], second[group])
        np.testing.assert_allclose(keys[group], expected, rtol=1e-9)


def test_a_shuffled_step_is_the_same_on_any_number_of_devices():
    with jax.enable_x64(True):
        (one, _), (two, _), (four, text) = (step_of(SHUFFLED, 2, count) for count in (1, 2, 4))
    assert_close(two, one, 1e-10)
    assert_close(four, one, 1e-10)
    # Every device runs the teacher on its share of the exchanged images only.
    shares = {int(size) for size in re.findall(r"= f64\[(\d+),6,6,6\]\S* convolution", text)}
    assert shares == {UNLABELED_BATCH // 4}


def test_a_batch_that_groups_do_not_divide_is_refused():
    config, _ = from_flags("moco_v2:mnist5k", ["--config.model.bn_groups=3"])
    facts = Facts(classes=("x",), image_shape=(32, 32, 3), labels=(), unlabeled=9)
    with pytest.raises(InputError, match=r"batch sizes 0, 128 .* model.bn_groups=3; change"):
        Program.build(config, facts)


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
