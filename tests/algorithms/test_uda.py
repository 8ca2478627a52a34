"""UDA against plain NumPy: value, gradient, sharpening, threshold and signal annealing."""

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

from jaxmatch.algorithms.fixmatch import FixMatch
from jaxmatch.algorithms.uda import UDA, annealed_cross_entropy
from jaxmatch.errors import InputError
from jaxmatch.models.network import make_network
from jaxmatch.types import Examples

THRESHOLD, WEIGHT = 0.4, 2.0
KERNEL = np.eye(CLASSES, dtype=np.float32)


def numpy_entropy(probabilities):
    return numpy_cross_entropy(np.log(probabilities), probabilities)


def oracle(params, fixed, batch, temperature, signal):
    """The loss from its equations; ``fixed`` are the parameters that the targets come from."""
    (x,), (weak, strong) = batch.labeled.views, batch.unlabeled.views
    views = np.concatenate([x, weak, strong])
    sizes = [len(x), len(x) + len(weak)]
    on_x, _, on_strong = np.split(numpy_logits(params, views), sizes)
    guessed = np.split(numpy_logits(fixed, views), sizes)[1]

    label = batch.labeled.label
    kept = numpy_softmax(on_x)[np.arange(len(label)), label] <= signal
    supervised = np.sum(kept * numpy_cross_entropy(on_x, one_hot(label))) / max(1, kept.sum())
    confident = numpy_softmax(guessed).max(1) >= THRESHOLD
    target = numpy_softmax(guessed / temperature)
    divergence = numpy_cross_entropy(on_strong, target) - numpy_entropy(target)
    return supervised + WEIGHT * np.mean(confident * divergence), confident.mean(), kept.mean()


# eta = a (1 - 1/4) + 1/4 after 5 of 100 steps.
SIGNALS = {"none": 1.0, "linear": 0.2875, "exp": 0.75 * np.exp(-4.75) + 0.25}


@pytest.mark.parametrize(
    ("signal", "temperature"),
    [
        pytest.param("none", 0.4, marks=pytest.mark.slow),
        ("linear", 0.4),
        pytest.param("exp", 1.0, marks=pytest.mark.slow),
    ],
)
def test_value_and_gradient_are_those_of_the_equations(signal, temperature):
    algorithm = UDA(
        threshold=THRESHOLD, temperature=temperature, unlabeled_weight=WEIGHT, signal=signal
    )
    with jax.enable_x64(True):
        state, batch = toy_state(UDA(), jnp.float64, step=5), toy_views(algorithm)
        network = make_network(TinyNetwork(param_dtype=jnp.float64))
        (loss, update), gradient = quick_jit(
            jax.value_and_grad(
                lambda params: algorithm.loss(network, params, state, batch, (), SPEC), has_aux=True
            )
        )(state.params)

    def value(params):
        return oracle(params, state.params, batch, temperature, SIGNALS[signal])

    expected, coverage, kept = value(state.params)
    assert 0 < coverage < 1
    assert kept == 1 if signal == "none" else 0 < kept < 1
    np.testing.assert_allclose(loss, expected, rtol=1e-12)
    np.testing.assert_allclose(update.metrics["pseudo/coverage"], coverage, rtol=1e-6)
    np.testing.assert_allclose(update.metrics["optim/training_signal"], SIGNALS[signal], rtol=1e-12)

    direction = randomized(jax.tree.map(np.zeros_like, state.params), seed=3, scale=1e-6)
    ahead = value(jax.tree.map(np.add, state.params, direction))[0]
    behind = value(jax.tree.map(np.subtract, state.params, direction))[0]
    slope = sum(map(np.vdot, jax.tree.leaves(gradient), jax.tree.leaves(direction)))
    np.testing.assert_allclose(slope, (ahead - behind) / 2, rtol=1e-4)


