"""Views in, outputs out: joint statistics without moving images, and passes without gradient."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import SIDE, TinyNetwork, assert_bitwise, assert_close, quick_jit, randomized

from jaxmatch.errors import InputError
from jaxmatch.models.heads import Linear
from jaxmatch.models.network import make_network
from jaxmatch.parallel import make_mesh, over_batch, replicated
from jaxmatch.types import Outputs, Target

MODEL = TinyNetwork(heads={"rotation": Linear(3)}, param_dtype=jnp.float64)


@pytest.fixture(autouse=True)
def _double_precision():
    with jax.enable_x64(True):
        yield


@quick_jit
def train_mode(given, images):
    """The model itself on one batch: (outputs, {"batch_stats"})."""
    return MODEL.apply(given, images, True, mutable=["batch_stats"])


def variables(seed=0):
    images = jnp.zeros((1, SIDE, SIDE, 3))
    made = quick_jit(lambda key: MODEL.init(key, images, train=False))(jax.random.key(seed))
    return {**made, "params": randomized(made["params"], seed)}


def views(seed=1):
    """Labeled, weak (brighter) and strong (darker) images."""
    random = np.random.default_rng(seed)
    sizes, levels = (4, 8, 8), (0.0, 1.0, -1.0)
    return tuple(
        random.normal(level, 1, (size, SIDE, SIDE, 3))
        for size, level in zip(sizes, levels, strict=True)
    )


def marked(x, weak, strong):
    return {"x": x, "unlabeled": [Target(weak), strong]}


@pytest.mark.parametrize("shards", [1, 4])
def test_joint_is_one_plain_concatenation(shards):
    given, images = variables(), views()
    outputs, stats = quick_jit(make_network(MODEL, shards))(given, marked(*images))
    together, updated = train_mode(given, np.concatenate(images))
    starts, ends = (0, 4, 12), (4, 12, 20)
    expected = [
        jax.tree.map(lambda leaf, a=a, b=b: leaf[a:b], together)
        for a, b in zip(starts, ends, strict=True)
    ]
    assert isinstance(outputs["x"], Outputs)
    assert_close([outputs["x"], *outputs["unlabeled"]], expected, 1e-12)
    assert outputs["x"].heads["rotation"].shape == (4, 3)
    assert_close(stats, updated["batch_stats"], 1e-12)


def moved(shards):
    """How many collectives other than sums the joint pass on four devices compiles to."""
    mesh = make_mesh(4, 4)
    given, images = variables(), views()

    def logits(given, images):
        return [output.logits for output in make_network(MODEL, shards)(given, images)[0]]

    compiled = quick_jit(
        logits,
        in_shardings=(replicated(mesh), over_batch(mesh)),
        out_shardings=over_batch(mesh),
    )
    text = compiled.lower(given, images).compile().as_text()
    return len(re.findall(r" (?:all-to-all|collective-permute|all-gather)(?:-start)?\(", text))


def test_concatenation_within_each_device_moves_no_images():
    assert moved(shards=4) == 0
    assert moved(shards=1) > 0  # so that this can be seen at all


def test_running_statistics_take_one_update_a_pass():
    given, (x, weak, strong) = variables(), views()
    passes = {
        "joint": [(x, weak, strong)],
        "split": [(x, strong), (weak,)],
        "separate": [(x,), (strong,), (weak,)],
    }
    for forward, groups in passes.items():
        network = make_network(MODEL, forward=forward)
        _, stats = quick_jit(network)(given, (x, Target(weak), strong))
        expected = given["batch_stats"]
        for group in groups:
            batch = np.concatenate(group)
            expected = MODEL.apply(
                {**given, "batch_stats": expected}, batch, True, mutable=["batch_stats"]
            )[1]["batch_stats"]
        assert_close(stats, expected, 1e-12)


def test_each_view_has_its_own_batch_statistics_when_separate():
    given, (x, weak, strong) = variables(), views()
    network = quick_jit(make_network(MODEL, forward="separate"))
    outputs, _ = network(given, marked(x, weak, strong))
    brighter, _ = network(given, marked(x, weak, strong + 3))
    kept = [(each["x"], each["unlabeled"][0]) for each in (outputs, brighter)]
    assert_close(kept[0], kept[1], 1e-12)


def weak_loss(forward, given, images):
    outputs, _ = make_network(MODEL, forward=forward)(given, marked(*images))
    return jnp.square(outputs["unlabeled"][0].logits).sum()


def strong_loss(forward, given, images):
    outputs, _ = make_network(MODEL, forward=forward)(given, marked(*images))
    return jnp.square(outputs["unlabeled"][1].logits).sum()


@pytest.mark.parametrize("forward", ["joint", "split", "separate"])
def test_targets_outside_the_joint_pass_carry_no_gradient(forward):
    given, images = variables(), views()

    def slope(loss, of):
        def scalar(params, images):
            return loss(forward, {**given, "params": params}, images)

        gradient = quick_jit(jax.grad(scalar, (0, 1)))(given["params"], images)[of]
        return [np.abs(leaf).max() for leaf in jax.tree.leaves(gradient)]

    assert (max(slope(weak_loss, 0)) > 0) == (forward == "joint")
    by_x, by_weak, by_strong = slope(strong_loss, 1)
    assert by_strong > 0
    assert (by_weak > 0) == (forward == "joint")  # through the joint statistics
    assert (by_x > 0) == (forward != "separate")


def convolutions(jaxpr):
    return str(jaxpr).count("conv_general_dilated[")


@pytest.mark.parametrize(("forward", "count"), [("joint", 2), ("split", 3), ("separate", 5)])
def test_targets_are_not_differentiated_at_all(forward, count):
    given, images = variables(), views()

    def loss(params):
        outputs, _ = make_network(MODEL, forward=forward)(
            {**given, "params": params}, marked(*images)
        )
        return sum(jnp.square(leaf.logits).sum() for leaf in (outputs["x"], *outputs["unlabeled"]))

    jaxpr = jax.make_jaxpr(jax.grad(loss))(given["params"])
    assert convolutions(jaxpr.jaxpr) == count  # forward passes, and one more for each gradient


@pytest.mark.parametrize("forward", ["joint", "split", "separate"])
def test_eval_mode_is_one_pass_that_leaves_the_statistics(forward):
    given, images = variables(), views()
    given["batch_stats"] = randomized(given["batch_stats"], 4, 0.1)

    def network(given, images):
        return make_network(MODEL, forward=forward)(given, marked(*images), train=False)

    assert convolutions(jax.make_jaxpr(network)(given, images).jaxpr) == 1
    outputs, stats = quick_jit(network)(given, images)
    assert_bitwise(stats, given["batch_stats"])
    expected = MODEL.apply(given, images[1], False).logits
    np.testing.assert_allclose(outputs["unlabeled"][0].logits, expected, rtol=1e-10)


def test_a_single_view_needs_no_tree():
    given, (x, *_) = variables(), views()
    outputs, _ = quick_jit(make_network(MODEL, shards=4))(given, x)
    assert_close(outputs, train_mode(given, x)[0], 1e-12)


def test_unknown_forward_mode():
    with pytest.raises(InputError, match="did you mean 'joint'"):
        make_network(MODEL, forward="joined")
