"""LoRA: the start of a network, merged kernels, dtypes, and what a new run takes over."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from helpers import assert_bitwise, assert_close, quick_jit

from jaxmatch.models.lora import LoRADense, lora_scale, merge, merged, without_factors
from jaxmatch.models.vit import ViT

TINY = {"classes": 4, "patch": 4, "width": 16, "depth": 1, "heads": 2}
IMAGES = np.random.default_rng(0).normal(size=(3, 8, 8, 3)).astype(np.float32)


def noisy(model):
    """All parameters away from their start, so that B is not zero; nothing is compiled."""
    random = np.random.default_rng(1)

    def value(path, leaf):
        start = 1.0 if path[-1].key == "scale" else 0.0
        return (start + random.normal(0, 0.2, leaf.shape)).astype(leaf.dtype)

    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), IMAGES, train=False))
    return jax.tree_util.tree_map_with_path(value, shapes)


@pytest.mark.parametrize(
    ("rank", "alpha", "stabilized", "scale"),
    [(4, 8, False, 2), (4, 8, True, 4), (3, 1, False, 1 / 3), (16, 2, True, 0.5)],
)
def test_the_scale(rank, alpha, stabilized, scale):
    assert lora_scale(rank, alpha, stabilized) == pytest.approx(scale)


@pytest.mark.parametrize("bias", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_network_starts_as_without_lora(bias):
    plain, adapted = (ViT(**TINY, qkv_bias=bias, lora_rank=rank, lora_alpha=3.0) for rank in (0, 3))

    @quick_jit
    def start(key):
        models = adapted, plain
        variables = [model.init(key, IMAGES, train=False) for model in models]
        outputs = [m.apply(v, IMAGES, False) for m, v in zip(models, variables, strict=True)]
        return variables, outputs

    (variables, expected), outputs = start(jax.random.key(0))
    assert_bitwise(without_factors(variables["params"]), expected["params"])
    assert_bitwise(*outputs)
    attention = variables["params"]["block1"]["attention"]
    for name, width in (("qkv", 48), ("proj", 16)):
        down, up = attention[name]["lora_a"], attention[name]["lora_b"]
        assert (down.shape, up.shape) == ((16, 3), (3, width))
        assert 0.15 < np.abs(down).max() <= 0.25  # 1 / sqrt(16)
        assert not np.any(up)
    assert "lora_a" not in variables["params"]["block1"]["mlp"]["fc1"]


@pytest.mark.slow  # training/test_light_runs.py exports them
@pytest.mark.parametrize(
    ("rank", "alpha", "stabilized"),
    [
        *(
            pytest.param(*each, marks=pytest.mark.slow)
            for each in ((1, 8.0, False), (4, 16.0, False))
        ),
        (5, 2.0, True),
    ],
)
def test_merged_parameters_give_the_same(rank, alpha, stabilized):
    adapted = ViT(**TINY, lora_rank=rank, lora_alpha=alpha, lora_rank_stabilized=stabilized)
    variables = noisy(adapted)
    alone = merged(adapted, variables)
    outputs = quick_jit(lambda model, v: model.apply(v, IMAGES, False), static_argnums=0)
    expected = outputs(adapted, variables)
    assert_close(outputs(ViT(**TINY), alone), expected, 1e-5)
    assert_close(outputs(adapted, alone), expected, 1e-5)  # the same module takes both
    dropped = outputs(ViT(**TINY), {"params": without_factors(variables["params"])})
    assert np.abs(dropped.logits - expected.logits).max() > 0.05
    assert_bitwise(merge(alone["params"], 1.0), alone["params"])


def test_a_network_without_lora_is_merged_already():
    variables = {"params": {"stem": {"kernel": np.ones(3)}}, "batch_stats": {}}
    assert merged(nn.Dense(3), variables) == variables


def test_a_merged_kernel_in_bfloat16_is_rounded_once():
    random = np.random.default_rng(2)
    values = {"kernel": (6, 5), "lora_a": (6, 2), "lora_b": (2, 5)}
    params = {name: jnp.asarray(random.normal(size=s), "bfloat16") for name, s in values.items()}
    kernel = merge({"layer": params}, 0.5)["layer"]["kernel"]
    wide = {name: np.asarray(leaf, np.float32) for name, leaf in params.items()}
    exact = wide["kernel"] + 0.5 * wide["lora_a"] @ wide["lora_b"]
    assert kernel.dtype == jnp.bfloat16
    np.testing.assert_array_equal(kernel, jnp.asarray(exact, jnp.bfloat16))


@pytest.mark.parametrize("dtype", [None, jnp.bfloat16])
def test_the_compute_dtype_is_that_of_a_dense_layer(dtype):
    layers = LoRADense(5, dtype=dtype, rank=2), nn.Dense(5, dtype=dtype)
    shapes = [jax.eval_shape(layer.init_with_output, jax.random.key(0), IMAGES) for layer in layers]
    (adapted, variables), (plain, _) = shapes
    assert adapted == plain
    assert {leaf.dtype.name for leaf in jax.tree.leaves(variables)} == {"float32"}


def test_blocks_computed_again_have_the_same_parameters():
    models = (ViT(**TINY, lora_rank=2, remat=again) for again in (True, False))
    again, once = (
        jax.eval_shape(lambda model=model: model.init(jax.random.key(0), IMAGES, train=False))
        for model in models
    )
    assert again == once
