"""IOMatch against plain NumPy: value, gradient and history; and who is left out."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from embeddings import numpy_features, slope_along
from helpers import (
    CLASSES,
    SPEC,
    TinyNetwork,
    numpy_cross_entropy,
    numpy_softmax,
    one_hot,
    quick_jit,
    randomized,
    toy_state,
    toy_views,
)

from jaxmatch.algorithms.iomatch import IOMatch, hard_negative_loss, open_target
from jaxmatch.functional.memory import Queue
from jaxmatch.models.network import make_network
from jaxmatch.types import Outputs

LENGTH, STEP = 4, 50
TOY = IOMatch(
    threshold=0.4,
    open_threshold=0.5,
    unlabeled_weight=1.5,
    binary_weight=0.7,
    open_weight=0.4,
    open_start=0.5,
    alignment_length=LENGTH,
    projection=8,
)
FORMS = {"aligned": TOY, "unaligned": replace(TOY, alignment_length=0)}


def history():
    """A history with 2 of its 4 rows in use."""
    rows = np.zeros((LENGTH, CLASSES))
    rows[:2] = numpy_softmax(np.random.default_rng(4).normal(size=(2, CLASSES)))
    return Queue({"marginal": jnp.asarray(rows)}, jnp.int32(2), jnp.int32(2))


def wide_state(algorithm, dtype=jnp.float32, step=STEP):
    """A state whose open-set heads have larger parameters, so that some images are strangers."""
    state = toy_state(algorithm, dtype, step=step, seed=1)
    head = jax.tree.map(lambda leaf: 2 * leaf, state.params["open_set"])
    return state.replace(params={**state.params, "open_set": head})


def numpy_outputs(params, images):
    """Closed-set logits [b K], pairs (not k, k) [b 2 K] and open-set logits [b K+1]."""
    features = numpy_features(params, images)
    head = params["open_set"]
    z = np.maximum(features @ head["hidden"]["kernel"] + head["hidden"]["bias"], 0)
    z = z @ head["output"]["kernel"] + head["output"]["bias"]
    pairs = (z @ head["binary"]["kernel"]).reshape(len(z), 2, CLASSES)
    opened = z @ head["open"]["kernel"] + head["open"]["bias"]
    classifier = params["classifier"]
    return features @ classifier["kernel"] + classifier["bias"], pairs, opened


def numpy_targets(algorithm, on_weak, recorded):
    """p~, q~, and which images count in L_ui and in L_op."""
    p = numpy_softmax(on_weak[0])
    if algorithm.alignment_length:
        p = p / np.mean([*recorded, p.mean(0)], axis=0)
        p /= p.sum(1, keepdims=True)
    odds = np.exp(on_weak[1])
    o = odds / odds.sum(1, keepdims=True)
    q = np.concatenate([p * o[:, 1], (p * o[:, 0]).sum(1, keepdims=True)], 1)
    np.testing.assert_allclose(q.sum(1), 1)
    inlier = (p.max(1) > algorithm.threshold) & (q[:, -1] < 0.5)
    return p, q, inlier, q.max(1) > algorithm.open_threshold


@pytest.mark.parametrize("form", ["aligned", pytest.param("unaligned", marks=pytest.mark.slow)])
def test_value_and_gradient_are_those_of_the_equations(form):
    algorithm = FORMS[form]
    with jax.enable_x64(True):
        state, batch = wide_state(algorithm, jnp.float64), toy_views(algorithm)
        memory = history() if algorithm.alignment_length else ()
        state = state.replace(memory=memory)
        network = make_network(TinyNetwork(heads=algorithm.heads, param_dtype=jnp.float64))
        (loss, update), gradient = quick_jit(
            jax.value_and_grad(
                lambda params: algorithm.loss(network, params, state, batch, (), SPEC), has_aux=True
            )
        )(state.params)
    views = (*batch.labeled.views, *batch.unlabeled.views)
    ends = np.cumsum([len(view) for view in views])[:-1]
    label = batch.labeled.label

    def passed(params):
        outputs = numpy_outputs(params, np.concatenate(views))
        return list(zip(*(np.split(each, ends) for each in outputs), strict=True))

    recorded = np.asarray(memory.rows["marginal"])[:2] if algorithm.alignment_length else None
    fixed = passed(state.params)
    p, q, inlier, clear = numpy_targets(algorithm, fixed[1], recorded)
    for mask in (inlier, clear, q[:, -1] < 0.5):
        assert 0 < mask.sum() < len(mask)  # otherwise a mask would not be tested

    def value(params):
        on_x, _, on_strong = passed(params)
        odds = np.exp(on_x[1])
        o = odds / odds.sum(1, keepdims=True)
        binary = [
            -np.log(o[i, 1, y]) - min(np.log(o[i, 0, k]) for k in range(CLASSES) if k != y)
            for i, y in enumerate(label)
        ]
        return (
            numpy_cross_entropy(on_x[0], one_hot(label)).mean()
            + 0.7 * np.mean(binary)
            + 1.5 * (inlier * numpy_cross_entropy(on_strong[0], p)).mean()
            + 0.4 * (clear * numpy_cross_entropy(on_strong[2], q)).mean()
        )

    np.testing.assert_allclose(loss, value(state.params), rtol=1e-12)
    direction = randomized(jax.tree.map(np.zeros_like, state.params), seed=3, scale=1e-6)
    slope = sum(map(np.vdot, jax.tree.leaves(gradient), jax.tree.leaves(direction)))
    np.testing.assert_allclose(slope, slope_along(value, state.params, direction), rtol=1e-4)

    np.testing.assert_allclose(update.metrics["pseudo/coverage"], inlier.mean(), rtol=1e-6)
    strange = update.metrics["pseudo/judged_strangers"]
    np.testing.assert_allclose(strange, (q[:, -1] >= 0.5).mean(), rtol=1e-6)
    if algorithm.alignment_length:
        written = update.memory.rows["marginal"][2]
        np.testing.assert_allclose(written, numpy_softmax(fixed[1][0]).mean(0), rtol=1e-12)


def test_the_open_set_loss_begins_after_its_share_of_the_run():
    batch = toy_views(TOY)
    network = make_network(TinyNetwork(heads=TOY.heads))
    begun = {}
    compiled = quick_jit(lambda state: TOY.loss(network, state.params, state, batch, (), SPEC))
    for step in (49, 50):
        state = wide_state(TOY, step=step).replace(memory=TOY.init(None, SPEC))
        loss, update = compiled(state)
        begun[step] = float(update.metrics["loss/open"]), float(loss)
    assert begun[49][0] == 0
    assert begun[50][0] > 0
    np.testing.assert_allclose(begun[50][1] - begun[49][1], 0.4 * begun[50][0], rtol=1e-4)


@pytest.mark.slow
def test_extreme_logits_have_finite_losses_and_gradients():
    logits = jnp.array([[1e4, -1e4, 0.0], [-1e4, 1e4, 1e4]])
    loss, gradient = quick_jit(jax.value_and_grad(hard_negative_loss))(logits, jnp.array([1, 0]))
    assert np.isfinite(loss)
    assert np.all(np.isfinite(gradient))
    target = quick_jit(open_target)(jnp.array([[0.2, 0.8, 0.0]]), logits[:1])
    np.testing.assert_allclose(target, [[0.2, 0.0, 0.0, 0.8]], atol=1e-7)


def test_strangeness_is_the_odds_of_the_class_of_none():
    random = np.random.default_rng(0)
    head = random.normal(size=(5, 3 * CLASSES + 1)).astype(np.float32)
    outputs = Outputs(np.zeros((5, CLASSES)), np.zeros((5, 2)), {"open_set": head})
    q = numpy_softmax(head[:, 2 * CLASSES :].astype(float))[:, -1]
    found = quick_jit(TOY.strangeness)(outputs)
    np.testing.assert_allclose(found, np.log(q / (1 - q)), rtol=1e-5)
