"""The overrides of the parity replay do what the references' quirks are described to do."""

from inspect import signature

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.parity import consistency_vat, memories, official, overrides, usb
from experiments.parity.official_algorithms import SIMMATCH_V2, ema_decay
from experiments.parity.recording import skip_unreached


def test_a_push_without_wrap_drops_what_overruns():
    size, batches = 7, (2, 1)
    queue = memories.full_queue(0, row=np.zeros((size, 1)))
    push = overrides.push_without_wrap(len(batches)).function
    expected, pointer, value = np.zeros((size, 1)), 0, 0
    for _ in range(9):
        rows = np.arange(value, value + sum(batches), dtype=float)[:, None] + 1
        value += sum(batches)
        fitting = rows[: size - pointer]
        expected[pointer : pointer + len(fitting)] = fitting
        pointer = (pointer + len(rows)) % size
        queue = push(queue, {"row": jnp.asarray(rows[: batches[0]])})
        queue = push(queue, {"row": jnp.asarray(rows[batches[0] :])})
        assert int(queue.pointer) % size == pointer
        np.testing.assert_array_equal(queue.rows["row"], expected)


def test_normalizing_across_the_batch_gives_unit_features():
    rows = overrides.normalize_across_batch().function(jnp.asarray([[3.0, 1.0], [4.0, 0.0]]))
    np.testing.assert_allclose(rows, [[0.6, 1.0], [0.8, 0.0]], rtol=1e-6)


def test_no_alignment_takes_what_the_library_gives_and_changes_nothing():
    override = overrides.no_alignment()
    library = getattr(override.owner, override.name)
    assert signature(override.function).parameters.keys() == signature(library).parameters.keys()
    average, predicted = jnp.asarray([0.9, 0.1]), jnp.log(jnp.asarray([[0.3, 0.7]]))
    aligned, after = library(average, predicted, 0.9)
    assert (aligned != predicted).any()
    assert (after != average).any()
    found, kept = override.function(average, predicted, 0.9, prior=jnp.asarray([0.5, 0.5]))
    np.testing.assert_array_equal(found, predicted)
    np.testing.assert_array_equal(kept, average)


def test_a_small_gradient_of_vat_loses_a_little_of_its_length():
    small = jnp.asarray([[3e-15, 4e-15], [3.0, 4.0]])
    with jax.enable_x64(True):
        found = consistency_vat.unit_with_epsilon().function(small.astype(float))
    np.testing.assert_allclose(found, [np.array([0.6, 0.8]) / 1.04, [0.6, 0.8]], rtol=1e-6)


@pytest.mark.parametrize(
    ("words", "decays", "expected"),
    [
        ("every parameter with ndim<=1 (biases)", {}, "kernels"),
        ("every parameter with ndim<=1; the X wrapper does not forward it", {}, "not_vectors"),
        ("something else", {"cls_token": 0.0, "head.weight": 0.1}, "kernels"),
        ("something else", {"backbone.pos_embed": 0.1, "head.weight": 0.1}, "not_vectors"),
    ],
)
def test_which_parameters_decay(words, decays, expected):
    meta = {"optimiser": {"weight_decay_excluded": words}, "decay_of_param": decays}
    assert usb.read_decay(meta) == expected


def test_two_temperatures_alternate():
    similar = overrides.two_temperatures(1.0, 0.5).function
    queries, keys, valid = jnp.ones((1, 1)), jnp.asarray([[0.0], [1.0]]), jnp.ones(2, bool)
    gaps = [np.diff(np.asarray(similar(queries, keys, 9.0, valid)))[0, 0] for _ in range(4)]
    np.testing.assert_allclose(gaps, [1.0, 2.0, 1.0, 2.0], rtol=1e-6)


