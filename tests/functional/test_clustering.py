"""k-means against plain NumPy and on groups of points that are plain to see."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_close, quick_jit
from hypothesis import given, settings
from hypothesis import strategies as st
from on_devices import assert_same_on_four

from jaxmatch.errors import InputError
from jaxmatch.functional import clustering
from jaxmatch.functional.clustering import Clusters, assign, kmeans, move, nearest

POINTS, WIDTH, CLUSTERS = 24, 3, 4
SEEDS = st.integers(0, 2**32 - 1)
CENTERS = 10 * np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [-1, 0, 0]], np.float32)
LABELS = np.arange(POINTS) % CLUSTERS
jit_assign, jit_move = quick_jit(assign), quick_jit(move)


def groups(seed=0):
    """Points around four far centers."""
    noise = np.random.default_rng(seed).normal(0, 0.3, (POINTS, WIDTH))
    return (CENTERS[LABELS] + noise).astype(np.float32)


def numpy_distances(points, centroids):
    return np.linalg.norm(points[:, None] - centroids, axis=2)


@settings(max_examples=10, deadline=None)
@given(seed=SEEDS, padding=st.booleans())
def test_one_move_against_numpy(seed, padding):
    random = np.random.default_rng(seed)
    points = random.normal(size=(POINTS, WIDTH)).astype(np.float32)
    valid = np.arange(POINTS) < POINTS - 5 * padding
    # The second and the last centroid are too far for any point.
    centroids = random.normal(size=(CLUSTERS + 2, WIDTH)).astype(np.float32)
    centroids[[1, -1]] = 50, -50, 50
    found = jit_assign(points, valid, centroids)
    distances = numpy_distances(points, centroids)
    np.testing.assert_array_equal(found.assignment, distances.argmin(1))
    np.testing.assert_allclose(found.distance, distances.min(1), rtol=1e-4, atol=1e-6)
    size = np.bincount(found.assignment[valid], minlength=CLUSTERS + 2)
    np.testing.assert_array_equal(found.size, size)
    np.testing.assert_allclose(found.inertia, (distances.min(1)[valid] ** 2).sum(), rtol=1e-4)

    spare = iter(np.argsort(-np.where(valid, found.distance, -1), kind="stable"))
    expected = [
        points[valid & (found.assignment == k)].mean(0) if size[k] else points[next(spare)]
        for k in range(CLUSTERS + 2)
    ]
    np.testing.assert_allclose(jit_move(points, valid, found), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("iterations", [0, 2])
@pytest.mark.parametrize("seed", [0, 1])
def test_every_move_lowers_the_inertia(seed, iterations):
    points = np.random.default_rng(seed).normal(size=(POINTS, WIDTH)).astype(np.float32)
    fewer = kmeans(jax.random.key(0), points, 2, iterations=iterations)
    more = kmeans(jax.random.key(0), points, 2, iterations=iterations + 1)
    assert more.inertia <= fewer.inertia * (1 + 1e-5)


@pytest.mark.slow
def test_plain_groups_are_found_and_the_rest_is_fixed():
    found = kmeans(jax.random.key(1), groups(), CLUSTERS, restarts=5)
    means = np.stack([groups()[k == LABELS].mean(0) for k in range(CLUSTERS)])
    name = np.asarray(found.assignment[:CLUSTERS])  # of the cluster of each group
    np.testing.assert_array_equal(found.assignment, name[LABELS])
    np.testing.assert_array_equal(found.size, POINTS // CLUSTERS)
    np.testing.assert_allclose(found.centroids[name], means, atol=1e-4)
    distances = np.linalg.norm(groups() - found.centroids[found.assignment], axis=1)
    np.testing.assert_allclose(found.distance, distances, rtol=1e-5)
    again = kmeans(jax.random.key(1), groups(), CLUSTERS, restarts=5)
    jax.tree.map(np.testing.assert_array_equal, found, again)


@pytest.mark.slow
def test_more_restarts_are_never_worse():
    points = np.random.default_rng(3).normal(size=(POINTS, WIDTH)).astype(np.float32)
    inertia = [
        float(kmeans(jax.random.key(2), points, CLUSTERS, iterations=0, restarts=r).inertia)
        for r in (1, 4, 16)
    ]
    assert inertia == sorted(inertia, reverse=True)
    assert inertia[-1] < inertia[0]


@pytest.mark.slow
def test_padding_changes_nothing():
    points = groups()
    padded = np.concatenate([points, np.full((8, WIDTH), 1e3, np.float32)])
    valid = np.arange(POINTS + 8) < POINTS
    found = kmeans(jax.random.key(0), points, CLUSTERS, restarts=3)
    other = kmeans(jax.random.key(0), padded, CLUSTERS, restarts=3, valid=valid)
    cut = other._replace(assignment=other.assignment[:POINTS], distance=other.distance[:POINTS])
    assert_close(cut._asdict(), found._asdict(), 1e-6)


@pytest.mark.slow
def test_as_many_clusters_as_points_and_fewer_distinct_ones():
    points = groups()[:6]
    found = kmeans(jax.random.key(0), points, 6)
    np.testing.assert_array_equal(found.size, 1)
    assert found.inertia == 0
    found = kmeans(jax.random.key(0), np.tile(points[:2], (4, 1)), 3)
    assert np.isfinite(found.centroids).all()
    assert sorted(found.size) == [0, 4, 4]


@pytest.mark.slow
def test_centroids_are_compared_in_blocks(monkeypatch):
    random = np.random.default_rng(0)
    points, centroids = (
        random.normal(size=(count, WIDTH)).astype(np.float32) for count in (POINTS, 7)
    )
    centroids[5] = centroids[2]  # equally near: the first counts, though in another block
    expected = numpy_distances(points, centroids).argmin(1)
    assert 2 in expected
    for most in (1, 3, 7, 100):
        monkeypatch.setattr(clustering, "CENTROIDS_AT_A_TIME", most)
        np.testing.assert_array_equal(nearest(points, centroids), expected)


def test_device_count():
    points = groups()
    key = jax.random.key(1)

    def found(points, key):
        return kmeans(key, points, CLUSTERS, iterations=3, restarts=2)._asdict()

    assert_same_on_four(found, points, key, tolerance=1e-5)


@pytest.mark.slow
def test_double_precision_is_kept_and_half_is_not():
    with jax.enable_x64(True):
        points = jnp.asarray(groups(), jnp.float64)
        assert kmeans(jax.random.key(0), points, 2, iterations=1).centroids.dtype == jnp.float64
    half = jnp.asarray(groups(), jnp.bfloat16)
    found = kmeans(jax.random.key(0), half, 2, iterations=1)
    assert isinstance(found, Clusters)
    assert found.centroids.dtype == jnp.float32


@pytest.mark.parametrize(("clusters", "restarts"), [(0, 1), (POINTS + 1, 1), (2, 0)])
def test_impossible_numbers_are_refused(clusters, restarts):
    with pytest.raises(InputError, match="at most as many clusters as points"):
        kmeans(jax.random.key(0), groups(), clusters, restarts=restarts)
