"""PyTorch weights: names, layouts, and a clear refusal of what does not fit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmatch.errors import InputError
from jaxmatch.models.torch_weights import from_torch, to_torch
from jaxmatch.models.wide_resnet import WideResNet


def usb_network(**options):
    return WideResNet(
        classes=5,
        depth=10,
        width=0.25,
        legacy_transition=True,
        padding="torch",
        conv_bias="stem",
        **options,
    )


def shapes(model):
    return jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)), False))


@pytest.fixture
def recorded(golden):
    """A state_dict of the reference, and the logits of its labeled batch in training."""
    with np.load(golden / "fullysupervised.npz") as file:
        weights = {k.removeprefix("init/"): file[k] for k in file.files if k.startswith("init/")}
        return weights, file["batch/0/x_lb"], file["fwd/0/0/logits"]


@pytest.fixture
def golden(request):
    return request.config.rootpath / "tests" / "golden"


def test_the_network_computes_what_the_reference_does(recorded):
    weights, images, logits = recorded
    model = usb_network(bn_eps=1e-5)
    variables = from_torch(weights, shapes(model))
    images = jnp.asarray(images.transpose(0, 2, 3, 1), jnp.float32)
    outputs, _ = model.apply(variables, images, train=True, mutable=["batch_stats"])
    np.testing.assert_allclose(outputs.logits, logits, rtol=1e-4, atol=1e-5)


def test_there_and_back_is_the_identity(recorded):
    weights, *_ = recorded
    back = to_torch(from_torch(weights, shapes(usb_network())))
    kept = {name for name in weights if not name.endswith("num_batches_tracked")}
    assert set(back) == kept
    for name in kept:
        np.testing.assert_array_equal(back[name], weights[name])


def test_torchssl_names_are_understood(recorded):
    weights, *_ = recorded
    renamed = {"module." + name.replace("classifier", "fc"): v for name, v in weights.items()}
    ours = from_torch(renamed, shapes(usb_network()))
    np.testing.assert_array_equal(
        ours["params"]["classifier"]["kernel"], weights["classifier.weight"].T
    )


def test_values_take_the_dtype_of_the_model(recorded):
    weights, *_ = recorded
    assert weights["conv1.weight"].dtype == np.float64
    ours = from_torch(weights, shapes(usb_network()))
    assert {leaf.dtype for leaf in jax.tree.leaves(ours)} == {np.dtype(np.float32)}


def test_a_missing_tensor_is_named(recorded):
    weights, *_ = recorded
    del weights["block2.layer.0.conv1.weight"]
    with pytest.raises(InputError, match=r"no tensor 'block2\.layer\.0\.conv1\.weight'"):
        from_torch(weights, shapes(usb_network()))


def test_a_tensor_too_many_is_named(recorded):
    weights, *_ = recorded
    with pytest.raises(InputError, match="'extra' has no place"):
        from_torch({**weights, "extra": np.zeros(3)}, shapes(usb_network()))


def test_a_tensor_of_another_shape_is_named(recorded):
    weights, *_ = recorded
    weights["classifier.weight"] = np.zeros((7, 16))
    with pytest.raises(InputError, match=r"'classifier\.weight' has shape \(16, 7\)"):
        from_torch(weights, shapes(usb_network()))


def test_a_module_unknown_to_the_references_is_named():
    with pytest.raises(InputError, match="'projection' has no counterpart"):
        to_torch({"params": {"projection": {"kernel": np.zeros((2, 2))}}})