def test_unreached_parameters_are_skipped_until_they_have_a_gradient():
    optimizer = optax.chain(optax.add_decayed_weights(0.1), optax.trace(0.9), optax.scale(-1.0))
    params = {"reached": jnp.ones(2), "unreached": jnp.ones(2)}
    skipping = skip_unreached(optimizer, {"reached": jnp.zeros(2), "unreached": jnp.ones(2)})
    state = skipping.init(params)
    zeros = jax.tree.map(jnp.zeros_like, params)
    change, state = skipping.update(zeros, state, params)
    np.testing.assert_allclose(change["reached"], -0.1, rtol=1e-6)
    np.testing.assert_array_equal(change["unreached"], 0)
    change, state = skipping.update(jax.tree.map(jnp.ones_like, params), state, params)
    np.testing.assert_allclose(change["unreached"], -1.1, rtol=1e-6)
    change, state = skipping.update(zeros, state, params)
    np.testing.assert_allclose(state[1].trace["unreached"], 1.1, rtol=1e-6)


def epochs(lengths, **given):
    return {
        "epoch_of_step": [epoch for epoch, length in enumerate(lengths) for _ in range(length)],
        "steps_per_epoch": lengths,
        "steps": sum(lengths),
        "hyperparameters": {
            "epochs": 4,
            "warmup_epoch": 2,
            "lr": 0.4,
            "momentum": 0.9,
            "weight_decay": 1e-3,
            "nesterov": True,
            "cos": True,
            **given,
        },
        "optimiser": "SGD, nesterov, weight decay on EVERY student parameter (BN and biases too)",
    }


DROPS = {"cos": False, "epochs": 6}


@pytest.mark.parametrize("lengths", [[2, 2, 3, 3], [3, 3], [2], [2, 2, 3, 3, 3, 3]])
@pytest.mark.parametrize(
    "given", [{"epochs": 6}, {**DROPS, "schedule": [3, 5]}, {**DROPS, "schedule": [1, 4, 9]}]
)
def test_the_librarys_schedule_is_that_of_whole_epochs(lengths, given):
    meta = epochs(lengths, **given)
    optim, steps = official.read_optim(meta)
    assert not isinstance(optim, official.TabledOptim)
    rate = optim.rate(steps)
    for step in range(meta["steps"]):
        expected = 0.4 * official.rate_of_epoch(meta, step)
        assert float(rate(jnp.asarray(step))) == pytest.approx(expected, rel=1e-6)


def test_epochs_of_different_lengths_need_a_table():
    meta = epochs([2, 3, 1, 2])
    optim, steps = official.read_optim(meta)
    rates = [float(optim.rate(steps)(jnp.asarray(step))) for step in range(meta["steps"])]
    warmup = [1 / 4, 2 / 4, 4 / 6, 5 / 6, 6 / 6]
    np.testing.assert_allclose(rates, 0.4 * np.array([*warmup, 1, 0.5, 0.5]), rtol=1e-6)


def test_a_rate_without_drops_needs_a_table():
    optim, steps = official.read_optim(epochs([2, 2, 3], **DROPS, schedule=[6]))
    rates = [float(optim.rate(steps)(jnp.asarray(step))) for step in range(7)]
    np.testing.assert_allclose(rates, 0.4 * np.array([1 / 4, 2 / 4, 3 / 4, 1, 1, 1, 1]), rtol=1e-6)


def test_drops_are_those_of_the_authors():
    meta = epochs([2, 2, 3, 3, 3, 3], **DROPS, schedule=[3, 5])
    rates = [official.rate_of_epoch(meta, step) for step in range(4, 16)]
    np.testing.assert_allclose(rates, [*[1] * 3, *[0.1] * 6, *[0.01] * 3], rtol=1e-6)


def test_a_small_ema_decay_of_simmatch_v2_grows():
    meta = {**epochs([2, 2], ema_m=0.9), "source": {"repo": SIMMATCH_V2}}
    expected = [1 - 0.05 * (np.cos(np.pi * done / 8) + 1) for done in (1, 2, 3, 4)]
    np.testing.assert_allclose([ema_decay(meta, step) for step in range(4)], expected)
    meta["hyperparameters"]["ema_m"] = 0.998
    assert ema_decay(meta, 3) == 0.998
