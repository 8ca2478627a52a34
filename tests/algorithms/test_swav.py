"""SwAV against its equations in plain NumPy: sizes of views, the queue, and resting prototypes."""

from contextlib import nullcontext
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from embeddings import slope_along, unit
from helpers import (
    SPEC,
    UNLABELED_BATCH,
    TinyNetwork,
    assert_close,
    build,
    numpy_logits,
    numpy_softmax,
    on_host,
    quick_jit,
    randomized,
    toy_data,
    toy_state,
    toy_views,
)
from hypothesis import given
from hypothesis import strategies as st

from jaxmatch.algorithms.swav import SwAV, swapped_prediction
from jaxmatch.config.flags import from_flags
from jaxmatch.data.facts import Facts
from jaxmatch.errors import InputError
from jaxmatch.functional.memory import push
from jaxmatch.models.network import make_network
from jaxmatch.program import Program

PLAIN = SwAV(prototypes=9, projection=5, hidden=7, small_crops=2, freeze=0.05)
QUEUED = replace(PLAIN, queue=30, queue_start=0.1, freeze=0.0)
PAST = {
    name: unit(np.random.default_rng(seed).normal(size=(30, 5)))
    for name, seed in (("first", 7), ("second", 8))
}


def toy(algorithm, dtype, step, past=0):
    """(state, batch, network); small views are smaller, ``past`` rows of the queue are written."""
    state, batch = toy_state(algorithm, dtype, step), toy_views(algorithm)
    *large, one, other = batch.unlabeled.views
    views = (*large, one[:, :6, :6], other[:, 2:, 2:])
    batch = batch._replace(unlabeled=batch.unlabeled._replace(views=views))
    if past:
        rows = {name: jnp.asarray(each[:past], dtype) for name, each in PAST.items()}
        state = state.replace(memory=push(state.memory, rows))
    return state, batch, make_network(TinyNetwork(heads=algorithm.heads, param_dtype=dtype))


def numpy_embeddings(params, views):
    """Unit rows of views of one size, one BatchNorm batch."""
    width, layers = len(params["classifier"]["kernel"]), params["projection"]["projector"]
    identity = {"kernel": np.eye(width), "bias": 0.0}
    x = numpy_logits({**params, "classifier": identity}, np.concatenate(views))
    x = x @ layers["hidden1"]["kernel"] + layers["hidden1_bias"]
    x = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5)
    x = np.maximum(x * layers["hidden1_norm"]["scale"] + layers["hidden1_norm"]["bias"], 0)
    return np.split(unit(x @ layers["output"]["kernel"] + layers["output"]["bias"]), len(views))


def numpy_scores(params, views):
    embeddings = numpy_embeddings(params, views[:2]) + numpy_embeddings(params, views[2:])
    return [each @ params["projection"]["prototypes"]["kernel"].T for each in embeddings]


def numpy_codes(scores, epsilon=0.05, iterations=3):
    """Algorithm 1 of the paper's appendix: of scores [n k], all rows in turn with all columns."""
    codes = np.exp(scores / epsilon).T
    codes /= codes.sum()
    for _ in range(iterations):
        codes /= codes.sum(1, keepdims=True) * codes.shape[0]
        codes /= codes.sum(0) * codes.shape[1]
    return codes.T * codes.shape[1]


def numpy_loss(scores, codes):
    """Both large views' assignments, each predicted from the three other views."""
    costs = [
        -np.mean((code * np.log(numpy_softmax(score / 0.1))).sum(1))
        for s, code in enumerate(codes)
        for t, score in enumerate(scores)
        if t != s
    ]
    assert len(costs) == 6
    return np.mean(costs)


def evaluate(algorithm, state, batch, network):
    return quick_jit(
        jax.value_and_grad(
            lambda params: algorithm.loss(network, params, state, batch, (), SPEC), has_aux=True
        )
    )(state.params)


