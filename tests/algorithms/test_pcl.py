"""PCL against its equations in plain NumPy, and its clusters where they are plain to see."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from embeddings import numpy_outputs, slope_along, unit
from helpers import (
    SPEC,
    UNLABELED,
    TinyNetwork,
    quick_jit,
    randomized,
    toy_state,
    toy_views,
)
from tiny_runs import PERIOD, STEPS, state_of, train_tiny, write_data

from jaxmatch.algorithms.pcl import PCL, Prototypes, concentration, proto_nce, prototypes
from jaxmatch.errors import InputError
from jaxmatch.functional.memory import push
from jaxmatch.models.network import make_network
from jaxmatch.record.metrics import read

ALGORITHM = PCL(temperature=0.3, queue=40, projection=5, clusters=(30, 12), negatives=6)
PAST = unit(np.random.default_rng(7).normal(size=(10, 5)))


def random_clustering(seed, count):
    random = np.random.default_rng(seed)
    return Prototypes(
        unit(random.normal(size=(count, 5))),
        random.uniform(0.1, 0.5, count),
        random.integers(0, count, UNLABELED).astype(np.int32),
    )


CLUSTERINGS = tuple(map(random_clustering, (1, 2), ALGORITHM.clusters))


def toy(dtype, clustered=True):
    """(state, batch, network, draws); ten rows of the queue are written."""
    state, batch = toy_state(ALGORITHM, dtype, refreshed=False), toy_views(ALGORITHM)
    queue = push(state.memory.queue, {"embedding": jnp.asarray(PAST, dtype)})
    memory = state.memory._replace(
        queue=queue,
        clusterings=jax.tree.map(jnp.asarray, CLUSTERINGS),
        clustered=jnp.asarray(clustered),
    )
    draws = ALGORITHM.draw(jax.random.key(5), batch)
    network = make_network(TinyNetwork(heads=ALGORITHM.heads, param_dtype=dtype))
    return state.replace(memory=memory), batch, network, draws


def oracle_nce(query, key):
    losses = []
    for q, k in zip(query, key, strict=True):
        positive, negatives = np.exp(q @ k / 0.3), np.exp(PAST @ q / 0.3)
        losses.append(-np.log(positive / (positive + negatives.sum())))
    return np.mean(losses)


def oracle_prototypes(query, index, ranks):
    """The mean of ProtoNCE over clusterings and images, one image after the other."""
    losses = []
    for clustering, rank in zip(CLUSTERINGS, ranks, strict=True):
        own = [int(clustering.assignment[i]) for i in index]
        outside = [c for c in np.argsort(-np.asarray(rank)) if c not in own]
        compared = own + outside[: ALGORITHM.negatives]
        for q, cluster in zip(query, own, strict=True):
            weights = [
                np.exp(q @ clustering.centroids[c] / clustering.concentration[c]) for c in compared
            ]
            mine = np.exp(q @ clustering.centroids[cluster] / clustering.concentration[cluster])
            losses.append(-np.log(mine / sum(weights)))
    return np.mean(losses)


def test_value_gradient_and_memory_are_those_of_the_equations():
    with jax.enable_x64(True):
        state, batch, network, draws = toy(jnp.float64)
        (loss, update), gradient = quick_jit(
            jax.value_and_grad(
                lambda params: ALGORITHM.loss(network, params, state, batch, draws, SPEC),
                has_aux=True,
            )
        )(state.params)
        # The teacher in eval mode, whose running statistics are still those of the start.
        on_second, _ = network(state.teacher, batch.unlabeled.views[1], train=False)
    key = unit(np.asarray(on_second.heads["projection"]))
    # Some images share a cluster and are false negatives; in one clustering few others are left.
    for clustering in CLUSTERINGS:
        own = clustering.assignment[batch.unlabeled.index]
        assert len(set(own)) < len(own)
    assert 12 - len(set(own)) < ALGORITHM.negatives

    def parts(params):
        ((_, query),) = numpy_outputs(params, batch.unlabeled.views[0])
        return oracle_nce(query, key), oracle_prototypes(query, batch.unlabeled.index, draws[1])

    contrastive, prototype = parts(state.params)
    np.testing.assert_allclose(update.metrics["loss/contrastive"], contrastive, rtol=1e-10)
    np.testing.assert_allclose(update.metrics["loss/prototype"], prototype, rtol=1e-10)
    np.testing.assert_allclose(loss, contrastive + prototype, rtol=1e-10)
    direction = randomized(jax.tree.map(np.zeros_like, state.params), seed=3, scale=1e-6)
    slope = sum(map(np.vdot, jax.tree.leaves(gradient), jax.tree.leaves(direction)))
    expected = slope_along(lambda params: sum(parts(params)), state.params, direction)
    np.testing.assert_allclose(slope, expected, rtol=1e-4)

    assert (update.memory.queue.pointer, update.memory.queue.filled) == (34, 34)
    np.testing.assert_allclose(update.memory.queue.rows["embedding"][10:34], key, rtol=1e-9)
    jax.tree.map(np.testing.assert_array_equal, update.memory.clusterings, CLUSTERINGS)


@pytest.mark.slow
def test_before_the_first_clusters_it_is_moco():
    state, batch, network, draws = toy(jnp.float32, clustered=False)
    loss, update = quick_jit(
        lambda params: ALGORITHM.loss(network, params, state, batch, draws, SPEC)
    )(state.params)
    assert loss == update.metrics["loss/contrastive"]
    assert update.metrics["loss/prototype"] == 0
    assert tuple(update.metrics["prototype/accuracy"]) == (0, 0)
    assert not ALGORITHM.init(jax.random.key(0), SPEC).clustered


@pytest.mark.slow  # the equations above in NumPy
def test_proto_nce_by_hand():
    clustering = Prototypes(np.eye(3), np.array([0.5, 1.0, 1.0]), np.array([0, 0, 1, 2], np.int32))
    query = np.array([[1.0, 0, 0], [0, 1.0, 0]])
    rank = np.array([0.9, 0.1, 0.2])
    compiled = quick_jit(proto_nce, static_argnums=4)
    # Both images are in cluster 0, whose prototype is there twice, and cluster 2 is the negative.
    loss, nearest = compiled(query, clustering, np.array([0, 1]), rank, 1)
    expected = [np.log(2 * np.e**2 + 1) - 2, np.log(2 + 1)]
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    assert nearest.tolist() == [True, False]  # all are equally near to the second
    # No other cluster is left.
    loss, nearest = compiled(query[:1], clustering, np.array([0]), rank[:1], 5)
    np.testing.assert_allclose(loss, 0, atol=1e-6)
    assert nearest.tolist() == [True]


@pytest.mark.slow  # part of the equations
def test_concentration_by_hand():
    total = np.array([4.0, 0.0, 9.0, 1.0, 0.0])
    size = np.array([4, 1, 3, 2, 0])
    raw = np.array([1 / np.log(14), 0, 3 / np.log(13), 0.5 / np.log(12), 0])
    raw[[1, 4]] = raw[2]  # without spread: the largest
    expected = np.clip(raw, *np.percentile(raw, [10, 90]))
    expected *= 0.2 / expected.mean()
    compiled = quick_jit(concentration)
    np.testing.assert_allclose(compiled(total, size, 0.2), expected, rtol=1e-5)
    np.testing.assert_allclose(compiled(np.zeros(3), np.array([2, 1, 0]), 0.2), 0.2)


def test_a_lone_image_is_not_among_the_others_with_a_spread():
    found = concentration(np.array([0.5, 1.0, 1.2]), np.array([1, 10, 10]), 0.2)
    raw = np.array([0.12, 0.1, 0.12]) / np.log(20)  # the lone one takes the largest of the others
    clipped = np.clip(raw, *np.percentile(raw, [10, 90]))
    np.testing.assert_allclose(found, 0.2 * clipped / clipped.mean(), rtol=1e-5)


@pytest.mark.slow
def test_separate_groups_become_clusters():
    labels = np.arange(40) % 4
    noise = np.random.default_rng(0).normal(0, 0.02, (40, 5))
    points = unit(np.eye(5)[labels] + noise).astype(np.float32)
    found = prototypes(jax.random.key(0), points, 4, 0.2)
    name = np.asarray(found.assignment[:4])  # of the cluster of each group
    np.testing.assert_array_equal(found.assignment, name[labels])
    means = np.stack([points[labels == group].mean(0) for group in range(4)])
    np.testing.assert_allclose(found.centroids[name], unit(means), atol=1e-5)
    np.testing.assert_allclose(found.concentration.mean(), 0.2, rtol=1e-5)
    assert np.all(found.concentration > 0)


def test_refresh_clusters_the_teachers_embeddings_by_key_and_step():
    state = toy_state(ALGORITHM, refreshed=False)
    points = np.random.default_rng(0).normal(size=(UNLABELED, 5)).astype(np.float32)
    seen = []

    def embed(variables):
        seen.append(variables)
        return {"projection": points}

    first, again = (ALGORITHM.refresh(state, embed) for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert all(variables is state.teacher for variables in seen)
    assert first.queue is state.memory.queue
    assert first.clustered
    for clustering, count in zip(first.clusterings, ALGORITHM.clusters, strict=True):
        assert clustering.centroids.shape == (count, 5)
        np.testing.assert_allclose(np.linalg.norm(clustering.centroids, axis=1), 1, rtol=1e-5)
        assert clustering.assignment.shape == (UNLABELED,)
    later = ALGORITHM.refresh(state.replace(step=jnp.int32(7)), embed)
    assert np.any(later.clusterings[0].assignment != first.clusterings[0].assignment)
    before = jax.eval_shape(lambda: ALGORITHM.init(jax.random.key(0), SPEC))
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), first) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), before
    )


def test_draws_do_not_repeat_and_shuffle_as_moco_does():
    batch = toy_views(ALGORITHM)
    places, ranks = ALGORITHM.draw(jax.random.key(0), batch)
    assert places == ()
    assert [len(rank) for rank in ranks] == [30, 12]
    assert not np.array_equal(ranks[0][:12], ranks[1])
    places, _ = PCL(shuffle=True, clusters=(3,)).draw(jax.random.key(0), batch)
    assert sorted(places.tolist()) == list(range(24))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"clusters": ()}, "leaves nothing to compare"),
        ({"clusters": (1, 5)}, "must be at least 2 in each entry"),
        ({"negatives": 0}, "negatives=0 must be at least 1"),
        ({"refresh_steps": 0}, "refresh_steps=0 must be at least 1"),
        ({"start_step": -1}, "start_step=-1 must be at least 0"),
        ({"temperature": 0}, "temperature=0 must be above 0"),
    ],
)
def test_settings_without_meaning_are_refused(fields, expected):
    with pytest.raises(InputError, match=expected):
        PCL(**fields)


def test_what_does_not_fit_is_refused():
    with pytest.raises(InputError, match=r"\(5, 65\) are more than the 64 images"):
        PCL(clusters=(5, 65)).init(jax.random.key(0), SPEC)
    with pytest.raises(InputError, match=r"batch of 24 keys .* algorithm.queue=23"):
        PCL(clusters=(5,), queue=23).init(jax.random.key(0), SPEC)


@pytest.mark.slow
def test_a_run_clusters_where_it_says(tmp_path):
    options = {
        "method": "pcl",
        "chosen": "",
        "algorithm__queue": 40,
        "algorithm__clusters": "(5,9)",
        "algorithm__refresh_steps": PERIOD,
        "algorithm__start_step": 2 * PERIOD,
    }
    data = write_data(tmp_path / "colours.npz")
    summary = train_tiny(data, tmp_path / "run", **options)
    memories = [state_of(tmp_path / "run", step).memory for step in (5, 10, 15, 20)]
    prototype = [line["loss/prototype"] for line in read(tmp_path / "run")]
    assert prototype[:2] == [0, 0]
    assert min(prototype[2:]) > 0
    assert ["prototype/accuracy" in line for line in read(tmp_path / "run")] == [
        False,
        False,
        True,
        True,
    ]
    assert [bool(memory.clustered) for memory in memories] == [False, True, True, True]
    first, second, last = (memory.clusterings[0].centroids for memory in memories[1:])
    assert np.any(first != second)
    np.testing.assert_array_equal(last, second)  # no step follows that would need others
    assert summary["forward_images"] == 2 * 16 * STEPS + 2 * 64
