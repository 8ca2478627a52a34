"""FlexMatch against plain NumPy, and its memory against recounting."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    CLASSES,
    SPEC,
    UNLABELED,
    assert_bitwise,
    numpy_cross_entropy,
    numpy_softmax,
    one_hot,
    quick_jit,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from weak_strong import assert_value_and_gradient, logits_step

from jaxmatch.algorithms.flexmatch import FlexMatch, Memory, remember
from jaxmatch.errors import InputError
from jaxmatch.functional.per_example import PerExample, make_rows
from jaxmatch.runtime.mesh import make_mesh, over_batch, replicated

jit_remember = quick_jit(remember)


def memory_of(labels):
    """The memory of a pool whose examples have these labels, -1 for none."""
    rows = make_rows(len(labels), label=jnp.int32(-1))
    rows.rows["label"] = rows.rows["label"].at[: len(labels)].set(jnp.int32(labels))
    counts = np.bincount(labels[labels >= 0], minlength=CLASSES)
    return Memory(rows, jnp.int32(counts))


@pytest.mark.parametrize(
    ("warmup", "hard"),
    [(True, True), pytest.param(False, False, marks=pytest.mark.slow)],
)
def test_value_and_gradient_are_those_of_the_equations(warmup, hard):
    algorithm = FlexMatch(
        threshold=0.5,
        threshold_warmup=warmup,
        unlabeled_weight=1.5,
        hard_labels=hard,
        temperature=0.5,
    )
    labels = np.repeat([-1, 0, 1, 2, 3], [24, 20, 12, 8, 0])
    assert len(labels) == UNLABELED
    counts = np.array([20, 12, 8, 0])
    beta = counts / (24 if warmup else 20)
    limits = 0.5 * beta / (2 - beta)
    masks = []

    def oracle(fixed, strong):
        _, weak, _ = fixed
        q = numpy_softmax(weak)
        masks.append(q.max(1) >= limits[q.argmax(1)])
        target = one_hot(q.argmax(1)) if hard else numpy_softmax(weak / 0.5)
        return 1.5 * np.mean(masks[-1] * numpy_cross_entropy(strong, target))

    update = assert_value_and_gradient(algorithm, oracle, lambda _: memory_of(labels))
    np.testing.assert_allclose(update.metrics["pseudo/coverage"], masks[0].mean(), rtol=1e-6)
    np.testing.assert_allclose(update.metrics["pseudo/threshold"], limits.mean(), rtol=1e-6)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_the_memory_is_that_of_a_loop_over_examples(seed):
    random = np.random.default_rng(seed)
    labels = random.integers(-1, CLASSES, 9)
    memory = memory_of(labels)
    for _ in range(3):
        index, label = random.integers(0, 9, 12), random.integers(0, CLASSES, 12)
        confident = random.random(12) < 0.6
        memory = jit_remember(memory, np.int32(index), np.int32(label), confident)
        for i, c in zip(index[confident], label[confident], strict=True):
            labels[i] = c
        np.testing.assert_array_equal(memory.selected.rows["label"][:9], labels)
        assert not np.any(memory.selected.rows["label"][9:] != -1)
        counts = np.bincount(labels[labels >= 0], minlength=CLASSES)
        np.testing.assert_array_equal(memory.counts, counts)


@pytest.mark.slow  # functional/test_per_example.py
def test_the_memory_may_be_spread_over_devices():
    random = np.random.default_rng(0)
    memory = memory_of(random.integers(-1, CLASSES, 4096))
    index, label = np.int32(random.integers(0, 50, (2, 64)))
    batch = index, label % CLASSES, random.random(64) < 0.6
    mesh = make_mesh(4)
    everywhere, split = replicated(mesh), over_batch(mesh)
    shardings = Memory(PerExample({"label": split}), everywhere)
    four = quick_jit(
        remember, in_shardings=(shardings, split, split, split), out_shardings=shardings
    )
    placed = jax.device_put(memory, shardings), *jax.device_put(batch, split)
    assert_bitwise(jax.device_get(four(*placed)), jax.device_get(jit_remember(memory, *batch)))


def sharp(classes, confidence):
    """Logits [b C] whose largest probability is ``confidence``."""
    rest = (1 - confidence) / (CLASSES - 1)
    return np.log(np.where(one_hot(classes) == 1, confidence, rest))


LABELED = np.zeros((2, CLASSES))
POOL = replace(SPEC, unlabeled=8)


def test_every_example_counts_at_first():
    algorithm = FlexMatch()
    memory = algorithm.init(jax.random.key(0), POOL)
    _, update = logits_step(algorithm, memory, LABELED, sharp([0, 1, 2, 3], 0.3), spec=POOL)
    assert update.metrics["pseudo/coverage"] == 1
    np.testing.assert_array_equal(update.memory.counts, 0)


@pytest.mark.parametrize("warmup", [True, False])
def test_thresholds_follow_the_classes(warmup):
    algorithm = FlexMatch(threshold_warmup=warmup)
    memory = algorithm.init(jax.random.key(0), POOL)
    # Classes 0, 0 and 1 are won; the last prediction is not confident enough.
    weak = np.concatenate([sharp([0, 0, 1], 0.96), sharp([1], 0.94)])
    _, first = logits_step(algorithm, memory, LABELED, weak, spec=POOL)
    np.testing.assert_array_equal(first.memory.counts, [2, 1, 0, 0])
    np.testing.assert_array_equal(first.memory.selected.rows["label"][:8], [0, 0, 1, *[-1] * 5])

    beta = np.array([2, 1, 0, 0]) / (5 if warmup else 2)
    limits = 0.95 * beta / (2 - beta)
    _, second = logits_step(algorithm, first.memory, LABELED, sharp([0, 1, 2, 3], 0.3), spec=POOL)
    np.testing.assert_allclose(second.metrics["pseudo/threshold"], limits.mean(), rtol=1e-6)
    expected = np.mean(limits <= 0.3)
    assert second.metrics["pseudo/coverage"] == expected
    assert expected == (1 if warmup else 0.5)


def test_examples_without_numbers_are_refused():
    algorithm = FlexMatch()
    memory = algorithm.init(jax.random.key(0), POOL)
    with pytest.raises(InputError, match=r"unlabeled\.index"):
        remember(memory, None, jnp.zeros(2, jnp.int32), jnp.ones(2, bool))
