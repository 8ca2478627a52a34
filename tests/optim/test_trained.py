"""Parameters that do not train: they stay bit for bit, and cost no state and no gradient."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    CLASSES,
    SIDE,
    SPEC,
    assert_bitwise,
    on_host,
    quick_jit,
    toy_data,
    views_of,
)

from jaxmatch.algorithms.byol import BYOL
from jaxmatch.algorithms.fixmatch import FixMatch
from jaxmatch.errors import InputError
from jaxmatch.models.network import make_network
from jaxmatch.models.resnet import ResNet
from jaxmatch.models.vit import ViT
from jaxmatch.models.wide_resnet import WideResNet
from jaxmatch.optim.ema import Ema
from jaxmatch.optim.optimizer import Optim
from jaxmatch.optim.trained import trained_part, with_part
from jaxmatch.step import init_state, make_train_step

slow = pytest.mark.slow
ATTENTION = {"patch": 4, "width": 8, "depth": 2, "heads": 2, "lora_rank": 2}
# Of a network with LoRA and a head "rotation": whether a parameter of this path trains.
RULES = {
    "head": lambda names: names[0] in ("classifier", "rotation"),
    "norms": lambda names: (
        names[0] in ("classifier", "rotation") or any("norm" in name for name in names)
    ),
    "lora": lambda names: names[0] in ("classifier", "rotation") or "lora" in names[-1],
}
HARSH = {"weight_decay": 0.3, "decay": "all", "clip_norm": 0.5, "schedule": "constant"}
OPTIMIZERS = {
    "sgd": (Optim(name="sgd", learning_rate=0.1, layer_decay=0.7, **HARSH), 1),
    "adamw": (Optim(name="adamw", learning_rate=0.01, layer_decay=0.7, **HARSH), 2),
    "lars": (Optim(name="lars", learning_rate=0.5, adapted="all", **HARSH), 1),
    "lars_separate": (Optim(name="lars", learning_rate=0.5, trust_ratio="separate", **HARSH), 1),
}


def paths(tree):
    return {
        tuple(str(part.key) for part in path): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def make(train, optim, model, algorithm, ema=None):
    """The functions (key) -> state and (state, batch) -> (state, metrics)."""
    images, augment = jnp.zeros((1, SIDE, SIDE, 3)), views_of(algorithm)
    optimizer = optim.build(SPEC.steps, model.layers)
    init = partial(
        init_state,
        model=model,
        images=images,
        algorithm=algorithm,
        augment=augment,
        optimizer=optimizer,
        spec=SPEC,
        train=train,
    )
    step = make_train_step(
        algorithm,
        make_network(model),
        augment,
        optimizer,
        optim.rate(SPEC.steps),
        ema or Ema(decay=0.9),
        SPEC,
        random=model.random,
        train=train,
    )
    return init, step


def batch_of(algorithm):
    data = toy_data(algorithm)
    return jax.tree.map(lambda leaf: leaf[:8], data)


def trained(init, step, algorithm, steps=3):
    """States before and after some steps."""
    first = quick_jit(init)(jax.random.key(0))
    state, advance, batch = first, quick_jit(step), batch_of(algorithm)
    for _ in range(steps):
        state, _ = advance(state, batch)
    return on_host(first), on_host(state)


# training/test_light_runs.py has a run of the first kind.
@pytest.mark.parametrize(
    ("train", "name"),
    [
        *(pytest.param("lora", name, marks=slow) for name in ("adamw", "sgd", "lars_separate")),
        pytest.param("norms", "lars", marks=slow),
        pytest.param("head", "sgd", marks=slow),
    ],
)
def test_the_rest_stays_bit_for_bit_and_has_no_state(train, name):
    optim, copies = OPTIMIZERS[name]
    algorithm = FixMatch(threshold=0.0)
    model = ViT(classes=CLASSES, drop_path=0.2, frozen_trunk=train == "head", **ATTENTION)
    before, after = trained(*make(train, optim, model, algorithm), algorithm)
    changes = 0
    for kind in (lambda state: state.params, lambda state: state.teacher["params"]):
        old, new = paths(kind(before)), paths(kind(after))
        assert old.keys() == new.keys()
        for path, value in new.items():
            if RULES[train](path):
                assert not np.array_equal(value, old[path]), path
                changes += 1
            else:
                np.testing.assert_array_equal(value, old[path], str(path))
    moving = sum(leaf.size for path, leaf in paths(after.params).items() if RULES[train](path))
    assert changes == 2 * sum(map(RULES[train], paths(after.params)))
    held = sum(leaf.size for leaf in jax.tree.leaves(after.optimizer) if np.ndim(leaf))
    assert held == copies * moving


def test_all_is_the_whole_tree():
    params = {"stem": {"kernel": 1}, "classifier": {"bias": 2}}
    assert trained_part("all", params) is params
    assert with_part("all", {}, params) is params


PARAMS = {
    "stem": {"kernel": 0},
    "block": {"norm": {"scale": 1, "bias": 2}, "qkv": {"kernel": 3, "lora_a": 4, "lora_b": 5}},
    "token": 6,
    "head": {"norm": {"scale": 7}, "kernel": 8},
    "classifier": {"kernel": 9},
}


@pytest.mark.parametrize(
    ("train", "heads", "expected"),
    [
        ("head", ("head",), {7, 8, 9}),
        ("head", (), {9}),
        ("norms", ("head",), {1, 2, 7, 8, 9}),
        ("norms", (), {1, 2, 7, 9}),
        ("lora", ("head",), {4, 5, 7, 8, 9}),
        ("lora", (), {4, 5, 9}),
    ],
)
def test_what_trains(train, heads, expected):
    part = trained_part(train, PARAMS, heads)
    assert set(jax.tree.leaves(part)) == expected
    doubled = jax.tree.map(lambda value: 10 + value, part)
    joined = with_part(train, PARAMS, doubled)
    assert jax.tree.structure(joined) == jax.tree.structure(PARAMS)
    wanted = {value + 10 if value in expected else value for value in range(10)}
    assert set(jax.tree.leaves(joined)) == wanted


@pytest.mark.parametrize(
    ("train", "params", "message"),
    [
        ("lora", {"block": {"kernel": 0}, "classifier": {"kernel": 1}}, "model.lora_rank"),
        ("norms", {"block": {"kernel": 0}, "head": {"scale": 1}}, "no norm outside of its heads"),
        ("head", {"block": {"scale": 0}}, "no classifier"),
    ],
)
def test_a_network_without_such_parameters_is_refused(train, params, message):
    with pytest.raises(InputError, match=f"optim.train={train}, .*{message}"):
        trained_part(train, params, ("head",))


@pytest.mark.parametrize(
    "make_model",
    [
        partial(WideResNet, depth=4, width=1),
        pytest.param(partial(WideResNet, depth=10, width=1), marks=slow),
        pytest.param(partial(ResNet, blocks=(1,), block="basic", width=8), marks=slow),
    ],
    ids=["wide_resnet", "wide_resnet_with_blocks", "resnet"],
)
def test_a_frozen_trunk_computes_as_in_evaluations(make_model):
    heads = BYOL(projection=4, hidden=8).heads
    model = make_model(classes=CLASSES, extra_heads=heads, frozen_trunk=True)
    images = np.random.default_rng(0).normal(size=(4, SIDE, SIDE, 3)).astype(np.float32)
    variables = quick_jit(lambda: model.init(jax.random.key(0), images, train=False))()

    @quick_jit
    def outputs(variables):
        evaluated = model.apply(variables, images, train=False)
        return evaluated, model.apply(variables, images, train=True, mutable=["batch_stats"])

    evaluated, (trained, changed) = outputs(variables)
    assert_bitwise(trained.features, evaluated.features)
    assert_bitwise(trained.logits, evaluated.logits)
    stats, changed = paths(variables["batch_stats"]), paths(changed["batch_stats"])
    for path, value in changed.items():
        assert np.array_equal(value, stats[path]) == (path[0] not in heads), path
    free = model.clone(frozen_trunk=False)
    moved = jax.eval_shape(
        lambda v: free.apply(v, images, train=True, mutable=["batch_stats"]), variables
    )
    assert jax.tree.structure(moved[0]) == jax.tree.structure(trained)


@pytest.mark.slow
def test_statistics_of_a_frozen_trunk_stay_bit_for_bit():
    """Averages of groups and of the teacher would move them by rounding."""
    algorithm = BYOL(projection=4, hidden=8)
    model = WideResNet(
        classes=CLASSES, depth=4, width=1, extra_heads=algorithm.heads, frozen_trunk=True
    )
    optim, _ = OPTIMIZERS["lars"]
    init, step = make("head", optim, model, algorithm, Ema(decay=0.9, statistics="averaged"))

    def odd(key):
        """Statistics whose averages round."""
        state = init(key)
        stats = jax.tree.map(lambda leaf: leaf + 0.1, state.stats)
        return state.replace(stats=stats, teacher={**state.teacher, "batch_stats": stats})

    before, after = trained(odd, step, algorithm)
    for kind in (lambda state: state.stats, lambda state: state.teacher["batch_stats"]):
        old, new = paths(kind(before)), paths(kind(after))
        assert len(new) > 2
        for path, value in new.items():
            assert np.array_equal(value, old[path]) == (path[0] not in algorithm.heads), path


def products(train):
    """The number of products in a step."""
    algorithm = FixMatch()
    model = ViT(classes=CLASSES, frozen_trunk=train == "head", **ATTENTION)
    init, step = make(train, OPTIMIZERS["adamw"][0], model, algorithm)
    state = jax.eval_shape(init, jax.random.key(0))
    return str(jax.make_jaxpr(step)(state, batch_of(algorithm))).count("dot_general")


def test_a_head_alone_has_none_of_the_trunks_backward_pass():
    forward = 2 * (4 + 2 * 2 + 2) + 2  # of attention, its factors, perceptron; patches, classifier
    assert products("head") == forward + 1  # the gradient of the classifier's kernel


@pytest.mark.slow
def test_frozen_parameters_cost_no_gradient():
    found = {train: products(train) for train in ("all", "lora", "norms")}
    # "lora" has no gradient of the kernels (two of each attention, two of each perceptron, the
    # patches'), nor of the first layer's input by kernel and factor.
    assert found["all"] - found["lora"] == 2 * (2 + 2) + 1 + 2
    assert found["norms"] < found["all"]
