"""Dash against plain NumPy: value, gradient, selection, warm-up and the threshold's clock."""

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

from jaxmatch.algorithms.dash import Dash, Memory
from jaxmatch.errors import InputError
from jaxmatch.models.network import make_network
from jaxmatch.types import Batch, Examples, TrainState

WEIGHT, TEMPERATURE = 2.0, 0.5
RUN = Dash(
    warmup_steps=10,
    rho_period_steps=5,
    rho_min=0.8,
    temperature=TEMPERATURE,
    unlabeled_weight=WEIGHT,
)
KERNEL = np.eye(CLASSES, dtype=np.float32)


def oracle(params, fixed, batch, rho, soft, norm):
    """The loss from its equations; ``fixed`` are the parameters that the targets come from."""
    (x,), (weak, strong) = batch.labeled.views, batch.unlabeled.views
    views = np.concatenate([x, weak, strong])
    sizes = [len(x), len(x) + len(weak)]
    on_x, _, on_strong = np.split(numpy_logits(params, views), sizes)
    guessed = np.split(numpy_logits(fixed, views), sizes)[1]
    supervised = numpy_cross_entropy(on_x, one_hot(batch.labeled.label)).mean()
    selected = -np.log(numpy_softmax(guessed).max(1)) < rho
    target = numpy_softmax(guessed / TEMPERATURE) if soft else one_hot(guessed.argmax(1))
    errors = numpy_cross_entropy(on_strong, target)
    if norm == "selected":
        unsupervised = 0.9 * errors[selected].mean()
    else:
        unsupervised = np.mean(selected * errors)
    return supervised + WEIGHT * unsupervised, selected.mean(), errors.mean()


@pytest.mark.parametrize(
    ("step", "rho", "effective", "soft", "norm"),
    [
        (4, 0.0, 500, True, "batch"),
        (17, 0.9, 0.9, True, "selected"),
        pytest.param(23, 0.801, 0.801, True, "batch", marks=pytest.mark.slow),
        pytest.param(23, 0.8, 0.8, False, "batch", marks=pytest.mark.slow),
        pytest.param(23, 0.01, 0.8, False, "selected", marks=pytest.mark.slow),
    ],
)
def test_value_and_gradient_are_those_of_the_equations(step, rho, effective, soft, norm):
    algorithm = replace(RUN, dash_norm=norm)
    with jax.enable_x64(True):
        state, batch = toy_state(RUN, jnp.float64, step), toy_views(RUN)
        state = state.replace(memory=state.memory._replace(rho=jnp.float64(rho)))
        network = make_network(TinyNetwork(param_dtype=jnp.float64))
        (loss, update), gradient = quick_jit(
            jax.value_and_grad(
                lambda params: algorithm.loss(network, params, state, batch, (), SPEC), has_aux=True
            )
        )(state.params)

    def value(params):
        return oracle(params, state.params, batch, effective, soft, norm)

    expected, coverage, _ = value(state.params)
    assert coverage == 1 if step < 10 else 0 < coverage < 1
    np.testing.assert_allclose(loss, expected, rtol=1e-12)
    np.testing.assert_allclose(update.metrics["pseudo/coverage"], coverage, rtol=1e-6)

    direction = randomized(jax.tree.map(np.zeros_like, state.params), seed=3, scale=1e-6)
    ahead = value(jax.tree.map(np.add, state.params, direction))[0]
    behind = value(jax.tree.map(np.subtract, state.params, direction))[0]
    slope = sum(map(np.vdot, jax.tree.leaves(gradient), jax.tree.leaves(direction)))
    np.testing.assert_allclose(slope, (ahead - behind) / 2, rtol=1e-4)


def loss_of(algorithm, step, memory, weak, strong):
    """Loss with a linear network on float32 views; the labeled image has no say."""
    labeled = Examples((np.zeros((1, CLASSES), np.float32),), np.zeros(1, np.int32))
    unlabeled = Examples((weak, strong), np.zeros(len(weak), np.int32))
    state = TrainState(
        step=step,
        key=None,
        params=None,
        stats={},
        teacher=None,
        optimizer=None,
        memory=memory,
        policy=(),
    )
    loss = jax.jit(partial(algorithm.loss, linear_network, spec=SPEC))
    return loss({"kernel": KERNEL}, state, Batch(labeled, unlabeled), ())