@pytest.mark.parametrize(
    ("step", "past", "used"),
    [
        (10, 30, True),
        pytest.param(9, 30, False, marks=pytest.mark.slow),
        pytest.param(10, 29, False, marks=pytest.mark.slow),
    ],
)
def test_value_gradient_and_queue_are_those_of_the_equations(step, past, used):
    with jax.enable_x64(True):
        state, batch, network = toy(QUEUED, jnp.float64, step, past)
        (loss, update), gradient = evaluate(QUEUED, state, batch, network)
    views, params = batch.unlabeled.views, state.params
    scores = numpy_scores(params, views)
    codes = []
    for score, rows in zip(scores[:2], PAST.values(), strict=True):
        earlier = rows @ params["projection"]["prototypes"]["kernel"].T
        both = np.concatenate([earlier, score]) if used else score
        codes.append(numpy_codes(both)[-len(score) :])
    np.testing.assert_allclose(loss, numpy_loss(scores, codes), rtol=1e-11)
    assert update.metrics["loss/swapped"] == loss
    if used:
        direction = randomized(jax.tree.map(np.zeros_like, params), seed=3, scale=1e-6)
        slope = sum(map(np.vdot, jax.tree.leaves(gradient), jax.tree.leaves(direction)))
        expected = slope_along(
            lambda changed: numpy_loss(numpy_scores(changed, views), codes), params, direction
        )
        np.testing.assert_allclose(slope, expected, rtol=1e-4)
        assert np.any(gradient["projection"]["prototypes"]["kernel"])
        assert not np.any(gradient["classifier"]["kernel"])
    new = numpy_embeddings(params, views[:2])
    at = (past + np.arange(UNLABELED_BATCH)) % 30
    for (name, rows), each in zip(PAST.items(), new, strict=True):
        expected = np.where(np.arange(30)[:, None] < past, rows, 0)
        expected[at] = each
        np.testing.assert_allclose(update.memory.rows[name], expected, rtol=1e-9)


@pytest.mark.slow
def test_prototypes_rest_before_they_learn():
    state, batch, network = toy(PLAIN, jnp.float32, 0)

    @quick_jit
    def slope(params, step):
        now = state.replace(step=step)
        return jax.grad(lambda params: PLAIN.loss(network, params, now, batch, (), SPEC)[0])(params)

    for step, rests in ((0, True), (4, True), (5, False)):
        gradient = slope(state.params, jnp.int32(step))
        assert np.any(gradient["projection"]["prototypes"]["kernel"]) != rests
        assert np.any(gradient["conv"]["kernel"])
        assert np.any(gradient["projection"]["projector"]["output"]["kernel"])


@pytest.mark.slow
def test_each_size_is_one_pass_that_continues_the_statistics():
    state, batch, network = toy(PLAIN, jnp.float32, 0)
    calls = []

    def spy(variables, views, train=True):
        outputs, stats = network(variables, views, train)
        calls.append((variables, views, stats))
        return outputs, stats

    loss = lambda params: PLAIN.loss(spy, params, state, batch, (), SPEC)[1].stats  # noqa: E731
    stats = jax.eval_shape(loss, state.params)
    (_, large, after_large), (variables, small, after_small) = calls
    assert (large, small) == (batch.unlabeled.views[:2], batch.unlabeled.views[2:])
    assert variables["batch_stats"] is after_large
    assert jax.tree.structure(stats) == jax.tree.structure(after_small)
    calls.clear()
    alone = replace(PLAIN, small_crops=0)
    two = batch._replace(unlabeled=batch.unlabeled._replace(views=large))
    jax.eval_shape(lambda params: alone.loss(spy, params, state, two, (), SPEC), state.params)
    assert len(calls) == 1
    assert alone.unlabeled == ("contrast", "contrast")
    assert PLAIN.unlabeled == ("contrast", "contrast", "small", "small")


@pytest.mark.slow
def test_a_step_ends_with_unit_prototypes_which_the_teacher_averages():
    built = build(PLAIN, devices=1, steps_per_call=6)
    before = built.init()
    old = on_host(before).params["projection"]["prototypes"]["kernel"]
    np.testing.assert_allclose(np.linalg.norm(old, axis=1), np.ones(9), rtol=1e-6)
    state = on_host(built.call(before, built.place(toy_data(PLAIN)))[0])
    new = state.params["projection"]["prototypes"]["kernel"]
    np.testing.assert_allclose(np.linalg.norm(new, axis=1), np.ones(9), rtol=1e-6)
    assert np.abs(new - old).max() > 1e-3  # five steps at rest, one of learning
    taught = state.teacher["params"]["projection"]["prototypes"]["kernel"]
    np.testing.assert_allclose(taught, 0.9 * old + 0.1 * new, atol=1e-6)


def test_projection_touches_nothing_but_prototypes():
    params = toy_state(PLAIN).params
    after = PLAIN.project(params)
    kernel = params["projection"]["prototypes"]["kernel"]
    expected = {**params, "projection": {**params["projection"], "prototypes": {}}}
    assert_close({**after, "projection": {**after["projection"], "prototypes": {}}}, expected, 0)
    np.testing.assert_allclose(after["projection"]["prototypes"]["kernel"], unit(kernel), rtol=1e-5)


