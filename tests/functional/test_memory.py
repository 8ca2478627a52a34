"""Banks and queues against plain Python models of them."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import quick_jit
from hypothesis import given, settings
from hypothesis import strategies as st
from on_devices import assert_same_on_four

from jaxmatch.errors import InputError
from jaxmatch.functional import memory
from jaxmatch.functional.memory import Bank, filled, make_bank, make_queue, push, write
from jaxmatch.functional.similarity import normalize

ROWS, BATCH, WIDTH = 5, 8, 3  # more in a batch than in the bank, so that every write has duplicates
LABELS = (0, 1, 2, 0, 1)
SEEDS = st.integers(0, 2**32 - 1)
jit_push, jit_write = quick_jit(push), quick_jit(write)


def unit_rows(random, *shape):
    rows = random.normal(size=shape).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


@settings(max_examples=30, deadline=None)
@given(
    size=st.sampled_from((1, 3, 5)),
    counts=st.lists(st.sampled_from((1, 2, 5)), min_size=1, max_size=7),
    seed=SEEDS,
)
def test_a_queue_is_a_ring(size, counts, seed):
    random = np.random.default_rng(seed)
    queue, ring, pointer, stream = make_queue(size, first=2, second=1), [0.0] * size, 0, 0
    for count in (min(count, size) for count in counts):
        rows = random.normal(size=(count, 3)).astype(np.float32)
        queue = jit_push(queue, {"first": rows[:, :2], "second": rows[:, 2:]})
        for row in rows:
            ring[pointer % size] = row
            pointer, stream = pointer + 1, stream + 1
    assert queue.pointer == pointer % size
    assert queue.filled == min(stream, size)
    np.testing.assert_array_equal(filled(queue), np.arange(size) < stream)
    joined = np.concatenate([queue.rows["first"], queue.rows["second"]], 1)
    np.testing.assert_array_equal(joined, np.stack([row + np.zeros(3) for row in ring]))


@pytest.mark.parametrize(
    "wrap",
    [
        quick_jit,
        pytest.param(lambda f: quick_jit(jax.vmap(f, (0, None, 0))), marks=pytest.mark.slow),
    ],
)
def test_a_ring_by_columns_takes_the_same_rows(wrap):
    random = np.random.default_rng(0)
    mapped = () if wrap is quick_jit else (2,)
    by_columns, by_scatter = map(wrap, (memory._enter_by_columns, memory._enter_by_scatter))
    for size, count in ((5, 1), (5, 2), (5, 5), (6, 3)):
        ring, rows = (
            random.normal(size=(*mapped, length, 3)).astype(np.float32) for length in (size, count)
        )
        for pointer in map(np.int32, range(size)):
            found = by_columns(ring, pointer, rows)
            np.testing.assert_array_equal(found, by_scatter(ring, pointer, rows))
            assert (found != ring).any(-1).sum() == rows[..., 0].size


def test_a_tpu_does_not_turn_a_large_ring():
    def writes(platform, *shape):
        queue = jax.eval_shape(lambda: make_queue(shape[0], row=shape[1]))
        row = {"row": jax.ShapeDtypeStruct((3, shape[1]), jnp.float32)}
        lowered = jax.jit(push).trace(queue, row).lower(lowering_platforms=(platform,))
        return set(re.findall(r"stablehlo\.(scatter|dynamic_update_slice)", lowered.as_text()))

    assert writes("tpu", 30_000, 1000) == {"dynamic_update_slice"}
    assert writes("cpu", 30_000, 1000) == {"scatter"}
    assert writes("tpu", 65_536, 128) == {"scatter"}  # lies by rows
    assert writes("tpu", 64, 10) == {"scatter"}  # small


def test_device_count_of_rings_by_columns():
    random = np.random.default_rng(0)
    ring = random.normal(size=(12, 3)).astype(np.float32)
    rows = random.normal(size=(8, 3)).astype(np.float32)
    assert_same_on_four(
        lambda rows, ring: memory._enter_by_columns(ring, jnp.int32(7), rows), rows, ring
    )


def test_a_push_larger_than_the_queue_is_refused():
    queue = make_queue(3, embedding=2)
    assert push(queue, {"embedding": jnp.ones((3, 2))}).filled == 3
    with pytest.raises(InputError, match="4 rows cannot enter a queue of 3"):
        push(queue, {"embedding": jnp.ones((4, 2))})


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS, momentum=st.sampled_from((0.0, 0.7)), writes=st.integers(1, 3))
def test_a_bank_keeps_the_last_of_duplicates(seed, momentum, writes):
    random = np.random.default_rng(seed)
    bank, model = make_bank(LABELS, WIDTH), {}
    for _ in range(writes):
        index = random.integers(0, ROWS, BATCH).astype(np.int32)
        embeddings = unit_rows(random, BATCH, WIDTH)
        bank = jit_write(bank, index, embeddings, np.asarray(LABELS, np.int32)[index], momentum)
        before = dict(model)
        for i, row in zip(index, embeddings, strict=True):
            if i in before:
                mixed = momentum * before[i] + (1 - momentum) * row
                row = mixed / np.linalg.norm(mixed)
            model[i] = row
    np.testing.assert_array_equal(bank.filled, [i in model for i in range(ROWS)])
    np.testing.assert_array_equal(bank.labels, LABELS)
    expected = np.stack([model.get(i, np.zeros(WIDTH)) for i in range(ROWS)])
    np.testing.assert_allclose(bank.embeddings, expected, atol=2e-5)
    norms = np.linalg.norm(bank.embeddings, axis=1)
    np.testing.assert_allclose(norms, np.where(bank.filled, 1, 0), atol=1e-6)


def test_a_bank_knows_the_true_labels_before_it_is_written():
    bank = make_bank(LABELS, WIDTH)
    np.testing.assert_array_equal(bank.labels, LABELS)
    assert not bank.filled.any()
    assert not bank.embeddings.any()


def test_opposite_embeddings_cancel_without_nan():
    bank = Bank(jnp.array([[1.0, 0.0]]), jnp.array([0]), jnp.array([True]))
    new = jnp.array([[-1.0, 0.0]])
    bank = jit_write(bank, jnp.array([0]), new, jnp.array([0]), 0.5)
    np.testing.assert_array_equal(bank.embeddings, [[0, 0]])


def test_double_precision_is_kept():
    with jax.enable_x64(True):
        bank, queue = make_bank(LABELS, WIDTH), make_queue(4, embedding=WIDTH)
        row, index = jnp.full((1, WIDTH), 1 / 3), jnp.array([2])
        bank = jit_write(bank, index, row, jnp.array([2]))
        queue = jit_push(queue, {"embedding": row})
        assert bank.embeddings[2, 0] == queue.rows["embedding"][0, 0] == 1 / 3
        assert bank.labels.dtype == queue.pointer.dtype == queue.filled.dtype == np.int32


def test_no_gradient_passes_into_memories():
    bank, queue = make_bank(LABELS, WIDTH), make_queue(4, embedding=WIDTH)

    def remembered(rows):
        label = index = jnp.array([1, 1])
        banked = write(bank, index, rows, label, 0.7).embeddings
        return banked.sum() + push(queue, {"embedding": rows}).rows["embedding"].sum()

    assert not quick_jit(jax.grad(remembered))(jnp.ones((2, WIDTH))).any()


@pytest.mark.parametrize("momentum", [pytest.param(0.0, marks=pytest.mark.slow), 0.7])
def test_device_count_of_banks(momentum):
    random = np.random.default_rng(0)
    bank = jit_write(
        make_bank(LABELS, WIDTH),
        np.array([0, 1, 2], np.int32),
        unit_rows(random, 3, WIDTH),
        np.array([0, 1, 2], np.int32),
        momentum,
    )
    index = np.array([0, 3, 0, 3, 1, 1, 3, 0], np.int32)
    batch = (index, random.normal(size=(BATCH, WIDTH)), np.asarray(LABELS, np.int32)[index])

    def written(batch, bank):
        index, embeddings, label = batch
        return write(bank, index, normalize(embeddings), label, momentum)

    assert_same_on_four(written, batch, bank)


def test_device_count_of_queues():
    rows = np.random.default_rng(0).normal(size=(BATCH, WIDTH)).astype(np.float32)
    queue = push(make_queue(11, embedding=WIDTH), {"embedding": jnp.ones((6, WIDTH))})
    assert_same_on_four(lambda rows, queue: push(queue, {"embedding": rows}), rows, queue)
