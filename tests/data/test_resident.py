import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxmatch.data import resident, sources, splits
from jaxmatch.data.source import Reading

KEY = jax.random.key(0)
BATCH = jax.jit(lambda *given: resident.batch(*given), static_argnums=(3, 4))


def small_set(count=40, pool=200):
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (pool, 4, 4, 3), np.uint8)
    return resident.Resident(
        labeled_images=resident.Table.of(images[:count]),
        labeled_labels=np.arange(count, dtype=np.int32) % 10,
        unlabeled_images=resident.Table.of(images),
        unlabeled_labels=np.arange(pool, dtype=np.int32) % 10,
    )


def test_batch_holds_the_examples_of_its_indices():
    data = small_set()
    labeled, unlabeled, _ = BATCH(data, KEY, 3, 64, 32)
    for part, images, labels in (
        (labeled, data.labeled_images, data.labeled_labels),
        (unlabeled, data.unlabeled_images, data.unlabeled_labels),
    ):
        (view,) = part.views
        assert view.dtype == jnp.uint8
        assert part.label.dtype == part.index.dtype == jnp.int32
        np.testing.assert_array_equal(view, images.images[part.index])
        np.testing.assert_array_equal(part.label, labels[part.index])


def test_labeled_and_unlabeled_orders_are_independent():
    data = small_set(count=200)
    labeled, unlabeled, _ = BATCH(data, KEY, 0, 100, 100)
    assert np.sum(labeled.index == unlabeled.index) < 10


def test_a_batch_size_of_zero_gives_none():
    data = small_set()
    assert BATCH(data, KEY, 0, 8, 0).unlabeled is None
    assert BATCH(data, KEY, 0, 0, 8).labeled is None


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


def test_one_program_serves_all_steps():
    draw = jax.jit(resident.batch, static_argnums=(3, 4))
    for step in range(3):
        draw(small_set(), KEY, jnp.int32(step), 8, 16)
    assert draw._cache_size() == 1


@pytest.mark.parametrize("include_labeled", [True, False])
def test_resident_set_of_a_source(include_labeled):
    source = sources.load("digits", Reading())
    split = splits.balanced(source, 40, seed=0)
    data = resident.resident(source, split, include_labeled)
    at = splits.locate(source, split)
    labeled, pool = data.labeled_images, data.unlabeled_images
    np.testing.assert_array_equal(labeled.images, source.images[at])
    np.testing.assert_array_equal(data.labeled_labels, np.repeat(np.arange(10), 4))
    assert pool.rows.dtype == labeled.rows.dtype == np.uint8
    if include_labeled:
        assert np.shares_memory(pool.rows, source.images)
        assert len(pool) == len(source.images)
        unseen = source.labels.copy()
        unseen[at] = -1  # the run learns these, so no figure about unlabeled images counts them
    else:
        np.testing.assert_array_equal(pool.images, np.delete(source.images, at, axis=0))
        unseen = np.delete(source.labels, at)
    np.testing.assert_array_equal(data.unlabeled_labels, unseen)
    assert (source.labels >= 0).all()  # the source is shared with other runs


@pytest.mark.parametrize("size", [(5, 7, 3), (4, 4, 1)])
def test_both_forms_of_rows_as_images(size):
    """Every byte comes through a product of bfloat16."""
    images = np.resize(np.arange(256, dtype=np.uint8), (6, *size))
    table = resident.Table.of(images)
    index = jnp.array([5, 0, 0, 3])
    np.testing.assert_array_equal(table.take(index), images[index])
    planes = resident._images_by_planes(jnp.asarray(table.rows)[index], size)
    assert planes.dtype == jnp.uint8
    np.testing.assert_array_equal(planes, images[index])
