"""Vision Transformers: sizes, settings, other image sizes, precision and memory."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from helpers import assert_close, quick_jit

from jaxmatch.errors import InputError
from jaxmatch.models.build import build_model, model_settings
from jaxmatch.models.heads import Projection
from jaxmatch.models.transformer import attention, drop_path, drop_rates
from jaxmatch.models.vit import PRESETS, ViT
from jaxmatch.weights.positions import resize_positions

TINY = {"patch": 4, "width": 16, "depth": 2, "heads": 2}
SHALLOW = {**TINY, "depth": 1}
IMAGES = np.random.default_rng(0).normal(size=(3, 8, 8, 3)).astype(np.float32)
# By name: side of the images, classes, parameters. Of USB's five networks as their builders make
# them at commit 1ef4cbe; of the others as timm 1.0.31 makes them, without a classifier.
COUNTS = {
    "vit_tiny_patch2_32": (32, 100, 5_410_084),
    "vit_small_patch2_32": (32, 100, 21_436_900),
    "vit_small_patch16_224": (224, 100, 21_704_164),
    "vit_base_patch16_96": (96, 100, 85_752_676),
    "vit_base_patch16_224": (224, 100, 85_875_556),
    "vit_small_patch14_dinov2": (518, 0, 22_056_192),
    "vit_base_patch14_dinov2": (518, 0, 86_579_712),
    "vit_small_patch14_reg4_dinov2": (518, 0, 22_057_344),
    "vit_base_patch14_reg4_dinov2": (518, 0, 86_582_016),
    "vit_base_patch32_clip_224": (224, 0, 87_456_000),
    "vit_base_patch16_clip_224": (224, 0, 85_799_424),
    "vit_base_patch32_clip_quickgelu_224": (224, 0, 87_456_000),
    "vit_base_patch16_clip_quickgelu_224": (224, 0, 85_799_424),
}
DROP_PATHS = {"vit_tiny_patch2_32": 0.1, **dict.fromkeys(list(COUNTS)[1:5], 0.2)}


def shapes(model, side=8):
    images = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    return jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), images)["params"]


def initial(model, images, seed=0):
    init = quick_jit(lambda key: model.init(key, images, train=False)["params"])
    return init(jax.random.key(seed))


def params(model):
    """Parameters none of which is near 0, so that each counts; nothing is compiled for them."""
    random = np.random.default_rng(1)

    def value(path, leaf):
        start = {"scale": 1.0, "gamma": model.layer_scale}.get(path[-1].key, 0.0)
        return (start + 0.3 * random.normal(size=leaf.shape)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(value, shapes(model))


def outputs(model, variables, images=IMAGES, train=False, **options):
    return quick_jit(lambda v, x: model.apply({"params": v}, x, train=train, **options))(
        variables, images
    )


def test_each_preset_has_a_count():
    assert COUNTS.keys() == PRESETS.keys()


# One without and one with all layers; the others are of a family with one, or of another size.
DIFFERENT = ("vit_tiny_patch2_32", "vit_base_patch14_reg4_dinov2")


@pytest.mark.parametrize(
    "name",
    [pytest.param(each, marks=() if each in DIFFERENT else pytest.mark.slow) for each in COUNTS],
)
def test_parameters_of_the_named_networks(name):
    side, classes, count = COUNTS[name]
    settings = {"name": name, **model_settings(name)}
    model = build_model(settings, classes=classes, heads={}).clone(classes=classes)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes(model, side))) == count
    assert model.drop_path == DROP_PATHS.get(name, 0.0)
    assert model.width // model.heads == 64
    assert ("clip" in name) == model.pre_norm == (model.norm_eps == 1e-5)
    assert ("quickgelu" in name) == (model.activation == "quick_gelu")
    assert (model.pool, model.qkv_bias, model.mlp_ratio) == ("token", True, 4.0)


def test_settings_of_a_named_network_can_be_overridden():
    name = "vit_small_patch14_reg4_dinov2"
    values = {"name": name, **model_settings(name), "drop_path": 0.3, "pool": "average"}
    assert build_model(values, classes=3, heads={}) == ViT(
        classes=3,
        patch=14,
        registers=4,
        class_position=False,
        layer_scale=1e-5,
        drop_path=0.3,
        pool="average",
    )


def test_names_and_shapes_of_the_parameters():
    model = ViT(
        classes=5,
        **TINY,
        registers=3,
        class_position=False,
        layer_scale=0.1,
        pre_norm=True,
        mlp_ratio=2.5,
        extra_heads={"projection": Projection(4)},
    )
    found = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(shapes(model))
    }
    norms = {"norm1", "norm2"}
    block = {
        **{f"{norm}/{leaf}": (16,) for norm in norms for leaf in ("scale", "bias")},
        "attention/qkv/kernel": (16, 48),
        "attention/qkv/bias": (48,),
        "attention/proj/kernel": (16, 16),
        "attention/proj/bias": (16,),
        "layer_scale1/gamma": (16,),
        "layer_scale2/gamma": (16,),
        "mlp/fc1/kernel": (16, 40),
        "mlp/fc1/bias": (40,),
        "mlp/fc2/kernel": (40, 16),
        "mlp/fc2/bias": (16,),
    }
    assert found == {
        "patch_embed/kernel": (4, 4, 3, 16),
        "cls_token": (1, 1, 16),
        "reg_token": (1, 3, 16),
        "pos_embed": (1, 4, 16),
        **{f"{norm}/{leaf}": (16,) for norm in ("norm_pre", "norm") for leaf in ("scale", "bias")},
        **{f"block{i}/{name}": shape for i in (1, 2) for name, shape in block.items()},
        "classifier/kernel": (16, 5),
        "classifier/bias": (5,),
        "projection/hidden/kernel": (16, 16),
        "projection/hidden/bias": (16,),
        "projection/output/kernel": (16, 4),
        "projection/output/bias": (4,),
    }
    assert shapes(model.clone(class_position=True))["pos_embed"].shape == (1, 8, 16)
    average = shapes(model.clone(pool="average"))
    assert "fc_norm" in average
    assert "norm" not in average
    assert "bias" in shapes(model.clone(pre_norm=False))["patch_embed"]


def test_initial_values_are_timms():
    model = ViT(classes=500, patch=4, width=64, depth=1, heads=2, registers=50, layer_scale=1e-3)
    found = initial(model, np.zeros((1, 32, 32, 3), np.float32))
    block = found["block1"]
    kernels = (
        *(block["attention"][name]["kernel"] for name in ("qkv", "proj")),
        *(block["mlp"][name]["kernel"] for name in ("fc1", "fc2")),
        found["classifier"]["kernel"],
        found["pos_embed"],
    )
    for value in kernels:
        assert value.std() == pytest.approx(0.02, rel=0.1)
        assert abs(value.mean()) < 0.002
    assert found["reg_token"].std() == pytest.approx(1e-6, rel=0.1)
    assert found["cls_token"].std() == pytest.approx(1e-6, rel=0.3)
    limit = 48**-0.5
    for value in found["patch_embed"].values():
        assert abs(value).max() < limit
        assert value.std() == pytest.approx(limit / 3**0.5, rel=0.2)
    zeros = (found["classifier"]["bias"], block["mlp"]["fc1"]["bias"], block["norm1"]["bias"])
    assert not any(np.any(value) for value in zeros)
    assert set(np.unique(block["norm1"]["scale"])) == {1}
    assert np.unique(block["layer_scale1"]["gamma"]) == pytest.approx([1e-3])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 3}, "model.heads=3 does not divide model.width=16; change one of them."),
        ({"heads": 0}, "model.heads=0 must be at least 1"),
        ({"registers": -1}, "model.registers=-1 must be at least 0"),
        ({"mlp_ratio": 0.05}, "model.mlp_ratio=0.05 of model.width=16 leaves no hidden channel"),
        ({"patch": 0}, "model.patch=0 must be at least 1"),
        ({"pool": "mean"}, "unknown model.pool 'mean'; known"),
        ({"activation": "quickgelu"}, "did you mean 'quick_gelu'?"),
        ({"drop_path": 1.5}, "model.drop_path=1.5 must lie between 0 and 1"),
        ({"norm_eps": 0.0}, "model.norm_eps=0.0 must be above 0"),
    ],
)
def test_settings_that_cannot_work_are_refused(options, message):
    values = {"name": "vit", **TINY, **options}
    with pytest.raises(InputError, match=re.escape(message)):
        build_model(values, classes=3, heads={})


@pytest.mark.parametrize(
    ("patch", "size", "advice"),
    [
        (16, (28, 28), "give 4 or 7 or 14 or 28, or"),
        (3, (8, 12), "give 1 or 2 or 4, or"),
        (14, (224, 225), "give 1, or"),
    ],
)
def test_patches_that_do_not_divide_the_images_are_refused(patch, size, advice):
    images = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
    model = ViT(classes=3, **{**TINY, "patch": patch})
    words = f"model.patch={patch} does not divide images of {size[0]} x {size[1]} pixels; {advice}"
    with pytest.raises(InputError, match=words):
        jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), images)


def test_images_need_no_square():
    model, wide = ViT(classes=3, **TINY), IMAGES[:, :4]
    found = jax.eval_shape(lambda: model.init(jax.random.key(0), wide, train=False)["params"])
    assert found["pos_embed"].shape == (1, 3, 16)
    with pytest.raises(InputError, match="2 positions for patches, which are no square"):
        jax.eval_shape(lambda v: model.apply({"params": v}, IMAGES, train=False), found)


@pytest.mark.parametrize("class_position", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "size", [(8, 12), *(pytest.param(each, marks=pytest.mark.slow) for each in ((16, 16), (4, 4)))]
)
def test_images_of_another_size_have_positions_by_timms_rule(size, class_position):
    model = ViT(classes=3, **SHALLOW, registers=2, class_position=class_position)
    found = params(model)
    images = np.random.default_rng(1).normal(size=(2, *size, 3)).astype(np.float32)
    resized = resize_positions(
        np.asarray(found["pos_embed"]),
        (size[0] // 4, size[1] // 4),
        prefix=3 if class_position else 0,
        rule="timm",
    )
    ours = outputs(model, found, images)
    theirs = outputs(model, {**found, "pos_embed": resized}, images)
    assert_close(ours, theirs, 1e-5)


@pytest.mark.slow  # parity/test_vit_goldens.py has both
def test_average_and_token_read_what_they_say():
    """Registers and the class token are no part of the average, and patches none of the token."""
    model = ViT(classes=3, **SHALLOW, registers=2)
    found = params(model)
    tokens = []

    def keep(function, arguments, options, context):
        result = function(*arguments, **options)
        if context.module.name == "block1" and context.method_name == "__call__":
            tokens.append(result)
        return result

    def after_the_block():
        with nn.intercept_methods(keep):
            model.apply({"params": found}, IMAGES, train=False)
        return tokens.pop()

    x = np.asarray(quick_jit(after_the_block)(), np.float64)
    assert x.shape == (3, 1 + 2 + 4, 16)

    def normed(x):
        centred = x - x.mean(-1, keepdims=True)
        unit = centred / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
        return unit * found["norm"]["scale"] + found["norm"]["bias"]

    expected = {
        "token": normed(x[:, 0]),
        "average": normed(x[:, 3:].mean(1)),
        "average before": normed(x)[:, 3:].mean(1),
    }
    renamed = {"fc_norm": found["norm"], **{k: v for k, v in found.items() if k != "norm"}}
    ours = {
        "token": outputs(model, found),
        "average": outputs(model.clone(pool="average"), renamed),
        "average before": outputs(model.clone(pool="average", fc_norm=False), found),
    }
    for name, features in expected.items():
        np.testing.assert_allclose(ours[name].features, features, atol=2e-5)


def test_a_network_without_classes_has_features_only():
    model = ViT(classes=0, **SHALLOW)
    assert "classifier" not in shapes(model)
    found = jax.eval_shape(
        lambda: model.init_with_output(jax.random.key(0), IMAGES, train=False)[0]
    )
    assert found.logits.shape == (3, 0)
    assert found.features.shape == (3, 16)


def test_attention_is_the_same_by_jax_and_in_float64():
    query, key, value = np.random.default_rng(0).normal(size=(3, 2, 5, 3, 4)).astype(np.float32)
    ours = attention(*map(jnp.asarray, (query, key, value)))
    scores = np.einsum("bqhd,bkhd->bhqk", query, key) / 2
    weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    expected = np.einsum("bhqk,bkhd->bqhd", weights, value)
    np.testing.assert_allclose(ours, expected, atol=1e-6)
    with jax.enable_x64(True):
        wide = attention(*(jnp.asarray(x, jnp.float64) for x in (query, key, value)))
        np.testing.assert_allclose(wide, expected, atol=3e-7)
        assert wide.dtype == jnp.float64


SCALED = ViT(classes=3, **SHALLOW, layer_scale=0.5, registers=1, pool="average")


def test_bfloat16_keeps_norms_softmax_and_features_in_float32():
    model, found = SCALED.clone(dtype=jnp.bfloat16), shapes(SCALED)
    text = quick_jit(lambda v: model.apply({"params": v}, IMAGES, False)).lower(found).as_text()
    for function in ("exponential", "rsqrt"):
        types = re.findall(rf"stablehlo\.{function}.*tensor<[\dx]*x(\w+)>", text)
        assert set(types) == {"f32"}, function
    products = re.findall(r"stablehlo\.dot_general.*\(tensor<[\dx]+x(\w+)>", text)
    assert products.count("bf16") == len(products) - 1  # the classifier reads float32


@pytest.mark.slow
def test_bfloat16_gives_almost_the_same_in_float32():
    found = params(SCALED)
    ours, theirs = outputs(SCALED.clone(dtype=jnp.bfloat16), found), outputs(SCALED, found)
    assert {leaf.dtype for leaf in jax.tree.leaves(ours)} == {np.dtype("float32")}
    assert np.abs(ours.features - theirs.features).max() < 0.05 * np.abs(theirs.features).max()


def slope(model):
    """The gradient of a number that dropped branches change, as a function of parameters."""
    draws = model.draw(jax.random.key(3), len(IMAGES))

    def loss(values):
        outputs = model.apply({"params": values}, IMAGES, train=True, draws=draws)
        return jnp.square(outputs.logits).sum()

    return jax.grad(loss)


@pytest.mark.parametrize("remat", [False, True])
def test_blocks_are_computed_again_with_remat_alone(remat):
    model = ViT(classes=3, **SHALLOW, drop_path=0.5, remat=remat)
    assert ("prevent_cse" in str(jax.make_jaxpr(slope(model))(shapes(model)))) == remat


@pytest.mark.slow
def test_remat_changes_memory_only():
    plain = ViT(classes=3, **TINY, drop_path=0.5)
    found, again = params(plain), plain.clone(remat=True)
    assert_close(quick_jit(slope(again))(found), quick_jit(slope(plain))(found), 1e-6)


def test_rates_grow_linearly_in_float32():
    assert drop_rates(0.3, 1) == (0.0,)
    assert drop_rates(0.0, 3) == (0.0, 0.0, 0.0)
    assert drop_rates(0.5, 4) == (0.0, np.float32(0.5) / np.float32(3), 0.3333333134651184, 0.5)
    assert drop_rates(0.1, 12)[-1] == 0.10000000149011612
    assert drop_rates(0.5, 4, np.float64)[2] == pytest.approx(1 / 3, abs=1e-16)


@pytest.mark.parametrize(
    ("rate", "depth", "dtype", "recorded"),
    [
        (0.1, 10, np.float32, {6: 0.06666667014360428}),
        (0.1, 10, np.float64, {6: 0.06666666666666667}),
        (0.2, 24, np.float32, {16: 0.13913042843341827}),
        (0.2, 24, np.float64, {20: 0.1739130434782609}),
        (0.3, 24, np.float32, {16: 0.2086956650018692, 18: 0.2347826212644577}),
        (0.3, 24, np.float64, {18: 0.23478260869565218}),
    ],
)
def test_rates_are_those_of_torchs_linspace(rate, depth, dtype, recorded):
    # Of torch 2.13: blocks at which a product that is rounded before the difference is another.
    rates = drop_rates(rate, depth, dtype)
    assert {block: rates[block] for block in recorded} == recorded


@pytest.mark.parametrize(("rate", "scale"), [(0.25, 4 / 3), (0.5, 2.0), (1.0, 0.0)])
def test_drop_path_scales_what_it_keeps(rate, scale):
    branch = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3, 2)), jnp.float32)
    keep = jnp.array([True, False, True, False])
    expected = np.where(keep[:, None, None], branch * scale, 0)
    np.testing.assert_allclose(drop_path(branch, keep, rate), expected, rtol=1e-6)
    assert drop_path(branch, keep, 0.0) is branch


def test_draws_keep_each_branch_as_often_as_its_rate_says():
    model = ViT(classes=3, **{**TINY, "depth": 3}, drop_path=0.6)
    draws = model.draw(jax.random.key(0), 4000)
    assert draws.shape == (4000, 3, 2)
    assert draws.dtype == bool
    np.testing.assert_allclose(draws.mean(0), [[1, 1], [0.7, 0.7], [0.4, 0.4]], atol=0.03)
    assert np.abs(np.corrcoef(draws[:, 1:].reshape(4000, -1).T) - np.eye(4)).max() < 0.06


@pytest.mark.slow  # test_drop_path_scales_what_it_keeps
def test_a_dropped_branch_leaves_the_token_as_it_was():
    model = ViT(classes=3, **TINY, drop_path=1.0)
    found, one = params(model), ViT(classes=3, **{**TINY, "depth": 1})
    draws = jnp.ones((3, 2, 2), bool)
    shallow = {name: value for name, value in found.items() if name != "block2"}
    dropped = outputs(model, found, train=True, draws=draws)
    assert_close(dropped, outputs(one, shallow), 1e-6)
    assert np.abs(dropped.logits - outputs(model, found).logits).max() > 0.01


def test_training_without_draws_is_refused():
    model = ViT(classes=3, **TINY, drop_path=0.5)
    with pytest.raises(InputError, match=r"model\.drop_path=0\.5 needs draws in train mode"):
        jax.eval_shape(lambda v: model.apply({"params": v}, IMAGES, train=True), shapes(model))
