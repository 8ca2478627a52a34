"""CoMatch against plain NumPy, step after step, in both forms; and each rule alone."""

from collections import deque
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import numpy_cross_entropy, numpy_softmax, quick_jit, randomized

from jaxmatch.algorithms.comatch import CoMatch, graph_with_past, log_similarity_with_past
from jaxmatch.errors import InputError
from jaxmatch.functional.memory import make_queue, push
from jaxmatch.functional.similarity import log_similarity, pseudo_label_graph
from jaxmatch.types import Batch, Examples, Outputs, Spec, Target, TrainState

CLASSES, INPUTS, WIDTH, B, U = 4, 6, 5, 3, 7
SPEC = Spec(classes=CLASSES, steps=100, labeled_batch=B, unlabeled_batch=U)
STUDENT = CoMatch(
    threshold=0.6,
    graph_threshold=0.3,
    unlabeled_weight=1.5,
    contrastive_weight=2.5,
    contrastive_ramp_steps=3,
    temperature=0.5,
    smoothing=0.7,
    smoothing_start_step=2,
    queue_batches=2,
    alignment_length=3,
    projection=WIDTH,
)
# Neither 10 rows a step nor 7 divide the queue, so that both of its queues wrap inside a push.
FORMS = {"student": STUDENT, "teacher": replace(STUDENT, teacher=True, queue=24)}


@pytest.fixture(params=FORMS)
def algorithm(request):
    return FORMS[request.param]


one_form = pytest.mark.parametrize(
    "algorithm", ["student", pytest.param("teacher", marks=pytest.mark.slow)], indirect=True
)


class Linear:
    """A Network without BatchNorm, so that views cannot touch each other; records its calls."""

    def __init__(self):
        self.calls = []

    def __call__(self, variables, views, train=True):
        self.calls.append((variables, views, train))
        params = variables["params"]

        def output(leaf):
            images = leaf.view if isinstance(leaf, Target) else leaf
            heads = {"projection": images @ params["projection"]}
            return Outputs(images @ params["kernel"], images, heads)

        outputs = jax.tree.map(output, views, is_leaf=lambda leaf: isinstance(leaf, Target))
        return outputs, variables["batch_stats"]


def parameters(seed):
    shapes = {"kernel": np.zeros((INPUTS, CLASSES)), "projection": np.zeros((INPUTS, WIDTH))}
    return randomized(shapes, seed, scale=1)


def state_of(algorithm, step=0, seed=0):
    return TrainState(
        step=jnp.int32(step),
        key=None,
        params=parameters(seed),
        stats={},
        teacher={"params": parameters(seed + 100), "batch_stats": {}},
        optimizer=None,
        memory=algorithm.init(jax.random.key(0), SPEC),
        policy=(),
    )


def memory_after(algorithm, state, batch):
    """The memory after one step."""
    loss = quick_jit(lambda state: algorithm.loss(Linear(), state.params, state, batch, (), SPEC))
    return loss(state)[1].memory


def batch_of(seed):
    random = np.random.default_rng(seed)
    x, *views = (random.normal(size=(size, INPUTS)) for size in (B, U, U, U))
    label = random.integers(CLASSES, size=B + U)
    return Batch(Examples((x,), label[:B]), Examples(tuple(views), label[B:]))


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


