"""Schedules at the values that the papers and the spec give."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import quick_jit
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxmatch.errors import InputError
from jaxmatch.optim.schedules import (
    cosine,
    cosine_7_16,
    learning_rate,
    linear_ramp,
    training_signal,
)


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
    np.testing.assert_allclose(linear_ramp(steps, 100, 2.0), steps / 200, rtol=1e-6)
    with pytest.raises(InputError, match=r"ramp of -0\.1 is no share"):
        linear_ramp(steps, 100, -0.1)


@pytest.mark.parametrize("warmup", [0, 7])
def test_half_cosine_in_double_precision(warmup):
    steps = np.arange(101)
    body = 0.5 * (1 + np.cos(np.pi * (steps - warmup) / (100 - warmup)))
    expected = np.where(steps < warmup, (steps + 1) / max(1, warmup), body)
    with jax.enable_x64(True):
        rates = quick_jit(learning_rate("cosine", 0.06, 100, warmup))(jnp.asarray(steps))
    np.testing.assert_allclose(rates, 0.06 * expected, rtol=1e-13, atol=1e-17)
    assert cosine(jnp.int32(130), 100, warmup) == cosine(jnp.int32(100), 100, warmup) == 0


def test_simmatch_rate_in_the_last_epoch():
    """0.03 (1 + cos(pi 394 / 395)) / 2 in epoch 399 of 400, five of them warm-up."""
    rate = learning_rate("cosine", 0.03, 400 * 50, 5 * 50, period=50)
    expected = 0.03 * 0.5 * (1 + math.cos(math.pi * 394 / 395))
    with jax.enable_x64(True):
        rates = quick_jit(rate)(jnp.arange(399 * 50, 400 * 50))
    np.testing.assert_allclose(rates, np.full(50, expected), rtol=1e-9)


@pytest.mark.parametrize("name", ["cosine", "cosine_7_16"])
@pytest.mark.parametrize("warmup", [0, 4, 10])
def test_a_held_rate_is_that_of_the_period_s_first_step(name, warmup):
    steps = jnp.arange(30)
    rates = quick_jit(learning_rate(name, 1.0, 30, warmup))(steps)
    held = np.asarray(quick_jit(learning_rate(name, 1.0, 30, warmup, period=5))(steps))
    np.testing.assert_array_equal(held[:warmup], rates[:warmup])
    for start in range(warmup, 30, 5):
        assert (held[start : start + 5] == held[start]).all()
        np.testing.assert_allclose(held[start], rates[start], rtol=1e-6, atol=1e-7)


def test_rate_drops_at_shares_of_the_run():
    rate = learning_rate("steps", 2.0, 50, 4, drops=(0.6, 0.8))
    steps = np.arange(60)
    expected = np.where(steps < 30, 2.0, np.where(steps < 40, 0.2, 0.02))
    expected[:4] = [0.5, 1.0, 1.5, 2.0]
    with jax.enable_x64(True):
        rates = quick_jit(rate)(jnp.asarray(steps))
    np.testing.assert_allclose(rates, expected, rtol=1e-14)
    # 0.7 * 10 is a little above 7 in binary.
    assert learning_rate("steps", 1.0, 10, drops=(0.7,))(jnp.int32(7)) == jnp.float32(0.1)


@pytest.mark.parametrize("name", ["cosine", "cosine_7_16", "constant", "steps"])
def test_one_step_at_a_time_is_all_at_once(name):
    drops = (0.5,) if name == "steps" else ()
    rate = quick_jit(learning_rate(name, 0.1, 20, 3, period=4, drops=drops))
    steps = jnp.arange(22)
    np.testing.assert_array_equal(rate(steps), jnp.stack([rate(step) for step in steps]))


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("cosine", {"period": 0}, "held for 0 steps"),
        ("cosine", {"drops": (0.5,)}, "'cosine' with drops"),
        ("steps", {}, "'steps' with drops"),
        ("steps", {"drops": (0.5, 60)}, "shares of the run between 0 and 1"),
    ],
)
def test_settings_that_a_schedule_cannot_have(name, settings, message):
    with pytest.raises(InputError, match=message):
        learning_rate(name, 0.1, 100, **settings)


def test_training_signals():
    steps = np.array([0, 30, 100, 130])
    done = np.minimum(steps / 100, 1)
    shares = {
        "none": np.ones(4),
        "linear": done,
        "exp": np.exp(5 * (done - 1)),
        "log": 1 - np.exp(-5 * done),
    }
    for name, share in shares.items():
        with jax.enable_x64(True):
            signal = quick_jit(partial(training_signal, name, steps=100, classes=10))(steps)
        np.testing.assert_allclose(signal, 0.1 + 0.9 * share, rtol=1e-14)


@settings(deadline=None, max_examples=30)
@given(step=st.integers(0, 2**20), steps=st.integers(1, 2**20), classes=st.integers(2, 1000))
def test_training_signals_rise_from_a_guess_in_their_order(step, steps, classes):
    values = np.array(
        [
            [training_signal(name, jnp.int32(now), steps, classes) for now in (step, step + 1)]
            for name in ("exp", "linear", "log")
        ]
    )
    assert (1 / classes - 1e-6 <= values).all()
    assert (values <= 1 + 1e-6).all()
    assert (values[:, 0] <= values[:, 1] + 1e-6).all()
    # exp(-5) is not quite 0, where "exp" starts and "log" falls short.
    assert (values[:-1] <= values[1:] + 0.007).all()


def test_an_unknown_training_signal():
    with pytest.raises(InputError, match="unknown training signal 'lin'; did you mean 'linear'"):
        training_signal("lin", jnp.int32(0), 10, 2)
