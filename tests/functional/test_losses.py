"""Loss terms against NumPy, in extreme and in double precision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import numpy_cross_entropy, numpy_softmax, quick_jit
from on_devices import assert_same_on_four

from jaxmatch.functional.losses import (
    cross_entropy,
    entropy,
    info_nce,
    kl_divergence,
    nt_xent,
    squared_difference,
    supervised_contrastive,
)
from jaxmatch.functional.similarity import normalize


def test_classes_and_distributions():
    random = np.random.default_rng(0)
    logits = random.normal(0, 3, (7, 5)).astype(np.float32)
    label = random.integers(0, 5, 7)
    target = numpy_softmax(random.normal(size=(7, 5))).astype(np.float32)
    expected = numpy_cross_entropy(logits, np.eye(5)[label])
    np.testing.assert_allclose(cross_entropy(logits, jnp.asarray(label)), expected, rtol=1e-5)
    expected = numpy_cross_entropy(logits, target)
    np.testing.assert_allclose(cross_entropy(logits, jnp.asarray(target)), expected, rtol=1e-5)


def test_huge_logits_stay_finite():
    logits = jnp.array([[1e4, 0.0, -1e4]])
    assert cross_entropy(logits, jnp.array([2]))[0] == 2e4
    assert cross_entropy(logits, jnp.array([0]))[0] == 0
    gradient = quick_jit(jax.grad(lambda logits: cross_entropy(logits, jnp.array([2])).sum()))(
        logits
    )
    np.testing.assert_allclose(gradient, [[1, 0, -1]], atol=1e-6)


def test_float64_is_kept():
    with jax.enable_x64(True):
        logits = np.random.default_rng(0).normal(size=(3, 4))
        loss = cross_entropy(jnp.asarray(logits), jnp.array([0, 1, 2]))
    assert loss.dtype == np.float64
    expected = numpy_cross_entropy(logits, np.eye(4)[[0, 1, 2]])
    np.testing.assert_allclose(loss, expected, rtol=1e-14)


def test_gradient_is_probabilities_minus_target():
    random = np.random.default_rng(1)
    logits, other = random.normal(size=(2, 6, 4)).astype(np.float32)
    target = numpy_softmax(other)
    gradient = jax.grad(lambda z: cross_entropy(z, jnp.asarray(target)).sum())(logits)
    np.testing.assert_allclose(gradient, numpy_softmax(logits) - target, atol=1e-6)


def pairs_of_logits(scale, dtype=np.float64):
    return np.random.default_rng(0).normal(0, scale, (2, 7, 5)).astype(dtype)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0])
def test_entropy_and_divergence_equal_their_sums(scale):
    target_logits, logits = pairs_of_logits(scale)
    p, q = numpy_softmax(target_logits), numpy_softmax(logits)
    with jax.enable_x64(True):
        entropies, divergences = entropy(target_logits), kl_divergence(target_logits, logits)
        assert entropies.dtype == divergences.dtype == np.float64
    np.testing.assert_allclose(entropies, -(p * np.log(p)).sum(1), rtol=1e-9)
    np.testing.assert_allclose(divergences, (p * np.log(p / q)).sum(1), rtol=1e-9, atol=1e-15)


def test_divergence_is_cross_entropy_less_entropy():
    target_logits, logits = jnp.asarray(pairs_of_logits(2.0, np.float32))
    crossed = cross_entropy(logits, jax.nn.softmax(target_logits))
    divergences = kl_divergence(target_logits, logits)
    np.testing.assert_allclose(divergences, crossed - entropy(target_logits), atol=1e-5)
    assert np.all(divergences > 0)


@pytest.mark.slow
def test_bounds_of_entropy_and_divergence():
    uniform, certain = jnp.zeros((1, 4)), jnp.array([[1e4, 0.0, -1e4, 0.0]])
    np.testing.assert_allclose(entropy(uniform), [np.log(4)], rtol=1e-6)
    assert entropy(certain)[0] == 0
    np.testing.assert_allclose(kl_divergence(uniform, uniform + 7), [0], atol=1e-6)
    np.testing.assert_allclose(kl_divergence(uniform, certain), [1e4 - np.log(4)], rtol=1e-6)
    np.testing.assert_allclose(kl_divergence(certain, uniform), [np.log(4)], rtol=1e-6)
    for gradient in (
        quick_jit(jax.grad(lambda logits: entropy(logits).sum()))(certain),
        *quick_jit(jax.grad(lambda *pair: kl_divergence(*pair).sum(), (0, 1)))(certain, uniform),
    ):
        assert np.isfinite(gradient).all()


def test_gradients_of_entropy_and_divergence():
    target_logits, logits = pairs_of_logits(1.0)
    p, q = numpy_softmax(target_logits), numpy_softmax(logits)
    with jax.enable_x64(True):
        of_entropy = jax.grad(lambda logits: entropy(logits).sum())(target_logits)
        of_target, of_logits = jax.grad(lambda *pair: kl_divergence(*pair).sum(), (0, 1))(
            target_logits, logits
        )
    entropies = -(p * np.log(p)).sum(1, keepdims=True)
    divergences = (p * np.log(p / q)).sum(1, keepdims=True)
    np.testing.assert_allclose(of_entropy, -p * (np.log(p) + entropies), atol=1e-12)
    np.testing.assert_allclose(of_target, p * (np.log(p / q) - divergences), atol=1e-12)
    np.testing.assert_allclose(of_logits, q - p, atol=1e-12)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0])
def test_squared_difference_equals_its_sum(scale):
    logits, other = np.random.default_rng(0).normal(0, scale, (2, 7, 5))
    p, target = numpy_softmax(logits), numpy_softmax(other)
    with jax.enable_x64(True):
        found = squared_difference(jnp.asarray(logits), jnp.asarray(target))
        of_logits, of_target = jax.grad(lambda *pair: squared_difference(*pair).sum(), (0, 1))(
            jnp.asarray(logits), jnp.asarray(target)
        )
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, ((p - target) ** 2).sum(1) / 5, rtol=1e-12)
    slope = 2 / 5 * (p - target)
    np.testing.assert_allclose(of_target, -slope, atol=1e-14)
    expected = p * (slope - (p * slope).sum(1, keepdims=True))
    np.testing.assert_allclose(of_logits, expected, atol=1e-14)


@pytest.mark.slow
def test_bounds_of_the_squared_difference():
    certain = jnp.array([[1e4, 0.0, -1e4, 0.0]] * 2)
    target = jnp.eye(4)[:2]
    np.testing.assert_array_equal(squared_difference(certain, target), [0, 2 / 4])
    gradient = quick_jit(jax.grad(lambda logits: squared_difference(logits, target).sum()))(certain)
    assert np.isfinite(gradient).all()


jit_nt_xent = quick_jit(nt_xent)


def unit_pair(seed, batch=6, width=4, dtype=np.float64):
    pair = np.random.default_rng(seed).normal(size=(2, batch, width))
    return (pair / np.linalg.norm(pair, axis=-1, keepdims=True)).astype(dtype)


def numpy_nt_xent(first, second, temperature):
    """Equation 1 of SimCLR, anchor by anchor."""
    rows = np.concatenate([first, second])
    count = len(rows)
    losses = np.zeros(count)
    for i in range(count):
        power = {k: np.exp(rows[i] @ rows[k] / temperature) for k in range(count) if k != i}
        losses[i] = -np.log(power[(i + count // 2) % count] / sum(power.values()))
    return (losses[: count // 2] + losses[count // 2 :]) / 2


@pytest.mark.parametrize("temperature", [0.1, 0.5, 2.0])
def test_nt_xent_equals_a_double_loop(temperature):
    first, second = unit_pair(0)
    with jax.enable_x64(True):
        ours = jit_nt_xent(first, second, temperature)
    np.testing.assert_allclose(ours, numpy_nt_xent(first, second, temperature), rtol=1e-12)


def test_nt_xent_gradient_equals_finite_differences():
    first, second = unit_pair(1)
    with jax.enable_x64(True):
        gradients = quick_jit(jax.grad(lambda pair: nt_xent(*pair, 0.3).sum()))((first, second))
    step = 1e-6 * np.random.default_rng(0).normal(size=(2, 6, 4))
    pairs = (np.stack([first, second]) + sign * step for sign in (1, -1))
    up, down = (numpy_nt_xent(*pair, 0.3).sum() for pair in pairs)
    np.testing.assert_allclose(np.sum(np.stack(gradients) * step), (up - down) / 2, rtol=1e-6)


def test_nt_xent_is_symmetric_and_follows_the_order():
    first, second = unit_pair(2, dtype=np.float32)
    losses = jit_nt_xent(first, second, 0.5)
    order = np.random.default_rng(0).permutation(len(first))
    np.testing.assert_allclose(jit_nt_xent(second, first, 0.5), losses, rtol=1e-6)
    np.testing.assert_allclose(
        jit_nt_xent(first[order], second[order], 0.5), losses[order], rtol=1e-6
    )


def test_nt_xent_of_one_image_and_of_collapsed_embeddings():
    first, second = unit_pair(3, batch=1, dtype=np.float32)
    np.testing.assert_allclose(jit_nt_xent(first, second, 0.1), [0], atol=1e-6)
    same = jnp.ones((6, 4)) / 2
    np.testing.assert_allclose(jit_nt_xent(same, same, 0.1), np.full(6, np.log(11)), rtol=1e-6)


@quick_jit
@jax.value_and_grad
def contrast(pair, temperature):
    return nt_xent(*normalize(pair), temperature).mean()


@pytest.mark.parametrize("temperature", [1e-3, 0.5])
@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_nt_xent_stays_finite(temperature, scale):
    pair = scale * unit_pair(4, dtype=np.float32)
    pair[0, 0] = 0  # an embedding that has vanished

    value, gradient = contrast(pair, temperature)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


def test_nt_xent_widens_half_precision():
    first, second = unit_pair(5)
    half = nt_xent(jnp.asarray(first, jnp.bfloat16), jnp.asarray(second, jnp.bfloat16), 0.1)
    assert half.dtype == np.float32


def test_nt_xent_device_count():
    pair = tuple(unit_pair(6, batch=8, dtype=np.float32))

    def both(pair, _):
        return jax.value_and_grad(lambda pair: nt_xent(*pair, 0.2).mean())(pair)

    assert_same_on_four(both, pair)


def queue_of(seed, rows=5, width=4, dtype=np.float64):
    return unit_pair(seed, rows, width, dtype)[0]


def numpy_info_nce(query, key, rows, temperature):
    losses = []
    for q, k in zip(query, key, strict=True):
        powers = [np.exp(q @ k / temperature), *(np.exp(q @ row / temperature) for row in rows)]
        losses.append(-np.log(powers[0] / sum(powers)))
    return losses


jit_info_nce = quick_jit(info_nce)


@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_info_nce_equals_a_loop_over_valid_rows(temperature):
    query, key = unit_pair(0)
    queue, valid = queue_of(1), np.array([True, False, True, True, False])
    with jax.enable_x64(True):
        some = jit_info_nce(query, key, queue, temperature, valid)
        everyone = jit_info_nce(query, key, queue, temperature)
    expected = numpy_info_nce(query, key, queue[valid], temperature)
    np.testing.assert_allclose(some, expected, rtol=1e-10)
    expected = numpy_info_nce(query, key, queue, temperature)
    np.testing.assert_allclose(everyone, expected, rtol=1e-10)


def test_info_nce_ignores_what_unwritten_rows_hold():
    (query, key), queue = unit_pair(2, dtype=np.float32), queue_of(3, dtype=np.float32)
    valid = np.array([True, False, True, False, True])
    other = np.where(valid[:, None], queue, 1e4)
    losses = jit_info_nce(query, key, queue, 0.2, valid)
    np.testing.assert_array_equal(jit_info_nce(query, key, other, 0.2, valid), losses)


def test_info_nce_with_no_row_costs_nothing_and_teaches_nothing():
    (query, key), queue = unit_pair(4, dtype=np.float32), queue_of(5, dtype=np.float32)
    nobody = np.zeros(len(queue), bool)
    value, slope = quick_jit(
        jax.value_and_grad(lambda query: info_nce(query, key, queue, 0.2, nobody).sum())
    )(query)
    assert value == 0
    assert not np.any(slope)


def test_info_nce_of_collapsed_embeddings_is_chance():
    same = jnp.ones((6, 4)) / 2
    np.testing.assert_allclose(jit_info_nce(same, same, same, 0.1), np.log(7), rtol=1e-5)


def test_info_nce_stays_finite_and_wide():
    query, key = unit_pair(6)
    value, slope = quick_jit(
        jax.value_and_grad(lambda query: info_nce(query, -query, query, 1e-3).mean())
    )(np.float32(query))
    assert np.isfinite(value)
    assert np.isfinite(slope).all()
    half = (jnp.asarray(rows, jnp.bfloat16) for rows in (query, key, queue_of(7)))
    assert info_nce(*half, 0.1).dtype == np.float32


def test_info_nce_device_count():
    pair = tuple(unit_pair(8, batch=8, dtype=np.float32))

    def both(pair, queue):
        return jax.value_and_grad(lambda pair: info_nce(*pair, queue, 0.2).mean())(pair)

    assert_same_on_four(both, pair, queue_of(9, dtype=np.float32))


def numpy_supervised_contrastive(rows, labels, temperature):
    losses = []
    for i, anchor in enumerate(rows):
        others = [k for k in range(len(rows)) if k != i]
        scores = {k: anchor @ rows[k] / temperature for k in others}
        everyone = np.log(sum(np.exp(score) for score in scores.values()))
        terms = [everyone - scores[k] for k in others if labels[k] == labels[i]]
        losses.append(np.mean(terms) if terms else 0.0)
    return losses


@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_supervised_contrastive_is_its_double_loop(temperature):
    random = np.random.default_rng(0)
    rows = random.normal(size=(9, 4))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    labels = np.array([0, 1, 0, 2, 1, 0, 3, 1, 0])  # 2 and 3 are alone
    with jax.enable_x64(True):
        losses = quick_jit(supervised_contrastive)(rows, labels, temperature)
        assert losses.dtype == np.float64
        step = random.normal(0, 1e-6, rows.shape)
        slope = quick_jit(
            jax.grad(lambda rows: supervised_contrastive(rows, labels, temperature).sum())
        )(rows)
    expected = numpy_supervised_contrastive(rows, labels, temperature)
    np.testing.assert_allclose(losses, expected, rtol=1e-12)
    ahead, behind = (
        numpy_supervised_contrastive(rows + sign * step, labels, temperature) for sign in (1, -1)
    )
    difference = (np.sum(ahead) - np.sum(behind)) / 2
    np.testing.assert_allclose(np.vdot(slope, step), difference, rtol=1e-5)


@pytest.mark.slow
def test_pairs_that_are_alone_with_their_label_cost_nothing():
    value, slope = quick_jit(
        jax.value_and_grad(lambda rows: supervised_contrastive(rows, np.zeros(2, int), 0.01).sum())
    )(jnp.array([[1.0, 0.0], [-1.0, 0.0]]))
    assert value == 0
    np.testing.assert_array_equal(slope, 0)