class Oracle:
    """The method from its equations; what is remembered are plain lists, the oldest first."""

    def __init__(self, algorithm):
        self.algorithm = algorithm
        size = algorithm.queue if algorithm.teacher else 2 * (B + U)
        self.history, self.weak, self.strong = deque(maxlen=3), deque(maxlen=size), deque()
        if algorithm.teacher:
            self.strong = deque(maxlen=size)

    def loss(self, params, fixed, teacher, batch, step):
        """Value, terms, and what to remember; ``fixed`` parameters give the targets."""
        a = self.algorithm
        (x,), (weak, strong, contrast) = batch.labeled.views, batch.unlabeled.views
        source = teacher if a.teacher else fixed
        z_x, z_weak = (unit(view @ source["projection"]) for view in (x, weak))
        z_strong = unit(strong @ params["projection"])
        z_contrast = unit(contrast @ (teacher if a.teacher else params)["projection"])

        p = numpy_softmax(weak @ source["kernel"])
        p = p / np.mean([*self.history, p.mean(0)][-3:], axis=0)
        own = p / p.sum(1, keepdims=True)
        label = own
        if step >= a.smoothing_start_step and self.weak:
            keys, voted = (np.array(part) for part in zip(*self.weak, strict=True))
            label = a.smoothing * own
            label = label + (1 - a.smoothing) * numpy_softmax(z_weak @ keys.T / 0.5) @ voted

        mask = label.max(1) >= a.threshold
        truth = np.eye(CLASSES)[batch.labeled.label]
        supervised = numpy_cross_entropy(x @ params["kernel"], truth).mean()
        unsupervised = np.mean(mask * numpy_cross_entropy(strong @ params["kernel"], label))

        graph = label @ label.T
        np.fill_diagonal(graph, 1)
        keys = z_contrast
        if self.strong:
            past, past_label = (np.array(part) for part in zip(*self.strong, strict=True))
            graph = np.concatenate([graph, label @ past_label.T], 1)
            keys = np.concatenate([keys, past])
        graph = graph * (graph >= a.graph_threshold)
        graph = graph / graph.sum(1, keepdims=True)
        similar = numpy_softmax(z_strong @ keys.T / 0.5)
        contrastive = np.mean(np.sum(-graph * np.log(similar + 1e-7), 1))
        weight = min(step // 3 + 1, 2.5)

        total = supervised + 1.5 * unsupervised + weight * contrastive
        terms = (supervised, unsupervised, weight / 2.5 * contrastive, mask.mean())
        return total, terms, (p_mean(weak, source), z_x, truth, z_weak, own, z_contrast, label)

    def remember(self, average, z_x, truth, z_weak, own, z_contrast, label):
        self.history.append(average)
        self.weak.extend(zip(z_weak, own, strict=True))
        self.weak.extend(zip(z_x, truth, strict=True))
        if self.algorithm.teacher:
            self.strong.extend(zip(z_contrast, label, strict=True))


def p_mean(weak, params):
    return numpy_softmax(weak @ params["kernel"]).mean(0)


def oldest_first(queue):
    """The written rows of a ring, in the order they came."""
    size = len(queue.rows["embedding"])
    start = int(queue.pointer) if queue.filled == size else 0
    order = (start + np.arange(int(queue.filled))) % size
    return [(queue.rows["embedding"][i], queue.rows["probabilities"][i]) for i in order]


def assert_same_rows(queue, expected):
    for rows, others in zip(oldest_first(queue), expected, strict=True):
        for left, right in zip(rows, others, strict=True):
            np.testing.assert_allclose(left, right, atol=1e-12)


def test_values_gradients_and_memory_are_those_of_the_equations(algorithm):
    oracle, masks = Oracle(algorithm), []
    with jax.enable_x64(True):
        memory = algorithm.init(jax.random.key(0), SPEC)
        step_of = quick_jit(
            jax.value_and_grad(
                lambda params, state, batch: algorithm.loss(
                    Linear(), params, state, batch, (), SPEC
                ),
                has_aux=True,
            )
        )
        for step in range(7):
            state, batch = state_of(algorithm, step, seed=step), batch_of(step)
            (loss, update), gradient = step_of(state.params, state.replace(memory=memory), batch)
            memory = update.memory

            def value(params, state=state, batch=batch, step=step):
                return oracle.loss(params, state.params, state.teacher["params"], batch, step)

            expected, terms, remembered = value(state.params)
            names = ("loss/supervised", "loss/unsupervised", "loss/contrastive", "pseudo/coverage")
            np.testing.assert_allclose(loss, expected, rtol=1e-12)
            np.testing.assert_allclose([update.metrics[name] for name in names], terms, rtol=1e-6)
            masks.append(terms[-1])

            # The targets are constants: the slope is that with ``fixed`` parameters in them.
            zero = jax.tree.map(np.zeros_like, state.params)
            direction = randomized(zero, seed=50 + step, scale=1e-6)
            ahead = value(jax.tree.map(np.add, state.params, direction))[0]
            behind = value(jax.tree.map(np.subtract, state.params, direction))[0]
            slope = sum(map(np.vdot, jax.tree.leaves(gradient), jax.tree.leaves(direction)))
            np.testing.assert_allclose(slope, (ahead - behind) / 2, rtol=1e-4)
            oracle.remember(*remembered)
    assert 0 < np.mean(masks) < 1
    assert_same_rows(memory.weak, oracle.weak)
    if algorithm.teacher:
        assert_same_rows(memory.strong, oracle.strong)
    else:
        assert memory.strong is None
    np.testing.assert_allclose(
        np.sort(memory.history.rows["marginal"], 0), np.sort(oracle.history, 0), atol=1e-12
    )


@pytest.mark.slow
def test_the_first_batch_lies_in_the_queue_unlabeled_rows_first(algorithm):
    state, batch = state_of(algorithm), batch_of(0)
    queue = memory_after(algorithm, state, batch).weak
    rows = queue.rows
    assert int(queue.filled) == int(queue.pointer) == U + B
    truth = np.eye(CLASSES)[batch.labeled.label]
    np.testing.assert_array_equal(rows["probabilities"][U : U + B], truth)
    lengths = np.linalg.norm(rows["embedding"], axis=1)
    np.testing.assert_allclose(lengths, [1.0] * (U + B) + [0.0] * (len(lengths) - U - B), rtol=1e-6)


@one_form
def test_gradients_pass_only_where_they_should(algorithm):
    state, batch = state_of(algorithm, step=5), batch_of(0)
    state = state.replace(memory=memory_after(algorithm, state, batch))

    def loss(views, rows, teacher):
        memory = state.memory._replace(weak=state.memory.weak._replace(rows=rows["weak"]))
        if algorithm.teacher:
            memory = memory._replace(strong=memory.strong._replace(rows=rows["strong"]))
        changed = state.replace(memory=memory, teacher={**state.teacher, "params": teacher})
        return algorithm.loss(
            Linear(),
            state.params,
            changed,
            batch._replace(unlabeled=batch.unlabeled._replace(views=views)),
            (),
            SPEC,
        )[0]

    queues = {"weak": state.memory.weak, "strong": state.memory.strong}
    rows = {name: queue.rows for name, queue in queues.items() if queue is not None}
    (weak, strong, contrast), *others = quick_jit(jax.grad(loss, (0, 1, 2)))(
        batch.unlabeled.views, rows, state.teacher["params"]
    )
    assert not any(np.any(leaf) for leaf in jax.tree.leaves((weak, others)))
    assert np.all(np.any(strong, 1))
    assert np.any(contrast) == (not algorithm.teacher)


def traced_update(algorithm, network, state, batch, spec):
    """The shapes of what a loss hands back; nothing is computed."""
    return jax.eval_shape(
        lambda params: algorithm.loss(network, params, state, batch, (), spec)[1], state.params
    )


def test_student_form_is_one_joint_pass():
    state, batch, network = state_of(STUDENT), batch_of(0), Linear()
    update = traced_update(STUDENT, network, state, batch, SPEC)
    ((_, (x, weak, strong, contrast), train),) = network.calls
    assert train
    assert isinstance(weak, Target)
    assert x is batch.labeled.views[0]
    for view, expected in zip((weak.view, strong, contrast), batch.unlabeled.views, strict=True):
        assert view is expected
    assert update.teacher_stats is None


@pytest.mark.parametrize("trains", [False, True])
def test_teacher_sees_labeled_weak_and_contrast_views(trains):
    algorithm, network = FORMS["teacher"], Linear()
    state, batch = state_of(algorithm), batch_of(0)
    spec = replace(SPEC, teacher_trains=trains)
    update = traced_update(algorithm, network, state, batch, spec)
    (_, student_views, student_train), (variables, teacher_views, teacher_train) = network.calls
    (x,), (weak, strong, contrast) = batch.labeled.views, batch.unlabeled.views
    assert [id(view) for view in student_views] == [id(x), id(strong)]
    assert [id(view) for view in teacher_views] == [id(x), id(weak), id(contrast)]
    assert variables is state.teacher
    assert (student_train, teacher_train) == (True, trains)
    assert (update.teacher_stats is not None) == trains


def smoothing_case():
    """Own predictions, embeddings, and a queue of 4 rows of which 2 are written."""
    random = np.random.default_rng(0)
    own = numpy_softmax(random.normal(size=(3, CLASSES)))
    z, keys = (unit(random.normal(size=(size, WIDTH))) for size in (3, 2))
    label = numpy_softmax(random.normal(size=(2, CLASSES)))
    queue = make_queue(4, embedding=WIDTH, probabilities=CLASSES)
    queue = push(queue, {"embedding": jnp.asarray(keys), "probabilities": jnp.asarray(label)})
    return own, z, queue, keys, label


@pytest.mark.slow
def test_only_written_rows_vote():
    own, z, queue, keys, label = smoothing_case()
    noise = jax.tree.map(lambda leaf: leaf.at[2:].set(100.0), queue.rows)
    smoothed = quick_jit(STUDENT.smooth)(own, z, queue._replace(rows=noise), jnp.int32(2))
    expected = 0.7 * own + 0.3 * numpy_softmax(z @ keys.T / 0.5) @ label
    np.testing.assert_allclose(smoothed, expected, rtol=1e-5)
    np.testing.assert_allclose(smoothed.sum(1), 1, rtol=1e-6)


@pytest.mark.parametrize(("step", "written"), [(1, True), (2, False), (0, False)])
def test_nothing_is_smoothed_before_the_start_or_by_an_empty_queue(step, written):
    own, z, queue, *_ = smoothing_case()
    queue = queue if written else make_queue(4, embedding=WIDTH, probabilities=CLASSES)
    smoothed = quick_jit(STUDENT.smooth)(own, z, queue, jnp.int32(step))
    np.testing.assert_array_equal(smoothed, np.float32(own))


def test_smoothing_of_a_whole_share_changes_nothing():
    own, z, queue, *_ = smoothing_case()
    smoothed = quick_jit(replace(STUDENT, smoothing=1.0).smooth)(own, z, queue, jnp.int32(9))
    np.testing.assert_allclose(smoothed, own, rtol=1e-6)


def test_contrastive_weight_grows_by_one_a_ramp_step():
    ramped = CoMatch(contrastive_weight=3.5, contrastive_ramp_steps=10)
    shares = [float(ramped.ramp(jnp.int32(step))) for step in (0, 9, 10, 29, 30, 1000)]
    np.testing.assert_allclose(np.multiply(3.5, shares), [1, 1, 2, 3, 3.5, 3.5], rtol=1e-6)
    assert CoMatch(contrastive_weight=3.5).ramp(jnp.int32(0)) == 1
    assert float(replace(ramped, contrastive_weight=0.0).ramp(jnp.int32(0))) == 1
    assert float(replace(ramped, contrastive_weight=0.5).ramp(jnp.int32(0))) == 1


def test_distinct_labels_make_it_info_nce():
    random = np.random.default_rng(0)
    strong, contrast = (unit(random.normal(size=(CLASSES, WIDTH))) for _ in range(2))
    loss = quick_jit(STUDENT.contrast)(np.eye(CLASSES), strong, contrast, None)
    expected = numpy_cross_entropy(strong @ contrast.T / 0.5, np.eye(CLASSES)).mean()
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


@pytest.mark.slow
def test_graph_and_similarity_without_a_past_are_those_of_the_batch():
    random = np.random.default_rng(0)
    label = numpy_softmax(2 * random.normal(size=(U, CLASSES)))
    z, keys = (unit(random.normal(size=(U, WIDTH))) for _ in range(2))
    queue = make_queue(9, embedding=WIDTH, probabilities=CLASSES)
    graph = graph_with_past(jnp.asarray(label), queue, 0.3)
    np.testing.assert_allclose(graph[:, :U], pseudo_label_graph(label, 0.3), rtol=1e-6)
    assert not np.any(graph[:, U:])
    log_similar = log_similarity_with_past(jnp.asarray(z), jnp.asarray(keys), queue, 0.5)
    np.testing.assert_allclose(log_similar[:, :U], log_similarity(z, keys, 0.5), rtol=1e-5)
    assert not np.any(np.exp(log_similar[:, U:]))


@pytest.mark.slow
def test_certain_and_equal_predictions_stay_finite(algorithm):
    state, batch = state_of(algorithm, step=9), batch_of(0)
    kernel = np.zeros((INPUTS, CLASSES), np.float32)
    kernel[:, 0] = 1e6
    params = {"kernel": kernel, "projection": np.zeros((INPUTS, WIDTH), np.float32)}
    state = state.replace(params=params, teacher={**state.teacher, "params": params})
    function = quick_jit(
        jax.value_and_grad(
            lambda params, state: algorithm.loss(Linear(), params, state, batch, (), SPEC),
            has_aux=True,
        )
    )
    for _ in range(2):
        (loss, update), gradient = function(params, state)
        state = state.replace(memory=update.memory)
        assert np.isfinite(loss)
        for leaf in jax.tree.leaves((gradient, update.memory)):
            assert np.all(np.isfinite(leaf))


def test_the_official_network_is_reported():
    assert (FORMS["student"].evaluated, FORMS["teacher"].evaluated) == ("teacher", "student")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature": 0.0}, "temperature=0.0 must be above 0"),
        ({"graph_threshold": 1.1}, "graph_threshold=1.1 must lie between 0 and 1"),
        ({"activation": "tanh"}, "unknown algorithm.activation 'tanh'; known: leaky_relu, relu"),
    ],
)
def test_bad_settings(changes, message):
    with pytest.raises(InputError, match=message):
        CoMatch(**changes)


def test_a_queue_shorter_than_a_batch_is_refused_before_anything_compiles():
    algorithm = replace(STUDENT, teacher=True, queue=U - 1)
    state, batch = state_of(algorithm), batch_of(0)
    with pytest.raises(InputError, match="7 rows cannot enter a queue of"):
        traced_update(algorithm, Linear(), state, batch, SPEC)
