"""Pseudo-Label against plain NumPy: value, gradient, masking, ramp and statistics."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    CLASSES,
    SPEC,
    TinyNetwork,
    linear_loss,
    numpy_cross_entropy,
    numpy_logits,
    numpy_softmax,
    one_hot,
    quick_jit,
    randomized,
    toy_state,
    toy_views,
)

from jaxmatch.algorithms.pseudo_label import PseudoLabel
from jaxmatch.algorithms.supervised import Supervised
from jaxmatch.models.network import make_network
from jaxmatch.types import Examples


def oracle(params, fixed, batch, *, threshold, weight):
    """The loss from its equation; ``fixed`` are the parameters that the targets come from."""
    (x,), (u,) = batch.labeled.views, batch.unlabeled.views
    supervised = numpy_cross_entropy(numpy_logits(params, x), one_hot(batch.labeled.label)).mean()
    q = numpy_softmax(numpy_logits(fixed, u))
    mask = q.max(1) >= threshold
    errors = numpy_cross_entropy(numpy_logits(params, u), one_hot(q.argmax(1)))
    return supervised + weight * np.mean(mask * errors), mask


@pytest.mark.parametrize(
    ("step", "ramp"),
    [
        pytest.param(0, 0.0, marks=pytest.mark.slow),
        (10, 0.25),
        pytest.param(40, 1.0, marks=pytest.mark.slow),
        pytest.param(90, 1.0, marks=pytest.mark.slow),
    ],
)
def test_value_and_gradient_are_those_of_the_equation(step, ramp):
    with jax.enable_x64(True):
        algorithm = PseudoLabel(threshold=0.4, unlabeled_weight=2.0)
        state, batch = toy_state(PseudoLabel(), jnp.float64, step), toy_views(algorithm)
        network = make_network(TinyNetwork(param_dtype=jnp.float64))
        (loss, update), gradient = quick_jit(
            jax.value_and_grad(
                lambda params: algorithm.loss(network, params, state, batch, (), SPEC), has_aux=True
            )
        )(state.params)

    def value(params):
        return oracle(params, state.params, batch, threshold=0.4, weight=2.0 * ramp)

    expected, mask = value(state.params)
    assert 0 < mask.mean() < 1
    np.testing.assert_allclose(update.metrics["optim/ramp"], ramp, rtol=1e-12)
    np.testing.assert_allclose(update.metrics["pseudo/coverage"], mask.mean(), rtol=1e-6)
    np.testing.assert_allclose(loss, expected, rtol=1e-12)

    direction = randomized(jax.tree.map(np.zeros_like, state.params), seed=3, scale=1e-6)
    ahead = value(jax.tree.map(np.add, state.params, direction))[0]
    behind = value(jax.tree.map(np.subtract, state.params, direction))[0]
    slope = sum(map(np.vdot, jax.tree.leaves(gradient), jax.tree.leaves(direction)))
    np.testing.assert_allclose(slope, (ahead - behind) / 2, rtol=1e-4)


def test_running_statistics_come_from_the_labeled_pass_alone():
    network = make_network(TinyNetwork())
    stats = []
    for algorithm in (PseudoLabel(), Supervised()):
        state, batch = toy_state(algorithm), toy_views(algorithm)
        loss = quick_jit(partial(algorithm.loss, network, spec=SPEC))
        stats.append(loss(state.params, state, batch, ())[1].stats)
    jax.tree.map(np.testing.assert_array_equal, *stats)
    assert np.any(stats[0]["norm"]["mean"])


def loss_of_one(algorithm, kernel, images):
    """Loss with a linear network after the ramp; the first image is labeled too, as class 0."""
    label = np.zeros(len(images), np.int32)
    labeled, unlabeled = Examples((images[:1],), label[:1]), Examples((images,), label)
    return linear_loss(algorithm, kernel, labeled, unlabeled, step=99)


def test_the_threshold_itself_is_confident():
    kernel = np.zeros((2, 2), np.float32)  # every probability is 1/2
    images = np.ones((3, 2), np.float32)
    metrics = loss_of_one(PseudoLabel(threshold=0.5), kernel, images)[1].metrics
    assert metrics["pseudo/coverage"] == 1
    np.testing.assert_allclose(metrics["loss/unsupervised"], np.log(2), rtol=1e-6)


def test_each_image_is_masked_by_its_own_confidence():
    kernel = np.eye(CLASSES, dtype=np.float32)
    images = np.array([[9, 0, 0, 0], [0.1, 0, 0, 0]], np.float32)
    metrics = loss_of_one(PseudoLabel(threshold=0.9), kernel, images)[1].metrics
    confident = -np.log(numpy_softmax(images)[0, 0])
    np.testing.assert_allclose(metrics["loss/unsupervised"], confident / 2, rtol=1e-3)
