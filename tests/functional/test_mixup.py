"""MixUp of a pool against NumPy, the distribution of its draws, and exchanges between chunks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import numpy_softmax, quick_jit
from hypothesis import given, settings
from hypothesis import strategies as st
from on_devices import assert_same_on_four

from jaxmatch.functional.mixup import Mixing, draw_mixing, in_parts, interleave, mix

SIZES = (4, 12, 12)
jit_mix, jit_interleave = quick_jit(mix), quick_jit(interleave)


def pool_of(random, *shape):
    return [random.normal(size=(size, *shape)).astype(np.float32) for size in SIZES]


@quick_jit
def draws_of(seed):
    return draw_mixing(jax.random.key(seed), SIZES, 0.75)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**31 - 1))
def test_equals_numpy(seed):
    random, mixing = np.random.default_rng(seed), draws_of(seed)
    weight, partner = map(np.concatenate, mixing)
    assert (weight >= 0.5).all()
    assert (weight <= 1).all()
    assert sorted(partner) == list(range(sum(SIZES)))
    for shape in ((3, 2, 1), (5,)):
        parts = pool_of(random, *shape)
        pool, own = np.concatenate(parts), weight.reshape(-1, *[1] * len(shape))
        expected = own * pool + (1 - own) * pool[partner]
        mixed = jit_mix(parts, mixing)
        assert [len(part) for part in mixed] == list(SIZES)
        np.testing.assert_allclose(np.concatenate(mixed), expected, atol=1e-6)


def test_partners_are_exact():
    parts, mixing = pool_of(np.random.default_rng(0), 3, 2, 1), draws_of(0)
    for weight, order in ((0.0, np.concatenate(mixing.partner)), (1.0, slice(None))):
        weights = tuple(jnp.full(size, weight) for size in SIZES)
        mixed = jit_mix(parts, mixing._replace(weight=weights))
        np.testing.assert_array_equal(np.concatenate(mixed), np.concatenate(parts)[order])


def test_labels_stay_distributions():
    labels = [numpy_softmax(part) for part in pool_of(np.random.default_rng(0), 5)]
    mixed = np.concatenate(jit_mix(labels, draws_of(0)))
    assert (mixed >= 0).all()
    np.testing.assert_allclose(mixed.sum(1), 1, rtol=1e-6)


@pytest.mark.parametrize("alpha", [pytest.param(0.1, marks=pytest.mark.slow), 0.75])
def test_weights_have_the_larger_share_of_a_beta(alpha):
    sizes = (10_000, 10_000)
    mixing = quick_jit(lambda key: draw_mixing(key, sizes, alpha))(jax.random.key(0))
    share = np.random.default_rng(0).beta(alpha, alpha, 100_000)
    levels = np.linspace(0.05, 0.95, 10)
    ours = np.quantile(np.concatenate(mixing.weight), levels)
    np.testing.assert_allclose(ours, np.quantile(np.maximum(share, 1 - share), levels), atol=0.01)


def test_draws_are_independent():
    one, other = draws_of(0), draws_of(1)
    assert not np.array_equal(np.concatenate(one.partner), np.concatenate(other.partner))
    assert len(np.unique(np.concatenate(one.weight))) == sum(SIZES)
    assert abs(np.corrcoef(*map(np.concatenate, one))[0, 1]) < 0.5


@pytest.mark.slow
def test_float64_is_kept():
    with jax.enable_x64(True):
        parts = [part.astype(np.float64) for part in pool_of(np.random.default_rng(0), 3)]
        mixing = draws_of(0)
        assert mixing.weight[0].dtype == jnp.float64
        weight, partner = map(np.concatenate, mixing)
        pool = np.concatenate(parts)
        expected = weight[:, None] * pool + (1 - weight)[:, None] * pool[partner]
        np.testing.assert_allclose(np.concatenate(jit_mix(parts, mixing)), expected, rtol=1e-13)


def test_interleave_by_hand():
    chunks = [np.arange(7) + 10 * number for number in range(3)]  # blocks of 2, 2 and 3 rows
    mixture, first, second = jit_interleave(chunks)
    np.testing.assert_array_equal(mixture, [0, 1, 12, 13, 24, 25, 26])
    np.testing.assert_array_equal(first, [10, 11, 2, 3, 14, 15, 16])
    np.testing.assert_array_equal(second, [20, 21, 22, 23, 4, 5, 6])


@settings(max_examples=15, deadline=None)
@given(count=st.integers(1, 5), size=st.integers(1, 7), seed=st.integers(0, 99))
def test_interleaving_twice_changes_nothing(count, size, seed):
    chunks = np.random.default_rng(seed).normal(size=(count, size, 2)).astype(np.float32)
    once = interleave(list(chunks))
    assert sorted(np.concatenate(once).ravel()) == sorted(chunks.ravel())
    np.testing.assert_array_equal(np.stack(interleave(once)), chunks)


def test_device_count():
    def function(batch, mixing):
        parts, chunks = batch
        return mix(parts, mixing), interleave(chunks)

    random = np.random.default_rng(0)
    chunks = [random.normal(size=(8, 2, 2, 1)).astype(np.float32) for _ in range(3)]
    assert_same_on_four(function, (pool_of(random, 3, 2, 1), chunks), draws_of(0))


@pytest.mark.slow
def test_parts_of_a_whole_pool():
    mixing = in_parts(jnp.arange(6.0), jnp.arange(6)[::-1], (1, 2, 3))
    assert isinstance(mixing, Mixing)
    assert [part.tolist() for part in mixing.weight] == [[0], [1, 2], [3, 4, 5]]
    assert [part.tolist() for part in mixing.partner] == [[5], [4, 3], [2, 1, 0]]
