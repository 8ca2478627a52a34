"""Similarities, their unfolding and aggregation, and CoMatch's graph, against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import numpy_softmax, quick_jit
from hypothesis import given, settings
from hypothesis import strategies as st
from on_devices import assert_same_on_four

from jaxmatch.functional.losses import cross_entropy
from jaxmatch.functional.memory import make_bank, write
from jaxmatch.functional.similarity import (
    aggregate,
    inner_products,
    log_similarity,
    normalize,
    pseudo_label_graph,
    unfold,
)

BATCH, KEYS, WIDTH, CLASSES = 8, 12, 5, 4
LABELS = np.arange(KEYS, dtype=np.int32) % CLASSES
TEMPERATURE = 0.1
SEEDS = st.integers(0, 2**32 - 1)
jit_normalize, jit_cross_entropy = quick_jit(normalize), quick_jit(cross_entropy)
jit_unfold, jit_aggregate = quick_jit(unfold), quick_jit(aggregate, static_argnums=2)
jit_write = quick_jit(write)
jit_graph, jit_log_similarity = quick_jit(pseudo_label_graph), quick_jit(log_similarity)


def rows(random, *shape):
    return np.asarray(normalize(random.normal(size=shape).astype(np.float32)))


def log_probabilities(random, *shape):
    return np.log(numpy_softmax(random.normal(0, 2, shape))).astype(np.float32)


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS, scale=st.sampled_from((1e-9, 1e-3, 1.0, 1e6, 1e15)))
def test_rows_become_unit_rows(seed, scale):
    x = (scale * np.random.default_rng(seed).normal(size=(BATCH, WIDTH))).astype(np.float32)
    wide = x.astype(np.float64)
    expected = wide / np.linalg.norm(wide, axis=1, keepdims=True)
    np.testing.assert_allclose(jit_normalize(x), expected, atol=1e-6)


normalize_gradient = quick_jit(jax.grad(lambda x: normalize(x).sum()))


@pytest.mark.parametrize("value", [0.0, 1e-30, -1e-18, 1e30])
def test_extreme_rows_stay_finite(value):
    x = jnp.full((2, WIDTH), value)
    unit, gradient = (f(x) for f in (jit_normalize, normalize_gradient))
    assert np.isfinite(unit).all()
    assert np.isfinite(gradient).all()
    if not value:
        np.testing.assert_array_equal(unit, x)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_is_widened(dtype):
    x = jnp.full((2, WIDTH), 300, dtype)
    for result in (normalize(x), inner_products(x, x), log_similarity(x, x, 0.1)):
        assert result.dtype == np.float32
        assert np.isfinite(result).all()
    np.testing.assert_allclose(normalize(x), WIDTH**-0.5, rtol=1e-6)


def test_double_precision_is_kept():
    with jax.enable_x64(True):
        x = np.random.default_rng(0).normal(size=(3, WIDTH))
        unit = x / np.linalg.norm(x, axis=1, keepdims=True)
        np.testing.assert_allclose(normalize(jnp.asarray(x)), unit, rtol=1e-14)
        ours = jnp.exp(jit_log_similarity(jnp.asarray(unit), jnp.asarray(unit), 0.1))
    np.testing.assert_allclose(ours, numpy_softmax(unit @ unit.T / 0.1), rtol=1e-12)


def test_only_valid_keys_share():
    random = np.random.default_rng(0)
    queries, keys = rows(random, BATCH, WIDTH), rows(random, KEYS, WIDTH)
    valid = np.arange(KEYS) < 5
    every = numpy_softmax(queries @ keys.T / TEMPERATURE)
    some = np.where(valid, every, 0) / every[:, valid].sum(1, keepdims=True)
    np.testing.assert_allclose(
        jnp.exp(jit_log_similarity(queries, keys, TEMPERATURE)), every, rtol=1e-4, atol=1e-7
    )
    shares = jnp.exp(jit_log_similarity(queries, keys, TEMPERATURE, valid=valid))
    np.testing.assert_allclose(shares, some, rtol=1e-4, atol=1e-7)
    assert not shares[:, ~valid].any()
    each = np.broadcast_to(valid, (BATCH, KEYS))
    np.testing.assert_array_equal(
        jnp.exp(jit_log_similarity(queries, keys, TEMPERATURE, valid=each)), shares
    )


def test_no_valid_key_means_equal_shares():
    random = np.random.default_rng(0)
    queries, keys = rows(random, BATCH, WIDTH), rows(random, KEYS, WIDTH)
    shares = jnp.exp(jit_log_similarity(queries, keys, TEMPERATURE, valid=np.zeros(KEYS, bool)))
    np.testing.assert_allclose(shares, 1 / KEYS, rtol=1e-6)


def test_rows_of_a_bank_vote_once_they_are_filled():
    random = np.random.default_rng(0)
    queries = rows(random, BATCH, WIDTH)
    index = np.array([0, 1, 4, 5, 8, 9], np.int32)  # classes 0 and 1 only
    bank = jit_write(
        make_bank(LABELS.tolist(), WIDTH), index, rows(random, 6, WIDTH), LABELS[index]
    )

    @quick_jit
    def votes(bank):
        log_q = log_similarity(queries, bank.embeddings, TEMPERATURE, valid=bank.filled)
        return log_q, aggregate(jnp.exp(log_q), bank.labels, CLASSES)

    garbage = jnp.where(bank.filled[:, None], bank.embeddings, 7.0)
    for left, right in zip(votes(bank), votes(bank._replace(embeddings=garbage)), strict=True):
        np.testing.assert_array_equal(left, right)
    log_q, found = votes(bank)
    assert not found[:, 2:].any()
    np.testing.assert_allclose(found.sum(1), 1, rtol=1e-6)
    log_p = log_probabilities(random, BATCH, CLASSES)
    unfolded = jnp.exp(jit_unfold(log_q, log_p, bank.labels))
    assert not unfolded[:, ~np.asarray(bank.filled)].any()

    bank = jit_write(bank, np.array([2], np.int32), queries[:1], np.array([2], np.int32))
    _, found = votes(bank)
    assert (found[:, 2] > 0).all()
    assert found[0, 2] == found[0].max()


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS)
def test_unfolding_and_aggregation_keep_distributions(seed):
    random = np.random.default_rng(seed)
    log_q = log_probabilities(random, BATCH, KEYS)
    log_p = log_probabilities(random, BATCH, CLASSES)
    q, p = np.exp(log_q), np.exp(log_p)
    unfolded, aggregated = jnp.exp(jit_unfold(log_q, log_p, LABELS)), jit_aggregate(q, LABELS, 4)
    expected = q * p[:, LABELS]
    np.testing.assert_allclose(unfolded, expected / expected.sum(1, keepdims=True), atol=1e-6)
    np.testing.assert_allclose(aggregated, q @ np.eye(CLASSES)[LABELS], atol=1e-6)
    np.testing.assert_allclose(unfolded.sum(1), 1, rtol=1e-5)
    np.testing.assert_allclose(aggregated.sum(1), 1, rtol=1e-5)

    uniform = np.full_like(log_p, -np.log(CLASSES))
    np.testing.assert_allclose(jit_unfold(log_q, uniform, LABELS), log_q, atol=1e-5)


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS)
def test_the_instance_loss_is_least_where_both_similarities_agree(seed):
    random = np.random.default_rng(seed)
    log_q = log_probabilities(random, BATCH, KEYS)
    log_p = log_probabilities(random, BATCH, CLASSES)
    log_target = jit_unfold(log_q, log_p, LABELS)
    target = jnp.exp(log_target)
    entropy = -np.sum(target * log_target, 1)
    other = log_probabilities(random, BATCH, KEYS)
    np.testing.assert_allclose(jit_cross_entropy(log_target, target), entropy, rtol=1e-5)
    assert (jit_cross_entropy(other, target) >= entropy - 1e-5).all()


def test_worked_example():
    """Four classes, eight labeled images, as in the published explanation of SimMatch."""
    labels = jnp.array([0, 1, 2, 3, 0, 0, 1, 3])
    p = jnp.array([[0.8, 0.01, 0.1, 0.09]])
    raw = jnp.array([[0.2, 0.05, 0.01, 0.04, 0.3, 0.25, 0.05, 0.01]])
    q = raw / raw.sum()
    unfolded = jnp.exp(unfold(jnp.log(q), jnp.log(p), labels))
    expected = {
        "q": [0.219780, 0.054945, 0.010989, 0.043956, 0.329670, 0.274725, 0.054945, 0.010989],
        "unfolded": [
            0.263809,
            0.000824,
            0.001649,
            0.005936,
            0.395713,
            0.329761,
            0.000824,
            0.001484,
        ],
        "aggregated": [0.824176, 0.109890, 0.010989, 0.054945],
        "smoothed": [0.802418, 0.019989, 0.091099, 0.086495],
        "aggregated from unfolded": [0.989283, 0.001649, 0.001649, 0.007420],
        "smoothed from unfolded": [0.818928, 0.009165, 0.090165, 0.081742],
    }
    ours = {"q": q, "unfolded": unfolded}
    for source, suffix in ((q, ""), (unfolded, " from unfolded")):
        votes = aggregate(source, labels, 4)
        ours[f"aggregated{suffix}"] = votes
        ours[f"smoothed{suffix}"] = 0.9 * p + 0.1 * votes
    assert ours.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(ours[name][0], values, atol=6e-7, err_msg=name)


def test_certain_predictions_and_small_temperatures_stay_finite():
    random = np.random.default_rng(0)
    keys = rows(random, KEYS, WIDTH)
    log_p = jax.nn.log_softmax(jnp.eye(CLASSES)[np.arange(BATCH) % CLASSES] * 1e4)

    @quick_jit
    @jax.value_and_grad
    def loss(queries, valid):
        log_q = log_similarity(queries, keys, 1e-3, valid)
        log_target = unfold(log_q, log_p, LABELS)
        votes = aggregate(jnp.exp(log_target), LABELS, CLASSES)
        return -jnp.sum(jnp.exp(log_target) * log_q) + jnp.sum(votes**2)

    for queries in (rows(random, BATCH, WIDTH), np.zeros((BATCH, WIDTH), np.float32)):
        for valid in (np.ones(KEYS, bool), np.arange(KEYS) < 2, np.zeros(KEYS, bool)):
            value, gradient = loss(queries, valid)
            assert np.isfinite(value)
            assert np.isfinite(gradient).all()


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS, threshold=st.sampled_from((0.0, 0.2, 0.5, 0.8, 1.0)))
def test_graph(seed, threshold):
    random = np.random.default_rng(seed)
    p = np.exp(log_probabilities(random, BATCH, CLASSES))
    weights = p @ p.T
    np.fill_diagonal(weights, 1)
    # An entry within rounding of the threshold may fall either way.
    if np.abs(weights - threshold)[~np.eye(BATCH, dtype=bool)].min() < 1e-6:
        return
    weights[weights < threshold] = 0
    graph = jit_graph(p, threshold)
    np.testing.assert_allclose(graph, weights / weights.sum(1, keepdims=True), atol=1e-6)
    np.testing.assert_allclose(graph.sum(1), 1, rtol=1e-6)
    assert (np.diagonal(graph) > 0).all()


def test_distinct_certain_labels_leave_each_image_to_itself():
    np.testing.assert_array_equal(pseudo_label_graph(jnp.eye(CLASSES), 0.999), np.eye(CLASSES))
    same = jnp.eye(CLASSES)[jnp.array([0, 0, 1, 2])]
    expected = [[0.5, 0.5, 0, 0], [0.5, 0.5, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    np.testing.assert_array_equal(pseudo_label_graph(same, 1.0), expected)


def test_device_count():
    random = np.random.default_rng(0)
    batch = random.normal(size=(BATCH, WIDTH)), log_probabilities(random, BATCH, CLASSES)
    keys = rows(random, KEYS, WIDTH)

    def loss(queries, log_p, keys):
        q = log_similarity(normalize(queries), keys, TEMPERATURE, np.arange(KEYS) != 3)
        target = unfold(jax.lax.stop_gradient(q), log_p, LABELS)
        graph = pseudo_label_graph(jnp.exp(log_p), 0.3)
        own = log_similarity(normalize(queries), normalize(queries), TEMPERATURE)
        votes = aggregate(jnp.exp(target), LABELS, CLASSES)
        losses = -jnp.sum(jnp.exp(target) * q, 1) - jnp.sum(graph * own, 1)
        return losses.mean(), (losses, votes, graph)

    def both(batch, keys):
        return jax.value_and_grad(loss, has_aux=True)(*batch, keys)

    assert_same_on_four(both, batch, keys, tolerance=5e-6)
