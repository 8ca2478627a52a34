"""Schedules at the values that the papers and the spec give."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmatch.errors import InputError
from jaxmatch.schedules import cosine_7_16, learning_rate, linear_ramp


def test_cosine_starts_at_one_and_ends_at_0195():
    assert cosine_7_16(jnp.int32(0), 2**20) == 1
    np.testing.assert_allclose(cosine_7_16(jnp.int32(2**20), 2**20), 0.19509, atol=5e-6)
    rate = learning_rate("cosine_7_16", 0.03, 2**20)
    np.testing.assert_allclose(rate(jnp.int32(2**20)), 0.005853, atol=5e-7)


@pytest.mark.parametrize("step", [0, 1, 6, 7, 50, 99, 100])
@pytest.mark.parametrize("warmup", [0, 7])
def test_cosine_in_double_precision(step, warmup):
    factor = step / warmup if step < warmup else None
    if factor is None:
        factor = math.cos(7 * math.pi * (step - warmup) / (16 * (100 - warmup)))
    with jax.enable_x64(True):
        value = learning_rate("cosine_7_16", 0.03, 100, warmup)(jnp.int32(step))
    np.testing.assert_allclose(value, 0.03 * factor, rtol=1e-13)


def test_cosine_never_turns_negative():
    assert cosine_7_16(jnp.int32(200), 100) == 0


def test_constant_rate_with_and_without_warmup():
    steps = jnp.arange(5)
    np.testing.assert_array_equal(learning_rate("constant", 2.0, 10)(steps), np.full(5, 2.0))
    np.testing.assert_array_equal(learning_rate("constant", 2.0, 10, 4)(steps), [0, 0.5, 1, 1.5, 2])


def test_unknown_schedule_names_the_nearest():
    with pytest.raises(InputError, match="cosine_7_16"):
        learning_rate("cosine_7_61", 0.03, 10)


def test_linear_ramp():
    steps = jnp.array([0, 10, 40, 41, 100])
    np.testing.assert_allclose(linear_ramp(steps, 100, 0.4), [0, 0.25, 1, 1, 1], rtol=1e-6)
    assert linear_ramp(jnp.int32(0), 100, 0.0) == 1
