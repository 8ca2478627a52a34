"""Distillation against plain NumPy: value, gradient, temperature and weights."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
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

from jaxmatch.algorithms.distillation import Distillation
from jaxmatch.errors import InputError
from jaxmatch.models.network import make_network
from jaxmatch.types import Batch, Examples, Outputs


def oracle(params, batch, temperature, labeled_weight):
    """The loss from its equation, of the student's parameters: the terms and their sum."""
    (x,), (u,) = batch.labeled.views, batch.unlabeled.views
    logits = numpy_logits(params, np.concatenate([x, u]))
    on_x, on_u = logits[: len(x)], logits[len(x) :]
    supervised = numpy_cross_entropy(on_x, one_hot(batch.labeled.label)).mean()
    target = numpy_softmax(np.asarray(batch.frozen["teacher"][0].logits) / temperature)
    distillation = numpy_cross_entropy(on_u / temperature, target).mean()
    loss = labeled_weight * supervised + (1 - labeled_weight) * distillation
    return supervised, distillation, loss


@pytest.mark.parametrize(
    ("temperature", "labeled_weight"),
    [pytest.param(1.0, 0.0, marks=pytest.mark.slow), (3.0, 0.25)],
)
def test_value_and_gradient_are_those_of_the_equation(temperature, labeled_weight):
    algorithm = Distillation(temperature=temperature, labeled_weight=labeled_weight)
    with jax.enable_x64(True):
        state, batch = toy_state(algorithm, jnp.float64), toy_views(algorithm)
        network = make_network(TinyNetwork(param_dtype=jnp.float64))
        (loss, update), gradient = quick_jit(
            jax.value_and_grad(
                lambda params: algorithm.loss(network, params, state, batch, (), SPEC), has_aux=True
            )
        )(state.params)

    terms = partial(oracle, batch=batch, temperature=temperature, labeled_weight=labeled_weight)
    found = (update.metrics["loss/supervised"], update.metrics["loss/distillation"], loss)
    np.testing.assert_allclose(found, terms(state.params), rtol=1e-11)
    direction = randomized(jax.tree.map(np.zeros_like, state.params), seed=3, scale=1e-6)
    ahead = terms(jax.tree.map(np.add, state.params, direction))[-1]
    behind = terms(jax.tree.map(np.subtract, state.params, direction))[-1]
    slope = sum(map(np.vdot, jax.tree.leaves(gradient), jax.tree.leaves(direction)))
    np.testing.assert_allclose(slope, (ahead - behind) / 2, rtol=1e-4)


def flat_loss(logits, teacher, label=(0, 0), **options):
    """The loss where the student's logits of unlabeled images are ``logits`` [b 4]."""
    views = jnp.asarray(logits, jnp.float32)[:, None, None, :]
    labeled = Examples((jnp.zeros((2, 1, 1, 4)),), np.asarray(label))
    outputs = Outputs(jnp.asarray(teacher, jnp.float32), None, {})
    return linear_loss(
        Distillation(**options),
        jnp.eye(4),
        labeled,
        Examples((views,), np.full(len(logits), -1)),
        frozen={"teacher": (outputs,)},
    )


RANDOM = np.random.default_rng(0).normal(0, 3, (2, 6, 4))


@pytest.mark.parametrize("temperature", [0.1, 1.0, 4.0])
def test_a_student_that_agrees_pays_the_entropy_of_the_targets_alone(temperature):
    logits, other = RANDOM
    target = numpy_softmax(logits / temperature)
    least = numpy_cross_entropy(logits / temperature, target).mean()
    same, _ = flat_loss(logits, logits, temperature=temperature)
    different, _ = flat_loss(other, logits, temperature=temperature)
    np.testing.assert_allclose(same, least, rtol=1e-5, atol=1e-6)
    assert different > same


def test_a_constant_added_to_the_logits_of_either_changes_nothing():
    logits, other = RANDOM
    base, _ = flat_loss(logits, other)
    shifted, _ = flat_loss(logits + 7, other - 3)
    np.testing.assert_allclose(shifted, base, rtol=1e-5)


def test_a_low_temperature_turns_targets_into_classes():
    logits, other = RANDOM
    sharp, _ = flat_loss(0.01 * logits, other, temperature=0.01)
    np.testing.assert_allclose(
        sharp, numpy_cross_entropy(logits, one_hot(other.argmax(1))).mean(), rtol=1e-3
    )


def test_labels_count_by_their_weight():
    logits, other = RANDOM
    free, _ = flat_loss(logits, other, label=(0, 1))
    assert free == flat_loss(logits, other, label=(2, 3))[0]
    mixed, update = flat_loss(logits, other, labeled_weight=0.25)
    np.testing.assert_allclose(update.metrics["loss/supervised"], np.log(4), rtol=1e-6)
    np.testing.assert_allclose(mixed, 0.25 * np.log(4) + 0.75 * free, rtol=1e-6)


def test_extreme_logits_stay_finite():
    extreme = np.array([[1e4, -1e4, 0.0, 0.0]] * 2)
    for student, teacher in ((extreme, extreme), (extreme, -extreme), (0 * extreme, extreme)):
        loss, _ = flat_loss(student, teacher, temperature=0.1)
        assert np.isfinite(loss)


def test_the_frozen_network_is_not_the_moving_average():
    algorithm = Distillation()
    state, batch = toy_state(algorithm), toy_views(algorithm)
    network = make_network(TinyNetwork())
    loss = quick_jit(lambda state: algorithm.loss(network, state.params, state, batch, (), SPEC)[0])
    other = state.replace(teacher=jax.tree.map(lambda leaf: 2 * leaf, state.teacher))
    assert loss(state) == loss(other)


def test_it_asks_for_one_view_of_each_kind_and_a_teacher():
    algorithm = Distillation()
    assert (algorithm.labeled, algorithm.unlabeled) == (("weak",), ("weak",))
    assert (algorithm.frozen, algorithm.evaluated) == (("teacher",), "student")


@pytest.mark.parametrize(
    "options", [{"temperature": 0.0}, {"temperature": -1.0}, {"labeled_weight": 1.0}]
)
def test_nonsense_is_refused(options):
    with pytest.raises(InputError, match="must be"):
        replace(Distillation(), **options)


def test_a_batch_without_frozen_networks_has_none():
    assert Batch(None, None).frozen is None
