"""Heads: sizes of the spec, values against NumPy, and what they refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from helpers import quick_jit

from jaxmatch.models.heads import (
    DeepProjection,
    Linear,
    PredictedProjection,
    Projection,
    PrototypeProjection,
    SecondClassifier,
)
from jaxmatch.models.model import Model
from jaxmatch.models.wide_resnet import WideResNet

FEATURES = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32)


def count(model):
    """The number of parameters, without computing anything."""
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), images)
    return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


# Spec of the similarity family, section 1.1.
WIDE = {"classes": 10, "conv_bias": "none"}
COUNTS = [
    (WideResNet(**WIDE), Projection(128), 1_500_634),
    (WideResNet(**WIDE), Projection(64, activation="leaky_relu"), 1_492_378),
    (WideResNet(classes=10), Projection(128), 1_502_666),
    (WideResNet(classes=10), Projection(64), 1_494_410),
    (WideResNet(classes=100, width=8, conv_bias="none"), Projection(128), 23_729_332),
]


@pytest.mark.parametrize(
    ("model", "head", "parameters"),
    [*COUNTS[:2], *(pytest.param(*each, marks=pytest.mark.slow) for each in COUNTS[2:])],
)
def test_parameter_counts_of_the_spec(model, head, parameters):
    assert count(model.clone(extra_heads={"projection": head})) == parameters


def init(head, features=FEATURES):
    return jax.device_get(quick_jit(lambda: head.init(jax.random.key(0), features, False))())


def trained(head, variables):
    """What the head gives in train mode."""
    apply = quick_jit(lambda v: head.apply(v, FEATURES, train=True, mutable=["batch_stats"])[0])
    return apply(variables)


def relu(x):
    return np.maximum(x, 0)


def leaky(x):
    return np.where(x > 0, x, 0.1 * x)


@pytest.mark.parametrize(("activation", "function"), [("relu", relu), ("leaky_relu", leaky)])
def test_a_projection_is_two_dense_layers(activation, function):
    head = Projection(3, activation=activation)
    params = init(head)["params"]
    params = jax.tree.map(lambda leaf: leaf + 0.1, params)  # so that the biases count
    hidden, output = params["hidden"], params["output"]
    inner = function(FEATURES @ hidden["kernel"] + hidden["bias"])
    expected = inner @ output["kernel"] + output["bias"]
    ours = head.apply({"params": params}, FEATURES, train=False)
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow  # a deep one has norms, too
def test_a_projection_with_norms_standardises_each_layer():
    head = Projection(3, norm=True)
    variables = init(head)
    assert set(variables["params"]["output_norm"]) == {"scale"}
    assert set(variables["params"]["hidden"]) == {"kernel"}

    def standardised(x):
        return (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5)

    hidden = relu(standardised(FEATURES @ variables["params"]["hidden"]["kernel"]))
    expected = standardised(hidden @ variables["params"]["output"]["kernel"])
    ours = trained(head, variables)
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("last_norm", "bias"),
    [
        (False, False),
        (True, True),
        pytest.param(True, False, marks=pytest.mark.slow),
        pytest.param(False, True, marks=pytest.mark.slow),
    ],
)
def test_a_deep_projection_standardises_each_hidden_layer(bias, last_norm):
    head = DeepProjection(layers=3, features=4, hidden=7, last_norm=last_norm, bias=bias)
    variables = init(head)
    layers = jax.tree.map(lambda leaf: leaf + 0.1, variables["params"])  # so that biases count
    names = {"hidden1", "hidden1_norm", "hidden2", "hidden2_norm", "output"}
    names |= {"output_norm"} if last_norm else set()
    names |= {"hidden1_bias", "hidden2_bias"} if bias else set()
    assert set(layers) == names
    x = FEATURES
    for number in (1, 2):
        x = x @ layers[f"hidden{number}"]["kernel"] + layers.get(f"hidden{number}_bias", 0)
        norm = layers[f"hidden{number}_norm"]
        x = relu((x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5) * norm["scale"] + norm["bias"])
    x = x @ layers["output"]["kernel"]
    if last_norm:
        assert set(layers["output"]) == {"kernel"}
        assert set(layers["output_norm"]) == {"scale"}
        expected = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5) * layers["output_norm"]["scale"]
    else:
        expected = x + layers["output"]["bias"]
    ours = trained(head, {**variables, "params": layers})
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)


def test_a_deep_projection_is_as_wide_as_its_input_unless_told_otherwise():
    params = init(DeepProjection(layers=2, features=4))["params"]
    assert params["hidden1"]["kernel"].shape == (5, 5)
    assert set(init(DeepProjection(layers=1, features=4))["params"]) == {"output"}


def test_a_bias_that_a_norm_takes_out_has_no_gradient():
    head = DeepProjection(layers=2, features=4, bias=True)
    variables = init(head)

    def loss(params):
        given = {**variables, "params": params}
        return jnp.sin(head.apply(given, FEATURES, True, mutable=["batch_stats"])[0]).sum()

    slope = quick_jit(jax.grad(loss))(variables["params"])
    assert not np.any(slope["hidden1_bias"])
    assert np.any(slope["hidden1"]["kernel"])


def test_a_predicted_projection_is_one_perceptron_after_the_other():
    head = PredictedProjection(hidden=7, features=3)
    variables = init(head)

    def perceptron(layers, x):
        hidden = x @ layers["hidden"]["kernel"] + layers["hidden_bias"]
        hidden = (hidden - hidden.mean(0)) / np.sqrt(hidden.var(0) + 1e-5)
        assert set(layers["norm"]) == {"scale", "bias"}
        assert set(layers["output"]) == {"kernel"}
        return relu(hidden) @ layers["output"]["kernel"]

    projection = perceptron(variables["params"]["projector"], FEATURES)
    prediction = perceptron(variables["params"]["predictor"], projection)
    ours = trained(head, variables)
    np.testing.assert_allclose(ours, np.stack([projection, prediction], 1), rtol=1e-4, atol=1e-5)


def test_initial_weights_are_uniform_within_the_inverse_root_of_the_inputs():
    features = np.zeros((1, 400), np.float32)
    params = init(Projection(300), features)["params"]
    for layer in params.values():
        kernel = layer["kernel"]
        assert np.abs(kernel).max() <= 1 / 20
        np.testing.assert_allclose(kernel.std(), 1 / 20 / np.sqrt(3), rtol=0.02)
        assert not np.any(layer["bias"])


def test_a_linear_head_is_one_dense_layer():
    head = Linear(4)
    params = init(head)["params"]
    expected = FEATURES @ params["dense"]["kernel"]
    ours = head.apply({"params": params}, FEATURES, train=True)
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-6)


def test_a_prototype_projection_gives_unit_rows_beside_unit_prototypes():
    head = PrototypeProjection(hidden=7, features=3, prototypes=40)
    variables = init(head)
    prototypes = variables["params"]["prototypes"]["kernel"]
    assert prototypes.shape == (40, 3)
    np.testing.assert_allclose(np.linalg.norm(prototypes, axis=1), np.ones(40), rtol=1e-6)
    assert np.abs(prototypes.mean(0)).max() < 0.3
    layers = variables["params"]["projector"]
    hidden = FEATURES @ layers["hidden1"]["kernel"] + layers["hidden1_bias"]
    hidden = relu((hidden - hidden.mean(0)) / np.sqrt(hidden.var(0) + 1e-5))
    expected = hidden @ layers["output"]["kernel"] + layers["output"]["bias"]
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    ours = trained(head, variables)
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)


class ReadOut(Model):
    """A network that is nothing but its classifier and heads."""

    @nn.compact
    def __call__(self, x, train):
        return self.read_out(x, train, nn.initializers.normal(0.5))


@pytest.mark.parametrize("zero", [False, True])
def test_a_second_classifier_starts_as_the_networks_own_one(zero):
    features = np.ones((2, 400), np.float32)
    model = ReadOut(classes=50, zero_classifier=zero, extra_heads={"second": SecondClassifier()})
    params = init(model, features)["params"]
    own, second = params["classifier"], params["second"]["dense"]
    assert jax.tree.map(np.shape, own) == jax.tree.map(np.shape, second)
    if zero:
        assert not own["kernel"].any()
        assert not second["kernel"].any()
    else:
        assert (own["kernel"] != second["kernel"]).all()
        assert second["kernel"].std() == pytest.approx(own["kernel"].std(), rel=0.05)
