"""BYOL against its equations in plain NumPy, and the teacher as its only target."""

from dataclasses import replace

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

from jaxmatch.algorithms.byol import BYOL, regression
from jaxmatch.augment.contrast import Contrast
from jaxmatch.config.flags import from_flags
from jaxmatch.models.network import make_network
from jaxmatch.settings import build_section

ALGORITHM = BYOL(projection=5, hidden=7)
TRAINING = replace(SPEC, teacher_trains=True)


def perceptron(layers, x):
    hidden = x @ layers["hidden"]["kernel"] + layers["hidden_bias"]
    hidden = (hidden - hidden.mean(0)) / np.sqrt(hidden.var(0) + 1e-5)
    hidden = np.maximum(hidden * layers["norm"]["scale"] + layers["norm"]["bias"], 0)
    return hidden @ layers["output"]["kernel"]


def numpy_heads(params, view):
    """Projection and prediction of one view, a BatchNorm batch of its own."""
    width = len(params["classifier"]["kernel"])
    identity = {"kernel": np.eye(width), "bias": 0.0}
    features = numpy_logits({**params, "classifier": identity}, view)
    projection = perceptron(params["projection"]["projector"], features)
    return projection, perceptron(params["projection"]["predictor"], projection)


def oracle(params, teacher, views):
    """The mean over the images of equation (2) in both directions."""
    predictions = [unit(numpy_heads(params, view)[1]) for view in views]
    targets = [unit(numpy_heads(teacher, view)[0]) for view in views]
    cosines = (
        (predictions[0] * targets[1]).sum(1),
        (predictions[1] * targets[0]).sum(1),
    )
    return np.mean(sum(2 - 2 * cosine for cosine in cosines))


def test_value_and_gradient_are_those_of_the_equations():
    with jax.enable_x64(True):
        state, batch = toy_state(ALGORITHM, jnp.float64), toy_views(ALGORITHM)
        network = make_network(
            TinyNetwork(heads=ALGORITHM.heads, param_dtype=jnp.float64), forward="separate"
        )
        (loss, update), gradient = quick_jit(
            jax.value_and_grad(
                lambda params: ALGORITHM.loss(network, params, state, batch, (), TRAINING),
                has_aux=True,
            )
        )(state.params)

    def value(params):
        return oracle(params, state.teacher["params"], batch.unlabeled.views)

    np.testing.assert_allclose(loss, value(state.params), rtol=1e-11)
    assert 0 < float(loss) < 8
    assert update.metrics["loss/regression"] == loss
    assert update.memory == ()
    direction = randomized(jax.tree.map(np.zeros_like, state.params), seed=3, scale=1e-6)
    slope = sum(map(np.vdot, jax.tree.leaves(gradient), jax.tree.leaves(direction)))
    np.testing.assert_allclose(slope, slope_along(value, state.params, direction), rtol=1e-4)
    for part in ("projector", "predictor"):
        assert np.any(gradient["projection"][part]["output"]["kernel"])
    assert not np.any(gradient["classifier"]["kernel"])


@pytest.mark.parametrize("spec", [SPEC, pytest.param(TRAINING, marks=pytest.mark.slow)])
def test_both_networks_see_both_views(spec):
    with jax.enable_x64(True):
        state, batch = toy_state(ALGORITHM, jnp.float64), toy_views(ALGORITHM)
    network = make_network(TinyNetwork(heads=ALGORITHM.heads, param_dtype=jnp.float64))
    calls = []

    def spy(variables, views, train=True):
        calls.append((variables, views, train))
        return network(variables, views, train)

    with jax.enable_x64(True):
        update = jax.eval_shape(
            lambda params: ALGORITHM.loss(spy, params, state, batch, (), spec)[1], state.params
        )
    (_, first, student_train), (variables, second, teacher_train) = calls
    assert first is second is batch.unlabeled.views
    assert variables is state.teacher
    assert (student_train, teacher_train) == (True, spec.teacher_trains)
    assert (update.teacher_stats is not None) == spec.teacher_trains


def test_regression_is_two_minus_twice_the_cosine():
    prediction, target = np.random.default_rng(0).normal(size=(2, 6, 4)).astype(np.float32)
    cosine = (unit(prediction) * unit(target)).sum(1)
    np.testing.assert_allclose(regression(prediction, target), 2 - 2 * cosine, rtol=1e-5)
    np.testing.assert_allclose(
        regression(9 * prediction, target), regression(prediction, target), rtol=1e-5
    )
    assert np.all(regression(prediction, 3 * prediction) < 1e-12)
    np.testing.assert_allclose(regression(prediction, -prediction), np.full(6, 4), rtol=1e-6)


@pytest.mark.slow
def test_vanished_and_huge_predictions_stay_finite():
    target = np.ones((3, 4), np.float32)
    compiled = quick_jit(jax.value_and_grad(lambda x: regression(x, target).sum()))
    for scale in (0.0, 1e-30, 1e18):
        value, slope = compiled(scale * target)
        assert np.isfinite(value)
        assert np.isfinite(slope).all()


def test_half_precision_is_widened():
    rows = jnp.ones((2, 4), jnp.bfloat16)
    assert regression(rows, rows).dtype == np.float32


def test_the_two_views_of_the_published_settings_differ():
    for data, solarized in (("tfds:cifar10", 0.2), ("tfds:imagenet2012", 0.2), ("mnist5k", 0.0)):
        views = from_flags(f"byol:{data}", [])[0].views
        first, second = (build_section(Contrast, views[role], role) for role in ALGORITHM.unlabeled)
        blurs = (1.0, 0.1) if "imagenet" in data else (0.0, 0.0)
        assert (first.blur, second.blur) == blurs
        assert (first.solarize, second.solarize) == (0.0, solarized)
        assert replace(second, blur=first.blur, solarize=0.0) == first


def test_it_reads_no_labels_and_reports_the_student():
    assert ALGORITHM.labeled == ()
    assert ALGORITHM.unlabeled == ("contrast", "second")
    assert ALGORITHM.evaluated == "student"
    assert toy_views(ALGORITHM).labeled is None
