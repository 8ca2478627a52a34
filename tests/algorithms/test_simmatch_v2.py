"""SimMatchV2 against plain NumPy: value, gradient and memory, and each rule alone."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from embeddings import (
    echo,
    echo_loss,
    echo_views,
    full_bank,
    numpy_outputs,
    slope_along,
    unit,
)
from helpers import (
    CLASSES,
    SPEC,
    TinyNetwork,
    numpy_cross_entropy,
    numpy_softmax,
    one_hot,
    quick_jit,
    randomized,
    toy_state,
    toy_views,
)

from jaxmatch.algorithms.simmatch_v2 import Memory, SimMatchV2
from jaxmatch.functional.memory import Bank, Queue
from jaxmatch.models.network import make_network

WIDTH, ROWS, FILLED = 8, 48, 24
INDEX = np.array([3, 1, 3, 0, 7, 1, 1, 9])  # with repetitions; 9 is not filled yet
WEIGHTS = 1.0, 1.5, 0.7, 0.4  # supervised, node-node, edge-edge, node-edge
TOY = SimMatchV2(
    threshold=0.4,
    unlabeled_weight=WEIGHTS[1],
    edge_edge_weight=WEIGHTS[2],
    node_edge_weight=WEIGHTS[3],
    temperature=0.3,
    propagation=0.4,
    neighbors=4,
    queue_batches=2,
    projection=WIDTH,
)


def partly_filled():
    """A bank with 9 of its 16 rows and a queue with 24 of its 48 rows in use."""
    random = np.random.default_rng(4)
    labels = np.asarray(SPEC.labels)
    filled = np.arange(len(labels)) < 9
    embeddings = unit(random.normal(size=(len(labels), WIDTH))) * filled[:, None]
    rows = {
        "embeddings": unit(random.normal(size=(ROWS, WIDTH))),
        "probabilities": random.dirichlet(np.ones(CLASSES), ROWS),
    }
    return Memory(
        Bank(jnp.asarray(embeddings), jnp.asarray(labels), jnp.asarray(filled)),
        Queue(jax.tree.map(jnp.asarray, rows), jnp.int32(FILLED), jnp.int32(FILLED)),
        jnp.asarray(random.dirichlet(np.ones(CLASSES))),
    )


def targets(memory, logits, embeddings):
    """Aligned prediction p, propagated label and similarities to the queue of weak views."""
    p = numpy_softmax(logits) / np.asarray(memory.average)
    p /= p.sum(1, keepdims=True)
    keys, labels = np.asarray(memory.bank.embeddings), np.asarray(memory.bank.labels)
    propagated = []
    for row, embedding in enumerate(embeddings):
        near = sorted(range(9), key=lambda key: -np.dot(embedding, keys[key]))[: TOY.neighbors]
        nodes = np.concatenate([embedding[None], keys[near]])
        walk = np.exp(nodes @ nodes.T / TOY.temperature) * (1 - np.eye(len(nodes)))
        walk /= walk.sum(1, keepdims=True)
        system = np.eye(len(nodes)) - TOY.propagation * walk
        known = np.concatenate([p[row][None], one_hot(labels[near])])
        propagated.append((1 - TOY.propagation) * np.linalg.solve(system, known)[0])
    return p, np.array(propagated), edges(memory, embeddings)


def edges(memory, embeddings):
    keys = np.asarray(memory.queue.rows["embeddings"])[:FILLED]
    return numpy_softmax(embeddings @ keys.T / TOY.temperature)


def oracle(memory, on_x, weak, on_strong, label):
    """Loss, its terms and the mask from the equations; each ``on`` is (logits, embeddings)."""
    p, propagated, similar = weak
    known = np.asarray(memory.queue.rows["probabilities"])[:FILLED]
    mask = p.max(1) >= TOY.threshold
    supervised = numpy_cross_entropy(on_x[0], one_hot(label)).mean()
    terms = np.mean(
        [
            (
                np.mean(mask * numpy_cross_entropy(logits, propagated)),
                -np.mean((similar * np.log(edges(memory, embeddings))).sum(1)),
                -np.mean((p * np.log(edges(memory, embeddings) @ known)).sum(1)),
            )
            for logits, embeddings in on_strong
        ],
        axis=0,
    )
    terms = supervised, *terms
    return np.dot(terms, WEIGHTS), terms, mask


@pytest.mark.parametrize("views", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_value_gradient_and_memory_are_those_of_the_equations(views):
    algorithm = replace(TOY, strong_views=views)
    with jax.enable_x64(True):
        memory = partly_filled()
        state = toy_state(TOY, jnp.float64).replace(memory=memory)
        batch = toy_views(algorithm)
        batch = batch._replace(labeled=batch.labeled._replace(index=INDEX))
        network = make_network(TinyNetwork(heads=TOY.heads, param_dtype=jnp.float64))
        spec = replace(SPEC, teacher_trains=True)
        (loss, update), gradient = quick_jit(
            jax.value_and_grad(
                lambda params: algorithm.loss(network, params, state, batch, (), spec),
                has_aux=True,
            )
        )(state.params)

    (x,), (weak, *strong) = batch.labeled.views, batch.unlabeled.views
    remembered, on_weak = numpy_outputs(state.teacher["params"], x, weak)
    goals = targets(memory, *on_weak)

    def value(params):  # the first strong views share a pass with the labeled ones
        on_x, *on_strong = numpy_outputs(params, x, strong[0])
        for view in strong[1:]:
            on_strong += numpy_outputs(params, view)
        return oracle(memory, on_x, goals, on_strong, batch.labeled.label)

    expected, terms, mask = value(state.params)
    assert 0 < mask.mean() < 1
    np.testing.assert_allclose(loss, expected, rtol=1e-12)
    names = ("supervised", "unsupervised", "edge_edge", "node_edge")
    measured = [float(update.metrics[f"loss/{name}"]) for name in names]
    np.testing.assert_allclose(measured, terms, rtol=1e-12)
    np.testing.assert_allclose(update.metrics["pseudo/coverage"], mask.mean(), rtol=1e-6)

    direction = randomized(jax.tree.map(np.zeros_like, state.params), seed=3, scale=1e-6)
    slope = sum(map(np.vdot, jax.tree.leaves(gradient), jax.tree.leaves(direction)))
    expected_slope = slope_along(lambda params: value(params)[0], state.params, direction)
    np.testing.assert_allclose(slope, expected_slope, rtol=1e-4)

    bank, queue, average = update.memory
    rows = np.array(memory.bank.embeddings)
    rows[INDEX] = remembered[1]  # NumPy too lets the last of a repeated index win
    np.testing.assert_allclose(bank.embeddings, rows, atol=1e-12)
    np.testing.assert_array_equal(bank.labels, SPEC.labels)
    np.testing.assert_allclose(queue.rows["embeddings"][FILLED:], on_weak[1], rtol=1e-12)
    np.testing.assert_allclose(queue.rows["probabilities"][FILLED:], goals[0], rtol=1e-12)
    assert (int(queue.pointer), int(queue.filled)) == (0, ROWS)
    expected_average = 0.9 * np.asarray(memory.average) + 0.1 * numpy_softmax(on_weak[0]).mean(0)
    np.testing.assert_allclose(average, expected_average, rtol=1e-12)


SMALL = replace(TOY, threshold=0.0, propagation=0.25, neighbors=1, queue_batches=1)
TWO = replace(SPEC, labels=(1, 0), unlabeled_batch=4)


def small_memory(probabilities):
    """Two labeled images, of classes 1 and 0, and a full queue of one image four times."""
    rows = {
        "embeddings": jnp.tile(jnp.eye(WIDTH)[:1], (4, 1)),
        "probabilities": jnp.tile(jnp.asarray(probabilities, float), (4, 1)),
    }
    queue = Queue(rows, jnp.int32(0), jnp.int32(4))
    return Memory(full_bank(np.eye(2, WIDTH), (1, 0)), queue, jnp.full(CLASSES, 1 / CLASSES))


PREDICTION = np.array([0.5, 0.2, 0.2, 0.1])
WEAK = np.tile(echo_views(np.log(PREDICTION)[None], 0.5 * np.eye(1, WIDTH)), (4, 1))


@pytest.mark.slow
def test_an_example_done_by_hand():
    """One neighbor of class 1: a share .25 / 1.25 = .2 of the label is its, .8 the prediction."""
    known = np.array([0.4, 0.3, 0.2, 0.1])

    def loss(strong):
        return echo_loss(SMALL, TWO, small_memory(known), WEAK, (WEAK, strong))

    strong = np.zeros((4, CLASSES + WIDTH), np.float32)
    gradient, update = jax.jit(jax.grad(loss, has_aux=True))(strong)
    # The slope of the node-node loss is softmax(logits) - target, here 1 / C - target.
    target = 1 / CLASSES - 4 * gradient[0, :CLASSES] / SMALL.unlabeled_weight
    np.testing.assert_allclose(target, [0.4, 0.36, 0.16, 0.08], atol=1e-6)
    metrics = update.metrics
    np.testing.assert_allclose(metrics["loss/unsupervised"], np.log(CLASSES), rtol=1e-6)
    np.testing.assert_allclose(metrics["loss/edge_edge"], np.log(4), rtol=1e-6)
    np.testing.assert_allclose(metrics["loss/node_edge"], -PREDICTION @ np.log(known), rtol=1e-6)


@pytest.mark.slow
def test_confidence_is_measured_before_propagation():
    for threshold, covered in ((0.49, 1), (0.51, 0)):  # propagation would lower .5 to .4
        algorithm = replace(SMALL, threshold=threshold)
        memory = small_memory(PREDICTION)
        _, update = echo_loss(algorithm, TWO, memory, WEAK, (WEAK, WEAK))
        assert update.metrics["pseudo/coverage"] == covered
        assert (update.metrics["loss/unsupervised"] > 0) == bool(covered)


def test_empty_memories_have_no_say():
    memory = SMALL.init(jax.random.key(0), TWO)

    def loss(strong):
        return echo_loss(SMALL, TWO, memory, WEAK, (WEAK, strong))

    strong = np.zeros((4, CLASSES + WIDTH), np.float32)
    (value, update), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(strong)
    assert np.isfinite(value)
    assert np.all(np.isfinite(gradient))
    assert not np.any(gradient[:, CLASSES:])
    assert update.metrics["loss/edge_edge"] == 0
    assert update.metrics["loss/node_edge"] == 0
    target = 1 / CLASSES - 4 * gradient[0, :CLASSES] / SMALL.unlabeled_weight
    np.testing.assert_allclose(target, PREDICTION, atol=1e-6)


@pytest.mark.slow
def test_classes_that_the_queue_never_saw_keep_the_loss_finite():
    memory = small_memory([1.0, 0.0, 0.0, 0.0])

    def loss(strong):
        return echo_loss(SMALL, TWO, memory, WEAK, (WEAK, strong))[0]

    value, gradient = jax.jit(jax.value_and_grad(loss))(WEAK[:, ::-1].copy())
    assert np.isfinite(value)
    assert np.all(np.isfinite(gradient))


@pytest.mark.slow
def test_alignment_divides_by_the_average_before_this_batch():
    memory = small_memory(PREDICTION)._replace(average=jnp.asarray(PREDICTION, float))
    _, update = echo_loss(SMALL, TWO, memory, WEAK, (WEAK, WEAK))
    np.testing.assert_allclose(update.memory.queue.rows["probabilities"], 1 / CLASSES, rtol=1e-6)
    np.testing.assert_allclose(update.memory.average, PREDICTION, rtol=1e-6)


def test_no_gradient_reaches_targets_or_memory():
    views = np.random.default_rng(1).normal(size=(3, 4, CLASSES + WIDTH)).astype(np.float32)
    spec = replace(TWO, labels=(1, 0, 2, 3))
    memory = small_memory(PREDICTION)._replace(bank=full_bank(np.eye(4, WIDTH), spec.labels))

    def loss(labeled, weak, strong):
        return echo_loss(SMALL, spec, memory, labeled, (weak, strong))

    by_labeled, by_weak, by_strong = jax.jit(jax.grad(lambda *views: loss(*views)[0], (0, 1, 2)))(
        *views
    )
    assert np.all(np.any(by_labeled[:, :CLASSES], axis=1))
    assert not np.any(by_labeled[:, CLASSES:])
    assert not np.any(by_weak)
    assert np.all(np.any(by_strong[:, :CLASSES], axis=1))

    def remembered(*views):
        new = loss(*views)[1].memory
        return new.bank.embeddings.sum() + new.queue.rows["probabilities"][0, 0] + new.average[0]

    assert not any(map(np.any, jax.jit(jax.grad(remembered, (0, 1, 2)))(*views)))


@pytest.mark.parametrize("trains", [pytest.param(False, marks=pytest.mark.slow), True])
def test_the_teacher_sees_weak_views_and_further_strong_views_pass_alone(trains):
    passes = []

    def network(variables, views, train=True):
        passes.append((train, len(views) if isinstance(views, tuple) else 1))
        return echo(variables, views, train)

    algorithm = replace(SMALL, strong_views=3)
    assert algorithm.unlabeled == ("weak", "strong", "strong", "strong")
    assert algorithm.evaluated == "student"
    spec = replace(TWO, teacher_trains=trains)
    views = (WEAK,) * 4
    _, update = echo_loss(algorithm, spec, small_memory(PREDICTION), WEAK, views, network=network)
    assert passes == [(trains, 2), (True, 2), (True, 1), (True, 1)]
    assert (update.teacher_stats is not None) == trains
