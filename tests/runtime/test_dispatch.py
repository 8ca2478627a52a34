"""Many steps in one call: sums of metrics, the first step that was not finite, interval means."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmatch.runtime.dispatch import make_call, means, merge, watched
from jaxmatch.types import Ratio, TrainState


def state(step=0):
    return TrainState(
        step=jnp.int32(step),
        key=jax.random.key(0),
        params=jnp.zeros(()),
        stats=(),
        teacher=(),
        optimizer=(),
        memory=(),
        policy=(),
    )


def stub_step(state, examples, bad=None):
    """Metrics that tell the step; those in ``bad`` (name -> step) turn NaN from that step on."""
    at = state.step.astype(jnp.float32)
    metrics = {
        "loss/total": at,
        "loss/supervised": 2 * at,
        "loss/unsupervised": jnp.ones(()),
        "optim/gradient_norm": jnp.ones(()),
        "pseudo/accuracy": Ratio(examples, state.step),  # counted 0, 1, 2, ... times
    }
    for name, first in (bad or {}).items():
        metrics[name] = jnp.where(state.step >= first, jnp.nan, metrics[name])
    return state.replace(step=state.step + 1, params=state.params + at), metrics


def call(steps, first=0, bad=None, examples=1.0):
    function = make_call(partial(stub_step, bad=bad), lambda data, state: data, steps)
    return jax.device_get(jax.jit(function)(state(first), jnp.float32(examples))[1])


def test_sums_over_the_steps_of_a_call():
    meter = call(4, first=3)  # steps 3, 4, 5, 6
    assert tuple(meter.sums["loss/total"]) == (18, 4)
    assert tuple(meter.sums["loss/supervised"]) == (36, 4)
    assert tuple(meter.sums["pseudo/accuracy"]) == (4, 18)
    assert meter.bad_step == -1


def test_the_examples_are_those_of_the_step():
    function = make_call(stub_step, lambda data, state: data[state.step], 3)
    meter = function(state(1), jnp.array([1.0, 10.0, 100.0, 1000.0]))[1]
    assert meter.sums["pseudo/accuracy"].total == 1110


def test_watched_terms_come_before_their_total_and_the_gradient():
    names = ["optim/gradient_norm", "loss/total", "loss/b", "pseudo/coverage", "loss/a"]
    assert watched(names) == ["loss/a", "loss/b", "loss/total", "optim/gradient_norm"]


@pytest.mark.parametrize("first", [0, 5])
@pytest.mark.parametrize("name", ["loss/supervised", "loss/unsupervised", "optim/gradient_norm"])
def test_the_first_bad_step_and_its_term(name, first):
    later = {"loss/total": first + 3, "loss/supervised": first + 3}
    meter = call(5, first=first, bad={**later, name: first + 2})
    assert meter.bad_step == first + 2
    assert watched(meter.sums)[meter.bad_term] == name


def test_a_bad_total_with_good_terms_is_the_total():
    meter = call(3, bad={"loss/total": 0, "optim/gradient_norm": 0})
    assert meter.bad_step == 0
    assert watched(meter.sums)[meter.bad_term] == "loss/total"


def test_infinite_is_bad_and_other_metrics_are_not_watched():
    assert call(2, examples=np.inf).bad_step == -1

    def step(state, examples):
        state, metrics = stub_step(state, examples)
        return state, metrics | {"loss/unsupervised": jnp.where(state.step == 2, jnp.inf, 1.0)}

    meter = make_call(step, lambda data, state: data, 4)(state(), jnp.float32(1))[1]
    assert meter.bad_step == 1
    assert watched(meter.sums)[int(meter.bad_term)] == "loss/unsupervised"


def test_one_call_of_four_is_four_calls_of_one():
    together = make_call(stub_step, lambda data, state: data, 4)(state(), jnp.float32(1))[0]
    each, apart = make_call(stub_step, lambda data, state: data, 1), state()
    for _ in range(4):
        apart = each(apart, jnp.float32(1))[0]
    assert together.step == apart.step == 4
    assert together.params == apart.params == 6


def test_meters_of_calls_in_a_row_merge_into_one():
    bad = {"loss/supervised": 3, "loss/unsupervised": 5}
    merged = call(2, bad=bad)
    for first in (2, 4):
        merged = merge(merged, call(2, first=first, bad=bad))
    whole = call(6, bad=bad)
    assert (merged.bad_step, merged.bad_term) == (whole.bad_step, whole.bad_term) == (3, 0)
    jax.tree.map(np.testing.assert_array_equal, merged.sums, whole.sums)


def test_means_weigh_by_the_count():
    sums = {"a": (6.0, 4), "never": (0.0, 0), "broken": (np.nan, 3), "b": Ratio(1.0, 2.0)}
    assert means(sums) == {"a": 1.5, "b": 0.5}
