"""Both forms of look-ups and of sums by number: equal values, gradients, and what devices send."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxmatch.functional import one_hot
from jaxmatch.functional.one_hot import look_up, sum_by
from jaxmatch.functional.similarity import aggregate, unfold

ROWS, COUNT, NUMBERS = 8, 5, 64
NUMBER = np.random.default_rng(0).integers(0, COUNT, NUMBERS).astype(np.int32)
LOOK_UPS = (one_hot._look_up_by_product, one_hot._look_up_by_gather)
SUMS = [partial(form, COUNT) for form in (one_hot._sum_by_product, one_hot._sum_by_scatter)]


def numbers(*shape, seed=1, scale=1.0):
    return (scale * np.random.default_rng(seed).normal(size=shape)).astype(np.float32)


@pytest.mark.parametrize("scale", [1e-25, 1.0, 1e30])
def test_look_ups_are_exact_in_both_forms(scale):
    table = numbers(ROWS, COUNT, scale=scale)
    for form in LOOK_UPS:
        np.testing.assert_array_equal(jax.jit(form)(table, NUMBER), table[:, NUMBER])


def test_a_product_of_fewer_parts_would_not_be_exact(monkeypatch):
    monkeypatch.setattr(one_hot, "_PARTS", 2)
    table = numbers(ROWS, COUNT)
    found = jax.jit(lambda table: one_hot._look_up_by_product(table, NUMBER))(table)
    assert (found != table[:, NUMBER]).any()


def test_sums_agree_in_both_forms():
    values = numbers(ROWS, NUMBERS)
    expected = values.astype(np.float64) @ np.eye(COUNT)[NUMBER]
    for form in SUMS:
        np.testing.assert_allclose(jax.jit(form)(values, NUMBER), expected, rtol=1e-6, atol=2e-6)


@pytest.mark.slow
def test_numbers_that_do_not_occur_have_a_sum_of_zero():
    values, number = numbers(ROWS, NUMBERS), np.minimum(NUMBER, COUNT - 2)
    for form in SUMS:
        assert not jax.jit(form)(values, number)[:, -1].any()


def test_gradients_are_those_of_a_product():
    table, values = numbers(ROWS, COUNT), numbers(ROWS, NUMBERS)
    ones = np.eye(COUNT, dtype=np.float32)[NUMBER]

    def energy(table, values, looked_up, summed):
        return jnp.sum(jnp.sin(looked_up(table)) * values) + jnp.sum(jnp.sin(summed(values)))

    slopes = jax.jit(jax.grad(energy, (0, 1)), static_argnums=(2, 3))
    ours = slopes(table, values, lambda t: look_up(t, NUMBER), lambda v: sum_by(v, NUMBER, COUNT))
    plain = slopes(table, values, lambda t: t @ ones.T, lambda v: v @ ones)
    for one, other in zip(ours, plain, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def test_vmap():
    tables = numbers(2, ROWS, COUNT)
    found = jax.vmap(look_up, (0, None))(tables, NUMBER)
    np.testing.assert_array_equal(found, tables[:, :, NUMBER])
    each = np.stack([NUMBER, NUMBER[::-1]])
    found = jax.vmap(look_up)(tables, each)
    np.testing.assert_array_equal(found[1], tables[1][:, each[1]])


def test_double_precision_is_kept():
    with jax.enable_x64(True):
        table = np.random.default_rng(0).normal(size=(ROWS, COUNT))
        np.testing.assert_array_equal(look_up(table, NUMBER), table[:, NUMBER])
        found = sum_by(table[:, NUMBER], NUMBER, COUNT)
        np.testing.assert_allclose(found, table * np.bincount(NUMBER), rtol=1e-14)


def test_a_tpu_moves_nothing_for_similarities():
    log_p, log_q = numbers(ROWS, COUNT), numbers(ROWS, NUMBERS)

    def both(log_p, log_q):
        return unfold(log_q, log_p, NUMBER), aggregate(jnp.exp(log_q), NUMBER, COUNT)

    def moves(platform):
        text = jax.jit(both).trace(log_p, log_q).lower(lowering_platforms=(platform,)).as_text()
        return set(re.findall(r"stablehlo\.(gather|scatter)", text))

    assert moves("tpu") == set()
    assert moves("cpu") == {"gather", "scatter"}


def test_zeros_and_ones_stay_where_numbers_are_spread():
    mesh = jax.make_mesh((4,), ("data",), (AxisType.Auto,))
    split = NamedSharding(mesh, PartitionSpec("data"))

    def program(table, number, other):
        found = one_hot._look_up_by_product(jnp.sin(table), number)
        return (found * other).sum(1)

    columns = NamedSharding(mesh, PartitionSpec(None, "data"))
    call = jax.jit(program, in_shardings=(split, split, columns), out_shardings=split)
    text = call.lower(numbers(ROWS, COUNT), NUMBER, numbers(ROWS, NUMBERS)).compile().as_text()
    gathered = re.findall(r"= \w+\[([\d,]*)\]\S* (?:all-gather|all-to-all)\(", text)
    assert gathered
    for shape in gathered:
        assert np.prod([int(side) for side in shape.split(",")]) <= 3 * ROWS * COUNT
