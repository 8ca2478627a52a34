"""VAT against plain NumPy: value, gradient, direction, statistics, limits and bad settings."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    SPEC,
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
from jaxmatch.algorithms.vat import VAT
from jaxmatch.errors import InputError
from jaxmatch.models.network import make_network
from jaxmatch.types import Batch, Examples

UNLABELED = 4  # few, since the oracle differentiates with respect to every pixel
METHOD = VAT(epsilon=2.0, unlabeled_weight=0.8, entropy_weight=0.3)


def small_batch():
    batch = toy_views(METHOD)
    few = jax.tree.map(lambda leaf: leaf[:UNLABELED], batch.unlabeled)
    return Batch(batch.labeled, few)


def numpy_direction(params, images, noise, step=1e-5):
    """J^T (diag(p) - p p^T) J d over its norm, by central differences, pixel by pixel."""

    def norm(x):
        return np.sqrt(np.square(x).sum((1, 2, 3), keepdims=True))

    def change(direction):
        ahead, behind = (numpy_logits(params, images + s * direction) for s in (step, -step))
        return (ahead - behind) / (2 * step)

    p = numpy_softmax(numpy_logits(params, images))
    v = change(noise / norm(noise))
    weighted = np.stack([(np.diag(q) - np.outer(q, q)) @ row for q, row in zip(p, v, strict=True)])
    gradient = np.zeros_like(images)
    for pixel in np.ndindex(images.shape):
        one = np.zeros_like(images)
        one[pixel] = 1
        gradient[pixel] = np.sum(weighted * change(one))
    return gradient / norm(gradient)


def oracle(params, fixed, batch, direction, ramp):
    """The loss from its equation; ``fixed`` are the parameters that the targets come from."""
    (x,), (u,) = batch.labeled.views, batch.unlabeled.views
    supervised = numpy_cross_entropy(numpy_logits(params, x), one_hot(batch.labeled.label)).mean()
    target, p = (numpy_softmax(numpy_logits(variables, u)) for variables in (fixed, params))
    moved = numpy_softmax(numpy_logits(params, u + METHOD.epsilon * direction))
    divergence = np.sum(target * np.log(target / moved), 1).mean()
    entropy = -np.sum(p * np.log(p), 1).mean()
    loss = supervised + 0.8 * ramp * divergence + 0.3 * entropy
    return loss, {
        "loss/supervised": supervised,
        "loss/unsupervised": divergence,
        "loss/entropy": entropy,
        "optim/ramp": ramp,
    }


def test_value_and_gradient_are_those_of_the_equation():
    with jax.enable_x64(True):
        state, batch = toy_state(VAT(), jnp.float64, step=10), small_batch()
        noise = METHOD.draw(jax.random.key(0), batch)
        network = make_network(TinyNetwork(param_dtype=jnp.float64))
        (loss, update), gradient = quick_jit(
            jax.value_and_grad(
                lambda params: METHOD.loss(network, params, state, batch, noise, SPEC), has_aux=True
            )
        )(state.params)
    assert noise.shape == batch.unlabeled.views[0].shape
    assert noise.dtype == np.float64

    (u,) = batch.unlabeled.views
    value = partial(
        oracle,
        fixed=state.params,
        batch=batch,
        direction=numpy_direction(state.params, u, np.asarray(noise)),
        ramp=0.25,
    )
    expected, terms = value(state.params)
    for name, term in terms.items():
        np.testing.assert_allclose(update.metrics[name], term, rtol=1e-6)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    assert terms["loss/unsupervised"] > 1e-3

    direction = randomized(jax.tree.map(np.zeros_like, state.params), seed=3, scale=1e-6)
    ahead = value(jax.tree.map(np.add, state.params, direction))[0]
    behind = value(jax.tree.map(np.subtract, state.params, direction))[0]
    slope = sum(map(np.vdot, jax.tree.leaves(gradient), jax.tree.leaves(direction)))
    np.testing.assert_allclose(slope, (ahead - behind) / 2, rtol=1e-4)


def terms_of(algorithm, step=99, dtype=jnp.float64):
    """The loss and its terms for the toy problem."""
    with jax.enable_x64(dtype == jnp.float64):
        state, batch = toy_state(VAT(), dtype, step), small_batch()
        batch = jax.tree.map(lambda x: x.astype(dtype) if x.dtype == float else x, batch)
        network = make_network(TinyNetwork(param_dtype=dtype))
        noise = METHOD.draw(jax.random.key(0), batch)
        loss, update = quick_jit(partial(algorithm.loss, network, spec=SPEC))(
            state.params, state, batch, noise
        )
    return float(loss), jax.device_get(update.metrics)


@pytest.mark.slow
def test_differences_find_almost_the_same_direction():
    exact, differences = (terms_of(VAT(epsilon=2.0, vat_xi=xi))[1] for xi in (0.0, 1e-6))
    found, expected = differences["loss/unsupervised"], exact["loss/unsupervised"]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert found != expected


@pytest.mark.slow
def test_without_entropy_it_is_vat_alone():
    loss, terms = terms_of(VAT(entropy_weight=0.0, unlabeled_weight=0.5))
    expected = terms["loss/supervised"] + 0.5 * terms["loss/unsupervised"]
    np.testing.assert_allclose(loss, expected, rtol=1e-12)


@pytest.mark.slow
def test_an_image_that_is_not_moved_costs_nothing():
    _, terms = terms_of(VAT(epsilon=0.0))
    np.testing.assert_allclose(terms["loss/unsupervised"], 0, atol=1e-12)


@pytest.mark.slow
def test_the_adversarial_direction_costs_more_than_a_random_one(monkeypatch):
    _, adversarial = terms_of(VAT(epsilon=0.1))
    monkeypatch.setattr(
        "jaxmatch.algorithms.vat.virtual_adversarial_direction",
        lambda logits_of, images, logits, noise, xi: (
            noise / jnp.sqrt(jnp.sum(noise**2, (1, 2, 3), keepdims=True))
        ),
    )
    _, random = terms_of(VAT(epsilon=0.1))
    assert adversarial["loss/unsupervised"] > 2 * random["loss/unsupervised"]


@pytest.mark.slow
def test_running_statistics_come_from_the_labeled_pass_alone():
    network = make_network(TinyNetwork())
    stats = []
    for algorithm in (VAT(), Supervised()):
        state, batch = toy_state(algorithm), toy_views(algorithm)
        draws = algorithm.draw(jax.random.key(0), batch)
        loss = quick_jit(partial(algorithm.loss, network, spec=SPEC))
        stats.append(loss(state.params, state, batch, draws)[1].stats)
    jax.tree.map(np.testing.assert_array_equal, *stats)
    assert np.any(stats[0]["norm"]["mean"])


@pytest.mark.parametrize("xi", [0.0, 1e-6])
def test_certain_predictions_stay_finite(xi):
    images = np.float32([[[[1, 0, 0, 0]]], [[[0, 3, 0, 0]]]])
    batch = Batch(Examples((images,), np.int32([0, 1])), Examples((images,), np.int32([0, 1])))
    algorithm, state = VAT(vat_xi=xi), toy_state(VAT(), step=99).replace(stats={})
    noise = algorithm.draw(jax.random.key(0), batch)

    def loss(kernel):
        return algorithm.loss(linear_network, {"kernel": kernel}, state, batch, noise, SPEC)[0]

    value, gradient = quick_jit(jax.value_and_grad(loss))(1e4 * np.eye(4, dtype=np.float32))
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("name", ["epsilon", "vat_xi"])
def test_negative_lengths_are_refused(name):
    with pytest.raises(InputError, match=f"algorithm.{name}=-1.0 must be at least 0"):
        VAT(**{name: -1.0})
