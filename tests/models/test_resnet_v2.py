"""Residual networks of version 2: their size, and their numbers by another program."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import quick_jit

from jaxmatch.models.build import MODELS
from jaxmatch.models.resnet_v2 import ResNetV2

IMAGES = np.random.default_rng(0).normal(size=(4, 32, 32, 3))


def shapes_of(model, side):
    images = jax.ShapeDtypeStruct((2, side, side, 3), jnp.float32)
    return jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), images)


def test_a_resnet50_lacks_only_the_norms_of_shortcuts():
    entry = MODELS["resnet50_v2"]
    params = shapes_of(entry.kind(**entry.fixed, classes=1000), 64)["params"]
    norms = 2 * (256 + 512 + 1024 + 2048)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 25_557_032 - norms == 25_549_352
    assert "stem_norm" not in params
    assert "shortcut_norm" not in params["group1"]["block1"]


def plain_network(params, stats, x, *, train):
    """The same network by NumPy's loops over windows, in float64."""

    def convolve(kernel, x, stride):
        half = kernel.shape[0] // 2
        x = np.pad(x, ((0, 0), (half, half), (half, half), (0, 0)))
        windows = np.lib.stride_tricks.sliding_window_view(x, kernel.shape[:2], (1, 2))
        return np.einsum("bhwcij,ijco->bhwo", windows[:, ::stride, ::stride], kernel)

    def activated(at, x):
        values, running = params, stats
        for name in at:
            values, running = values[name], running[name]
        mean, var = (
            (x.mean((0, 1, 2)), x.var((0, 1, 2))) if train else (running["mean"], running["var"])
        )
        normal = (x - mean) / np.sqrt(var + 1e-3)
        return np.maximum(normal * values["scale"] + values["bias"], 0)

    x = convolve(params["stem"]["kernel"], x, 2)
    x = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    x = np.lib.stride_tricks.sliding_window_view(x, (3, 3), (1, 2))[:, ::2, ::2].max((-2, -1))
    for group in ("group1", "group2"):
        for block, layers in params[group].items():
            count = sum(name.startswith("conv") for name in layers)
            halves = group != "group1" and block == "block1"
            y = activated((group, block, "norm1"), x)
            if "shortcut" in layers:
                x = convolve(layers["shortcut"]["kernel"], y, 2 if halves else 1)
            for number in range(1, count + 1):
                if number > 1:
                    y = activated((group, block, f"norm{number}"), y)
                stride = (
                    2 if halves and number == 2 else 1
                )  # the last of two, or the middle of three
                y = convolve(layers[f"conv{number}"]["kernel"], y, stride)
            x = x + y
    features = activated(("norm",), x).mean((1, 2))
    return features @ params["classifier"]["kernel"] + params["classifier"]["bias"]


@pytest.mark.parametrize("kind", ["basic", "bottleneck"])
@pytest.mark.parametrize("train", [False, True])
def test_the_network_computes_what_a_plain_program_does(kind, train):
    with jax.enable_x64(True):
        model = ResNetV2(classes=5, blocks=(2, 1), block=kind, width=4, param_dtype=jnp.float64)
        random = np.random.default_rng(1)
        shapes = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), IMAGES)
        variables = jax.tree.map(lambda leaf: random.uniform(0.5, 1.5, leaf.shape), shapes)
        variables["params"] = jax.tree.map(lambda leaf: leaf - 0.9, variables["params"])
        found = quick_jit(
            lambda v: model.apply(v, IMAGES, train=train, mutable=["batch_stats"])[0].logits
        )(variables)
    expected = plain_network(variables["params"], variables["batch_stats"], IMAGES, train=train)
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)


def test_layers_are_its_modules():
    model = ResNetV2(classes=5, blocks=(2, 1), block="basic", width=2)
    paths = [name for layer in model.layers for name in layer]
    assert paths == [
        *("stem", "group1/block1", "group1/block2", "group2/block1"),
        *("norm", "classifier"),
    ]
    assert {path.split("/")[0] for path in paths} == set(shapes_of(model, 32)["params"])
