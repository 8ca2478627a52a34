"""SGD, AdamW, LARS, decay, layer-wise rates and EMA against NumPy written from their equations."""

from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import assert_close, quick_jit

from jaxmatch.errors import InputError
from jaxmatch.models.vit import ViT
from jaxmatch.models.wide_resnet import WideResNet
from jaxmatch.optim.ema import Ema
from jaxmatch.optim.optimizer import Optim, clip_by_global_norm, scale_layers, steps_taken

STEPS, RATE, MOMENTUM, DECAY = 6, 0.1, 0.9, 0.02
AT = {"step": 3, "steps": 10}
DECAYED = {
    "kernels": {"stem/kernel", "group1/kernel", "classifier/kernel"},
    "not_batch_norm": {"stem/kernel", "group1/kernel", "classifier/kernel", "classifier/bias"},
    "all": {"stem/kernel", "group1/kernel", "classifier/kernel", "classifier/bias"}
    | {"group1/norm1/scale", "group1/norm1/bias"},
}


def flat(tree):
    return {
        "/".join(part.key for part in path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def tree(seed):
    random = np.random.default_rng(seed)
    return {
        "stem": {"kernel": random.normal(size=(2, 3))},
        "group1": {
            "norm1": {"scale": random.normal(size=3), "bias": random.normal(size=3)},
            "kernel": random.normal(size=(3, 3)),
        },
        "classifier": {"kernel": random.normal(size=(3, 4)), "bias": random.normal(size=4)},
    }


def cosine(step):
    return np.cos(7 * np.pi * step / (16 * STEPS))


def train(optim, layers=()):
    """Six steps of ``optim`` in float64 with gradients tree(1), tree(2), ..."""
    with jax.enable_x64(True):
        optimizer = optim.build(STEPS, layers)

        @quick_jit
        def update(gradient, state, params):
            change, state = optimizer.update(gradient, state, params)
            return optax.apply_updates(params, change), state

        params = tree(0)
        state = optimizer.init(params)
        for step in range(STEPS):
            assert steps_taken(state) == step
            params, state = update(tree(step + 1), state, params)
    return flat(params)


def numpy_sgd(decayed, nesterov=True, clip=0.0):
    params = flat(tree(0))
    momentum = dict.fromkeys(params, 0.0)
    for step in range(STEPS):
        gradients = flat(tree(step + 1))
        norm = np.sqrt(sum(np.sum(gradient**2) for gradient in gradients.values()))
        factor = min(1.0, clip / (norm + 1e-6)) if clip else 1.0
        for name, gradient in gradients.items():
            total = factor * gradient + (DECAY * params[name] if name in decayed else 0)
            momentum[name] = MOMENTUM * momentum[name] + total
            change = total + MOMENTUM * momentum[name] if nesterov else momentum[name]
            params[name] = params[name] - RATE * cosine(step) * change
    return params


def numpy_adamw(decayed, scales=None):
    params = flat(tree(0))
    first = dict.fromkeys(params, 0.0)
    second = dict.fromkeys(params, 0.0)
    for step in range(STEPS):
        for name, gradient in flat(tree(step + 1)).items():
            first[name] = 0.9 * first[name] + 0.1 * gradient
            second[name] = 0.999 * second[name] + 0.001 * gradient**2
            mean = first[name] / (1 - 0.9 ** (step + 1))
            power = second[name] / (1 - 0.999 ** (step + 1))
            change = mean / (np.sqrt(power) + 1e-8)
            change = change + (DECAY * params[name] if name in decayed else 0)
            scale = scales[name.split("/")[0]] if scales else 1.0
            params[name] = params[name] - RATE * cosine(step) * scale * change
    return params


@pytest.mark.parametrize("decay", DECAYED)
def test_sgd_is_pytorchs_with_l2_inside_the_momentum(decay):
    optim = Optim(learning_rate=RATE, weight_decay=DECAY, decay=decay)
    assert_close(train(optim), numpy_sgd(DECAYED[decay]), 1e-12)


def test_sgd_without_nesterov():
    optim = Optim(learning_rate=RATE, weight_decay=DECAY, nesterov=False)
    assert_close(train(optim), numpy_sgd(DECAYED["kernels"], nesterov=False), 1e-12)


def test_sgd_with_clipping_before_decay():
    optim = Optim(learning_rate=RATE, weight_decay=DECAY, clip_norm=1.5)
    assert_close(train(optim), numpy_sgd(DECAYED["kernels"], clip=1.5), 1e-12)


def test_first_nesterov_step_is_one_plus_momentum_times_the_gradient():
    optimizer = Optim(learning_rate=0.5, weight_decay=0.0).build(10)
    params = {"dense": {"kernel": jnp.zeros(2)}}
    gradient = {"dense": {"kernel": jnp.array([1.0, -2.0])}}
    change, _ = optimizer.update(gradient, optimizer.init(params), params)
    np.testing.assert_allclose(change["dense"]["kernel"], [-0.95, 1.9], rtol=1e-6)


def test_adamw_decays_apart_from_the_moments():
    optim = Optim(name="adamw", learning_rate=RATE, weight_decay=DECAY, decay="not_batch_norm")
    assert_close(train(optim), numpy_adamw(DECAYED["not_batch_norm"]), 1e-12)


def numpy_lars(optim, decayed, adapted):
    params = flat(tree(0))
    momentum = dict.fromkeys(params, 0.0)
    for step in range(STEPS):
        rate = RATE * cosine(step)
        for name, gradient in flat(tree(step + 1)).items():
            decay = DECAY if name in decayed else 0
            total = gradient + decay * params[name]
            size, slope = np.linalg.norm(params[name]), np.linalg.norm(gradient)
            ratio = optim.trust_coefficient * size / (slope + decay * size + 1e-8)
            if optim.trust_ratio == "joint":
                ratio = optim.trust_coefficient * size / np.linalg.norm(total)
            elif optim.trust_ratio == "clipped":
                ratio = min(ratio / rate, 1)
            step_taken = (ratio if name in adapted else 1) * total
            if optim.rate_inside_momentum:
                momentum[name] = MOMENTUM * momentum[name] + rate * step_taken
                params[name] = params[name] - momentum[name]
            else:
                momentum[name] = MOMENTUM * momentum[name] + step_taken
                params[name] = params[name] - rate * momentum[name]
    return params


@pytest.mark.parametrize(
    ("ratio", "inside", "decay", "adapted", "coefficient"),
    [
        ("joint", True, "kernels", "kernels", 1e-3),  # SimCLR
        ("joint", False, "kernels", "kernels", 1e-3),  # BYOL
        ("separate", False, "all", "all", 1e-3),  # SwAV
        ("clipped", False, "kernels", "kernels", 0.06),  # of six ratios some are cut
        ("separate", True, "not_batch_norm", "kernels", 0.5),
    ],
)
def test_lars(ratio, inside, decay, adapted, coefficient):
    optim = Optim(
        name="lars",
        learning_rate=RATE,
        weight_decay=DECAY,
        nesterov=False,
        decay=decay,
        adapted=adapted,
        trust_ratio=ratio,
        trust_coefficient=coefficient,
        rate_inside_momentum=inside,
    )
    assert_close(train(optim), numpy_lars(optim, DECAYED[decay], DECAYED[adapted]), 1e-12)


@pytest.mark.parametrize("ratio", ["joint", "separate", "clipped"])
def test_lars_of_zeros(ratio):
    optim = Optim(name="lars", trust_ratio=ratio, schedule="constant", warmup_steps=2)
    optimizer = optim.build(10)
    params = {
        "new": {"kernel": jnp.zeros((2, 2))},
        "unreached": {"kernel": jnp.ones((2, 2))},
    }
    gradient = {
        "new": {"kernel": jnp.ones((2, 2))},
        "unreached": {"kernel": jnp.zeros((2, 2))},
    }
    state = optimizer.init(params)
    for _ in range(2):  # the rate of the first step is 0
        change, state = optimizer.update(gradient, state, params)
    assert jnp.isfinite(change["new"]["kernel"]).all()
    assert (change["new"]["kernel"] < 0).all()
    rests = not change["unreached"]["kernel"].any()
    assert rests == (ratio != "joint")


def test_sgd_with_the_rate_inside_the_momentum():
    optim = Optim(learning_rate=RATE, weight_decay=DECAY, nesterov=False, rate_inside_momentum=True)
    assert_close(train(optim), numpy_lars(optim, DECAYED["kernels"], set()), 1e-12)


def test_the_classifier_has_a_rate_of_its_own():
    plain, faster = Optim(learning_rate=RATE), Optim(learning_rate=RATE, classifier_rate=10.0)
    params = {"stem": jnp.array([1.0]), "classifier": {"kernel": jnp.array([2.0])}}
    gradient = {"stem": jnp.array([3.0]), "classifier": {"kernel": jnp.array([4.0])}}

    def change(optim):
        optimizer = optim.build(10)
        return optimizer.update(gradient, optimizer.init(params), params)[0]

    slow, fast = change(plain), change(faster)
    assert fast["stem"] == slow["stem"]
    np.testing.assert_allclose(
        fast["classifier"]["kernel"], 10 * slow["classifier"]["kernel"], rtol=1e-6
    )


def test_layer_decay_scales_rate_and_decay():
    layers = (("stem",), ("group1",), ("norm", "classifier"))
    optim = Optim(name="adamw", learning_rate=RATE, weight_decay=DECAY, layer_decay=0.75)
    expected = numpy_adamw(DECAYED["kernels"], {"stem": 0.75**2, "group1": 0.75, "classifier": 1.0})
    assert_close(train(optim, layers), expected, 1e-12)


@lru_cache
def wide_resnet():
    model = WideResNet(classes=10, depth=10, width=1)
    images = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)
    shapes = jax.eval_shape(
        lambda images: model.init(jax.random.key(0), images, train=False), images
    )
    return model, jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), shapes["params"])


