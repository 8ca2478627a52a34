"""PyTorch weights: names, layouts, and a clear refusal of what does not fit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import quick_jit

from jaxmatch.errors import InputError
from jaxmatch.models.heads import Linear, Projection
from jaxmatch.models.resnet import ResNet
from jaxmatch.models.wide_resnet import WideResNet
from jaxmatch.weights.torch_names import NAMINGS, find_naming, from_torch, to_torch


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
    apply = quick_jit(lambda v, x: model.apply(v, x, train=True, mutable=["batch_stats"]))
    outputs, _ = apply(variables, images)
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


@pytest.mark.parametrize("naming", [*NAMINGS, None])
@pytest.mark.parametrize("module", [("ordinary", "dense"), ("group1", "block1", "conv3")])
def test_modules_that_no_reference_has_are_not_given_names_of_others(naming, module):
    tree = {"kernel": np.zeros((2, 2))}
    for name in module[::-1]:
        tree = {name: tree}
    tree = {"params": {**tree, "norm": {"bias": np.zeros(2)}}}
    with pytest.raises(InputError, match="has no counterpart"):
        to_torch(tree, naming=naming)


def names_of(path, prefix):
    """The tensors that a reference file knows, but for the counts of batches."""
    with np.load(path) as file:
        names = [key.removeprefix(prefix) for key in file.files if key.startswith(prefix)]
    return {name for name in names if not name.endswith("num_batches_tracked")}


def filled(model):
    """Variables of ``model``, each value its own."""
    start = iter(range(0, 10**12, 10**8))
    return jax.tree.map(
        lambda leaf: (next(start) + np.arange(leaf.size)).reshape(leaf.shape).astype(leaf.dtype),
        shapes(model),
    )


COMATCH = WideResNet(
    classes=10,
    width=0.25,
    conv_bias="none",
    extra_heads={"projection": Projection(4, activation="leaky_relu")},
)
SIMMATCH = ResNet(classes=10, width=2, extra_heads={"projection": Projection(4)})
TINY = ResNet(classes=5, blocks=(1, 1, 1, 1), block="basic", width=2)


@pytest.mark.parametrize(
    ("file", "prefix", "model", "naming"),
    [
        ("net_comatch_wrn_28_2", "check/", COMATCH, "comatch"),
        # A tiny network has the same names below.
        pytest.param(
            "net_simmatch_resnet50", "check/", SIMMATCH, "simmatch", marks=pytest.mark.slow
        ),
        ("off_fixmatch_eman", "init/main.", TINY, "simmatch"),
        ("off_fixmatch_eman", "init/ema.", TINY, "simmatch"),
        ("net_wrn_28_2", "check/", WideResNet(classes=10, width=0.25, conv_bias="stem"), "usb"),
    ],
)
def test_the_names_are_those_of_the_reference(golden, file, prefix, model, naming):
    names = names_of(golden / f"{file}.npz", prefix)
    variables = filled(model)
    assert find_naming(names, variables) == naming
    theirs = to_torch(variables, naming=naming)
    assert set(theirs) == names
    back = from_torch(theirs, shapes(model))
    jax.tree.map(np.testing.assert_array_equal, back, variables)


# Beyond the trunk, the names of the heads as USB's SimMatch, CoMatch and ReMixMatch have them, and
# of what SimMatchV2 adds to SimMatch's network.
@pytest.mark.parametrize(
    ("model", "naming", "names"),
    [
        (
            usb_network(extra_heads={"projection": Projection(4)}),
            "usb_heads",
            ["backbone.classifier", "mlp_proj.0", "mlp_proj.2"],
        ),
        (
            usb_network(extra_heads={"rotation": Linear(4)}),
            "usb_heads",
            ["backbone.classifier", "rot_classifier"],
        ),
        (
            TINY.clone(feature_norm="layer", extra_heads={"projection": Projection(4)}),
            "simmatch",
            ["fc", "head.0", "head.2", "norm"],
        ),
        (TINY, "torchvision", ["fc"]),
    ],
)
def test_names_of_heads_and_the_default_naming(model, naming, names):
    variables = filled(model)
    assert find_naming((), variables) == naming
    theirs = to_torch(variables)
    trunk = ("backbone.block", "backbone.conv1", "backbone.bn1", "backbone.layer")
    trunk += tuple(name.removeprefix("backbone.") for name in trunk)
    modules = {name.rpartition(".")[0] for name in theirs if not name.startswith(trunk)}
    assert sorted(modules) == sorted(names)
    jax.tree.map(np.testing.assert_array_equal, from_torch(theirs, shapes(model)), variables)


def test_student_and_teacher_are_told_apart_by_their_prefix():
    student = filled(TINY)
    teacher = jax.tree.map(lambda leaf: leaf + 1, student)
    weights = {
        f"module.{name}": value
        for prefix, variables in (("main.", student), ("ema.", teacher))
        for name, value in to_torch(variables, prefix=prefix, naming="simmatch").items()
    }
    weights["module.DA_queue"] = np.zeros((256, 5))
    for prefix, variables in (("main.", student), ("ema.", teacher)):
        jax.tree.map(
            np.testing.assert_array_equal,
            from_torch(weights, shapes(TINY), prefix=prefix),
            variables,
        )


def test_no_two_tensors_share_a_name():
    for model in (COMATCH, SIMMATCH, TINY, usb_network(extra_heads={"projection": Projection(4)})):
        variables = filled(model)
        assert len(to_torch(variables)) == len(jax.tree.leaves(variables))


def test_an_unknown_naming_is_refused():
    with pytest.raises(InputError, match=r"unknown naming 'comatsch'.*'comatch'"):
        to_torch({"params": {}}, naming="comatsch")
