"""WCL against its equations in plain NumPy, with weak labels by union-find."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from embeddings import slope_along, unit
from helpers import (
    SPEC,
    TinyNetwork,
    numpy_logits,
    quick_jit,
    randomized,
    toy_state,
    toy_views,
)

from jaxmatch.algorithms.wcl import WCL
from jaxmatch.errors import InputError
from jaxmatch.models.network import make_network
from jaxmatch.types import Batch, Examples, Outputs, TrainState

ALGORITHM = WCL(temperature=0.3, projection=5, hidden=7)


def head(layers, x):
    """Two layers with BatchNorm and ReLU and a third, on one joint batch, to unit rows."""
    for name in ("hidden1", "hidden2"):
        x = x @ layers[name]["kernel"] + layers[f"{name}_bias"]
        x = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5)
        x = np.maximum(0, x * layers[f"{name}_norm"]["scale"] + layers[f"{name}_norm"]["bias"])
    return unit(x @ layers["output"]["kernel"] + layers["output"]["bias"])


def outputs(params, views):
    """The unit rows of both heads: ((first, second) of "projection", the same of "graph")."""
    width = len(params["classifier"]["kernel"])
    trunk = params | {"classifier": {"kernel": np.eye(width), "bias": np.zeros(width)}}
    features = numpy_logits(trunk, np.concatenate(views))
    return [np.split(head(params[name], features), 2) for name in ("projection", "graph")]


def weak_labels(rows):
    """The smallest node that each can be reached from, over edges to the nearest neighbor."""
    scores = rows @ rows.T - 9 * np.eye(len(rows))
    edge = np.zeros(scores.shape, bool)
    edge[np.arange(len(rows)), scores.argmax(1)] = True
    reach = np.linalg.matrix_power((edge | edge.T | np.eye(len(rows), dtype=bool)), len(rows))
    return reach.argmax(1)


def supervised(rows, labels):
    losses = []
    for i, anchor in enumerate(rows):
        scores = {k: anchor @ other / 0.3 for k, other in enumerate(rows) if k != i}
        everyone = np.log(sum(np.exp(score) for score in scores.values()))
        losses.append(np.mean([everyone - s for k, s in scores.items() if labels[k] == labels[i]]))
    return np.mean(losses)


def oracle(params, views):
    (first, second), (left, right) = outputs(params, views)
    z, b = np.concatenate([first, second]), len(first)
    contrastive = [
        np.log(sum(np.exp(z[i] @ z[k] / 0.3) for k in range(2 * b) if k != i))
        - z[i] @ z[(i + b) % (2 * b)] / 0.3
        for i in range(2 * b)
    ]
    graph = supervised(left, weak_labels(right)) + supervised(right, weak_labels(left))
    return np.mean(contrastive), graph / 2


def test_value_and_gradient_are_those_of_the_equations():
    with jax.enable_x64(True):
        state, batch = toy_state(ALGORITHM, jnp.float64), toy_views(ALGORITHM)
        network = make_network(
            TinyNetwork(heads=ALGORITHM.heads, param_dtype=jnp.float64), shards=2
        )
        (loss, update), gradient = quick_jit(
            jax.value_and_grad(
                lambda params: ALGORITHM.loss(network, params, state, batch, (), SPEC), has_aux=True
            )
        )(state.params)
    contrastive, graph = oracle(state.params, batch.unlabeled.views)
    np.testing.assert_allclose(update.metrics["loss/contrastive"], contrastive, rtol=1e-10)
    np.testing.assert_allclose(update.metrics["loss/graph"], graph, rtol=1e-10)
    np.testing.assert_allclose(loss, contrastive + graph, rtol=1e-10)
    assert update.memory == ()

    def value(params):
        return sum(oracle(params, batch.unlabeled.views))

    direction = randomized(jax.tree.map(np.zeros_like, state.params), seed=3, scale=1e-6)
    slope = sum(map(np.vdot, jax.tree.leaves(gradient), jax.tree.leaves(direction)))
    np.testing.assert_allclose(slope, slope_along(value, state.params, direction), rtol=1e-4)
    for name in ("projection", "graph"):
        assert np.any(gradient[name]["output"]["kernel"])
    assert not np.any(gradient["classifier"]["kernel"])


def graph_loss(left, right):
    """L_graph where the heads are the views themselves."""

    def network(variables, views, train=True):
        return tuple(Outputs(view, view, {"projection": view, "graph": view}) for view in views), {}

    state = TrainState(*[None] * 8)

    @quick_jit
    def loss(*views):
        batch = Batch(None, Examples(views))
        return ALGORITHM.loss(network, {}, state, batch, (), SPEC)[1].metrics["loss/graph"]

    return loss(left, right)


@pytest.mark.slow  # part of the equations
def test_a_view_is_labeled_by_the_other():
    pairs, others = np.eye(4)[[0, 0, 1, 1]], np.eye(4)[[0, 1, 0, 1]]
    everyone = np.log(np.e ** (1 / 0.3) + 2)  # one of the three others is equal
    agreed = everyone - 1 / 0.3
    np.testing.assert_allclose(graph_loss(pairs, pairs), agreed, rtol=1e-5)
    np.testing.assert_allclose(graph_loss(pairs, others), everyone, rtol=1e-5)


@pytest.mark.slow
def test_equal_embeddings_are_all_positives():
    rows = np.ones((6, 3))
    np.testing.assert_allclose(graph_loss(rows, rows), np.log(5), rtol=1e-6)
    np.testing.assert_allclose(graph_loss(np.eye(2), np.eye(2)), 0, atol=1e-6)


def test_a_temperature_of_zero_is_refused():
    with pytest.raises(InputError, match=r"algorithm.temperature=0 must be above 0"):
        WCL(temperature=0)


def test_it_reads_no_labels_and_reports_the_student():
    assert ALGORITHM.labeled == ()
    assert ALGORITHM.evaluated == "student"