def test_layers_of_a_wide_resnet():
    model, params = wide_resnet()
    head = {"rotation": {"dense": {"kernel": np.ones(2, np.float32)}}}
    scaled, _ = scale_layers(0.75, model.layers).update(params | head, ())
    expected = {"stem": 4, "group1": 3, "group2": 2, "group3": 1}
    for name, part in scaled.items():
        for leaf in jax.tree.leaves(part):
            np.testing.assert_allclose(leaf, 0.75 ** expected.get(name, 0), rtol=1e-6)


@pytest.mark.parametrize(
    ("decay", "kept"),
    [
        ("kernels", lambda names: names[-1] == "kernel"),
        ("not_batch_norm", lambda names: "norm" not in names[-2]),
        ("all", lambda names: True),
    ],
)
def test_decayed_parameters_of_a_wide_resnet(decay, kept):
    _, params = wide_resnet()
    optimizer = Optim(learning_rate=1.0, momentum=0.0, weight_decay=0.5, decay=decay).build(10)
    zeros = jax.tree.map(np.zeros_like, params)
    change, _ = quick_jit(optimizer.update)(zeros, optimizer.init(params), params)
    for name, leaf in flat(change).items():
        np.testing.assert_array_equal(leaf, -0.5 if kept(name.split("/")) else 0, err_msg=name)