def follow(algorithm, steps, weak, strong):
    """The thresholds and coverages of ``steps`` from the start, and the last memory."""

    def one(memory, given):
        step, weak, strong = given
        _, update = loss_of(algorithm, step, memory, weak, strong)
        rho = update.metrics["pseudo/rho"]
        return update.memory, (rho.total, rho.count, update.metrics["pseudo/coverage"])

    start = algorithm.init(jax.random.key(0), SPEC)
    given = jnp.arange(steps), jnp.float32(weak), jnp.float32(strong)
    memory, seen = quick_jit(lambda given: jax.lax.scan(one, start, given))(given)
    return memory, *map(np.asarray, seen)


@pytest.mark.parametrize(("measure", "measured"), [(0, 3), (2, 2), (10, 10)])
def test_the_threshold_starts_from_the_end_of_the_warm_up_and_decays(measure, measured):
    """One pass over the 64 unlabeled images takes 3 steps of 24."""
    algorithm = replace(RUN, rho_min=0.3, measure_steps=measure)
    weak, strong = 2 * np.random.default_rng(0).normal(size=(2, 40, 6, CLASSES))
    memory, rho, counted, coverage = follow(algorithm, 40, weak, strong)
    window = slice(10 - measured, 10)
    targets = numpy_softmax(weak[window].reshape(-1, CLASSES) / TEMPERATURE)
    expected = numpy_cross_entropy(strong[window].reshape(-1, CLASSES), targets).mean()
    assert memory.batches == measured
    np.testing.assert_allclose(memory.measured / measured, expected, rtol=1e-5)

    decays = 1 + (np.arange(10, 40) - 10) // 5
    np.testing.assert_array_equal(counted, np.arange(40) >= 10)
    np.testing.assert_allclose(rho[10:], np.maximum(0.3, expected / 1.27**decays), rtol=1e-5)
    losses = -np.log(numpy_softmax(weak.reshape(-1, CLASSES)).max(1)).reshape(40, 6)
    np.testing.assert_array_equal(coverage[:10], 1)
    np.testing.assert_allclose(coverage[10:], (losses[10:] < rho[10:, None]).mean(1), rtol=1e-6)


def test_a_warm_up_shorter_than_a_pass_is_measured_whole():
    views = np.ones((4, 2, CLASSES))
    memory, rho, *_ = follow(Dash(warmup_steps=2, rho_period_steps=5), 4, views, views)
    assert memory.batches == 2
    np.testing.assert_allclose(rho, [0, 0, np.log(4) / 1.27, np.log(4) / 1.27], rtol=1e-6)


def test_a_given_threshold_is_a_multiple_of_the_loss_of_a_guess():
    views = np.ones((7, 2, CLASSES))
    algorithm = Dash(warmup_steps=0, rho_initial=1.5, rho_period_steps=3, gamma=2.0)
    memory, rho, *_ = follow(algorithm, 7, views, views)
    expected = 1.5 * np.log(4) / 2.0 ** (np.arange(7) // 3)
    np.testing.assert_allclose(rho, expected, rtol=1e-6)
    assert memory.batches == 0


def test_the_least_threshold_is_a_probability_of_095():
    np.testing.assert_allclose(np.exp(-Dash().rho_min), 0.9512, atol=5e-5)
    probabilities = np.array([0.952, 0.951])
    weak = np.zeros((2, CLASSES), np.float32)
    weak[:, 0] = np.log(probabilities / ((1 - probabilities) / 3))
    memory = Memory(jnp.float32(0), jnp.int32(0), jnp.float32(0))
    _, update = loss_of(Dash(), jnp.int32(2**19), memory, weak, weak)
    assert update.metrics["pseudo/coverage"] == 0.5


@pytest.mark.parametrize("norm", ["batch", "selected"])
def test_nothing_selected_costs_nothing(norm):
    algorithm = Dash(warmup_steps=2, dash_norm=norm)
    memory = Memory(jnp.float32(0), jnp.int32(0), jnp.float32(0))
    views = np.zeros((3, CLASSES), np.float32)
    _, update = loss_of(algorithm, jnp.int32(5), memory, views, views)
    assert update.metrics["pseudo/coverage"] == 0
    assert update.metrics["loss/unsupervised"] == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dash_norm": "all"}, "unknown algorithm.dash_norm 'all'; known: batch, selected"),
        ({"gamma": 0.9}, "gamma=0.9 must be at least 1"),
        ({"rho_period_steps": 0}, "rho_period_steps=0 must be at least 1"),
        ({"rho_initial": -1.0}, "rho_initial=-1.0 must be at least 0"),
        ({"temperature": 0.0}, "temperature=0.0 must be above 0"),
        ({"warmup_steps": 0}, "give warmup_steps, or rho_initial"),
        ({"warmup_steps": 5, "measure_steps": 6}, "over 6 of the warm-up's 5 steps"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(InputError, match=message):
        Dash(**settings)
