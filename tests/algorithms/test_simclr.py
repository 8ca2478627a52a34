"""SimCLR against its equation written as a double loop, and its monitors in known situations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    SPEC,
    UNLABELED_BATCH,
    TinyNetwork,
    numpy_logits,
    quick_jit,
    randomized,
    toy_state,
    toy_views,
)

from jaxmatch.algorithms.simclr import SimCLR, found
from jaxmatch.models.heads import Projection
from jaxmatch.models.network import make_network
from jaxmatch.types import Batch, Examples, Outputs, TrainState


def embeddings(params, views):
    """The unit projections [b d] of each of ``views``, which share one BatchNorm batch."""
    width = len(params["classifier"]["kernel"])
    trunk = params | {"classifier": {"kernel": np.eye(width), "bias": np.zeros(width)}}
    features = numpy_logits(trunk, np.concatenate(views))
    layers = params["projection"]
    hidden = np.maximum(0, features @ layers["hidden"]["kernel"] + layers["hidden"]["bias"])
    projected = hidden @ layers["output"]["kernel"] + layers["output"]["bias"]
    return np.split(projected / np.linalg.norm(projected, axis=1, keepdims=True), 2)


def oracle(first, second, temperature):
    """The mean of equation (1) over all ordered pairs of views of one image."""
    z, b = np.concatenate([first, second]), len(first)
    total = 0.0
    for i in range(2 * b):
        positive = (i + b) % (2 * b)
        others = sum(np.exp(z[i] @ z[k] / temperature) for k in range(2 * b) if k != i)
        total -= np.log(np.exp(z[i] @ z[positive] / temperature) / others)
    return total / (2 * b)


def test_value_and_gradient_are_those_of_the_equation():
    with jax.enable_x64(True):
        algorithm = SimCLR(temperature=0.2, projection=5)
        state, batch = toy_state(algorithm, jnp.float64), toy_views(algorithm)
        network = make_network(
            TinyNetwork(heads=algorithm.heads, param_dtype=jnp.float64), shards=2
        )
        (loss, update), gradient = quick_jit(
            jax.value_and_grad(
                lambda params: algorithm.loss(network, params, state, batch, (), SPEC), has_aux=True
            )
        )(state.params)

    def value(params):
        return oracle(*embeddings(params, batch.unlabeled.views), 0.2)

    np.testing.assert_allclose(loss, value(state.params), rtol=1e-12)
    assert update.metrics["loss/contrastive"] == loss
    assert update.memory == ()
    direction = randomized(jax.tree.map(np.zeros_like, state.params), seed=3, scale=1e-6)
    ahead = value(jax.tree.map(np.add, state.params, direction))
    behind = value(jax.tree.map(np.subtract, state.params, direction))
    slope = sum(map(np.vdot, jax.tree.leaves(gradient), jax.tree.leaves(direction)))
    np.testing.assert_allclose(slope, (ahead - behind) / 2, rtol=1e-4)
    assert np.any(gradient["projection"]["output"]["kernel"])
    assert not np.any(gradient["classifier"]["kernel"])


def loss_of(first, second, **settings):
    """The loss and update where the projections are the views themselves."""

    def network(variables, views, train=True):
        return tuple(Outputs(view, view, {"projection": view}) for view in views), {}

    state = TrainState(*[None] * 8)

    def loss(*views):
        return SimCLR(**settings).loss(network, {}, state, Batch(None, Examples(views)), (), SPEC)

    return jax.jit(loss)(jnp.asarray(first), jnp.asarray(second))


def test_projections_are_compared_by_angle_alone():
    random = np.random.default_rng(0)
    first, second = random.normal(size=(2, 6, 4))
    expected, _ = loss_of(first, second)
    scaled, _ = loss_of(3 * first, random.uniform(0.1, 9, (6, 1)) * second)
    np.testing.assert_allclose(scaled, expected, rtol=1e-5)
    turned, _ = loss_of(second, first)
    np.testing.assert_allclose(turned, expected, rtol=1e-5)


def test_collapse_costs_the_logarithm_of_the_candidates_and_is_seen():
    first = np.ones((UNLABELED_BATCH, 8))
    loss, update = loss_of(first, first)
    np.testing.assert_allclose(loss, np.log(2 * UNLABELED_BATCH - 1), rtol=1e-5)
    assert update.metrics["contrastive/accuracy"] == 0
    assert update.metrics["features/spread"] < 1e-3


def test_separated_images_cost_little_and_are_seen():
    first = np.eye(8)
    loss, update = loss_of(first, first, temperature=0.05)
    assert loss < 1e-6
    assert update.metrics["contrastive/accuracy"] == 1
    # Unit vectors that fill the sphere evenly, but for the share of their mean.
    np.testing.assert_allclose(update.metrics["features/spread"], np.sqrt(7 / 8), rtol=1e-5)


def test_accuracy_counts_views_nearer_to_their_own_than_to_all_others():
    degrees = np.array([[0, 100, 200, 300], [10, 130, 290, 230]])
    first, second = np.stack([np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))], -1)
    # 0 and 100 find their own at 10 and 130; 200 is nearer to 230, and 300 to 290.
    assert quick_jit(found)(first, second).mean() == 0.5
    # A neighbour among the first views counts as well: now 100 is nearer to 88 than to 130.
    first[0] = np.cos(np.deg2rad(88)), np.sin(np.deg2rad(88))
    second[0] = first[0]
    assert quick_jit(found)(first, second).mean() == 0.25


@pytest.mark.slow  # functional/test_losses.py has the loss
def test_extreme_projections_stay_finite():
    compiled = quick_jit(jax.value_and_grad(lambda z: loss_of(z, z, temperature=0.01)[0]))
    for scale in (0.0, 1e-30, 1e18):
        value, slope = compiled(
            scale * np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
        )
        assert np.isfinite(value)
        assert np.isfinite(slope).all()


def test_it_reads_no_labels_and_reports_the_student():
    algorithm = SimCLR()
    assert algorithm.labeled == ()
    assert algorithm.unlabeled == ("contrast", "contrast")
    assert algorithm.evaluated == "student"
    assert toy_views(algorithm).labeled is None


def test_the_published_head_has_a_norm_after_each_layer():
    assert SimCLR(norm=True).heads["projection"] == Projection(128, norm=True)
    assert SimCLR().heads["projection"] == Projection(128)