def test_clipping_leaves_small_gradients_alone_and_adds_1e_6():
    clip = clip_by_global_norm(1.0)
    small = {"a": jnp.array([0.3, 0.4])}
    np.testing.assert_array_equal(clip.update(small, ())[0]["a"], small["a"])
    with jax.enable_x64(True):
        large = {"a": jnp.array([3.0, 0.0]), "b": jnp.array(4.0)}
        clipped = clip.update(large, ())[0]
    np.testing.assert_allclose(clipped["a"], [3 / (5 + 1e-6), 0], rtol=1e-14)


@pytest.mark.parametrize(
    "setting",
    [
        {"name": "sdg"},
        {"decay": "kernel"},
        {"schedule": "cosnie"},
        {"trust_ratio": "joined"},
        {"adapted": "kernel"},
        {"trust_coefficient": 0.0},
    ],
)
def test_unknown_settings_are_refused(setting):
    with pytest.raises(InputError):
        Optim(**setting).build(10)


def test_ema_copies_or_averages_the_statistics():
    teacher = {"params": {"w": np.array([1.0])}, "batch_stats": {"m": np.array([10.0])}}
    params, stats = {"w": np.array([2.0])}, {"m": np.array([20.0])}
    copied = Ema(decay=0.9).update(teacher, params, stats, **AT)
    np.testing.assert_allclose(copied["params"]["w"], 1.1)
    np.testing.assert_array_equal(copied["batch_stats"]["m"], 20.0)
    averaged = Ema(decay=0.9, statistics="averaged").update(teacher, params, stats, **AT)
    np.testing.assert_allclose(averaged["params"]["w"], 1.1)
    np.testing.assert_allclose(averaged["batch_stats"]["m"], 11.0)
    own = Ema(decay=0.9, statistics="own")
    kept = own.update(teacher, params, stats, {"m": np.array([30.0])}, **AT)
    np.testing.assert_allclose(kept["params"]["w"], 1.1)
    np.testing.assert_array_equal(kept["batch_stats"]["m"], 30.0)
    with pytest.raises(InputError, match="labels in train mode"):
        own.update(teacher, params, stats, **AT)
    with pytest.raises(InputError, match="averaged"):
        Ema(statistics="average")
    with pytest.raises(InputError, match="cosine"):
        Ema(schedule="cosnie")


