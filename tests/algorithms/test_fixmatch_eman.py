"""FixMatch-EMAN against plain NumPy: who sees what, value and gradient, and the teacher's part."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    BN_DECAY,
    BN_EPS,
    SLOPE,
    SPEC,
    TinyNetwork,
    numpy_cross_entropy,
    numpy_logits,
    numpy_softmax,
    one_hot,
    quick_jit,
    randomized,
    toy_state,
    toy_views,
)

from jaxmatch.algorithms.fixmatch_eman import FixMatchEMAN
from jaxmatch.models.network import make_network
from jaxmatch.optim.ema import Ema
from jaxmatch.optim.optimizer import Optim
from jaxmatch.step import make_train_step
from jaxmatch.types import Examples

ALGORITHM = FixMatchEMAN(threshold=0.4, unlabeled_weight=1.5)
TRAINING = replace(SPEC, teacher_trains=True)


def toy(dtype=jnp.float64):
    """(state, batch, network); the teacher has statistics of its own."""
    state = toy_state(ALGORITHM, dtype)
    norm = state.teacher["batch_stats"]["norm"]
    random = np.random.default_rng(5)
    moments = {
        "mean": np.asarray(norm["mean"]) + random.normal(0, 0.3, norm["mean"].shape),
        "var": np.asarray(norm["var"]) * random.uniform(0.5, 2, norm["var"].shape),
    }
    state = state.replace(
        stats=jax.device_get(state.stats),
        teacher={**state.teacher, "batch_stats": {"norm": moments}},
    )
    network = make_network(TinyNetwork(param_dtype=dtype))
    return state, toy_views(ALGORITHM), network


def convolved(params, images):
    windows = np.lib.stride_tricks.sliding_window_view(images, (3, 3), (1, 2))
    return np.einsum("bhwcij,ijco->bhwo", windows, params["conv"]["kernel"])


def teacher_logits(teacher, images):
    """The TinyNetwork in eval mode: logits [b C]."""
    params, moments = teacher["params"], teacher["batch_stats"]["norm"]
    x = (convolved(params, images) - moments["mean"]) / np.sqrt(moments["var"] + BN_EPS)
    x = x * params["norm"]["scale"] + params["norm"]["bias"]
    features = np.where(x > 0, x, SLOPE * x).mean((1, 2))
    return features @ params["classifier"]["kernel"] + params["classifier"]["bias"]


def oracle(params, on_weak, batch):
    """The loss of the paper's equations with the teacher's logits ``on_weak``."""
    (x,), (_, strong) = batch.labeled.views, batch.unlabeled.views
    on_x, on_strong = np.split(numpy_logits(params, np.concatenate([x, strong])), [len(x)])
    supervised = numpy_cross_entropy(on_x, one_hot(batch.labeled.label)).mean()
    mask = numpy_softmax(on_weak).max(1) >= 0.4
    errors = numpy_cross_entropy(on_strong, one_hot(on_weak.argmax(1)))
    return supervised + 1.5 * np.mean(mask * errors), mask


@pytest.mark.parametrize("trains", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_value_and_gradient_are_those_of_the_equations(trains):
    with jax.enable_x64(True):
        state, batch, network = toy()
        spec = TRAINING if trains else SPEC
        (loss, update), gradient = quick_jit(
            jax.value_and_grad(
                lambda params: ALGORITHM.loss(network, params, state, batch, (), spec),
                has_aux=True,
            )
        )(state.params)
    weak = batch.unlabeled.views[0]
    on_weak = (
        numpy_logits(state.teacher["params"], weak)
        if trains
        else teacher_logits(state.teacher, weak)
    )
    expected, mask = oracle(state.params, on_weak, batch)
    assert 0 < mask.mean() < 1
    np.testing.assert_allclose(loss, expected, rtol=1e-12)
    np.testing.assert_allclose(update.metrics["pseudo/coverage"], mask.mean(), rtol=1e-6)
    terms = [float(update.metrics[f"loss/{name}"]) for name in ("supervised", "unsupervised")]
    np.testing.assert_allclose(terms[0] + 1.5 * terms[1], loss, rtol=1e-12)

    direction = randomized(jax.tree.map(np.zeros_like, state.params), seed=3, scale=1e-6)
    ahead = oracle(jax.tree.map(np.add, state.params, direction), on_weak, batch)[0]
    behind = oracle(jax.tree.map(np.subtract, state.params, direction), on_weak, batch)[0]
    slope = sum(map(np.vdot, jax.tree.leaves(gradient), jax.tree.leaves(direction)))
    np.testing.assert_allclose(slope, (ahead - behind) / 2, rtol=1e-4)


def step_of(network, state, batch, spec):
    """What a loss hands back beside its value."""
    loss = quick_jit(lambda state: ALGORITHM.loss(network, state.params, state, batch, (), spec)[1])
    return loss(state)


@pytest.mark.slow  # part of the equations
def test_the_student_never_sees_the_weak_views():
    with jax.enable_x64(True):
        state, batch, network = toy()
        update = step_of(network, state, batch, SPEC)
    (x,), (_, strong) = batch.labeled.views, batch.unlabeled.views
    seen = convolved(state.params, np.concatenate([x, strong]))
    mean = BN_DECAY * state.stats["norm"]["mean"] + (1 - BN_DECAY) * seen.mean((0, 1, 2))
    np.testing.assert_allclose(update.stats["norm"]["mean"], mean, rtol=1e-12)


def test_the_teachers_statistics_come_back_where_it_trains():
    with jax.enable_x64(True):
        state, batch, network = toy()
        still, own = (
            step_of(network, state, batch, spec).teacher_stats for spec in (SPEC, TRAINING)
        )
    assert still is None
    seen = convolved(state.teacher["params"], batch.unlabeled.views[0])
    old = state.teacher["batch_stats"]["norm"]["mean"]
    mean = BN_DECAY * old + (1 - BN_DECAY) * seen.mean((0, 1, 2))
    np.testing.assert_allclose(own["norm"]["mean"], mean, rtol=1e-12)


@pytest.mark.slow  # the equations above have a teacher in eval mode
def test_a_label_does_not_depend_on_the_rest_of_the_batch():
    state, batch, network = toy(jnp.float32)

    @quick_jit
    def shown(unlabeled):
        """The teacher's logits in a step."""
        logits = []

        def spy(variables, views, train=True):
            outputs, stats = network(variables, views, train)
            if not train:
                logits.append(outputs[0].logits)
            return outputs, stats

        given = batch._replace(unlabeled=Examples(unlabeled))
        ALGORITHM.loss(spy, state.params, state, given, (), SPEC)
        return logits[0]

    views = batch.unlabeled.views
    part = shown(tuple(view[:6] for view in views))
    np.testing.assert_allclose(part, shown(views)[:6], rtol=1e-5)


class Still:
    """An Augment whose images are views already."""

    def apply(self, policy, key, examples):
        del key
        return examples, policy

    def update(self, policy, record, predict):
        del record, predict
        return policy


def test_the_teacher_is_999_thousandths_of_itself_after_a_step():
    """From equal networks, parameters and BatchNorm statistics alike."""
    with jax.enable_x64(True):
        state, batch, network = toy()
        optim, ema = Optim(), Ema(decay=0.999, statistics="averaged")
        optimizer, rate = optim.build(SPEC.steps), optim.rate(SPEC.steps)
        start = state.student()
        state = state.replace(teacher=start, optimizer=optimizer.init(start["params"]))
        step = make_train_step(ALGORITHM, network, Still(), optimizer, rate, ema, SPEC)
        after, _ = jax.device_get(quick_jit(step)(state, batch))

    def check(old, student, teacher):
        assert np.any(student != old)
        np.testing.assert_allclose(teacher, 0.999 * old + 0.001 * student, rtol=1e-12)

    jax.tree.map(check, start, after.student(), after.teacher)
