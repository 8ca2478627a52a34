"""S4L-Rotation against plain NumPy: value, gradient, one joint batch and its limits."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    BN_EPS,
    CLASSES,
    SLOPE,
    SPEC,
    TinyNetwork,
    numpy_cross_entropy,
    quick_jit,
    randomized,
    toy_state,
    toy_views,
)

from jaxmatch.algorithms.s4l_rotation import S4LRotation
from jaxmatch.errors import InputError
from jaxmatch.models.network import make_network
from jaxmatch.types import Batch


def numpy_features(params, images):
    """Pooled features [b d] of the TinyNetwork in train mode on one joint batch [b h w c]."""
    windows = np.lib.stride_tricks.sliding_window_view(images, (3, 3), (1, 2))
    x = np.einsum("bhwcij,ijco->bhwo", windows, params["conv"]["kernel"])
    x = (x - x.mean((0, 1, 2))) / np.sqrt(x.var((0, 1, 2)) + BN_EPS)
    x = x * params["norm"]["scale"] + params["norm"]["bias"]
    return np.where(x > 0, x, SLOPE * x).mean((1, 2))


def oracle(params, batch, weight):
    """The loss from its equation, with one copy of each image a row: all x_0, x_1, ..., u_3."""
    (x,), (u,) = batch.labeled.views, batch.unlabeled.views
    copies = [np.rot90(images, k, (1, 2)) for images in (x, u) for k in range(4)]
    features = numpy_features(params, np.concatenate(copies))
    turns = np.repeat(np.tile(np.arange(4), 2), 4 * [len(x)] + 4 * [len(u)])

    def logits(head):
        return features @ head["kernel"] + head["bias"]

    labels = np.tile(batch.labeled.label, 4)
    of_class = logits(params["classifier"])[: len(labels)]
    supervised = numpy_cross_entropy(of_class, np.eye(CLASSES)[labels]).mean()
    rotations = numpy_cross_entropy(logits(params["rotation"]["dense"]), np.eye(4)[turns])
    rotation = (rotations[: len(labels)].mean() + rotations[len(labels) :].mean()) / 2
    return supervised + weight * rotation, supervised, rotation


def test_value_and_gradient_are_those_of_the_equation():
    algorithm = S4LRotation(rotation_weight=0.7)
    with jax.enable_x64(True):
        state, batch = toy_state(algorithm, jnp.float64), toy_views(algorithm)
        network = make_network(TinyNetwork(heads=algorithm.heads, param_dtype=jnp.float64))
        (loss, update), gradient = quick_jit(
            jax.value_and_grad(
                lambda params: algorithm.loss(network, params, state, batch, (), SPEC), has_aux=True
            )
        )(state.params)

    value = partial(oracle, batch=batch, weight=0.7)
    expected, supervised, rotation = value(state.params)
    np.testing.assert_allclose(loss, expected, rtol=1e-12)
    np.testing.assert_allclose(update.metrics["loss/supervised"], supervised, rtol=1e-12)
    np.testing.assert_allclose(update.metrics["loss/rotation"], rotation, rtol=1e-12)

    direction = randomized(jax.tree.map(np.zeros_like, state.params), seed=3, scale=1e-6)
    ahead = value(jax.tree.map(np.add, state.params, direction))[0]
    behind = value(jax.tree.map(np.subtract, state.params, direction))[0]
    slope = sum(map(np.vdot, jax.tree.leaves(gradient), jax.tree.leaves(direction)))
    np.testing.assert_allclose(slope, (ahead - behind) / 2, rtol=1e-4)


def run(batch):
    algorithm = S4LRotation()
    state, network = toy_state(algorithm), make_network(TinyNetwork(heads=algorithm.heads))
    loss = quick_jit(lambda batch: algorithm.loss(network, state.params, state, batch, (), SPEC))
    value, update = loss(batch)
    return float(value), update.metrics


@pytest.mark.slow
def test_the_supervised_term_sees_all_copies_alike():
    """All four copies of x carry its label, so it does not matter which of them x is."""
    batch = toy_views(S4LRotation())
    turned = batch._replace(
        labeled=batch.labeled._replace(views=(np.rot90(batch.labeled.views[0], 1, (1, 2)).copy(),))
    )
    before, after = run(batch)[1], run(turned)[1]
    np.testing.assert_allclose(after["loss/supervised"], before["loss/supervised"], rtol=1e-5)
    assert abs(after["loss/rotation"] - before["loss/rotation"]) > 1e-3


def test_images_that_look_the_same_from_all_sides_cannot_be_told():
    batch = toy_views(S4LRotation())

    def symmetric(examples):
        (images,) = examples.views
        whole = sum(np.rot90(images, k, (1, 2)) for k in range(4)) / 4
        return examples._replace(views=(whole,))

    value, metrics = run(Batch(symmetric(batch.labeled), symmetric(batch.unlabeled)))
    # The best guess is a quarter each.
    assert metrics["loss/rotation"] > np.log(4) - 1e-6
    assert value > metrics["loss/supervised"]


def test_images_that_are_not_square_are_refused():
    algorithm = S4LRotation()
    batch = toy_views(algorithm)
    narrow = batch._replace(labeled=batch.labeled._replace(views=(batch.labeled.views[0][:, :6],)))
    with pytest.raises(InputError, match="6x8 pixels cannot be turned"):
        run(narrow)
