"""The shuffled batch of a teacher that has statistics of its own."""

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

from jaxmatch.algorithms._shuffled import draw_places, teacher_on
from jaxmatch.algorithms.comatch import CoMatch
from jaxmatch.algorithms.simmatch import SimMatch
from jaxmatch.algorithms.simmatch_v2 import SimMatchV2
from jaxmatch.config.flags import from_flags
from jaxmatch.models.network import make_network
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
    """(loss, memory, the teacher's statistics) of a step on ``devices``."""
    state, batch, network = setting(algorithm, groups, devices)

    def run(state, batch):
        draws = algorithm.draw(jax.random.key(1), batch)
        loss, update = algorithm.loss(network, state.params, state, batch, draws, TRAINING)
        return loss, update.memory, update.teacher_stats

    mesh = make_mesh(devices, SPEC.labeled_batch, SPEC.unlabeled_batch)
    shardings = (replicated(mesh), over_batch(mesh))
    return jax.device_get(quick_jit(run, in_shardings=shardings)(state, batch))


def moved(one, other):
    """The largest difference of two trees of numbers."""
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return max(np.abs(np.asarray(a, float) - np.asarray(b, float)).max() for a, b in pairs)


@pytest.mark.parametrize("name", METHODS)
def test_it_changes_the_groups_alone(name):
    plain, shuffled = METHODS[name], replace(METHODS[name], shuffle=True)
    with jax.enable_x64(True):
        # With one group only the order differs, and that is undone.
        assert_close(step_of(shuffled, 1), step_of(plain, 1), 1e-9)
        assert moved(step_of(shuffled, 2)[1], step_of(plain, 2)[1]) > 1e-3


@pytest.mark.parametrize("name", METHODS)
def test_a_step_is_the_same_on_any_number_of_devices(name):
    algorithm = replace(METHODS[name], shuffle=True)
    with jax.enable_x64(True):
        assert_close(step_of(algorithm, 2, 4), step_of(algorithm, 2), 1e-9)


def test_groups_have_the_drawn_images_and_outputs_their_order():
    algorithm = METHODS["simmatch"]
    with jax.enable_x64(True):
        state, batch, network = setting(algorithm, 2)
        given = Inputs(network, state.params, state, batch, (), TRAINING)
        views = batch.views[:2]
        places = np.asarray(draw_places(jax.random.key(5), views))
        outputs, stats = quick_jit(lambda: teacher_on(given, views, jnp.asarray(places)))()
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


@pytest.mark.parametrize("name", ["moco_v2", "pcl", *METHODS])
def test_the_settings_offer_it(name):
    config, _ = from_flags(f"{name}:mnist5k", ["--config.algorithm.shuffle=True"])
    assert config.algorithm.shuffle
