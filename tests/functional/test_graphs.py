"""Weak labels: neighbors by hand, components against union-find."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import quick_jit
from hypothesis import given, settings
from hypothesis import strategies as st
from on_devices import assert_same_on_four

from jaxmatch.functional.graphs import connected_components, nearest_neighbor

jit_components, jit_nearest = quick_jit(connected_components), quick_jit(nearest_neighbor)


def union_find(neighbor):
    """Whether two nodes are connected: bool [b b]."""
    root = list(range(len(neighbor)))

    def find(node):
        while root[node] != node:
            node = root[node]
        return node

    for node, other in enumerate(neighbor):
        root[find(node)] = find(other)
    ends = np.array([find(node) for node in range(len(neighbor))])
    return ends[:, None] == ends


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), nodes=st.sampled_from([1, 2, 3, 16, 17]))
def test_components_are_those_of_union_find(seed, nodes):
    neighbor = np.random.default_rng(seed).integers(0, nodes, nodes)
    labels = jit_components(neighbor)
    assert labels.dtype == np.int32
    np.testing.assert_array_equal(labels[:, None] == labels, union_find(neighbor))


@pytest.mark.parametrize("nodes", [16, 17])
def test_long_paths_and_cycles_are_one_component(nodes):
    order = np.random.default_rng(0).permutation(nodes)
    cycle = np.empty(nodes, np.int32)
    cycle[order] = np.roll(order, 1)
    np.testing.assert_array_equal(jit_components(cycle), 0)
    path = cycle.copy()
    path[order[0]] = order[0]  # where it ends
    np.testing.assert_array_equal(jit_components(path), order[0])


def test_neighbors_are_others_and_the_first_of_equal_ones():
    degrees = np.deg2rad([0, 10, 100, 130, 20])
    rows = np.stack([np.cos(degrees), np.sin(degrees)], 1)
    neighbor = jit_nearest(rows)
    np.testing.assert_array_equal(neighbor[np.array([0, 2, 3, 4])], [1, 3, 2, 1])
    labels = jit_components(neighbor)
    np.testing.assert_array_equal(labels == labels[0], [True, True, False, False, True])
    equal = np.ones((6, 2)) / np.sqrt(2)
    np.testing.assert_array_equal(jit_nearest(equal), [1, 0, 0, 0, 0, 0])
    np.testing.assert_array_equal(jit_components(jit_nearest(equal)), 0)


def test_two_images_are_neighbors_whatever_they_show():
    np.testing.assert_array_equal(jit_nearest(np.array([[1.0, 0.0], [-1.0, 0.0]])), [1, 0])
    np.testing.assert_array_equal(jit_nearest(np.ones((1, 2))), [0])


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_every_image_has_company(seed):
    rows = np.random.default_rng(seed).normal(size=(9, 3))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    neighbor = jit_nearest(rows)
    scores = rows @ rows.T - 3 * np.eye(9)
    np.testing.assert_array_equal(neighbor, scores.argmax(1))
    counts = np.bincount(jit_components(neighbor), minlength=9)
    assert not np.any(counts == 1)


def test_device_count():
    rows = np.random.default_rng(0).normal(size=(24, 3)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)

    def labels(rows, _):
        return {"labels": connected_components(nearest_neighbor(rows))}

    assert_same_on_four(labels, jnp.asarray(rows), tolerance=0)


def test_no_gradient_passes():
    rows = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3)), jnp.float32)
    total = lambda rows: connected_components(nearest_neighbor(rows)).sum() * 1.0  # noqa: E731
    slope = quick_jit(jax.grad(total))(rows)
    np.testing.assert_array_equal(slope, 0)
