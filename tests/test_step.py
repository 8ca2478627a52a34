"""The train step: its parts happen in order, with the right keys, parameters and rates."""

from dataclasses import dataclass
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    SIDE,
    SPEC,
    Noise,
    TinyNetwork,
    assert_bitwise,
    assert_close,
    initial_state,
    on_host,
    quick_jit,
    toy_data,
    views_of,
)

from jaxmatch.algorithms.fixmatch import FixMatch
from jaxmatch.augment.views import Views
from jaxmatch.errors import InputError
from jaxmatch.models.network import make_network
from jaxmatch.optim.ema import Ema
from jaxmatch.optim.optimizer import Optim
from jaxmatch.random import stream
from jaxmatch.step import init_state, make_train_step
from jaxmatch.types import Batch, Examples, Update

ALGORITHM = FixMatch(threshold=0.5)
NETWORK = make_network(TinyNetwork(param_dtype=jnp.float64))
OPTIM = Optim(learning_rate=0.2, warmup_steps=4, momentum=0.8, weight_decay=0.01)
EMA = Ema(decay=0.7)
AUGMENT = views_of(ALGORITHM)


@dataclass(frozen=True)
class Learning:
    """An augmentation whose policy remembers what it was told."""

    def init(self):
        return {"record": jnp.zeros(()), "told": jnp.zeros((2, 4))}

    def apply(self, policy, key, examples):
        batch, _ = AUGMENT.apply((), key, examples)
        return batch, jax.random.uniform(key)

    def update(self, policy, record, predict):
        return {"record": record, "told": predict(PROBES)}


PROBES = np.random.default_rng(0).normal(size=(2, SIDE, SIDE, 3))


def batch():
    return jax.tree.map(lambda leaf: leaf[:8], toy_data(ALGORITHM))


@pytest.fixture(scope="module")
def taken():
    """(state, metrics) before and after the first three steps, in float64."""
    with jax.enable_x64(True):
        optimizer = OPTIM.build(SPEC.steps)
        step = quick_jit(
            make_train_step(
                ALGORITHM, NETWORK, Learning(), optimizer, OPTIM.rate(SPEC.steps), EMA, SPEC
            )
        )
        state = initial_state(ALGORITHM, jnp.float64)
        state = state.replace(policy=Learning().init(), optimizer=optimizer.init(state.params))
        steps = [(state, {})]
        for _ in range(3):
            steps.append(step(steps[-1][0], batch()))
    return steps


def test_count_and_key(taken):
    for number, (state, _) in enumerate(taken):
        assert state.step == number
        np.testing.assert_array_equal(*map(jax.random.key_data, (state.key, taken[0][0].key)))


def test_logged_rate_is_the_one_that_is_used(taken):
    rates = [float(metrics["optim/learning_rate"]) for _, metrics in taken[1:]]
    np.testing.assert_allclose(rates, [0, 0.05, 0.1], rtol=1e-12)
    first, second, third = (state.params for state, _ in taken[:3])
    assert_bitwise(first, second)  # the warm-up begins at a rate of zero
    assert np.any(second["conv"]["kernel"] != third["conv"]["kernel"])


def test_parameters_teacher_and_statistics(taken):
    """Momentum, decay and averages of three steps, from the gradients of the loss alone."""
    with jax.enable_x64(True):

        @quick_jit
        def gradient(state):
            key = jax.random.fold_in(state.key, state.step)
            views, _ = AUGMENT.apply((), stream(key, "augment"), batch())

            def loss(params):
                return ALGORITHM.loss(NETWORK, params, state, views, (), SPEC)

            return jax.grad(loss, has_aux=True)(state.params)

        expected = taken[0][0].params
        teacher, momentum = expected, jax.tree.map(jnp.zeros_like, expected)
        for (before, _), (after, metrics) in pairwise(taken):
            gradients, update = gradient(before)
            norm = np.sqrt(sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(gradients)))
            np.testing.assert_allclose(metrics["optim/gradient_norm"], norm, rtol=1e-10)
            for name in ("conv", "classifier"):
                gradients[name]["kernel"] += 0.01 * before.params[name]["kernel"]
            rate = metrics["optim/learning_rate"]
            momentum = jax.tree.map(lambda m, g: 0.8 * m + g, momentum, gradients)
            expected = jax.tree.map(
                lambda p, m, g, rate=rate: p - rate * (g + 0.8 * m), expected, momentum, gradients
            )
            teacher = jax.tree.map(lambda t, p: 0.7 * t + 0.3 * p, teacher, expected)
            assert_close(after.params, expected, 1e-10)
            assert_close(after.teacher["params"], teacher, 1e-10)
            assert_close(after.stats, update.stats, 1e-10)
            assert_bitwise(after.teacher["batch_stats"], after.stats)


