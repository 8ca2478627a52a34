"""Options for unequal classes against plain NumPy: value and gradient, memories, and refusals."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from embeddings import slope_along
from helpers import (
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

from jaxmatch.algorithms import ALGORITHMS
from jaxmatch.algorithms.aligned import Aligned
from jaxmatch.algorithms.balanced_classifier import ABC
from jaxmatch.algorithms.debiaspl import DebiasPL
from jaxmatch.algorithms.fixmatch import FixMatch
from jaxmatch.algorithms.fixmatch_eman import FixMatchEMAN
from jaxmatch.algorithms.logit_adjustment import LogitAdjusted
from jaxmatch.algorithms.mean_teacher import MeanTeacher
from jaxmatch.algorithms.mixmatch import MixMatch
from jaxmatch.algorithms.supervised import Supervised
from jaxmatch.algorithms.unequal import Unequal, innermost, with_options
from jaxmatch.errors import InputError
from jaxmatch.models.network import make_network
from jaxmatch.types import Examples

THRESHOLD = 0.4
METHOD = FixMatch(threshold=THRESHOLD)
LABELS = (0,) * 10 + (1,) * 5 + (2,) * 3 + (3,) * 2
SKEWED = dataclasses.replace(SPEC, labels=LABELS)
PRIOR = np.bincount(LABELS) / len(LABELS)
AVERAGE = np.array([0.55, 0.25, 0.15, 0.05])


def evaluated(algorithm, memory=None, step=50):
    """Loss, update, gradient, state, views and draws of a method on a toy batch in float64."""
    with jax.enable_x64(True):
        state, batch = toy_state(algorithm, jnp.float64, step=step), toy_views(algorithm)
        if memory is not None:
            state = state.replace(memory=memory(state.memory))
        draws = algorithm.draw(jax.random.key(3), batch)
        network = make_network(TinyNetwork(heads=algorithm.heads, param_dtype=jnp.float64))

        def loss(params):
            return algorithm.loss(network, params, state, batch, draws, SKEWED)

        (value, update), gradient = quick_jit(jax.value_and_grad(loss, has_aux=True))(state.params)
    return value, update, gradient, state, batch, jax.device_get(draws)


def logits_of(params, batch, classifier="classifier"):
    """Logits of (x, weak, strong) in one BatchNorm batch."""
    kernel = params[classifier]
    views = (*batch.labeled.views, *(() if batch.unlabeled is None else batch.unlabeled.views))
    logits = numpy_logits({**params, "classifier": kernel}, np.concatenate(views))
    return np.split(logits, np.cumsum([len(view) for view in views])[:-1])


def fixmatch(label, on_x, weak, on_strong):
    """FixMatch's equations (3) and (4) with the logits that make its targets and its losses."""
    probabilities = numpy_softmax(weak)
    confident = probabilities.max(1) >= THRESHOLD
    assert confident.any()
    errors = numpy_cross_entropy(on_strong, one_hot(probabilities.argmax(1)))
    return numpy_cross_entropy(on_x, one_hot(label)).mean() + (confident * errors).mean()


def assert_agrees(found, value):
    """Hold value and gradient against ``value(params)``, whose targets have fixed parameters."""
    loss, _, gradient, state, *_ = found
    np.testing.assert_allclose(loss, value(state.params), rtol=1e-11)
    direction = randomized(jax.tree.map(np.zeros_like, state.params), seed=3, scale=1e-6)
    slope = sum(map(np.vdot, jax.tree.leaves(gradient), jax.tree.leaves(direction)))
    np.testing.assert_allclose(slope, slope_along(value, state.params, direction), rtol=1e-4)


@pytest.mark.parametrize("on_unlabeled", [pytest.param(False, marks=pytest.mark.slow), True])
def test_logit_adjustment(on_unlabeled):
    found = evaluated(LogitAdjusted(method=METHOD, tau=1.5, on_unlabeled=on_unlabeled))
    *_, state, batch, _ = found
    _, weak, _ = logits_of(state.params, batch)
    shift = 1.5 * np.log(PRIOR)

    def value(params):
        on_x, _, on_strong = logits_of(params, batch)
        strong = on_strong + shift * on_unlabeled
        return fixmatch(batch.labeled.label, on_x + shift, weak, strong)

    assert_agrees(found, value)


