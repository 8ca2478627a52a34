"""Probes measure the features of a network without its classifier: k-NN and a linear probe.

k-NN follows Wu et al., "Unsupervised Feature Learning via Non-Parametric Instance Discrimination",
CVPR 2018, https://arxiv.org/abs/1805.01978, but with unweighted votes. There are no more of them
than the smallest class has images: otherwise other classes would outvote all of it. The linear
probe is multinomial logistic regression on frozen features, the usual evaluation of pre-training.

Features stay on the devices; each device holds its share of the rows. n images with d features each
take 4 n d bytes over all devices: 1 GiB for :data:`MOST_IMAGES` images of a ResNet-50 (d = 2,048).
Either probe holds them twice. In addition k-NN holds 4 n QUERIES bytes of similarities (0.25 GiB
over all devices), and the linear probe with C classes three times 4 n C bytes of logits (1.5 GiB
for ImageNet).
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxmatch.data.lazy import Images
from jaxmatch.data.source import Source
from jaxmatch.data.splits import Split, locate
from jaxmatch.errors import InputError
from jaxmatch.evaluation.classifier import Classifier, load
from jaxmatch.evaluation.forward import Evaluate, make_features
from jaxmatch.functional.losses import cross_entropy
from jaxmatch.functional.similarity import inner_products, normalize
from jaxmatch.record.run_data import load_recorded
from jaxmatch.runtime.mesh import over_batch, put
from jaxmatch.types import Array, PyTree

NEIGHBOURS = 20
MOST_IMAGES = 131_072  # the default limit, of training images and of test images
QUERIES = 500  # images whose similarities with all training images exist at a time
PENALTY = 1e-3  # on the squared weights of the linear probe
ITERATIONS = 500
TOLERANCE = 1e-4  # on the gradient's norm; the loss is of the order of 1


class Labeled(NamedTuple):
    """Images with their true classes."""

    images: Array | Images  # [n h w 3] uint8
    labels: np.ndarray  # [n] int32, none unknown


class Sets(NamedTuple):
    """The images that a probe learns from, and those that it is tested on."""

    train: Labeled
    test: Labeled


class Points(NamedTuple):
    """Features and classes of images; rows are split over the devices of a mesh."""

    features: Array  # [p d] float
    labels: Array  # [p] int32; -1 marks a row without a readable image
    classes: np.ndarray  # [p] int32, the labels on the host


def probe(
    workdir: str | Path,
    step: int | str | None = None,
    knn: bool = True,
    linear: bool = True,
    images: int = MOST_IMAGES,
    place: str = "",
    all_labels: bool = False,
) -> dict[str, Any]:
    """Probe the network that a run reports.

    The probes learn from the labeled images of the run. If the run saw no labels, they learn from
    all training images with a known label. They are tested on the test images.

    Args:
        workdir: the run folder; the last stage of a run in stages is probed.
        step: the checkpoint's step, "best" or "newest"; by default as in
            :func:`jaxmatch.evaluation.classifier.load`.
        knn: whether to measure k-NN.
        linear: whether to measure the linear probe.
        images: the most training images, and test images, to use; more are thinned at random, the
            same at each call.
        place: where the data is now, if it has moved.
        all_labels: learn from all training images with a known label, also from those whose label
            the run did not see. This measures features for research, not what few labels reach.

    Returns:
        ``step``, ``evaluated`` ("teacher" or "student"), ``labels`` (the number of labeled images
        that the probes learned from), ``all_labels`` (whether the run did not see all of them) and
        the test accuracies ``knn`` and ``linear``, as asked for.

    Raises:
        InputError: if ``workdir`` is not a run folder, or its data has no test images or no labels.
    """
    if images < 1:
        raise InputError(f"--images={images} must be at least 1.")
    classifier = load(workdir, step)
    program = classifier.program
    every = all_labels or not program.algorithm.labeled
    needed = "known" if every else "held"
    data = load_recorded(classifier.config, classifier.folder, place=place, needed=needed)
    sets = probe_sets(data.source, images, images, None if every else data.split)
    compute = make_features(program, spread=True)
    names = [name for name, asked in (("knn", knn), ("linear", linear)) if asked]
    return {
        "step": classifier.step,
        "evaluated": program.algorithm.evaluated,
        "labels": len(sets.train.labels),
        "all_labels": every,
        **dict(measure(compute, classifier.variables(), sets, program.mesh, names)),
    }


def features(classifier: Classifier, images: np.ndarray) -> np.ndarray:
    """Pooled features [n d] of ``images`` [n h w 3] uint8, by the network that the run reports."""
    return make_features(classifier.program)(classifier.variables(), images).values


def probe_sets(
    source: Source, train: int | None = None, test: int | None = None, split: Split | None = None
) -> Sets:
    """The training and test images of ``source`` with a known label.

    Args:
        source: the data set.
        train: the most training images; more are thinned at random, the same at each call.
        test: the most test images, as ``train``.
        split: the only training images to use; by default all with a known label.

    Raises:
        InputError: if no training or no test image has a known label.
    """
    sets = []
    seen = np.flatnonzero(source.labels >= 0) if split is None else locate(source, split)
    for images, labels, known, most, kind in (
        (source.images, source.labels, seen, train, "training"),
        (
            source.test_images,
            source.test_labels,
            np.flatnonzero(source.test_labels >= 0),
            test,
            "test",
        ),
    ):
        if not len(known):
            raise InputError(
                f"k-NN and the linear probe need {kind} images with known labels, of which "
                f"{source.name} has none."
            )
        if most is not None and len(known) > most:
            known = np.sort(np.random.RandomState(0).permutation(known)[:most])
        sets.append(Labeled(images if len(known) == len(images) else images[known], labels[known]))
    return Sets(*sets)


def measure(
    compute: Evaluate,
    variables: PyTree,
    sets: Sets,
    mesh: Mesh,
    names: Sequence[str] = ("knn", "linear"),
) -> Iterator[tuple[str, float]]:
    """Yield (probe, test accuracy) for the probes ``names``, each as soon as it is known.

    ``compute`` gives features that are spread over ``mesh``
    (:func:`jaxmatch.evaluation.forward.make_features`). Unreadable images do not count.
    """
    train, test = (_points(*compute(variables, part.images), part.labels, mesh) for part in sets)
    for name in names:
        yield name, PROBES[name](train, test, mesh)


def _points(features: Array, readable: np.ndarray, labels: np.ndarray, mesh: Mesh) -> Points:
    """``features`` [p d] with the ``labels`` [n] of their first n rows; unreadable ones get -1."""
    known = np.full(len(features), -1, np.int32)
    known[: len(labels)] = np.where(readable, labels, -1)
    return Points(features, put(known, over_batch(mesh)), known)


def spread(features: np.ndarray, labels: np.ndarray, mesh: Mesh) -> Points:
    """:class:`Points` of arrays in host memory: ``features`` [n d], ``labels`` [n]."""
    more = -len(features) % mesh.size
    padded = np.pad(features, ((0, more), (0, 0)))
    return _points(put(padded, over_batch(mesh)), np.ones(len(labels), bool), labels, mesh)


def smallest_class(labels: np.ndarray) -> int:
    """The number of examples of the class with the fewest, of those that occur in ``labels`` [n].

    Unknown labels (-1) do not count.

    >>> smallest_class(np.array([0, 0, 0, 2, 2, -1]))
    2
    """
    return int(np.unique(labels[labels >= 0], return_counts=True)[1].min())


def knn_accuracy(train: Points, test: Points, mesh: Mesh, neighbours: int | None = None) -> float:
    """Share of test images whose class is the most frequent one among their nearest neighbors.

    Each of the ``neighbours`` (k >= 1) nearest training images by cosine similarity has one vote;
    fewer training images than k all vote. By default k is 20, or the number of training images of
    the smallest class if that is less. Between classes with equally many votes the larger sum of
    similarities decides, then the smaller class number.
    """
    if neighbours is None:
        neighbours = min(NEIGHBOURS, smallest_class(train.classes))
    hits = _hits(
        train[:2],
        test[:2],
        mesh,
        min(neighbours, int((train.classes >= 0).sum())),
        int(train.classes.max()) + 1,
        -(-QUERIES // mesh.size),
    )
    return int(hits) / int((test.classes >= 0).sum())


@partial(jax.jit, static_argnames=("mesh", "neighbours", "classes", "width"))
def _hits(
    train: tuple[Array, Array],
    test: tuple[Array, Array],
    mesh: Mesh,
    neighbours: int,
    classes: int,
    width: int,
) -> Array:
    """The number [] int32 of test images that are classified correctly.

    Each device finds, for the queries of all devices, the nearest of its own rows of ``train``; the
    nearest of all rows are among these. ``width`` queries of each device are compared at a time.
    """

    def local(train: tuple[Array, Array], test: tuple[Array, Array]) -> Array:
        memory, labels = normalize(train[0]), train[1]
        nearest = min(neighbours, len(memory))
        batches = -(-len(test[0]) // width)
        more = batches * width - len(test[0])
        queries = jnp.pad(normalize(test[0]), ((0, more), (0, 0)))
        truth = jnp.pad(test[1], (0, more), constant_values=-1)

        def gathered(rows: Array, axis: int = 0) -> Array:
            return jax.lax.all_gather(rows, "data", axis=axis, tiled=True)

        def some(batch: tuple[Array, Array]) -> Array:
            query, answer = map(gathered, batch)
            similarity = jnp.where(labels >= 0, inner_products(query, memory), -jnp.inf)
            best, row = jax.lax.top_k(similarity, nearest)
            elected = _elect(gathered(best, 1), gathered(labels[row], 1), neighbours, classes)
            return jnp.sum((elected == answer) & (answer >= 0))

        return jax.lax.map(
            some,
            (queries.reshape(batches, width, -1), truth.reshape(batches, width)),
        ).sum()

    rows = PartitionSpec("data")
    return jax.shard_map(
        local, mesh=mesh, in_specs=(rows, rows), out_specs=PartitionSpec(), check_vma=False
    )(train, test)


def _elect(similarity: Array, labels: Array, neighbours: int, classes: int) -> Array:
    """The class that the ``neighbours`` of largest ``similarity`` [q m] elect: [q] int32."""
    similarity, best = jax.lax.top_k(similarity, neighbours)  # [q k]
    votes = jax.nn.one_hot(jnp.take_along_axis(labels, best, 1), classes)  # [q k C]
    count = votes.sum(1)
    elected = count == count.max(1, keepdims=True)
    total = jnp.einsum("qk,qkc->qc", similarity, votes, precision="highest")
    return jnp.where(elected, total, -jnp.inf).argmax(1)


def linear_accuracy(train: Points, test: Points, mesh: Mesh, penalty: float = PENALTY) -> float:
    """Share of test images that a linear classifier of the training features classifies correctly.

    The classifier minimises mean H(y, softmax(W f + b)) + penalty / 2 |W|^2 over the whole training
    set, where f is standardised by its mean and deviation there. The objective is convex. L-BFGS
    starts from zero, so that every call gives the same result; it stops when the gradient's norm is
    below 1e-4, or after 500 iterations. ``penalty`` is positive; scikit-learn's C is
    1 / (n penalty).
    """
    everywhere = NamedSharding(mesh, PartitionSpec())
    classes = int(train.classes.max()) + 1
    mean, scale = jax.jit(_standard, out_shardings=everywhere)(*train[:2])
    weights, bias = _fit((train.features - mean) / scale, train.labels, classes, penalty)
    hits = _right((test.features - mean) / scale, test.labels, weights, bias)
    return int(hits) / int((test.classes >= 0).sum())


def _standard(inputs: Array, labels: Array) -> tuple[Array, Array]:
    """Mean and standard deviation [d] of the labeled rows of ``inputs`` [n d].

    A deviation of 0 becomes 1.
    """
    known = (labels >= 0)[:, None]
    count = known.sum()

    def mean_of(rows: Array) -> Array:
        return jnp.sum(jnp.where(known, rows, 0), 0) / count

    mean = mean_of(inputs)
    mean += mean_of(inputs - mean)  # removes rounding, which grows with the number of rows
    deviation = jnp.sqrt(mean_of(jnp.square(inputs - mean)))
    return mean, jnp.where(deviation > 0, deviation, 1)


@jax.jit
def _right(inputs: Array, labels: Array, weights: Array, bias: Array) -> Array:
    """The number [] int32 of rows of ``inputs`` [m d] that are classified correctly."""
    logits = jnp.matmul(inputs, weights, precision="highest") + bias
    return jnp.sum((logits.argmax(1) == labels) & (labels >= 0))


@partial(jax.jit, static_argnames="classes")
def _fit(inputs: Array, labels: Array, classes: int, penalty: float) -> tuple[Array, Array]:
    """Weights [d C] and biases [C] of multinomial logistic regression on ``inputs`` [n d].

    Rows without a label (-1) do not count. Logits are split over the devices as the rows are.
    """
    known = labels >= 0
    count = known.sum()

    def objective(params: tuple[Array, Array]) -> Array:
        weights, bias = params
        logits = jnp.matmul(inputs, weights, precision="highest") + bias
        costs = cross_entropy(logits, jnp.maximum(labels, 0))
        return jnp.where(known, costs, 0).sum() / count + penalty / 2 * jnp.square(weights).sum()

    optimizer = optax.lbfgs()
    slope = optax.value_and_grad_from_state(objective)

    def unfinished(carry: tuple[PyTree, PyTree]) -> Array:
        steps, gradient = (optax.tree.get(carry[1], name) for name in ("count", "grad"))
        far = optax.tree.norm(gradient) >= TOLERANCE
        return (steps == 0) | (far & (steps < ITERATIONS))

    def improve(carry: tuple[PyTree, PyTree]) -> tuple[PyTree, PyTree]:
        params, state = carry
        value, gradient = slope(params, state=state)
        change, state = optimizer.update(
            gradient, state, params, value=value, grad=gradient, value_fn=objective
        )
        return optax.apply_updates(params, change), state

    shapes = (inputs.shape[1], classes), (classes,)
    start = tuple(jnp.zeros(shape, inputs.dtype) for shape in shapes)
    return jax.lax.while_loop(unfinished, improve, (start, optimizer.init(start)))[0]


PROBES = {"knn": knn_accuracy, "linear": linear_accuracy}


def missing(summary: Mapping[str, Any]) -> list[str]:
    """The probes that ``summary.json`` lists but that are not measured yet."""
    return [name for name, value in (summary.get("probe") or {}).items() if value is None]