def test_ema_decay_rises_along_a_cosine():
    with jax.enable_x64(True):
        ema = Ema(decay=0.96, schedule="cosine")
        found = [float(ema.decay_at(jnp.int32(step), 8)) for step in range(9)]
        teacher = {"params": {"w": np.array([1.0])}, "batch_stats": {}}
        updated = ema.update(teacher, {"w": np.array([2.0])}, {}, step=2, steps=8)
    expected = 1 - 0.04 * (np.cos(np.pi * np.arange(9) / 8) + 1) / 2
    np.testing.assert_allclose(found, expected, rtol=1e-14)
    assert found[0] == 0.96
    assert found[8] == 1
    np.testing.assert_allclose(updated["params"]["w"], 2 - expected[2], rtol=1e-14)
    assert Ema(decay=0.9).decay_at(5, 8) == 0.9


def test_ema_decay_warms_up_as_tensorflows():
    ema = Ema(decay=0.9, schedule="warmup")
    found = [float(ema.decay_at(jnp.int32(step), 8)) for step in (0, 1, 80, 81, 500)]
    np.testing.assert_allclose(found, [0.1, 2 / 11, 0.9, 0.9, 0.9], rtol=1e-6)
    with jax.enable_x64(True):
        assert float(ema.decay_at(jnp.int32(1), 8)) == 2 / 11


def test_a_scheduled_ema_keeps_the_precision_of_the_parameters():
    teacher = {"params": {"w": jnp.ones(2, jnp.float32)}, "batch_stats": {}}
    with jax.enable_x64(True):
        ema = Ema(schedule="cosine")
        updated = ema.update(teacher, {"w": jnp.zeros(2, jnp.float32)}, {}, step=1, steps=4)
    assert updated["params"]["w"].dtype == jnp.float32


TOKENS = {"cls_token", "reg_token", "pos_embed"}


@lru_cache
def vision_transformer(**options):
    model = ViT(classes=3, patch=4, width=8, depth=3, heads=2, registers=2, **options)
    images = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)
    shapes = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), images)
    return model, jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), shapes["params"])


@pytest.mark.parametrize("pool", ["token", "average"])
def test_layers_of_a_vision_transformer(pool):
    """A last norm before the pooling belongs to the last block, one after it to the classifier."""
    model, params = vision_transformer(pool=pool, pre_norm=True, layer_scale=0.1)
    head = {"projection": {"output": {"kernel": np.ones((2, 2), np.float32)}}}
    scaled, _ = scale_layers(0.5, model.layers).update(params | head, ())
    stem = dict.fromkeys((*TOKENS, "patch_embed", "norm_pre"), 4)
    blocks = {"block1": 3, "block2": 2, "block3": 1}
    last = {
        "classifier": 0,
        "projection": 0,
        **({"norm": 1} if pool == "token" else {"fc_norm": 0}),
    }
    assert scaled.keys() == {**stem, **blocks, **last}.keys()
    for name, power in {**stem, **blocks, **last}.items():
        for leaf in jax.tree.leaves(scaled[name]):
            np.testing.assert_allclose(leaf, 0.5**power, rtol=1e-6)


@pytest.mark.parametrize("decay", [pytest.param("kernels", marks=pytest.mark.slow), "not_vectors"])
def test_decayed_parameters_of_a_vision_transformer(decay):
    _, params = vision_transformer(layer_scale=0.1)
    optim = Optim(name="adamw", learning_rate=1.0, weight_decay=0.5, decay=decay)
    zeros, optimizer = jax.tree.map(np.zeros_like, params), optim.build(10)
    change, _ = quick_jit(optimizer.update)(zeros, optimizer.init(params), params)
    decayed = {name for name, leaf in flat(change).items() if np.any(leaf)}
    kernels = {name for name in flat(params) if name.endswith("kernel")}
    assert decayed == kernels | (TOKENS if decay == "not_vectors" else set())
    assert "block1/layer_scale1/gamma" in flat(params)