@pytest.mark.slow
def test_balanced_softmax_of_a_supervised_run():
    found = evaluated(LogitAdjusted(method=Supervised()))
    batch = found[4]

    def value(params):
        (on_x,) = logits_of(params, batch)
        weighted = np.exp(on_x) * np.bincount(LABELS)  # Ren et al., eq. 3
        truth = weighted[np.arange(len(on_x)), batch.labeled.label]
        return -np.log(truth / weighted.sum(1)).mean()

    assert_agrees(found, value)


@pytest.mark.parametrize("prior", [pytest.param("uniform", marks=pytest.mark.slow), "labels"])
def test_alignment(prior):
    found = evaluated(
        Aligned(method=METHOD, prior=prior, momentum=0.9),
        lambda memory: memory._replace(average=jnp.asarray(AVERAGE)),
    )
    _, update, _, state, batch, _ = found
    _, weak, _ = logits_of(state.params, batch)
    aligned = numpy_softmax(weak) / AVERAGE * (PRIOR if prior == "labels" else 1)
    aligned = np.log(aligned / aligned.sum(1, keepdims=True))

    def value(params):
        on_x, _, on_strong = logits_of(params, batch)
        return fixmatch(batch.labeled.label, on_x, aligned, on_strong)

    assert_agrees(found, value)
    expected = 0.9 * AVERAGE + 0.1 * numpy_softmax(weak).mean(0)
    np.testing.assert_allclose(update.memory.average, expected, rtol=1e-12)


def test_debiased_pseudo_labels_and_adaptive_margins():
    found = evaluated(
        DebiasPL(method=METHOD, tau=0.7, momentum=0.9),
        lambda memory: memory._replace(average=jnp.asarray(AVERAGE)),
    )
    _, update, _, state, batch, _ = found
    _, weak, _ = logits_of(state.params, batch)
    debiased = weak - 0.7 * np.log(AVERAGE)
    margin = 0.7 * np.log(1 / AVERAGE)

    def value(params):
        on_x, _, on_strong = logits_of(params, batch)
        return fixmatch(batch.labeled.label, on_x, debiased, on_strong - margin)

    assert_agrees(found, value)
    expected = 0.9 * AVERAGE + 0.1 * numpy_softmax(weak).mean(0)
    np.testing.assert_allclose(update.memory.average, expected, rtol=1e-12)
    entropy = -(expected * np.log(expected)).sum()
    np.testing.assert_allclose(update.metrics["pseudo/average_entropy"], entropy, rtol=1e-12)


def test_the_auxiliary_balanced_classifier():
    step, weight = 50, 0.8
    found = evaluated(ABC(method=METHOD, weight=weight, threshold=0.35), step=step)
    _, update, _, state, batch, draws = found
    label = batch.labeled.label

    def both(params):
        ordinary = logits_of({**params, "ordinary": params["ordinary"]["dense"]}, batch, "ordinary")
        return ordinary, logits_of(params, batch)

    (_, weak, _), (_, balanced_weak, _) = both(state.params)
    kept = np.bincount(LABELS).min() / np.bincount(LABELS)
    counts = draws.labeled < kept[label]
    target = numpy_softmax(balanced_weak)
    kept_now = 1 - step / SPEC.steps * (1 - kept)
    mask = (target.max(1) >= 0.35) & (draws.unlabeled < kept_now[target.argmax(1)])
    assert 0 < counts.sum() < len(counts)
    assert 0 < mask.sum() < (target.max(1) >= 0.35).sum()

    def value(params):
        (on_x, _, on_strong), (balanced_x, _, balanced_strong) = both(params)
        supervised = (counts * numpy_cross_entropy(balanced_x, one_hot(label))).mean()
        consistency = (mask * numpy_cross_entropy(balanced_strong, target)).mean()
        ordinary = fixmatch(label, on_x, weak, on_strong)
        return ordinary + weight * (supervised + consistency)

    assert_agrees(found, value)
    np.testing.assert_allclose(update.metrics["pseudo/balanced_coverage"], mask.mean())


def test_masks_keep_classes_equally_often():
    algorithm = ABC(method=METHOD)
    views = toy_views(algorithm)
    many = Examples((np.zeros((20_000, 1)),), np.zeros(20_000, np.int32))
    draws = algorithm.draw(jax.random.key(0), views._replace(labeled=many))
    share = np.asarray(draws.labeled) < 0.2
    assert abs(share.mean() - 0.2) < 4 * np.sqrt(0.16 / 20_000)
    assert draws.unlabeled.shape == (len(views.unlabeled.views[0]),)


