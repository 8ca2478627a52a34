"""ReMixMatch against plain NumPy: value, gradient, alignment, rotations and statistics."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    CLASSES,
    SPEC,
    TinyNetwork,
    numpy_cross_entropy,
    numpy_logits,
    numpy_softmax,
    one_hot,
    quick_jit,
    randomized,
    toy_state,
    toy_views,
)
from pools import numpy_mix, numpy_mixing

from jaxmatch.algorithms.remixmatch import Draws, Memory, ReMixMatch
from jaxmatch.errors import InputError
from jaxmatch.functional.alignment import Marginal
from jaxmatch.models.network import make_network
from jaxmatch.types import Batch, Examples

AVERAGE = np.array([0.5, 0.3, 0.15, 0.05])
FREQUENCIES = np.array([0.1, 0.2, 0.3, 0.4])


def draws_of(batch):
    turns = np.random.default_rng(2).integers(0, 4, len(batch.unlabeled.label)).astype(np.int32)
    return Draws(numpy_mixing(batch), turns)


def numpy_target(fixed, weak, average):
    """The aligned and sharpened guess [b C], and the new average guess [C]."""
    guess = numpy_softmax(numpy_logits(fixed, weak))
    average = 0.999 * average + 0.001 * guess.mean(0)
    q = guess * (FREQUENCIES + 1e-6) / (average + 1e-6)
    q = (q / q.sum(1, keepdims=True)) ** 2
    return q / q.sum(1, keepdims=True), average


def oracle(params, fixed, batch, draws, *, ramp):
    """The loss from its equations; ``fixed`` are the parameters that the guesses come from."""
    (x,), (weak, *strong) = batch.labeled.views, batch.unlabeled.views
    q, _ = numpy_target(fixed, weak, AVERAGE)
    copies = [q] * (1 + len(strong))
    targets = np.concatenate(numpy_mix([one_hot(batch.labeled.label), *copies], draws.mixing))
    mixed = np.concatenate(numpy_mix([x, weak, *strong], draws.mixing))
    errors = numpy_cross_entropy(numpy_logits(params, mixed), targets)
    loss = errors[: len(x)].mean() + ramp * 1.5 * errors[len(x) :].mean()
    loss += ramp * 0.5 * numpy_cross_entropy(numpy_logits(params, strong[0]), q).mean()
    if "rotation" in params:
        turned = np.stack([np.rot90(*pair) for pair in zip(strong[0], draws.turns, strict=True)])
        heads = {**params, "classifier": params["rotation"]["dense"]}
        loss += (
            0.5 * numpy_cross_entropy(numpy_logits(heads, turned), np.eye(4)[draws.turns]).mean()
        )
    return loss


def started(state):
    """The state after some steps that guessed ``AVERAGE``, with labels of ``FREQUENCIES``."""
    marginal = Marginal(jnp.asarray(AVERAGE, float), jnp.asarray(True))
    return state.replace(memory=Memory(marginal, jnp.asarray(FREQUENCIES, float)))


@pytest.mark.parametrize(
    ("options", "step", "ramp"),
    [
        ({}, 10, 0.5),
        pytest.param(
            {"strong_views": 1, "labeled_view": "strong", "rotation_weight": 0.0},
            90,
            1.0,
            marks=pytest.mark.slow,
        ),
    ],
)
def test_value_and_gradient_are_those_of_the_equations(options, step, ramp):
    with jax.enable_x64(True):
        algorithm = ReMixMatch(ramp=0.2, **options)
        state, batch = toy_state(algorithm, jnp.float64, step), toy_views(algorithm)
        state = started(state)
        draws = draws_of(batch)
        network = make_network(TinyNetwork(heads=algorithm.heads, param_dtype=jnp.float64))
        (loss, update), gradient = quick_jit(
            jax.value_and_grad(
                lambda params: algorithm.loss(network, params, state, batch, draws, SPEC),
                has_aux=True,
            )
        )(state.params)

    value = partial(oracle, fixed=state.params, batch=batch, draws=draws, ramp=ramp)
    np.testing.assert_allclose(update.metrics["optim/ramp"], ramp, rtol=1e-12)
    np.testing.assert_allclose(loss, value(state.params), rtol=1e-12)
    _, average = numpy_target(state.params, batch.unlabeled.views[0], AVERAGE)
    np.testing.assert_allclose(update.memory.predicted.average, average, rtol=1e-12)
    np.testing.assert_array_equal(update.memory.labeled, FREQUENCIES)

    direction = randomized(jax.tree.map(np.zeros_like, state.params), seed=3, scale=1e-6)
    ahead = value(jax.tree.map(np.add, state.params, direction))
    behind = value(jax.tree.map(np.subtract, state.params, direction))
    slope = sum(map(np.vdot, jax.tree.leaves(gradient), jax.tree.leaves(direction)))
    np.testing.assert_allclose(slope, (ahead - behind) / 2, rtol=1e-4)


@pytest.mark.slow
def test_the_first_batch_starts_the_average_and_running_statistics_are_of_mixed_images():
    algorithm = ReMixMatch()
    network = make_network(TinyNetwork(heads=algorithm.heads))
    state, batch = toy_state(algorithm), toy_views(algorithm)
    draws = draws_of(batch)
    assert not state.memory.predicted.started
    loss = quick_jit(partial(algorithm.loss, network, spec=SPEC))
    _, update = loss(state.params, state, batch, draws)

    guess = numpy_softmax(numpy_logits(state.params, batch.unlabeled.views[0]))
    np.testing.assert_allclose(update.memory.predicted.average, guess.mean(0), rtol=1e-4)
    assert update.memory.predicted.started

    views = numpy_mix((*batch.labeled.views, *batch.unlabeled.views), draws.mixing)
    _, expected = quick_jit(network)(state.student(), tuple(map(np.float32, views)))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5), update.stats, expected)


def test_labels_are_counted():
    memory = ReMixMatch().init(None, replace(SPEC, labels=(0, 0, 0, 2)))
    np.testing.assert_allclose(memory.labeled, [0.75, 0, 0.25, 0])
    uniform = ReMixMatch().init(None, replace(SPEC, labels=()))
    np.testing.assert_allclose(uniform.labeled, np.full(CLASSES, 0.25))


@pytest.mark.slow
def test_a_class_without_labels_or_guesses_stays_finite():
    algorithm = ReMixMatch()
    network = make_network(TinyNetwork(heads=algorithm.heads))
    state, batch = toy_state(algorithm, step=90), toy_views(algorithm)
    memory = Memory(
        Marginal(jnp.array([1.0, 0, 0, 0]), jnp.asarray(True)), jnp.array([0.5, 0.5, 0, 0])
    )
    params = jax.tree.map(lambda leaf: 1e3 * leaf, state.params)
    state, draws = state.replace(memory=memory), draws_of(batch)
    loss = lambda params: algorithm.loss(network, params, state, batch, draws, SPEC)[0]  # noqa: E731
    value, gradient = quick_jit(jax.value_and_grad(loss))(params)
    assert np.isfinite(value)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_roles_and_heads_are_of_the_instance():
    default, google = ReMixMatch(), ReMixMatch(strong_views=8, labeled_view="strong")
    assert default.labeled == ("weak",)
    assert default.unlabeled == ("weak", "strong", "strong")
    assert google.labeled == ("strong",)
    assert google.unlabeled == ("weak", *["strong"] * 8)
    assert default.heads["rotation"].features == 4
    assert not ReMixMatch(rotation_weight=0.0).heads


@pytest.mark.slow
def test_turns_are_uniform():
    images = np.zeros((4000, 1, 1, 1), np.float32)
    batch = Batch(Examples((images[:1],)), Examples((images,) * 3))
    turns = quick_jit(ReMixMatch().draw)(jax.random.key(0), batch).turns
    np.testing.assert_allclose(np.bincount(turns) / len(images), 0.25, atol=0.04)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"alpha": -1.0}, "algorithm.alpha=-1.0 must be above 0"),
        ({"temperature": 0.0}, "algorithm.temperature=0.0 must be above 0"),
        ({"strong_views": 0}, "algorithm.strong_views=0 must be at least 1"),
        ({"batch_norm": "join"}, "unknown algorithm.batch_norm 'join'; did you mean 'joint'"),
        ({"labeled_view": "small"}, "labeled_view"),
    ],
)
def test_bad_settings(options, reason):
    with pytest.raises(InputError, match=reason):
        ReMixMatch(**options)
