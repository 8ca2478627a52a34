"""The shuffled batch of a teacher that has statistics of its own."""

import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    SPEC,
    TinyNetwork,
    assert_close,
    quick_jit,
    toy_state,
    toy_views,
)

from jaxmatch.algorithms.comatch import CoMatch
from jaxmatch.algorithms.simmatch import SimMatch
from jaxmatch.algorithms.simmatch_v2 import SimMatchV2
from jaxmatch.config.flags import from_flags
from jaxmatch.data.facts import Facts
from jaxmatch.models.network import make_network
from jaxmatch.program import Program
from jaxmatch.runtime.mesh import make_mesh, over_batch, replicated
from jaxmatch.types import Inputs

METHODS = {
    "simmatch": SimMatch(teacher=True, bank_momentum=0.0, threshold=0.3, instance_start_step=0),
    "simmatch_v2": SimMatchV2(threshold=0.3, neighbors=4, queue_batches=2, projection=5),
    "comatch": CoMatch(teacher=True, queue=64, threshold=0.3, smoothing_start_step=0),
}
TRAINING = replace(SPEC, teacher_trains=True)


class Grouped(TinyNetwork):
    """The tiny network with BatchNorm over ``bn_groups`` parts of a batch."""

    bn_groups: int = 1


def setting(algorithm, groups, devices=1):
    """(state, batch, network) in float64."""
    model = Grouped(heads=algorithm.heads, param_dtype=jnp.float64, bn_groups=groups)
    state, batch = toy_state(algorithm, jnp.float64, step=3), toy_views(algorithm)
    return state, batch, make_network(model, devices)


def step_of(algorithm, groups, devices=1):
    """((loss, memory, the teacher's statistics) of a step on ``devices``, its program)."""
    state, batch, network = setting(algorithm, groups, devices)

    def run(state, batch):
        draws = algorithm.draw(jax.random.key(1), batch)
        loss, update = algorithm.loss(network, state.params, state, batch, draws, TRAINING)
        return loss, update.memory, update.teacher_stats

    mesh = make_mesh(devices, SPEC.labeled_batch, SPEC.unlabeled_batch)
    shardings = (replicated(mesh), over_batch(mesh))
    compiled = quick_jit(run, in_shardings=shardings).lower(state, batch).compile()
    found = compiled(*jax.device_put((state, batch), shardings))
    return jax.device_get(found), compiled.as_text()


def moved(one, other):
    """The largest difference of two trees of numbers."""
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return max(np.abs(np.asarray(a, float) - np.asarray(b, float)).max() for a, b in pairs)


@pytest.mark.parametrize("name", METHODS)
def test_it_changes_the_groups_alone(name):
    plain, shuffled = METHODS[name], replace(METHODS[name], shuffle=True)
    with jax.enable_x64(True):
        # With one group only the order differs, and that is undone.
        assert_close(step_of(shuffled, 1)[0], step_of(plain, 1)[0], 1e-9)
        (_, memory, _), _ = step_of(shuffled, 2)
        (_, other, _), _ = step_of(plain, 2)
        assert moved(memory, other) > 1e-3


@pytest.mark.parametrize("name", METHODS)
def test_a_step_is_the_same_on_any_number_of_devices(name):
    algorithm = replace(METHODS[name], shuffle=True)
    with jax.enable_x64(True):
        (one, _), (four, text) = step_of(algorithm, 2), step_of(algorithm, 2, 4)
    assert_close(four, one, 1e-9)
    # Every device runs the teacher on its share of the exchanged images only.
    shares = {int(size) for size in re.findall(r"= f64\[(\d+),6,6,6\]\S* convolution", text)}
    views = 4 if name == "comatch" else 3
    assert max(shares) <= (SPEC.labeled_batch + (views - 1) * SPEC.unlabeled_batch) // 4


def test_groups_have_the_drawn_images_and_outputs_their_order():
    algorithm = METHODS["simmatch"]
    with jax.enable_x64(True):
        state, batch, network = setting(algorithm, 2)
        given = Inputs(network, state.params, state, batch, (), TRAINING)
        views = batch.views[:2]
        places = np.random.default_rng(5).permutation(sum(map(len, views)))
        outputs, stats = quick_jit(lambda: given.teacher(views, places=jnp.asarray(places)))()
        alone = make_network(Grouped(heads=algorithm.heads, param_dtype=jnp.float64))
        joined = np.concatenate(views)
        expected = np.zeros((len(joined), SPEC.classes))
        means = []
        for group in np.split(places, 2):
            on_group, updated = alone(state.teacher, joined[group], train=True)
            expected[group] = on_group.logits
            means.append(updated["norm"]["mean"])
    assert sorted(places) == list(range(SPEC.labeled_batch + SPEC.unlabeled_batch))
    found = np.concatenate([each.logits for each in outputs])
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(stats["norm"]["mean"], np.mean(means, 0), rtol=1e-9)


@pytest.mark.parametrize("option", ["debias=1.0", "abc=1.0"])
@pytest.mark.parametrize("name", METHODS)
def test_options_for_unequal_classes_see_the_weak_views(name, option):
    words = ["algorithm.shuffle=True", "ema.statistics=own", "model.bn_groups=2", "model.depth=10"]
    words += [] if name == "simmatch_v2" else ["algorithm.teacher=True"]
    flags = [f"--config.{word}" for word in (*words, "devices=1", f"unequal.{option}")]
    config, _ = from_flags(f"{name}:mnist5k,labels=20", flags)
    facts = Facts(
        classes=tuple("0123456789"),
        image_shape=(32, 32, 3),
        labels=tuple(range(10)) * 2,
        unlabeled=300,
    )
    program = Program.build(config, facts)
    _, metrics = jax.eval_shape(
        lambda state, data: program.step(state, program.examples(data, state)),
        program.state,
        program.data,
    )
    assert metrics["loss/total"].shape == ()


def test_a_pass_for_each_view_becomes_one():
    config, _ = from_flags("simmatch:mnist5k", ["--config.forward=separate"])
    algorithm = replace(METHODS["simmatch"], shuffle=True)
    with jax.enable_x64(True):
        state, batch, joint = setting(algorithm, 2)
        model = Grouped(heads=algorithm.heads, param_dtype=jnp.float64, bn_groups=2)
        separate = make_network(model, forward=config.forward)
        views, places = batch.views[:2], algorithm.draw(jax.random.key(0), batch)
        found = [
            quick_jit(lambda network=network: network(state.teacher, views, places=places))()
            for network in (joint, separate)
        ]
    assert_close(found[1], found[0], 1e-12)