def loss_of(algorithm, weak, strong, kernel=KERNEL):
    """Loss with a linear network; the labeled image has no say."""
    labeled = Examples((np.zeros((1, CLASSES), np.float32),), np.zeros(1, np.int32))
    unlabeled = Examples((np.float32(weak), np.float32(strong)), np.zeros(len(weak), np.int32))
    return linear_loss(algorithm, kernel, labeled, unlabeled)


@pytest.mark.slow
def test_the_threshold_reads_the_prediction_before_sharpening():
    weak = np.zeros((1, CLASSES))
    weak[0, 0] = 1.0  # largest probability 0.475, sharpened 0.90
    for threshold, coverage in ((0.47, 1), (0.48, 0)):
        _, update = loss_of(UDA(threshold=threshold, temperature=0.3), weak, weak)
        assert update.metrics["pseudo/coverage"] == coverage
        assert (update.metrics["loss/unsupervised"] > 0) == coverage


@pytest.mark.slow
def test_sharpened_targets_have_less_entropy():
    """Against strong views that say nothing the divergence is log C less the target's entropy."""
    weak = np.random.default_rng(2).normal(size=(5, CLASSES))
    entropies = []
    for temperature in (0.4, 1.0):
        algorithm = UDA(threshold=0.0, temperature=temperature)
        _, update = loss_of(algorithm, weak, np.zeros_like(weak))
        entropies.append(np.log(CLASSES) - update.metrics["loss/unsupervised"])
    sharpened, plain = entropies
    np.testing.assert_allclose(plain, numpy_entropy(numpy_softmax(weak)).mean(), rtol=1e-5)
    assert sharpened < 0.8 * plain


def test_equal_views_cost_nothing_without_sharpening():
    views = np.random.default_rng(0).normal(size=(5, CLASSES))
    _, update = loss_of(UDA(threshold=0.0, temperature=1.0), views, views)
    np.testing.assert_allclose(update.metrics["loss/unsupervised"], 0, atol=1e-7)


@pytest.mark.slow
def test_unsharpened_uda_has_the_gradient_of_soft_fixmatch():
    weak, strong = 2 * np.random.default_rng(1).normal(size=(2, 6, CLASSES))
    algorithms = UDA(threshold=0.5, temperature=1.0), FixMatch(threshold=0.5, hard_labels=False)
    gradients = [
        jax.grad(lambda kernel, method=method: loss_of(method, weak, strong, kernel)[0])(KERNEL)
        for method in algorithms
    ]
    assert np.any(gradients[0])
    np.testing.assert_allclose(*gradients, atol=1e-6)


def test_confident_predictions_of_any_size_stay_finite():
    weak = np.array([[1e4, 0, 0, 0], [0, 0, 0, 0]])
    value, gradient = jax.value_and_grad(
        lambda kernel: loss_of(UDA(temperature=0.01), weak, weak[::-1], kernel)[0]
    )(KERNEL)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


def test_the_signal_looks_at_the_true_class_and_averages_over_what_is_left():
    logits = np.log([[0.7, 0.2, 0.05, 0.05], [0.7, 0.2, 0.05, 0.05], [0.1, 0.3, 0.3, 0.3]])
    label = jnp.array([0, 1, 2])
    for signal, kept in ((0.6, [0.2, 0.3]), (0.25, [0.2]), (0.75, [0.7, 0.2, 0.3])):
        value = annealed_cross_entropy(jnp.float32(logits), label, jnp.float32(signal))
        np.testing.assert_allclose(value, -np.mean(np.log(kept)), rtol=1e-5)


def test_a_batch_without_released_examples_costs_nothing():
    logits, label = 20 * jnp.eye(CLASSES), jnp.arange(CLASSES)
    loss = quick_jit(jax.value_and_grad(annealed_cross_entropy))
    value, gradient = loss(logits, label, jnp.float32(0.5))
    assert value == 0
    assert not gradient.any()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"signal": "lin"}, "unknown algorithm.signal 'lin'; did you mean 'linear'"),
        ({"temperature": 0.0}, "temperature=0.0 must be above 0"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(InputError, match=message):
        UDA(**settings)
