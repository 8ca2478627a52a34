import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmatch.data import order

SIZES = (1, 2, 3, 40, 1000, 4000, 4097)
KEY = jax.random.key(0)


@functools.partial(jax.jit, static_argnums=(2, 3))
def positions(key, step, batch, count):
    return order.positions(order.words(key), step, batch, count)


def passes(key, count, batch, number):
    """The first ``number`` passes [number count], put together from batches."""
    steps = range(-(-number * count // batch))
    drawn = np.concatenate([positions(key, step, batch, count) for step in steps])
    return drawn[: number * count].reshape(number, count)


@pytest.mark.parametrize("count", SIZES)
def test_each_pass_visits_every_example_once(count):
    orders = passes(KEY, count, 448, 3)
    np.testing.assert_array_equal(np.sort(orders, axis=1), np.tile(np.arange(count), (3, 1)))


@pytest.mark.parametrize("batch", [pytest.param(1, marks=pytest.mark.slow), 7, 64, 4097])
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
@pytest.mark.parametrize(
    "step", [0, *(pytest.param(each, marks=pytest.mark.slow) for each in (1, 2**20)), 2**31 - 1]
)
def test_division_of_the_position_is_exact_for_every_step(monkeypatch, batch, count, step):
    monkeypatch.setattr(
        order, "shuffle", lambda words, passes, place, count: jnp.stack([passes, place])
    )
    exact = [divmod(step * batch + number, count) for number in range(batch)]
    expected = np.array([(whole % 2**31, rest) for whole, rest in exact]).T
    found = np.asarray(order.positions(order.words(KEY), step, batch, count)).astype(np.int64)
    np.testing.assert_array_equal(found % 2**31, expected)


@pytest.mark.parametrize("count", [0, 2**24 + 1])
def test_impossible_sizes_are_refused(count):
    with pytest.raises(ValueError, match="pool has"):
        order.positions(order.words(KEY), 0, 8, count)


def test_positions_do_not_depend_on_the_default_precision():
    expected = np.asarray(positions(KEY, 7, 64, 1000))
    with jax.enable_x64(True):
        found = positions(KEY, 7, 64, 1000)
    assert found.dtype == jnp.int32
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(("batch", "count"), [(64, 40), (448, 50_000), (7, 1), (4096, 2**24)])
@pytest.mark.parametrize(
    "step",
    [*(pytest.param(each, marks=pytest.mark.slow) for each in (0, 1, 2**20)), 999, 2**31 - 1],
)
def test_numpy_computes_the_same_order(batch, count, step):
    found = order.positions(np.asarray(order.words(KEY)), step, batch, count)
    assert isinstance(found, np.ndarray)
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, positions(KEY, step, batch, count))


@pytest.mark.parametrize(("platform", "loops"), [("cpu", 1), ("tpu", 0), ("cuda", 0)])
def test_rounds_are_a_loop_only_where_it_costs_nothing(platform, loops):
    traced = jax.jit(lambda words: order.positions(words, 3, 64, 1000)).trace(order.words(KEY))
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert text.count("stablehlo.while") == loops


def balanced(step, batch, labels, key=KEY):
    words = order.words(key)
    draw = jax.jit(order.balanced_positions, static_argnums=(2, 4))
    return np.asarray(draw(words, step, batch, jnp.asarray(labels), int(labels.max()) + 1))


UNEQUAL = np.random.default_rng(0).permutation(np.repeat([0, 1, 2, 3], [50, 7, 3, 1]))


def test_balanced_batches_have_each_class_equally_often():
    for step in (0, 5, 2**20):
        drawn = UNEQUAL[balanced(step, 12, UNEQUAL)]
        np.testing.assert_array_equal(np.bincount(drawn), [3, 3, 3, 3])
    # A batch that the classes do not divide: over a run of positions still nearly.
    drawn = np.concatenate([balanced(step, 7, UNEQUAL) for step in range(31)])
    for start, end in ((0, 217), (3, 50), (100, 205)):
        assert np.ptp(np.bincount(UNEQUAL[drawn[start:end]])) <= 2


def test_balanced_order_visits_each_example_of_a_class_once_a_pass():
    drawn = np.concatenate([balanced(step, 8, UNEQUAL) for step in range(75)])  # 150 of each class
    for number in range(4):
        own = drawn[UNEQUAL[drawn] == number]
        members = np.flatnonzero(number == UNEQUAL)
        passes = own[: len(own) // len(members) * len(members)].reshape(-1, len(members))
        np.testing.assert_array_equal(np.sort(passes, axis=1), np.tile(members, (len(passes), 1)))
        assert len(members) < 5 or np.any(passes[0] != passes[1])


def test_classes_of_one_size_have_orders_of_their_own():
    labels = np.repeat([0, 1], 40)
    drawn = np.concatenate([balanced(step, 8, labels) for step in range(10)])
    first, second = drawn[drawn < 40], drawn[drawn >= 40] - 40
    assert np.sum(first == second) < 8


def test_balanced_order_in_numpy_and_for_any_batch_size():
    for step in (0, 3, 2**20):
        words = np.asarray(order.words(KEY))
        in_numpy = order.balanced_positions(words, step, 24, UNEQUAL, 4)
        np.testing.assert_array_equal(in_numpy, balanced(step, 24, UNEQUAL))
        halves = [balanced(2 * step + part, 12, UNEQUAL) for part in (0, 1)]
        np.testing.assert_array_equal(np.concatenate(halves), in_numpy)
    other = balanced(0, 24, UNEQUAL, jax.random.key(1))
    assert np.any(other != balanced(0, 24, UNEQUAL))
