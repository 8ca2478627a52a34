"""Views in, outputs out: joint statistics without moving images, and passes without gradient."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import SIDE, TinyNetwork, assert_bitwise, assert_close, quick_jit, randomized

from jaxmatch.errors import InputError
from jaxmatch.models.heads import DeepProjection, Linear
from jaxmatch.models.network import make_network
from jaxmatch.models.wide_resnet import WideResNet
from jaxmatch.runtime.mesh import make_mesh, over_batch, replicated
from jaxmatch.types import Outputs, Target


class Grouped(TinyNetwork):
    """The tiny network with BatchNorm over ``bn_groups`` parts of a batch, one in its head too."""

    bn_groups: int = 1


GROUPED = {
    groups: Grouped(
        heads={"projection": DeepProjection(layers=2, features=3, last_norm=True)},
        param_dtype=jnp.float64,
        bn_groups=groups,
    )
    for groups in (1, 2, 4)
}
MODEL = TinyNetwork(heads={"rotation": Linear(3)}, param_dtype=jnp.float64)


@pytest.fixture(autouse=True)
def _double_precision():
    with jax.enable_x64(True):
        yield


@quick_jit
def train_mode(given, images):
    """The model itself on one batch: (outputs, {"batch_stats"})."""
    return MODEL.apply(given, images, True, mutable=["batch_stats"])


def variables(seed=0, model=MODEL):
    images = jnp.zeros((1, SIDE, SIDE, 3))
    made = quick_jit(lambda key: model.init(key, images, train=False))(jax.random.key(seed))
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


@pytest.mark.parametrize("shards", [pytest.param(1, marks=pytest.mark.slow), 4])
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
            expected = train_mode({**given, "batch_stats": expected}, batch)[1]["batch_stats"]
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


# That the others differentiate no target is tested below, of what is traced.
@pytest.mark.parametrize(
    "forward",
    ["joint", *(pytest.param(each, marks=pytest.mark.slow) for each in ("split", "separate"))],
)
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


@pytest.mark.parametrize(
    "forward", ["joint", pytest.param("split", marks=pytest.mark.slow), "separate"]
)
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


def total(outputs):
    """A number that weighs every output of every image differently."""
    leaves = jax.tree.leaves(outputs)
    return sum(
        jnp.sum(jnp.sin(leaf) * jnp.cos(jnp.arange(leaf.size).reshape(leaf.shape)))
        for leaf in leaves
    )


def slope(function, given, images):
    """((value, (outputs, statistics)), gradient by the parameters) of :func:`total`."""

    def loss(params, images):
        outputs, stats = function({**given, "params": params}, images)
        return total(outputs), (outputs, stats)

    return quick_jit(jax.value_and_grad(loss, has_aux=True))(given["params"], images)


@pytest.mark.parametrize(("groups", "shards"), [(2, 4), pytest.param(4, 1, marks=pytest.mark.slow)])
def test_a_group_is_the_same_part_of_every_view_normalised_alone(groups, shards):
    model, images = GROUPED[groups], views()
    given = variables(model=model)

    def apart(given, images):
        slices = [jnp.split(view, groups) for view in images]
        outputs, stats = zip(
            *[make_network(GROUPED[1])(given, part) for part in zip(*slices, strict=True)],
            strict=True,
        )
        joined = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *outputs)
        return joined, jax.tree.map(lambda *leaves: sum(leaves) / groups, *stats)

    ours = slope(make_network(model, shards), given, images)
    assert_close(ours, slope(apart, given, images), 1e-10)
    together, _ = quick_jit(make_network(GROUPED[1]))(given, images)
    assert abs(ours[0][0] - total(together)) > 1e-3


@pytest.mark.slow
def test_each_pass_has_groups_of_its_own():
    given, (x, weak, strong) = variables(model=GROUPED[2]), views()
    network = quick_jit(make_network(GROUPED[2], forward="separate"))
    outputs, _ = network(given, marked(x, weak, strong))
    other, _ = network(given, marked(x, weak, np.concatenate([strong[:4], strong[4:] ** 2])))
    kept = [(each["unlabeled"][0], each["unlabeled"][1].logits[:4]) for each in (outputs, other)]
    assert_close(kept[0], kept[1], 1e-12)
    assert np.abs(outputs["unlabeled"][1].logits - other["unlabeled"][1].logits)[4:].max() > 1e-3


def test_groups_do_not_touch_eval_mode():
    given, images = variables(model=GROUPED[2]), views()

    def evaluate(groups):
        return quick_jit(
            lambda given, images: make_network(GROUPED[groups])(given, images, train=False)
        )(given, images)

    assert_close(evaluate(2), evaluate(1), 1e-12)


@pytest.mark.parametrize("groups", [2, 4])
@pytest.mark.slow
def test_groups_are_the_same_on_any_number_of_devices_and_move_no_images(groups):
    given, images = variables(model=GROUPED[groups]), views()
    found = []
    for devices in (1, 2, 4):
        mesh = make_mesh(devices, 4)
        network = make_network(GROUPED[groups], devices)

        def loss(params, images, network=network):
            outputs, stats = network({**given, "params": params}, images)
            return total(outputs), stats

        compiled = (
            quick_jit(
                jax.value_and_grad(loss, has_aux=True),
                in_shardings=(replicated(mesh), over_batch(mesh)),
            )
            .lower(given["params"], images)
            .compile()
        )
        text = compiled.as_text()
        assert not re.search(r" (?:all-to-all|collective-permute|all-gather)(?:-start)?\(", text)
        # Where each device has whole groups, only the end needs a sum.
        sums = len(re.findall(r" all-reduce(?:-start)?\(", text))
        assert sums == 0 if devices == 1 else (sums == 1) == (devices <= groups)
        placed = jax.device_put((given["params"], images), (replicated(mesh), over_batch(mesh)))
        found.append(jax.device_get(compiled(*placed)))
    for other in found[1:]:
        assert_close(other, found[0], 1e-10)


@pytest.mark.parametrize("shards", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_microbatches_are_batches_of_every_nth_example(shards):
    given, images = variables(model=GROUPED[1]), views()

    def apart(given, images):
        outputs, stats = zip(
            *[make_network(GROUPED[1])(given, [view[m::2] for view in images]) for m in range(2)],
            strict=True,
        )
        joined = jax.tree.map(
            lambda *leaves: jnp.stack(leaves, 1).reshape(-1, *leaves[0].shape[1:]), *outputs
        )
        return tuple(joined), jax.tree.map(lambda *leaves: sum(leaves) / 2, *stats)

    network = make_network(GROUPED[1], shards, microbatches=2)
    assert_close(slope(network, given, images), slope(apart, given, images), 1e-10)


@pytest.mark.slow
def test_microbatches_of_whole_groups_change_nothing():
    given, images = variables(model=GROUPED[4]), views()
    whole = slope(make_network(GROUPED[4]), given, images)
    for parts in (2, 4):
        assert_close(
            slope(make_network(GROUPED[4], 1, "joint", parts), given, images), whole, 1e-10
        )
    evaluate = quick_jit(
        lambda given, images: make_network(GROUPED[1], microbatches=2)(given, images, train=False)
    )
    assert_close(evaluate(given, images), make_network(GROUPED[1])(given, images, False), 1e-12)


@pytest.mark.parametrize("groups", [pytest.param(1, marks=pytest.mark.slow), 4])
def test_microbatches_move_no_images(groups):
    given, images = variables(model=GROUPED[groups]), views()
    mesh = make_mesh(2, 4)
    network = make_network(GROUPED[groups], 2, microbatches=2)
    compiled = (
        quick_jit(
            jax.grad(lambda params, images: total(network({**given, "params": params}, images)[0])),
            in_shardings=(replicated(mesh), over_batch(mesh)),
        )
        .lower(given["params"], images)
        .compile()
    )
    moves = r" (?:all-to-all|collective-permute|all-gather)(?:-start)?\("
    assert not re.search(moves, compiled.as_text())


def kept(model, microbatches=1):
    """Bytes that the backward pass of 64 images reads, without the parameters and the images."""
    images = jnp.zeros((64, SIDE, SIDE, 3))
    given = jax.eval_shape(lambda: model.init(jax.random.key(0), images[:1], train=False))
    network = make_network(model, microbatches=microbatches)

    def pull_back(given, images):
        return jax.vjp(
            lambda params: network({**given, "params": params}, images)[0].logits, given["params"]
        )[1]

    size = sum(leaf.size * 8 for leaf in jax.tree.leaves((given["params"], images)))
    found = jax.eval_shape(pull_back, given, images)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(found)) - size


def test_microbatches_and_remat_keep_less():
    model = WideResNet(classes=4, depth=10, width=1)
    everything = kept(model)
    assert kept(model.clone(remat=True)) < 0.4 * everything
    assert kept(model, microbatches=4) < 0.01 * everything


@pytest.mark.slow
def test_microbatches_in_a_loop_need_one_part_of_the_memory():
    """The program of accelerators, as XLA lays out its arrays."""
    model = WideResNet(classes=4, depth=10, width=1)
    images = jnp.zeros((64, SIDE, SIDE, 3))
    given = model.init(jax.random.key(0), images[:1], train=False)

    def plan(parts):
        network = make_network(model, microbatches=parts)
        slope = jax.grad(lambda given: jnp.sum(network(given, images)[0].logits))
        return quick_jit(slope).lower(given).compile().memory_analysis().temp_size_in_bytes

    assert plan(4) < 0.4 * plan(1)


def test_unknown_forward_mode():
    with pytest.raises(InputError, match="unknown forward 'joined'; did you mean 'joint'"):
        make_network(MODEL, forward="joined")
