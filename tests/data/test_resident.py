import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxmatch.data import resident, sources, splits

SIZES = (1, 2, 3, 40, 1000, 4000, 4097)
KEY = jax.random.key(0)

positions = jax.jit(resident.positions, static_argnums=(2, 3))


def passes(key, count, batch, number):
    """The first ``number`` passes [number count], put together from batches."""
    steps = range(-(-number * count // batch))
    order = np.concatenate([positions(key, step, batch, count) for step in steps])
    return order[: number * count].reshape(number, count)


def small_set(count=40, pool=200):
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (pool, 4, 4, 3), np.uint8)
    return resident.Resident(
        labeled_images=images[:count],
        labeled_labels=np.arange(count, dtype=np.int32) % 10,
        unlabeled_images=images,
        unlabeled_labels=np.arange(pool, dtype=np.int32) % 10,
    )


@pytest.mark.parametrize("count", SIZES)
def test_each_pass_visits_every_example_once(count):
    orders = passes(KEY, count, 448, 3)
    np.testing.assert_array_equal(np.sort(orders, axis=1), np.tile(np.arange(count), (3, 1)))


@pytest.mark.parametrize("batch", [1, 7, 64, 4097])
def test_order_does_not_depend_on_the_batch_size(batch):
    np.testing.assert_array_equal(passes(KEY, 1000, batch, 2), passes(KEY, 1000, 500, 2))


def test_passes_and_keys_differ():
    first, second = passes(KEY, 1000, 500, 2)
    other = passes(jax.random.key(1), 1000, 500, 1)[0]
    for one, two in itertools.combinations((first, second, other, np.arange(1000)), 2):
        assert np.sum(one == two) < 10  # 1 expected; P(10 or more) < 1e-6


def chi_square(counts):
    expected = counts.sum() / counts.size
    return np.sum((counts - expected) ** 2) / expected


def test_all_permutations_are_equally_likely():
    orders = passes(KEY, 4, 4 * 2400, 2400)
    counts = np.unique(orders, axis=0, return_counts=True)[1]
    assert counts.size == 24
    assert chi_square(counts) < 59  # 23 degrees of freedom, P < 1e-4


def test_places_and_neighbours_are_uniform():
    count, number = 37, 2000
    orders = passes(KEY, count, count * number, number)
    places = np.stack([np.bincount(column, minlength=count) for column in orders.T])
    assert chi_square(places) < 36**2 + 4 * np.sqrt(2 * 36**2)
    steps = np.bincount((np.diff(orders, axis=1) % count).ravel(), minlength=count)[1:]
    assert chi_square(steps) < 35 + 6 * np.sqrt(2 * 35)
    between = np.bincount((np.diff(orders, axis=0) % count).ravel(), minlength=count)
    assert chi_square(between) < 36 + 6 * np.sqrt(2 * 36)


@pytest.mark.parametrize(("batch", "count"), [(64, 40), (448, 50_000), (4096, 2**24)])
@pytest.mark.parametrize("step", [0, 1, 2**20, 2**31 - 1])
def test_division_of_the_position_is_exact_for_every_step(monkeypatch, batch, count, step):
    monkeypatch.setattr(
        resident, "shuffle", lambda key, passes, place, count: jnp.stack([passes, place])
    )
    exact = [divmod(step * batch + number, count) for number in range(batch)]
    expected = np.array([(whole % 2**31, rest) for whole, rest in exact]).T
    found = np.asarray(resident.positions(KEY, step, batch, count)).astype(np.int64)
    np.testing.assert_array_equal(found % 2**31, expected)


@pytest.mark.parametrize("count", [0, 2**24 + 1])
def test_impossible_sizes_are_refused(count):
    with pytest.raises(ValueError, match="resident set"):
        resident.positions(KEY, 0, 8, count)


def test_batch_holds_the_examples_of_its_indices():
    data = small_set()
    labeled, unlabeled, _ = resident.batch(data, KEY, 3, 64, 32)
    for part, images, labels in (
        (labeled, data.labeled_images, data.labeled_labels),
        (unlabeled, data.unlabeled_images, data.unlabeled_labels),
    ):
        (view,) = part.views
        assert view.dtype == jnp.uint8
        assert part.label.dtype == part.index.dtype == jnp.int32
        np.testing.assert_array_equal(view, images[part.index])
        np.testing.assert_array_equal(part.label, labels[part.index])


def test_labeled_and_unlabeled_orders_are_independent():
    data = small_set(count=200)
    labeled, unlabeled, _ = resident.batch(data, KEY, 0, 100, 100)
    assert np.sum(labeled.index == unlabeled.index) < 10


def test_a_batch_size_of_zero_gives_none():
    data = small_set()
    assert resident.batch(data, KEY, 0, 8, 0).unlabeled is None
    assert resident.batch(data, KEY, 0, 0, 8).labeled is None


def sharded_batch(devices):
    """The compiled draw on some devices: replicated data in, a sharded batch out."""
    mesh = jax.make_mesh((devices,), ("data",), (AxisType.Auto,), devices=jax.devices()[:devices])
    replicated = NamedSharding(mesh, PartitionSpec())
    draw = jax.jit(
        lambda data, key, step: resident.batch(data, key, step, 64, 448),
        in_shardings=replicated,
        out_shardings=NamedSharding(mesh, PartitionSpec("data")),
    )
    arguments = jax.device_put((small_set(), KEY, jnp.int32(5)), replicated)
    return draw.lower(*arguments).compile(), arguments


def test_devices_gather_their_own_share_without_messages():
    program, arguments = sharded_batch(4)
    text = program.as_text()
    for collective in ("all-gather", "all-reduce", "all-to-all", "collective-permute"):
        assert collective not in text
    alone, on_one = sharded_batch(1)
    jax.tree.map(np.testing.assert_array_equal, program(*arguments), alone(*on_one))


def test_positions_do_not_depend_on_the_default_precision():
    expected = np.asarray(resident.positions(KEY, 7, 64, 1000))
    with jax.enable_x64(True):
        found = resident.positions(KEY, 7, 64, 1000)
    assert found.dtype == jnp.int32
    np.testing.assert_array_equal(found, expected)


def test_one_program_serves_all_steps():
    draw = jax.jit(resident.batch, static_argnums=(3, 4))
    for step in range(3):
        draw(small_set(), KEY, jnp.int32(step), 8, 16)
    assert draw._cache_size() == 1


@pytest.mark.parametrize("include_labeled", [True, False])
def test_resident_set_of_a_source(include_labeled):
    source = sources.load("digits", seed=0)
    split = splits.balanced(source, 40, seed=0)
    data = resident.resident(source, split, include_labeled)
    at = splits.locate(source, split)
    np.testing.assert_array_equal(data.labeled_images, source.images[at])
    np.testing.assert_array_equal(data.labeled_labels, np.repeat(np.arange(10), 4))
    assert data.unlabeled_images.dtype == data.labeled_images.dtype == np.uint8
    if include_labeled:
        assert data.unlabeled_images.base is source.images or (
            data.unlabeled_images is source.images
        )
    else:
        np.testing.assert_array_equal(data.unlabeled_images, np.delete(source.images, at, axis=0))
    assert len(data.unlabeled_labels) == len(data.unlabeled_images)