@pytest.mark.slow
@given(st.integers(0, 2**31), st.integers(1, 2), st.integers(2, 5))
def test_swapped_prediction_averages_the_pairs_of_different_views(seed, assigned, views):
    random = np.random.default_rng(seed)
    scores = random.uniform(-1, 1, (views, 3, 4))
    codes = random.dirichlet(np.ones(4), (assigned, 3))
    ours = swapped_prediction(list(scores), list(codes), 0.1)
    expected = [
        -(codes[s] * np.log(numpy_softmax(scores[t] / 0.1))).sum(1)
        for s in range(assigned)
        for t in range(views)
        if s != t
    ]
    np.testing.assert_allclose(ours, np.mean(expected, 0), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_extreme_scores_stay_finite_and_half_precision_is_widened():
    scores = jnp.array([[1.0, -1.0], [1.0, 1.0]], jnp.bfloat16)
    codes = [jnp.array([[0.0, 1.0], [1.0, 0.0]])] * 2

    def loss(scores):
        return swapped_prediction([scores, scores], codes, 1e-3).sum()

    assert swapped_prediction([scores, scores], codes, 0.1).dtype == np.float32
    value, slope = jax.value_and_grad(loss)(scores.astype(jnp.float32))
    assert np.isfinite(value)
    assert np.isfinite(slope).all()


def test_batches_too_small_for_prototypes_or_queue_are_refused():
    for algorithm, expected in (
        (SwAV(prototypes=25), r"batch of 24 with algorithm.queue=0 .* at most 24 prototypes"),
        (SwAV(prototypes=60, queue=30), r"algorithm.queue=30 .*=60 equally; give at most 54"),
        (SwAV(prototypes=20, queue=23), r"24 embeddings does not fit into algorithm.queue=23"),
    ):
        with pytest.raises(InputError, match=expected):
            algorithm.init(jax.random.key(0), SPEC)
    assert SwAV(prototypes=24).init(jax.random.key(0), SPEC) == ()
    assert SwAV(prototypes=48, queue=24).init(jax.random.key(0), SPEC).filled == 0


FACTS = Facts(classes=("x",) * 10, image_shape=(32, 28, 3), labels=(0,), unlabeled=9)


@pytest.mark.parametrize(
    ("config", "overrides", "role"),
    [
        ("swav:mnist5k", {"views.small.size": 29}, "small"),
        ("swav:mnist5k", {"views.contrast.size": 29}, "contrast"),
        ("byol:mnist5k", {"views.second.size": 29}, "second"),
        ("fixmatch:mnist5k", {"views.contrast.size": 29, "augment": "contrast"}, "contrast"),
    ],
)
def test_views_larger_than_the_image_are_refused(config, overrides, role):
    flags = [f"--config.{key}={value}" for key, value in overrides.items()]
    with pytest.raises(InputError, match=rf"views.{role}.size=29 is larger .* 28; give at most 28"):
        Program.build(from_flags(config, flags)[0], FACTS)
    views = Program.build(from_flags("fixmatch:mnist5k", flags[:1])[0], FACTS).augment
    assert views.transforms[role].size == 29  # of a role that the method does not ask for


@pytest.mark.parametrize(
    ("recipe", "refused"),
    [
        ("fixmatch,augment=contrast", True),
        ("simmatch_v2,augment=contrast", True),
        ("remixmatch,augment=contrast", True),
        ("comatch", True),
        ("simclr", False),
        ("moco_v2", False),
        ("swav", False),
    ],
)
def test_views_of_one_pass_have_one_size(recipe, refused):
    name, *words = recipe.split(",")
    flags = ["--config.views.contrast.size=16"]
    if name == "simclr":  # both of its views are of this kind
        flags.append("--config.views.second.size=16")
    flags += [f"--config.{word}" for word in words]
    facts = replace(FACTS, labels=tuple(range(10)), unlabeled=200)
    program = Program.build(from_flags(f"{name}:mnist5k", flags)[0], facts)
    expected = pytest.raises(InputError, match=r"have (28 x 28|32 x 28) and 16 x 16 pixels; leave")
    with expected if refused else nullcontext():
        program.trace(1)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"temperature": 0}, r"algorithm.temperature=0 must be above 0"),
        ({"epsilon": -0.1}, r"algorithm.epsilon=-0.1 must be above 0"),
        ({"iterations": 0}, r"algorithm.iterations=0 must be at least 1"),
        ({"prototypes": 1}, r"algorithm.prototypes=1 must be at least 2"),
        ({"small_crops": -1}, r"algorithm.small_crops=-1 must be at least 0"),
        ({"queue": -1}, r"algorithm.queue=-1 must be at least 0"),
        ({"queue_start": 15}, r"algorithm.queue_start=15 must lie between 0 and 1"),
        ({"freeze": -0.5}, r"algorithm.freeze=-0.5 must lie between 0 and 1"),
    ],
)
def test_bad_settings_are_refused(settings, expected):
    with pytest.raises(InputError, match=expected):
        SwAV(**settings)


def test_it_reads_no_labels_and_reports_the_student():
    assert PLAIN.labeled == ()
    assert PLAIN.evaluated == "student"
    assert toy_views(PLAIN).labeled is None
