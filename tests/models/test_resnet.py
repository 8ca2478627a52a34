"""Residual networks: sizes of the spec, the reference's numbers, options and precision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import quick_jit

from jaxmatch.models.build import MODELS
from jaxmatch.models.heads import Projection
from jaxmatch.models.resnet import ResNet
from jaxmatch.weights.torch_names import from_torch

TINY = {"classes": 5, "blocks": (1, 1, 1, 1), "block": "basic", "width": 2}
IMAGES = np.random.default_rng(0).normal(size=(4, 32, 32, 3)).astype(np.float32)


def named(name, **options):
    return MODELS[name].kind(**MODELS[name].fixed, **options)


def shapes_of(model, side=64, train=False, batch=2, dtype=jnp.float32):
    """Shapes of (variables, outputs), without computing anything."""

    def run(images):
        variables = model.init(jax.random.key(0), images, train=False)
        return variables, model.apply(variables, images, train, mutable=["batch_stats"])[0]

    return jax.eval_shape(run, jax.ShapeDtypeStruct((batch, side, side, 3), dtype))


def size(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


# Spec of the similarity family, section 1.1; ResNet-18 as torchvision counts it.
@pytest.mark.parametrize(
    ("name", "options", "count"),
    [
        # Among the heads of the methods too (test_parameter_counts.py).
        pytest.param("resnet50", {"classes": 1000}, 25_557_032, marks=pytest.mark.slow),
        pytest.param("resnet18", {"classes": 1000}, 11_689_512, marks=pytest.mark.slow),
        ("resnet18", {"classes": 10, "stem": "cifar"}, 11_173_962),
    ],
)
def test_parameter_counts_of_the_spec(name, options, count):
    variables, _ = shapes_of(named(name, **options))
    assert size(variables["params"]) == count
    if name == "resnet50":
        assert size(variables["params"]) - size(variables["params"]["classifier"]) == 23_508_032


def test_the_network_computes_what_the_reference_does(request):
    """EMAN's tiny network: the teacher in eval mode, the student in train mode."""
    path = request.config.rootpath / "tests" / "golden" / "off_fixmatch_eman.npz"
    with np.load(path) as file, jax.enable_x64(True):
        weights = {k.removeprefix("init/"): file[k] for k in file.files if k.startswith("init/")}
        x, weak, strong = (
            file[f"batch/0/{key}"].transpose(0, 2, 3, 1) for key in ("x_lb", "x_ulb_w", "x_ulb_s")
        )
        model = ResNet(**TINY, param_dtype=jnp.float64)
        shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), x[:1], train=False))
        student, teacher = (from_torch(weights, shapes, prefix=p) for p in ("main.", "ema."))
        on_weak = quick_jit(lambda x: model.apply(teacher, x, train=False))(weak)
        both = quick_jit(lambda x: model.apply(student, x, train=True, mutable=["batch_stats"])[0])(
            np.concatenate([x, strong])
        )
        theirs = np.concatenate([file["out/0/logits_x"], file["out/0/logits_u_s"]])
        np.testing.assert_allclose(on_weak.logits, file["out/0/logits_u_w"], rtol=1e-11)
        np.testing.assert_allclose(both.logits, theirs, rtol=1e-10)


@pytest.mark.parametrize(
    ("options", "sides"),
    [
        ({}, (16, 8, 4, 2)),
        ({"stem": "cifar"}, (64, 32, 16, 8)),
        ({"block": "bottleneck"}, (16, 8, 4, 2)),
    ],
)
def test_sides_and_channels_of_the_groups(options, sides):
    model = ResNet(**{**TINY, **options})
    found = jax.eval_shape(
        lambda images: model.init_with_output(
            jax.random.key(0), images, train=False, capture_intermediates=True
        )[1]["intermediates"],
        jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32),
    )
    expansion = 4 if "block" in options else 1
    for group, side in enumerate(sides):
        (shape,) = (leaf.shape for leaf in found[f"group{group + 1}"]["__call__"])
        assert shape == (2, side, side, 2 * 2**group * expansion)


def test_bottlenecks_stride_in_their_3x3_convolution():
    model = ResNet(classes=3, blocks=(1, 1), width=4)
    found = jax.eval_shape(
        lambda images: model.init_with_output(
            jax.random.key(0), images, train=False, capture_intermediates=True
        )[1]["intermediates"]["group2"]["block1"],
        jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32),
    )
    sides = [found[f"conv{number}"]["__call__"][0].shape[1] for number in (1, 2, 3)]
    assert sides == [16, 8, 8]