@pytest.mark.slow
def test_a_teacher_that_gives_the_targets():
    method = FixMatchEMAN(threshold=THRESHOLD)
    found = evaluated(
        DebiasPL(method=method, tau=0.7, momentum=0.9),
        lambda memory: memory._replace(average=jnp.asarray(AVERAGE)),
    )
    update, state, batch = found[1], found[3], found[4]
    with jax.enable_x64(True):
        network = make_network(TinyNetwork(param_dtype=jnp.float64))
        weak = network(state.teacher, batch.unlabeled.views[0], train=False)[0].logits
    expected = 0.9 * AVERAGE + 0.1 * numpy_softmax(np.asarray(weak)).mean(0)
    np.testing.assert_allclose(update.memory.average, expected, rtol=1e-10)


def test_options_nest():
    options = Unequal(debias=0.4, logit_adjustment=1.0, abc=1.0)
    algorithm = with_options(METHOD, options, "fixmatch")
    assert innermost(algorithm) is METHOD
    assert [type(algorithm), type(algorithm.method), type(algorithm.method.method)] == [
        ABC,
        LogitAdjusted,
        DebiasPL,
    ]
    assert set(algorithm.heads) == {"ordinary"}
    assert (algorithm.labeled, algorithm.unlabeled) == (METHOD.labeled, METHOD.unlabeled)
    value = evaluated(algorithm)[0]
    assert np.isfinite(value)
    assert with_options(METHOD, Unequal(), "fixmatch") is METHOD


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sampling": "balanced", "abc": 1.0}, "corrects for unequal ones"),
        ({"sampling": "balanced", "logit_adjustment": 1.0}, "corrects for unequal ones"),
        ({"adjust_unlabeled": True}, "needs unequal.logit_adjustment"),
        ({"debias": 0.4, "align": "labels"}, "align=labels both shift"),
        ({"sampling": "equal"}, "unknown unequal.sampling"),
        ({"debias_momentum": 1.0}, "debias_momentum=1.0 must"),
    ],
)
def test_options_that_contradict_each_other(values, message):
    with pytest.raises(InputError, match=message):
        Unequal(**values)


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("simclr", {"sampling": "balanced"}, "reads no labels"),
        ("supervised", {"debias": 0.4}, "weak views label strong ones"),
        ("mean_teacher", {"abc": 1.0}, "weak views label strong ones"),
        ("mixmatch", {"logit_adjustment": 1.0}, "changes its labeled images"),
        ("remixmatch", {"debias": 0.4}, "changes its labeled images"),
        ("simmatch", {"align": "labels"}, "aligns its predictions by itself"),
        ("iomatch", {"align": "labels"}, "set algorithm.alignment_length=0 beside unequal.align"),
    ],
)
def test_methods_that_an_option_is_not_defined_for(name, values, message):
    with pytest.raises(InputError, match=message):
        with_options(ALGORITHMS[name](), Unequal(**values), name)


@pytest.mark.slow
def test_a_method_of_ones_own_that_hides_its_views():
    algorithm = LogitAdjusted(method=MixMatch())
    state, batch = toy_state(METHOD), toy_views(algorithm)
    network = make_network(TinyNetwork())
    with pytest.raises(InputError, match="asks for none"):
        jax.eval_shape(
            lambda key: algorithm.loss(
                network, state.params, state, batch, algorithm.draw(key, batch), SKEWED
            ),
            jax.random.key(3),
        )


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(ALGORITHMS))
def test_every_method_with_what_it_takes(name):
    method = ALGORITHMS[name]()
    for values in ({"logit_adjustment": 1.0}, {"align": "labels"}, {"debias": 0.4}, {"abc": 1.0}):
        try:
            algorithm = with_options(method, Unequal(**values), name)
        except InputError:
            continue
        state, batch = toy_state(algorithm), toy_views(algorithm)
        network = make_network(TinyNetwork(heads=algorithm.heads))
        draws = algorithm.draw(jax.random.key(0), batch)
        loss = jax.eval_shape(
            lambda params, a=algorithm, n=network, s=state, b=batch, d=draws: a.loss(
                n, params, s, b, d, SPEC
            )[0],
            state.params,
        )
        assert loss.shape == ()


def test_mean_teacher_takes_logit_adjustment():
    assert type(with_options(MeanTeacher(), Unequal(logit_adjustment=1.0), "m")) is LogitAdjusted
