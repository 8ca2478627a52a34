"""Metrics of unlabeled batches counted by hand."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxmatch.functional.diagnostics import (
    collapsed,
    feature_spread,
    pseudo_label_metrics,
    stranger_metrics,
    unlabeled_accuracy,
)
from jaxmatch.runtime.dispatch import means
from jaxmatch.types import STRANGER

WEAK = jnp.array([[2.0, 1.0], [0.0, 1.0], [3.0, 0.0], [0.0, 3.0]])  # says 0, 1, 0, 1
STRONG = jnp.array([[0.0, 1.0], [0.0, 1.0], [1.0, 0.0], [1.0, 0.0]])  # says 1, 1, 0, 0
CONFIDENT = jnp.array([True, False, True, True])


def test_counts():
    label = jnp.array([0, 1, 1, -1])
    metrics = pseudo_label_metrics(WEAK, CONFIDENT, label, STRONG)
    assert metrics["pseudo/coverage"] == 0.75
    assert tuple(metrics["pseudo/accuracy"]) == (1, 2)
    assert tuple(metrics["unlabeled/weak_accuracy"]) == (2, 3)
    assert tuple(metrics["unlabeled/strong_accuracy"]) == (1, 3)


def test_without_strong_views_or_labels():
    label = jnp.zeros(4, jnp.int32)
    assert "unlabeled/strong_accuracy" not in pseudo_label_metrics(WEAK, CONFIDENT, label)
    assert set(pseudo_label_metrics(WEAK, CONFIDENT, None, STRONG)) == {"pseudo/coverage"}


def test_unknown_labels_leave_no_metric_behind():
    metrics = pseudo_label_metrics(WEAK, CONFIDENT, jnp.full(4, -1), STRONG)
    sums = {name: value for name, value in metrics.items() if name != "pseudo/coverage"}
    assert len(sums) == 4
    assert means(sums) == {}


def test_images_of_no_class_count_apart():
    label = jnp.array([0, STRANGER, STRANGER, -1])
    metrics = pseudo_label_metrics(WEAK, CONFIDENT, label, STRONG)
    assert tuple(metrics["pseudo/strangers_passed"]) == (1, 2)
    assert tuple(metrics["pseudo/accuracy"]) == (1, 1)
    assert tuple(metrics["unlabeled/weak_accuracy"]) == (1, 1)
    judged = stranger_metrics(jnp.array([False, True, False, True]), label)
    assert judged["pseudo/judged_strangers"] == 0.5
    assert tuple(judged["pseudo/knowns_left_out"]) == (0, 1)
    assert set(stranger_metrics(CONFIDENT, None)) == {"pseudo/judged_strangers"}


def test_accuracy_of_methods_without_pseudo_labels():
    label = jnp.array([0, 1, 1, -1])
    metrics = unlabeled_accuracy(WEAK, label, STRONG)
    both = pseudo_label_metrics(WEAK, CONFIDENT, label, STRONG)
    assert {name: tuple(value) for name, value in metrics.items()} == {
        name: tuple(both[name]) for name in both if name.startswith("unlabeled/")
    }
    assert set(unlabeled_accuracy(WEAK, label)) == {"unlabeled/weak_accuracy"}
    assert unlabeled_accuracy(WEAK, None) == {}


def test_weights_count_as_shares():
    label, weight = jnp.array([0, 0, 1, -1]), jnp.array([1.0, 0.5, 0.25, 1.0])
    metrics = pseudo_label_metrics(WEAK, weight, label)
    assert metrics["pseudo/coverage"] == 0.6875
    assert tuple(metrics["pseudo/accuracy"]) == (1, 1.75)
    assert tuple(metrics["unlabeled/weak_accuracy"]) == (1, 3)


def test_spread_tells_collapse_from_a_full_sphere():
    same = jnp.tile(jnp.array([[1.0, -2.0, 3.0]]), (50, 1))
    assert feature_spread(same)["features/spread"] < 1e-6
    # Only directions count.
    assert feature_spread(same * jnp.arange(1.0, 51)[:, None])["features/spread"] < 1e-6
    everywhere = np.random.default_rng(0).normal(size=(4000, 16)).astype(np.float32)
    spread = feature_spread(jnp.asarray(everywhere))["features/spread"]
    np.testing.assert_allclose(spread, 1, rtol=0.02)


def test_almost_equal_embeddings_are_a_collapse():
    assert not collapsed({})
    assert not collapsed({"features/spread": 0.1})
    near = np.random.default_rng(0).normal(size=(200, 16)).astype(np.float32) * 0.01 + 1
    assert collapsed(jax.device_get(feature_spread(jnp.asarray(near))))
