"""Wide residual networks: sizes of the spec, options, initial values and precision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from helpers import quick_jit

from jaxmatch.models.convolution import Conv
from jaxmatch.models.heads import Linear
from jaxmatch.models.wide_resnet import WideResNet

# (options, parameters): spec of the consistency family, section 1.2, and the MNIST-5k anchors.
COUNTS = [
    ({"classes": 10}, 1_469_642),
    ({"classes": 100}, 1_481_252),
    ({"classes": 10, "conv_bias": "stem"}, 1_467_626),
    ({"classes": 100, "conv_bias": "stem"}, 1_479_236),
    ({"classes": 10, "conv_bias": "none"}, 1_467_610),
    ({"classes": 100, "width": 8}, 23_409_092),
    ({"classes": 100, "width": 8, "conv_bias": "stem"}, 23_401_028),
    ({"classes": 100, "width": 8, "conv_bias": "none"}, 23_401_012),
    ({"classes": 10, "groups": 4, "first_stride": 2}, 5_933_770),
    ({"classes": 10, "groups": 4, "conv_bias": "stem"}, 5_929_450),
    ({"classes": 10, "depth": 10, "first_stride": 2, "conv_bias": "stem"}, 303_722),
]


def shapes_of(model, side=32, train=False, batch=2, dtype=jnp.float32):
    """Shapes of (variables, outputs), without computing anything."""

    def run(images):
        variables = model.init(jax.random.key(0), images, train=False)
        return variables, model.apply(variables, images, train, mutable=["batch_stats"])[0]

    return jax.eval_shape(run, jax.ShapeDtypeStruct((batch, side, side, 3), dtype))


def size(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


# Those of a width and a number of groups; the others of these differ in depth or biases.
DIFFERENT = (0, 5, 8)


@pytest.mark.parametrize(
    ("options", "count"),
    [
        pytest.param(*each, marks=() if number in DIFFERENT else pytest.mark.slow)
        for number, each in enumerate(COUNTS)
    ],
)
def test_parameter_counts_of_the_spec(options, count):
    model = WideResNet(**options)
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    variables = jax.eval_shape(
        lambda images: model.init(jax.random.key(0), images, train=False), images
    )
    assert size(variables["params"]) == count


def test_dead_parameters_of_the_legacy_transition():
    variables, _ = shapes_of(WideResNet(classes=10, legacy_transition=True))
    dead = [variables["params"][f"group{group}"]["block1"]["norm1"] for group in (2, 3)]
    assert size(dead) == 192


def test_outputs_and_layers():
    model = WideResNet(classes=7, depth=10, width=1.5, groups=2)
    variables, outputs = shapes_of(model)
    assert outputs.logits.shape == (2, 7)
    assert outputs.features.shape == (2, 48)
    assert outputs.heads == {}
    named = [name for layer in model.layers for name in layer]
    assert named == ["stem", "group1/block1", "group2/block1", "norm", "classifier"]
    assert {name.split("/")[0] for name in named} == set(variables["params"])


def test_heads_hang_on_the_pooled_features():
    model = WideResNet(classes=3, depth=10, width=1, extra_heads={"rotation": Linear(4)})
    variables, outputs = shapes_of(model)
    assert outputs.heads["rotation"].shape == (2, 4)
    assert variables["params"]["rotation"]["dense"]["kernel"].shape == (64, 4)


def test_strides_halve_the_resolution():
    small, large = (
        jax.eval_shape(
            lambda images, model=model: model.init_with_output(
                jax.random.key(0), images, train=False, capture_intermediates=True
            )[1]["intermediates"]["group3"]["__call__"][0],
            jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32),
        )
        for model in (WideResNet(classes=3, depth=10, first_stride=stride) for stride in (2, 1))
    )
    assert small.shape == (2, 4, 4, 128)
    assert large.shape == (2, 8, 8, 128)


@pytest.mark.parametrize("side", [pytest.param(8, marks=pytest.mark.slow), 9])
def test_paddings_give_the_same_shapes(side):
    same, torch = (
        shapes_of(WideResNet(classes=3, depth=10, width=1, padding=padding), side)
        for padding in ("same", "torch")
    )
    assert same == torch


@pytest.mark.parametrize(("padding", "before"), [("same", 0), ("torch", 1)])
def test_where_a_strided_window_begins(padding, before):
    image = np.arange(64, dtype=np.float32).reshape(1, 8, 8, 1)
    conv = Conv(1, 3, 2, padding)
    sums = conv.apply({"params": {"kernel": np.ones((3, 3, 1, 1), np.float32)}}, image)
    padded = np.pad(image[0, :, :, 0], ((before, 1), (before, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3))[::2, ::2]
    np.testing.assert_array_equal(sums[0, :, :, 0], windows.sum((2, 3)))


IMAGES = np.random.default_rng(0).normal(size=(4, 8, 8, 3)).astype(np.float32)


def made(model, dtype=np.float32):
    """Variables of a size that training has; nothing is compiled for them."""
    random = np.random.default_rng(0)

    def value(path, leaf):
        if path[-1].key == "kernel":
            deviation = np.sqrt(2 / np.prod(leaf.shape[:-1]))
            return (deviation * random.normal(size=leaf.shape)).astype(dtype)
        return np.full(leaf.shape, path[-1].key in ("scale", "var"), dtype)

    shapes, _ = shapes_of(model, 8, dtype=dtype)
    return jax.tree_util.tree_map_with_path(value, shapes)


def small(legacy, groups):
    """(variables, a function of parameters that gives logits in train mode) of a small network."""
    model = WideResNet(classes=3, depth=10, width=1.5, groups=groups, legacy_transition=legacy)
    variables = made(model)

    def logits(params):
        given = {**variables, "params": params}
        return model.apply(given, IMAGES, train=True, mutable=["batch_stats"])[0].logits

    return variables, logits


def logits_of(legacy, groups):
    def run():
        variables, logits = small(legacy, groups)
        return logits(variables["params"])

    return quick_jit(run)()


@pytest.mark.slow
def test_legacy_transition_changes_every_group_but_the_first():
    assert np.abs(logits_of(True, groups=2) - logits_of(False, groups=2)).max() > 1e-3
    np.testing.assert_array_equal(logits_of(True, groups=1), logits_of(False, groups=1))


@pytest.mark.slow  # exactly its biases have no gradient below
@pytest.mark.parametrize(
    ("legacy", "expected"),
    [
        (True, ["group2/bias", "group2/scale"]),
        pytest.param(False, [], marks=pytest.mark.slow),
    ],
)
def test_legacy_transition_leaves_norm1_without_use(legacy, expected):
    @quick_jit
    def run():
        variables, logits = small(legacy, groups=2)
        return jax.grad(lambda params: jnp.square(logits(params)).sum())(variables["params"])

    gradient = run()
    dead = [
        f"{group}/{name}"
        for group in ("group1", "group2")
        for name, leaf in sorted(gradient[group]["block1"]["norm1"].items())
        if not np.any(leaf)
    ]
    assert dead == expected


# What remat leaves out is a default test of the network (test_network.py).
@pytest.mark.slow
def test_remat_changes_no_value():
    def run(remat):
        model = WideResNet(classes=3, depth=10, width=1, groups=2, remat=remat)
        variables = made(model)

        def loss(params):
            given = {**variables, "params": params}
            outputs, stats = model.apply(given, IMAGES, train=True, mutable=["batch_stats"])
            return jnp.square(outputs.logits).sum(), stats

        return jax.value_and_grad(loss, has_aux=True)(variables["params"])

    plain, again = (quick_jit(lambda remat=remat: run(remat))() for remat in (False, True))
    assert jax.tree.structure(plain) == jax.tree.structure(again)
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(again), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_initial_values():
    heads = {"rotation": Linear(500)}
    model = WideResNet(classes=200, depth=10, width=8, groups=2, extra_heads=heads)
    images = jnp.zeros((1, 8, 8, 3))
    variables = quick_jit(lambda key: model.init(key, images, train=True))(jax.random.key(0))
    params, stats = jax.device_get((variables["params"], variables["batch_stats"]))

    def check(kernel, deviation):
        np.testing.assert_allclose(kernel.std(), deviation, rtol=0.02)
        assert abs(kernel.mean()) < 0.02 * deviation
        assert np.abs(kernel).max() > 3 * deviation  # normal, not truncated

    block = params["group2"]["block1"]
    check(block["conv1"]["kernel"], np.sqrt(2 / (9 * 256)))  # He, by fan-out
    check(block["shortcut"]["kernel"], np.sqrt(2 / 256))
    check(params["classifier"]["kernel"], np.sqrt(2 / (256 + 200)))  # Glorot
    check(params["rotation"]["dense"]["kernel"], np.sqrt(2 / (256 + 500)))

    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if path[-1].key != "kernel":
            expected = 1 if path[-1].key == "scale" else 0
            assert np.all(leaf == expected), jax.tree_util.keystr(path)
    for path, leaf in jax.tree_util.tree_leaves_with_path(stats):
        assert np.all(leaf == (1 if path[-1].key == "var" else 0)), jax.tree_util.keystr(path)


def test_half_precision_stays_inside():
    model = WideResNet(classes=3, depth=10, width=1, dtype=jnp.bfloat16)
    variables, outputs = shapes_of(model, 8, train=True)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(variables)} == {"float32"}
    assert outputs.logits.dtype == outputs.features.dtype == jnp.float32


def test_double_precision_is_kept():
    with jax.enable_x64(True):
        model = WideResNet(classes=3, depth=10, width=1, param_dtype=jnp.float64)
        variables, outputs = shapes_of(model, 8, train=True, dtype=jnp.float64)
    assert {leaf.dtype.name for leaf in jax.tree.leaves((variables, outputs))} == {"float64"}


def bias_gradients(model, images, train=True, compute_all=True):
    """Gradients of the convolutions' biases by path, and the paths whose result is centered."""
    centered = set()

    def as_if_not_centered(call, args, kwargs, context):
        if not isinstance(context.module, Conv) or context.method_name != "__call__":
            return call(*args, **kwargs)
        if (*args[1:], *kwargs.values()) == (True,):
            centered.add("/".join(context.module.path))
        return call(args[0]) if compute_all else call(*args, **kwargs)

    variables = made(model, images.dtype)
    weights = jax.random.normal(jax.random.key(1), (len(images), model.classes))

    def loss(params):
        given = {**variables, "params": params}
        out, _ = model.apply(given, images, train, mutable=["batch_stats"])
        return jnp.sum(out.logits * weights)

    with nn.intercept_methods(as_if_not_centered):
        gradients = quick_jit(jax.grad(loss))(variables["params"])
    biases = {
        "/".join(key.key for key in path[:-1]): np.abs(leaf).max()
        for path, leaf in jax.tree_util.tree_leaves_with_path(gradients)
        if path[-1].key == "bias" and any(name in str(path) for name in ("conv", "short", "stem"))
    }
    return biases, centered


