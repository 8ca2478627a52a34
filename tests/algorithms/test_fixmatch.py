"""FixMatch against plain NumPy: value and gradient in every forward mode, and each rule alone."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    SPEC,
    TinyNetwork,
    assert_close,
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
from jaxmatch.algorithms.supervised import Supervised
from jaxmatch.models.network import make_network
from jaxmatch.types import Examples

FORWARDS = ("joint", "split", "separate")


def forward_in_numpy(params, fixed, views, forward):
    """Logits of (x, weak, strong); passes without gradient use the parameters ``fixed``."""
    x, weak, strong = views
    if forward == "separate":
        return numpy_logits(params, x), numpy_logits(fixed, weak), numpy_logits(params, strong)
    if forward == "split":
        both = numpy_logits(params, np.concatenate([x, strong]))
        return both[: len(x)], numpy_logits(fixed, weak), both[len(x) :]
    logits = numpy_logits(params, np.concatenate(views))
    return np.split(logits, np.cumsum([len(view) for view in views])[:-1])


def oracle(params, fixed, batch, forward, *, threshold, weight, hard, temperature):
    """The loss from its equations (3) and (4); ``fixed`` gives the targets."""
    views = (*batch.labeled.views, *batch.unlabeled.views)
    on_x, _, on_strong = forward_in_numpy(params, fixed, views, forward)
    on_weak = forward_in_numpy(fixed, fixed, views, forward)[1]
    supervised = numpy_cross_entropy(on_x, one_hot(batch.labeled.label)).mean()
    mask = numpy_softmax(on_weak).max(1) >= threshold
    target = one_hot(on_weak.argmax(1)) if hard else numpy_softmax(on_weak / temperature)
    unsupervised = np.mean(mask * numpy_cross_entropy(on_strong, target))
    return supervised + weight * unsupervised, mask


# Two kinds of forward pass and of target; -m slow has all pairs.
FEW = ((True, 1.0, "joint"), (False, 0.5, "separate"))


@pytest.mark.parametrize(
    ("hard", "temperature", "forward"),
    [
        pytest.param(*target, forward, marks=() if (*target, forward) in FEW else pytest.mark.slow)
        for target in ((True, 1.0), (False, 1.0), (False, 0.5))
        for forward in FORWARDS
    ],
)
def test_value_and_gradient_are_those_of_the_equations(forward, hard, temperature):
    with jax.enable_x64(True):
        algorithm = FixMatch(
            threshold=0.4, unlabeled_weight=1.5, hard_labels=hard, temperature=temperature
        )
        state, batch = toy_state(FixMatch(), jnp.float64), toy_views(algorithm)
        network = make_network(TinyNetwork(param_dtype=jnp.float64), forward=forward)
        (loss, update), gradient = quick_jit(
            jax.value_and_grad(
                lambda params: algorithm.loss(network, params, state, batch, (), SPEC), has_aux=True
            )
        )(state.params)

    def value(params):
        return oracle(
            params,
            state.params,
            batch,
            forward,
            threshold=0.4,
            weight=1.5,
            hard=hard,
            temperature=temperature,
        )

    expected, mask = value(state.params)
    assert 0 < mask.mean() < 1
    np.testing.assert_allclose(loss, expected, rtol=1e-12)
    np.testing.assert_allclose(update.metrics["pseudo/coverage"], mask.mean(), rtol=1e-6)
    terms = [float(update.metrics[f"loss/{name}"]) for name in ("supervised", "unsupervised")]
    np.testing.assert_allclose(terms[0] + 1.5 * terms[1], loss, rtol=1e-12)

    # The targets are constants: the slope is that of the loss with ``fixed`` parameters in them.
    direction = randomized(jax.tree.map(np.zeros_like, state.params), seed=3, scale=1e-6)
    ahead = value(jax.tree.map(np.add, state.params, direction))[0]
    behind = value(jax.tree.map(np.subtract, state.params, direction))[0]
    slope = sum(map(np.vdot, jax.tree.leaves(gradient), jax.tree.leaves(direction)))
    np.testing.assert_allclose(slope, (ahead - behind) / 2, rtol=1e-4)


def loss_of_two(algorithm, kernel, weak, strong, label=None):
    """Loss with a linear network; the labeled image is the first strong one, of class 0."""
    labeled = Examples((strong[:1],), np.zeros(1, np.int32))
    return linear_loss(algorithm, kernel, labeled, Examples((weak, strong), label))


@pytest.mark.parametrize("hard", [True, False])
def test_no_gradient_reaches_the_targets(hard):
    random = np.random.default_rng(0)
    kernel, weak, strong = (random.normal(size=(5, 5)).astype(np.float32) for _ in range(3))
    algorithm = FixMatch(threshold=0.0, hard_labels=hard, temperature=0.7)
    slopes = quick_jit(
        jax.grad(lambda weak, strong: loss_of_two(algorithm, kernel, weak, strong)[0], (0, 1))
    )
    by_weak, by_strong = slopes(weak, strong)
    assert not np.any(by_weak)
    assert np.all(np.any(by_strong, axis=1))


def test_the_threshold_itself_is_confident():
    images = np.ones((3, 2), np.float32)
    kernel = np.zeros((2, 2), np.float32)  # every probability is 1/2
    update = loss_of_two(FixMatch(threshold=0.5), kernel, images, images)[1]
    assert update.metrics["pseudo/coverage"] == 1
    np.testing.assert_allclose(update.metrics["loss/unsupervised"], np.log(2), rtol=1e-6)


def test_confidence_is_measured_before_sharpening_and_divided_by_the_whole_batch():
    weak = np.array([[2.0, 0.0], [5.0, 0.0], [0.0, 6.0]], np.float32)  # max q: .88, .993, .998
    strong = np.array([[1.0, 0.0], [0.0, 2.0], [0.5, 0.0]], np.float32)
    algorithm = FixMatch(threshold=0.95, hard_labels=False, temperature=0.25)
    update = loss_of_two(algorithm, np.eye(2, dtype=np.float32), weak, strong)[1]
    errors = numpy_cross_entropy(strong, numpy_softmax(weak / 0.25))
    np.testing.assert_allclose(update.metrics["pseudo/coverage"], 2 / 3, rtol=1e-6)
    np.testing.assert_allclose(update.metrics["loss/unsupervised"], errors[1:].sum() / 3, rtol=1e-6)


def test_threshold_zero_uses_every_image():
    random = np.random.default_rng(1)
    weak, strong = random.normal(size=(2, 6, 3)).astype(np.float32)
    update = loss_of_two(FixMatch(threshold=0.0), np.eye(3, dtype=np.float32), weak, strong)[1]
    errors = numpy_cross_entropy(strong, np.eye(3)[weak.argmax(1)])
    assert update.metrics["pseudo/coverage"] == 1
    np.testing.assert_allclose(update.metrics["loss/unsupervised"], errors.mean(), rtol=1e-6)


@pytest.mark.slow
def test_threshold_above_one_leaves_the_supervised_gradient():
    network, gradients = make_network(TinyNetwork(), forward="separate"), []
    for algorithm in (FixMatch(threshold=1.01), Supervised()):
        state, batch = toy_state(algorithm), toy_views(algorithm)
        loss = partial(algorithm.loss, network, spec=SPEC)
        gradients.append(
            quick_jit(jax.value_and_grad(loss, has_aux=True))(state.params, state, batch, ())
        )
    ((value, _), gradient), ((expected_value, _), expected) = gradients
    np.testing.assert_allclose(value, expected_value, rtol=1e-6)
    assert_close(gradient, expected, 1e-6)


def test_temperature_one_is_not_sharpened():
    random = np.random.default_rng(2)
    weak, strong = random.normal(size=(2, 6, 3)).astype(np.float32)
    algorithm = FixMatch(threshold=0.0, hard_labels=False, temperature=1.0)
    update = loss_of_two(algorithm, np.eye(3, dtype=np.float32), weak, strong)[1]
    expected = numpy_cross_entropy(strong, numpy_softmax(weak)).mean()
    np.testing.assert_allclose(update.metrics["loss/unsupervised"], expected, rtol=1e-6)


def test_metrics_of_a_batch_done_by_hand():
    high, low = 9.0, 0.1
    weak = np.array([[high, 0], [high, 0], [0, low], [0, high]], np.float32)
    strong = np.array([[1, 0], [0, 1], [0, 1], [0, 1]], np.float32)
    label = np.array([0, 1, 1, -1])  # right, wrong, right but unconfident, unknown
    update = loss_of_two(FixMatch(), np.eye(2, dtype=np.float32), weak, strong, label)[1]
    assert update.metrics["pseudo/coverage"] == 0.75
    assert tuple(update.metrics["pseudo/accuracy"]) == (1, 2)
    assert tuple(update.metrics["unlabeled/weak_accuracy"]) == (2, 3)
    assert tuple(update.metrics["unlabeled/strong_accuracy"]) == (3, 3)