def test_outputs_and_layers():
    heads = {"projection": Projection(7)}
    model = ResNet(**{**TINY, "blocks": (2, 1)}, feature_norm="layer", extra_heads=heads)
    variables, outputs = shapes_of(model)
    assert outputs.logits.shape == (2, 5)
    assert outputs.features.shape == (2, 4)
    assert outputs.heads["projection"].shape == (2, 7)
    paths = [name for layer in model.layers for name in layer]
    assert paths == [
        "stem",
        "stem_norm",
        "group1/block1",
        "group1/block2",
        "group2/block1",
        "feature_norm",
        "classifier",
    ]
    modules = {name.split("/")[0] for name in paths} | {"projection"}
    assert modules == set(variables["params"])


def randomized(model):
    """Variables with random values, which cost nothing to compile."""
    shapes, _ = shapes_of(model, side=32)
    random = np.random.default_rng(1)
    return jax.tree.map(
        lambda leaf: random.uniform(0.5, 1.5, leaf.shape).astype(leaf.dtype), shapes
    )


@pytest.mark.parametrize("zero_gamma", [pytest.param(False, marks=pytest.mark.slow), True])
def test_initial_values(zero_gamma):
    model = ResNet(
        classes=100, blocks=(2,), block="basic", width=128, stem="cifar", zero_gamma=zero_gamma
    )
    init = quick_jit(lambda: model.init(jax.random.key(0), IMAGES[:1], train=False)["params"])
    params = jax.device_get(init())
    blocks = params["group1"]
    for block in ("block1", "block2"):
        assert np.all(blocks[block]["norm1"]["scale"] == 1)
        assert np.all(blocks[block]["norm2"]["scale"] == (0 if zero_gamma else 1))
    kernel = blocks["block2"]["conv1"]["kernel"]
    np.testing.assert_allclose(kernel.std(), np.sqrt(2 / (9 * 128)), rtol=0.01)
    kernel = params["classifier"]["kernel"]
    assert np.abs(kernel).max() <= 128**-0.5
    np.testing.assert_allclose(kernel.std(), (3 * 128) ** -0.5, rtol=0.02)


def test_feature_norm_standardises_what_classifier_and_features_are():
    model = ResNet(**{**TINY, "blocks": (1, 1)}, feature_norm="layer")
    variables = randomized(model)
    plain = model.clone(feature_norm="")
    params = dict(variables["params"])
    norm = params.pop("feature_norm")
    outputs = quick_jit(lambda v: model.apply(v, IMAGES, train=False))(variables)
    raw = quick_jit(lambda v: plain.apply(v, IMAGES, train=False).features)(
        {**variables, "params": params}
    )
    centred = raw - raw.mean(1, keepdims=True)
    expected = centred / np.sqrt(np.square(centred).mean(1, keepdims=True) + 1e-5)
    expected = expected * norm["scale"] + norm["bias"]
    np.testing.assert_allclose(outputs.features, expected, rtol=1e-3, atol=1e-5)
    logits = expected @ params["classifier"]["kernel"] + params["classifier"]["bias"]
    np.testing.assert_allclose(outputs.logits, logits, rtol=1e-3, atol=1e-5)


def test_bfloat16_keeps_parameters_statistics_and_outputs_in_float32():
    heads = {"projection": Projection(3)}
    model = ResNet(**TINY, feature_norm="layer", extra_heads=heads, dtype=jnp.bfloat16)
    variables, outputs = shapes_of(model, train=True)
    kinds = {leaf.dtype for leaf in jax.tree.leaves((variables, outputs))}
    assert kinds == {jnp.dtype(jnp.float32)}
    found = jax.eval_shape(
        lambda: model.init_with_output(
            jax.random.key(0), IMAGES, train=False, capture_intermediates=True
        )[1]["intermediates"]["group2"]["__call__"][0]
    )
    assert found.dtype == jnp.bfloat16


def test_statistics_move_a_tenth_toward_the_batch():
    model = ResNet(**{**TINY, "blocks": (1,)})
    variables = randomized(model)
    updated = quick_jit(
        lambda v: model.apply(v, IMAGES, train=True, mutable=["batch_stats"])[1]["batch_stats"]
    )(variables)
    padded = np.pad(IMAGES, ((0, 0), (3, 3), (3, 3), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (7, 7), (1, 2))[:, ::2, ::2]
    stem = np.einsum("bhwcij,ijco->bhwo", windows, variables["params"]["stem"]["kernel"])
    old = variables["batch_stats"]["stem_norm"]["mean"]
    expected = 0.9 * old + 0.1 * stem.mean((0, 1, 2))
    np.testing.assert_allclose(updated["stem_norm"]["mean"], expected, rtol=1e-4)