@pytest.mark.parametrize("padding", ["same", pytest.param("torch", marks=pytest.mark.slow)])
@pytest.mark.parametrize("legacy", [pytest.param(False, marks=pytest.mark.slow), True])
@pytest.mark.parametrize("width", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_exactly_the_biases_without_a_gradient_are_left_out(legacy, padding, width):
    options = {"width": width, "padding": padding, "legacy_transition": legacy}
    model = WideResNet(classes=3, depth=10, groups=2, param_dtype=jnp.float64, **options)
    images = IMAGES.astype(np.float64)
    with jax.enable_x64(True):
        computed, centered = bias_gradients(model, images)
        left, _ = bias_gradients(model, images, compute_all=False)
    assert len(computed) == (7 if width == 2 else 6)
    assert all(computed[path] < 1e-13 for path in centered)
    assert all(left[path] == 0 for path in centered)
    if legacy:  # what group 2 gets is padded: the biases before it have gradients
        assert centered == {path for path in computed if path.endswith("conv1")}
        assert computed["stem"] > 1e-3 or width == 2  # where it goes to a norm alone
        assert computed["group1/block1/conv2"] > 1e-3
    else:
        assert centered == set(computed)


@pytest.mark.slow
def test_every_bias_has_a_gradient_outside_of_training():
    computed, centered = bias_gradients(WideResNet(classes=3, depth=10, width=1), IMAGES, False)
    assert not centered
    assert all(value > 1e-4 for value in computed.values())


@pytest.mark.parametrize("legacy", [False, True])
def test_the_first_shortcut_is_activated_where_no_channel_changes(legacy):
    """The source of a shortcut is one question, its convolution another (width 1, stride 1)."""
    network = WideResNet(classes=3, depth=10, width=1.0, groups=1, legacy_transition=legacy)
    x = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
    variables = network.init(jax.random.key(1), x, train=False)
    _, found = network.apply(variables, x, train=False, capture_intermediates=True)
    inside = found["intermediates"]
    block = inside["group1"]["block1"]
    stem, activated = inside["stem"]["__call__"][0], block["norm1"]["__call__"][0]
    (output,), (inner,) = block["__call__"], block["conv2"]["__call__"]
    expected = (stem if legacy else activated) + inner
    np.testing.assert_allclose(output, expected, atol=1e-6)
    assert not np.allclose(stem, activated)
