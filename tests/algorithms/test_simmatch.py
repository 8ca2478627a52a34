"""SimMatch against plain NumPy: value, gradient and memory of each form, and each rule alone."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from embeddings import (
    echo,
    echo_loss,
    echo_views,
    full_bank,
    numpy_outputs,
    slope_along,
    unit,
)
from helpers import (
    CLASSES,
    LABELED_BATCH,
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

from jaxmatch.algorithms.simmatch import Memory, SimMatch
from jaxmatch.functional.memory import Bank, Queue
from jaxmatch.models.network import make_network

WIDTH, LENGTH = 8, 4
INDEX = np.array([3, 1, 3, 0, 7, 1, 1, 9])  # with repetitions; 9 is not filled yet
TOY = SimMatch(
    threshold=0.4,
    unlabeled_weight=1.5,
    instance_weight=0.7,
    temperature=0.3,
    smoothing=0.6,
    instance_start_step=5,
    alignment_length=LENGTH,
    projection=WIDTH,
)
FORMS = {
    "student": TOY,
    "teacher": replace(TOY, teacher=True, bank_momentum=0.0),
    "unfolded": replace(TOY, aggregate_unfolded=True),
    "unaligned": replace(TOY, alignment_length=0, smoothing=1.0),
}


def partly_filled(algorithm):
    """A bank with 9 of its 16 rows and a history with 2 of its 4 rows in use."""
    random = np.random.default_rng(4)
    labels = np.asarray(SPEC.labels)
    filled = np.arange(len(labels)) < 9
    bank = Bank(
        jnp.asarray(unit(random.normal(size=(len(labels), WIDTH))) * filled[:, None]),
        jnp.asarray(labels),
        jnp.asarray(filled),
    )
    if not algorithm.alignment_length:
        return Memory(bank, ())
    rows = np.zeros((LENGTH, CLASSES))
    rows[:2] = numpy_softmax(random.normal(size=(2, CLASSES)))
    return Memory(bank, Queue({"marginal": jnp.asarray(rows)}, jnp.int32(2), jnp.int32(2)))


def oracle(algorithm, memory, on_x, on_weak, on_strong, label):
    """Loss, mask and pseudo-labels from the equations; each ``on`` is (logits, embeddings)."""
    filled = np.asarray(memory.bank.filled)
    keys, classes = np.asarray(memory.bank.embeddings)[filled], np.asarray(SPEC.labels)[filled]
    p = numpy_softmax(on_weak[0])
    if algorithm.alignment_length:
        recorded = np.asarray(memory.history.rows["marginal"])[:2]
        p = p / np.mean([*recorded, p.mean(0)], axis=0)
        p /= p.sum(1, keepdims=True)
    q_weak, q_strong = (
        numpy_softmax(embeddings @ keys.T / algorithm.temperature)
        for _, embeddings in (on_weak, on_strong)
    )
    unfolded = q_weak * p[:, classes]
    unfolded /= unfolded.sum(1, keepdims=True)
    votes = (unfolded if algorithm.aggregate_unfolded else q_weak) @ one_hot(classes)
    target = algorithm.smoothing * p + (1 - algorithm.smoothing) * votes
    mask = target.max(1) >= algorithm.threshold
    supervised = numpy_cross_entropy(on_x[0], one_hot(label)).mean()
    unsupervised = np.mean(mask * numpy_cross_entropy(on_strong[0], target))
    instance = -np.mean((unfolded * np.log(q_strong)).sum(1))
    terms = supervised, unsupervised, instance
    return np.dot(terms, (1, 1.5, 0.7)), terms, mask


@pytest.mark.parametrize(
    "form",
    [
        "student",
        *(
            pytest.param(form, marks=pytest.mark.slow)
            for form in ("teacher", "unfolded", "unaligned")
        ),
    ],
)
def test_value_gradient_and_memory_are_those_of_the_equations(form):
    algorithm = FORMS[form]
    with jax.enable_x64(True):
        memory = partly_filled(algorithm)
        state = toy_state(algorithm, jnp.float64, step=5).replace(memory=memory)
        batch = toy_views(algorithm)
        batch = batch._replace(labeled=batch.labeled._replace(index=INDEX))
        model = TinyNetwork(heads=algorithm.heads, param_dtype=jnp.float64)
        network = make_network(model)
        spec = replace(SPEC, teacher_trains=True)
        (loss, update), gradient = quick_jit(
            jax.value_and_grad(
                lambda params: algorithm.loss(network, params, state, batch, (), spec),
                has_aux=True,
            )
        )(state.params)

    (x,), (weak, strong) = batch.labeled.views, batch.unlabeled.views

    def forward(params):
        if algorithm.teacher:
            on_x, on_strong = numpy_outputs(params, x, strong)
            return on_x, None, on_strong
        return numpy_outputs(params, x, weak, strong)

    if algorithm.teacher:
        remembered, target = numpy_outputs(state.teacher["params"], x, weak)
    else:
        remembered, target, _ = forward(state.params)

    def value(params):
        on_x, _, on_strong = forward(params)
        return oracle(algorithm, memory, on_x, target, on_strong, batch.labeled.label)

    expected, terms, mask = value(state.params)
    assert 0 < mask.mean() < 1
    np.testing.assert_allclose(loss, expected, rtol=1e-12)
    names = ("supervised", "unsupervised", "instance")
    measured = [float(update.metrics[f"loss/{name}"]) for name in names]
    np.testing.assert_allclose(measured, terms, rtol=1e-12)
    np.testing.assert_allclose(update.metrics["pseudo/coverage"], mask.mean(), rtol=1e-6)
    assert (update.teacher_stats is not None) == algorithm.teacher

    direction = randomized(jax.tree.map(np.zeros_like, state.params), seed=3, scale=1e-6)
    slope = sum(map(np.vdot, jax.tree.leaves(gradient), jax.tree.leaves(direction)))
    expected_slope = slope_along(lambda params: value(params)[0], state.params, direction)
    np.testing.assert_allclose(slope, expected_slope, rtol=1e-4)

    rows = np.array(memory.bank.embeddings)
    for position in range(LABELED_BATCH):  # the last of a repeated index wins
        old = np.asarray(memory.bank.embeddings)[INDEX[position]]
        share = algorithm.bank_momentum if INDEX[position] < 9 else 0.0
        rows[INDEX[position]] = unit(share * old + (1 - share) * remembered[1][position])
    np.testing.assert_allclose(update.memory.bank.embeddings, rows, atol=1e-12)
    assert np.asarray(update.memory.bank.filled).tolist() == [True] * 10 + [False] * 6
    if algorithm.alignment_length:
        average = numpy_softmax(target[0]).mean(0)
        np.testing.assert_allclose(update.memory.history.rows["marginal"][2], average, rtol=1e-12)


# The authors' slides: an image, seven times as similar to class 0 as its neighbors say.
LABELS = np.array([0, 1, 2, 3, 0, 0, 1, 3])
PREDICTION = np.array([0.8, 0.01, 0.1, 0.09])
SIMILARITY = np.array([0.2, 0.05, 0.01, 0.04, 0.3, 0.25, 0.05, 0.01])
UNFOLDED = [0.263809, 0.000824, 0.001649, 0.005936, 0.395713, 0.329761, 0.000824, 0.001484]
SMOOTHED = {
    False: [0.802418, 0.019989, 0.091099, 0.086495],
    True: [0.818928, 0.009165, 0.090165, 0.081742],
}
SLIDES = SimMatch(
    threshold=0.0,
    temperature=float(1 / np.linalg.norm(np.log(SIMILARITY))),
    instance_start_step=0,
    alignment_length=0,
    projection=8,
)
EIGHT = replace(SPEC, labels=tuple(LABELS.tolist()))
WEAK = echo_views(np.log(PREDICTION)[None], unit(np.log(SIMILARITY))[None])


def slides_memory():
    return Memory(full_bank(np.eye(8), LABELS), ())


def pseudo_label(algorithm, memory, weak=WEAK, step=0):
    """The target, from the slope softmax(logits) - target of a strong view, and the metrics."""
    quiet = replace(algorithm, instance_weight=0.0)

    def loss(strong):
        return echo_loss(quiet, EIGHT, memory, WEAK[:1], (weak, strong), step)

    strong = np.zeros((len(weak), 12), np.float32)
    gradient, update = jax.jit(jax.grad(loss, has_aux=True))(strong)
    return 1 / CLASSES - len(weak) * gradient[:, :CLASSES], update.metrics


@pytest.mark.parametrize("unfolded", [pytest.param(False, marks=pytest.mark.slow), True])
def test_the_worked_example_of_the_slides(unfolded):
    algorithm = replace(SLIDES, aggregate_unfolded=unfolded)
    target, _ = pseudo_label(algorithm, slides_memory())
    np.testing.assert_allclose(target[0], SMOOTHED[unfolded], atol=2e-6)
    _, update = echo_loss(algorithm, EIGHT, slides_memory(), WEAK, (WEAK, WEAK))
    similarity = SIMILARITY / SIMILARITY.sum()
    expected = -np.dot(UNFOLDED, np.log(similarity))
    np.testing.assert_allclose(update.metrics["loss/instance"], expected, rtol=1e-5)


def test_before_the_start_step_neither_instance_loss_nor_aggregation():
    algorithm = replace(SLIDES, instance_start_step=7)
    for step, target in ((6, PREDICTION), (7, SMOOTHED[False])):
        found, metrics = pseudo_label(algorithm, slides_memory(), step=step)
        np.testing.assert_allclose(found[0], target, atol=2e-6)
        assert (metrics["loss/instance"] == 0) == (step == 6)

    def loss(strong):
        return echo_loss(algorithm, EIGHT, slides_memory(), WEAK, (WEAK, strong), step=6)[0]

    gradient = jax.jit(jax.grad(loss))(WEAK[:, ::-1].copy())
    assert np.any(gradient[:, :CLASSES])
    assert not np.any(gradient[:, CLASSES:])


@pytest.mark.slow
def test_an_empty_bank_has_no_say():
    memory = SLIDES.init(jax.random.key(0), EIGHT)
    target, metrics = pseudo_label(SLIDES, memory)
    np.testing.assert_allclose(target[0], PREDICTION, atol=1e-6)
    assert metrics["loss/instance"] == 0

    def loss(strong):
        return echo_loss(SLIDES, EIGHT, memory, WEAK, (WEAK, strong))[0]

    value, gradient = jax.jit(jax.value_and_grad(loss))(np.zeros((1, 12), np.float32))
    assert np.isfinite(value)
    assert np.all(np.isfinite(gradient))
    assert not np.any(gradient[:, CLASSES:])


@pytest.mark.slow
def test_unfilled_rows_have_no_vote():
    filled = np.arange(8) < 5
    losses = []
    for garbage in (0.0, 3.0):
        embeddings = np.where(filled[:, None], np.eye(8), garbage)
        labels = np.where(filled, LABELS, int(garbage))
        bank = full_bank(embeddings, labels)._replace(filled=jnp.asarray(filled))
        losses.append(echo_loss(SLIDES, EIGHT, Memory(bank, ()), WEAK, (WEAK, WEAK))[0])
    assert losses[0] == losses[1]
    assert losses[0] != echo_loss(SLIDES, EIGHT, slides_memory(), WEAK, (WEAK, WEAK))[0]


@pytest.mark.slow
def test_confidence_is_that_of_the_smoothed_label():
    for threshold, covered in ((0.801, 1), (0.803, 0)):  # .8 predicted, .8024 smoothed
        _, metrics = pseudo_label(replace(SLIDES, threshold=threshold), slides_memory())
        assert metrics["pseudo/coverage"] == covered


@pytest.mark.slow
def test_similarities_are_to_the_bank_before_it_is_written():
    random = np.random.default_rng(0)
    losses = []
    for _ in range(2):
        labeled = WEAK.copy()
        labeled[:, CLASSES:] = random.normal(size=8)
        losses.append(echo_loss(SLIDES, EIGHT, slides_memory(), labeled, (WEAK, WEAK))[0])
    assert losses[0] == losses[1]


@pytest.mark.parametrize("teacher", [pytest.param(False, marks=pytest.mark.slow), True])
def test_no_gradient_reaches_targets_or_memory(teacher):
    algorithm = replace(SLIDES, teacher=teacher, alignment_length=2)
    views = np.random.default_rng(1).normal(size=(3, 5, 12)).astype(np.float32)
    history = algorithm.init(jax.random.key(0), EIGHT).history
    memory = Memory(full_bank(np.eye(8), LABELS), history)

    def loss(labeled, weak, strong):
        return echo_loss(algorithm, EIGHT, memory, labeled, (weak, strong))

    by_labeled, by_weak, by_strong = jax.jit(jax.grad(lambda *views: loss(*views)[0], (0, 1, 2)))(
        *views
    )
    assert np.all(np.any(by_labeled[:, :CLASSES], axis=1))
    assert not np.any(by_labeled[:, CLASSES:])
    assert not np.any(by_weak)
    assert np.all(np.any(by_strong[:, :CLASSES], axis=1))
    assert np.all(np.any(by_strong[:, CLASSES:], axis=1))

    def remembered(*views):
        new = loss(*views)[1].memory
        return new.bank.embeddings.sum() + new.history.rows["marginal"][0, 0]

    assert not any(map(np.any, jax.jit(jax.grad(remembered, (0, 1, 2)))(*views)))


@pytest.mark.parametrize("trains", [pytest.param(False, marks=pytest.mark.slow), True])
def test_the_teacher_form_runs_the_teacher_as_the_run_says(trains):
    passes = []

    def network(variables, views, train=True):
        passes.append(train)
        return echo(variables, views, train)

    algorithm = replace(SLIDES, teacher=True)
    assert (algorithm.evaluated, SLIDES.evaluated) == ("student", "teacher")
    spec = replace(EIGHT, teacher_trains=trains)
    _, update = echo_loss(algorithm, spec, slides_memory(), WEAK, (WEAK, WEAK), network=network)
    assert passes == [True, trains]
    assert (update.teacher_stats is not None) == trains


@pytest.mark.slow
def test_marginal_entropy_tells_a_collapse():
    weak = np.repeat(WEAK, CLASSES, 0)
    for logits, entropy in ((20 * np.eye(CLASSES), np.log(CLASSES)), (20 * np.eye(4)[[1] * 4], 0)):
        weak[:, :CLASSES] = logits
        _, metrics = pseudo_label(SLIDES, slides_memory(), weak)
        np.testing.assert_allclose(metrics["pseudo/marginal_entropy"], entropy, atol=1e-6)