def test_the_augmentation_hears_the_new_teacher_in_eval_mode(taken):
    (_, _), *_, (state, _) = taken
    with jax.enable_x64(True):
        outputs, _ = quick_jit(NETWORK, static_argnames="train")(state.teacher, PROBES, train=False)
        told = jax.nn.softmax(outputs.logits)
        key = stream(jax.random.fold_in(state.key, 2), "augment")
        np.testing.assert_allclose(state.policy["told"], told, rtol=1e-10)
        np.testing.assert_array_equal(state.policy["record"], jax.random.uniform(key))


def test_every_step_draws_anew(taken):
    records = {float(state.policy["record"]) for state, _ in taken[1:]}
    assert len(records) == 3


def test_every_view_draws_for_itself():
    noise = Noise(50)
    augment = Views(transforms={"a": noise}, labeled=("a",), unlabeled=("a", "a"))
    images = np.full((2, 4, 4, 3), 128, np.uint8)
    examples = Examples((images,), label=np.arange(2))
    views, _ = augment.apply((), jax.random.key(0), Batch(examples, examples))
    assert views.labeled.label is examples.label
    (first,), (second, third) = views.labeled.views, views.unlabeled.views
    for left, right in ((first, second), (second, third), (first, third), (first[:1], first[1:])):
        assert np.abs(left - right).min() < np.abs(left - right).max()
        assert np.abs(left - right).mean() > 0.1
    assert np.abs(first - 128 / 127.5 + 1).max() <= 50 / 127.5 + 1e-6
    none, _ = augment.apply((), jax.random.key(0), Batch(None, examples))
    assert none.labeled is None
    with pytest.raises(InputError, match="'strong'"):
        Views(transforms={"a": noise}, labeled=("a",), unlabeled=("strong",))


def test_named_streams_differ_and_stay():
    key = jax.random.key(0)
    data = {
        name: tuple(jax.random.key_data(stream(key, name)).tolist())
        for name in ("augment", "loss", "model", "memory")
    }
    assert len(set(data.values())) == 4
    # A resumed run in another process must draw the same: no hash that changes with it.
    expected = jax.random.key_data(jax.random.fold_in(key, 0xEB167A19))
    assert data["augment"] == tuple(expected.tolist())


@dataclass(frozen=True)
class Remembering(FixMatch):
    """FixMatch that counts its steps in its memory, draws a number a step, and sets a bias."""

    def init(self, key, spec):
        return {"count": jnp.zeros((), jnp.int32), "first": jax.random.uniform(key), "drawn": 0.0}

    def draw(self, key, batch):
        return jax.random.uniform(key)

    def loss(self, network, params, state, batch, draws, spec):
        value, update = super().loss(network, params, state, batch, (), spec)
        memory = {**state.memory, "count": state.memory["count"] + 1, "drawn": draws}
        return value, Update(update.stats, update.metrics, memory)

    def project(self, params):
        return {**params, "classifier": {**params["classifier"], "bias": jnp.full(4, 0.5)}}


def test_memory_draws_and_projection_belong_to_the_algorithm():
    algorithm, optimizer = Remembering(), OPTIM.build(SPEC.steps)
    network = make_network(TinyNetwork())
    step = make_train_step(
        algorithm, network, AUGMENT, optimizer, OPTIM.rate(SPEC.steps), EMA, SPEC
    )

    @quick_jit
    def run(key):
        images = jnp.zeros((1, SIDE, SIDE, 3))
        state = init_state(key, TinyNetwork(), images, algorithm, AUGMENT, optimizer, SPEC)
        return state, step(state, batch())[0]

    key = jax.random.key(3)
    before, after = run(key)
    assert (before.memory["count"], after.memory["count"]) == (0, 1)
    np.testing.assert_array_equal(before.memory["first"], jax.random.uniform(stream(key, "memory")))
    drawn = jax.random.uniform(stream(jax.random.fold_in(key, 0), "loss"))
    np.testing.assert_array_equal(after.memory["drawn"], drawn)
    # What the algorithm makes of the parameters is what the teacher averages.
    np.testing.assert_array_equal(after.params["classifier"]["bias"], 0.5)
    expected = 0.7 * before.teacher["params"]["classifier"]["bias"] + 0.3 * 0.5
    np.testing.assert_allclose(after.teacher["params"]["classifier"]["bias"], expected, rtol=1e-6)


def test_initial_teacher_is_the_student_and_the_seed_decides():
    first, again, other = (
        on_host(initial_state.__wrapped__(ALGORITHM, seed=seed)) for seed in (0, 0, 1)
    )
    assert_bitwise(first.teacher, {"params": first.params, "batch_stats": first.stats})
    assert_bitwise(first, again)
    assert np.any(first.params["conv"]["kernel"] != other.params["conv"]["kernel"])
