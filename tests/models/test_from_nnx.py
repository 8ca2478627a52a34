"""FixMatch trains an NNX module as it trains a Linen one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import (
    CLASSES,
    SIDE,
    SPEC,
    assert_bitwise,
    build,
    on_host,
    quick_jit,
    toy_data,
    views_of,
)

from jaxmatch.algorithms.fixmatch import FixMatch
from jaxmatch.models.from_nnx import from_nnx
from jaxmatch.models.network import make_network
from jaxmatch.optim.optimizer import Optim
from jaxmatch.runtime.dispatch import means
from jaxmatch.step import init_state
from jaxmatch.types import Outputs


class Convolutional(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(3, 6, (3, 3), use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(6, momentum=0.9, rngs=rngs)
        self.classifier = nnx.Linear(6, CLASSES, rngs=rngs)

    def __call__(self, images):
        features = nnx.relu(self.norm(self.conv(images))).mean((1, 2))
        return Outputs(self.classifier(features), features, {})


class WithDropout(Convolutional):
    def __init__(self, rngs):
        super().__init__(rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)


MODEL = from_nnx(Convolutional)
IMAGES = jnp.zeros((1, SIDE, SIDE, 3))


@pytest.fixture(scope="module")
def variables():
    return quick_jit(lambda key: MODEL.init(key, IMAGES))(jax.random.key(0))


def test_variables_look_like_linens(variables):
    assert set(variables) == {"params", "batch_stats"}
    assert variables["params"]["conv"]["kernel"].shape == (3, 3, 3, 6)
    assert set(variables["batch_stats"]["norm"]) == {"mean", "var"}


def test_initial_values_follow_the_key(variables):
    kernels = quick_jit(lambda key: MODEL.init(key, IMAGES)["params"]["conv"]["kernel"])
    again, other = (kernels(jax.random.key(seed)) for seed in (0, 1))
    kernel = variables["params"]["conv"]["kernel"]
    np.testing.assert_allclose(again, kernel, atol=1e-6)
    assert np.abs(other - kernel).max() > 0.01


def test_train_mode_updates_statistics_and_eval_mode_does_not(variables):
    network = quick_jit(make_network(MODEL), static_argnames="train")
    images = np.random.default_rng(0).normal(2, 1, (8, SIDE, SIDE, 3)).astype(np.float32)
    outputs, stats = network(variables, (images[:4], images[4:]))
    assert [output.logits.shape for output in outputs] == [(4, CLASSES)] * 2
    assert np.any(stats["norm"]["mean"] != variables["batch_stats"]["norm"]["mean"])

    together, kept = network(variables, images, train=False)
    alone, _ = network(variables, images[:1], train=False)
    np.testing.assert_allclose(alone.logits[0], together.logits[0], rtol=1e-5, atol=1e-6)
    assert_bitwise(kept, variables["batch_stats"])
    assert not np.any(kept["norm"]["mean"])  # the training pass changed nothing in place


@pytest.mark.slow
def test_fixmatch_trains_it_unchanged():
    algorithm = FixMatch(threshold=0.5)

    def init(key):
        optimizer = Optim().build(SPEC.steps)
        return init_state(key, MODEL, IMAGES, algorithm, views_of(algorithm), optimizer, SPEC)

    start = quick_jit(init)(jax.random.key(0))
    built = build(algorithm, model=MODEL, state=start)
    state, data, losses = built.init(), built.place(toy_data(algorithm)), []
    for _ in range(12):
        state, meter = built.call(state, data)
        losses.append(means(jax.device_get(meter.sums))["loss/supervised"])
    assert losses[-1] < 0.5 * losses[0]
    state = on_host(state)
    assert np.any(state.stats["norm"]["mean"])
    np.testing.assert_array_equal(
        state.teacher["batch_stats"]["norm"]["mean"], state.stats["norm"]["mean"]
    )


def test_other_state_is_refused():
    with pytest.raises(TypeError, match=r"nnx\.Param and nnx\.BatchStat.*dropout"):
        jax.eval_shape(lambda key: from_nnx(WithDropout).init(key, IMAGES), jax.random.key(0))
