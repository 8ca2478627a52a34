"""What the features of a run are worth without its classifier: k nearest neighbours, linear probe.

k-NN as in Wu et al., "Unsupervised Feature Learning via Non-Parametric Instance Discrimination",
CVPR 2018, https://arxiv.org/abs/1805.01978, but with unweighted votes; the linear probe is
multinomial logistic regression on frozen features, the usual evaluation of pre-training.

Features stay on the devices, each of which has its share of the rows. Those of n images, d numbers
each, take 4 n d bytes over all devices: 1 GiB for :data:`MOST_IMAGES` images of a ResNet-50
(d = 2,048). Either probe holds them twice. Beside them k-NN has 4 n QUERIES bytes of similarities
and the linear probe, of C classes, three times 4 n C bytes of logits: 0.25 GiB, and 1.5 GiB for
ImageNet, over all devices.
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
from jaxmatch.errors import InputError
from jaxmatch.evaluation.classifier import Classifier, load
from jaxmatch.evaluation.forward import Evaluate, make_features
from jaxmatch.functional.losses import cross_entropy
from jaxmatch.functional.similarity import inner_products, normalize
from jaxmatch.record.run_data import load_recorded
from jaxmatch.runtime.mesh import over_batch, put
from jaxmatch.types import Array, PyTree

NEIGHBOURS = 20
MOST_IMAGES = 131_072  # training images, and test images, that a probe uses at most by default
QUERIES = 500  # similarities of so many queries with the whole memory exist at a time
PENALTY = 1e-3  # on the squared weights of the linear probe
ITERATIONS = 500
TOLERANCE = 1e-4  # of the gradient's norm, where the loss is of the order of 1


class Labeled(NamedTuple):
    """Images with their true classes."""

    images: Array | Images  # [n h w 3] uint8
    labels: np.ndarray  # [n] int32, none unknown


class Sets(NamedTuple):
    """What a probe learns from, and what it is tested on."""

    train: Labeled
    test: Labeled


class Points(NamedTuple):
    """Features and classes of images, their rows split over the devices of a mesh."""

    features: Array  # [p d] float
    labels: Array  # [p] int32; -1: the row is no image
    classes: np.ndarray  # [p] int32 the labels on the host


def probe(
    workdir: str | Path,
    step: int | None = None,
    knn: bool = True,
    linear: bool = True,
    images: int = MOST_IMAGES,
    place: str = "",
) -> dict[str, Any]:
    """Probe the network that a run reports, of its newest checkpoint or that of ``step``.

    Of a run in stages that is the last one. The probe learns from training images with a known
    label, whatever the run was allowed to see, and is tested on test images: ``images`` of each at
    most, drawn at random, the same at each call.

    Returns:
        step, evaluated ("teacher" or "student") and, as asked for, the test accuracies knn, linear.

    Raises:
        InputError: if ``workdir`` is no run folder, or its data has no test images or no labels.
    """
    if images < 1:
        raise InputError(f"--images={images} must be at least 1.")
    classifier = load(workdir, step)
    data = load_recorded(classifier.config, classifier.folder, place=place, needed="known")
    sets = probe_sets(data.source, images, images)
    program = classifier.program
    strict = classifier.config.data.strict
    compute = make_features(*program.forward, strict=strict, spread=True)
    names = [name for name, asked in (("knn", knn), ("linear", linear)) if asked]
    return {
        "step": classifier.step,
        "evaluated": program.algorithm.evaluated,
        **dict(measure(compute, classifier.variables(), sets, program.mesh, names)),
    }


def features(classifier: Classifier, images: np.ndarray) -> np.ndarray:
    """Pooled features [n d] of ``images`` [n h w 3] uint8 by the network that the run reports."""
    program = classifier.program
    compute = make_features(*program.forward)
    return compute(classifier.variables(), images).values


def probe_sets(source: Source, train: int | None = None, test: int | None = None) -> Sets:
    """The training and test images of ``source`` with a known label.

    ``train`` and ``test`` bound their numbers: more are thinned at random, the same at each call.
    Raises InputError where there are none.
    """
    sets = []
    for images, labels, most, kind in (
        (source.images, source.labels, train, "training"),
        (source.test_images, source.test_labels, test, "test"),
    ):
        known = np.flatnonzero(labels >= 0)
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
    """The test accuracies ``names`` of the features that ``compute`` gives, each when it is known.

    ``compute`` spreads them over ``mesh`` (:func:`jaxmatch.evaluation.forward.make_features`).
    Images that it cannot read do not count.
    """
    train, test = (_points(*compute(variables, part.images), part.labels, mesh) for part in sets)
    for name in names:
        yield name, PROBES[name](train, test, mesh)


def _points(features: Array, readable: np.ndarray, labels: np.ndarray, mesh: Mesh) -> Points:
    """``labels`` [n] of the first n rows of ``features`` [p d]; unreadable ones get -1."""
    known = np.full(len(features), -1, np.int32)
    known[: len(labels)] = np.where(readable, labels, -1)
    return Points(features, put(known, over_batch(mesh)), known)


def spread(features: np.ndarray, labels: np.ndarray, mesh: Mesh) -> Points:
    """:class:`Points` of arrays in host memory: ``features`` [n d], ``labels`` [n]."""
    more = -len(features) % mesh.size
    padded = np.pad(features, ((0, more), (0, 0)))
    return _points(put(padded, over_batch(mesh)), np.ones(len(labels), bool), labels, mesh)


def knn_accuracy(train: Points, test: Points, mesh: Mesh, neighbours: int = NEIGHBOURS) -> float:
    """Share of test images whose nearest training images, by cosine, mostly have their class.

    Each of the ``neighbours`` (k, at least 1, at most all there are) has one vote; among classes of
    equally many votes the larger sum of similarities wins, then the smaller class.
    """
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
    """How many test images get their class: [] int32.

    Each device finds the nearest among its own rows of ``train`` to queries of all devices, of
    ``width`` a device at a time; the nearest of all are among these.
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
    """Share of test images that a linear classifier, fitted to the training features, gets right.

    The classifier minimises mean H(y, softmax(W f + b)) + penalty / 2 |W|^2, convex in W and b,
    over the whole training set, with f standardised by its mean and deviation there. L-BFGS from
    zero, so the same at every call; it stops when the gradient's norm is below 1e-4, or after 500
    iterations. ``penalty`` is positive; scikit-learn's C is 1 / (n penalty).
    """
    everywhere = NamedSharding(mesh, PartitionSpec())
    classes = int(train.classes.max()) + 1
    mean, scale = jax.jit(_standard, out_shardings=everywhere)(*train[:2])
    weights, bias = _fit((train.features - mean) / scale, train.labels, classes, penalty)
    hits = _right((test.features - mean) / scale, test.labels, weights, bias)
    return int(hits) / int((test.classes >= 0).sum())


def _standard(inputs: Array, labels: Array) -> tuple[Array, Array]:
    """Mean and deviation [d] of the rows of ``inputs`` [n d] with a label; 1 for no deviation."""
    known = (labels >= 0)[:, None]
    count = known.sum()

    def mean_of(rows: Array) -> Array:
        return jnp.sum(jnp.where(known, rows, 0), 0) / count

    mean = mean_of(inputs)
    mean += mean_of(inputs - mean)  # the first one's rounding grows with the number of rows
    deviation = jnp.sqrt(mean_of(jnp.square(inputs - mean)))
    return mean, jnp.where(deviation > 0, deviation, 1)


@jax.jit
def _right(inputs: Array, labels: Array, weights: Array, bias: Array) -> Array:
    """How many rows of ``inputs`` [m d] the classifier gets right: [] int32."""
    logits = jnp.matmul(inputs, weights, precision="highest") + bias
    return jnp.sum((logits.argmax(1) == labels) & (labels >= 0))


@partial(jax.jit, static_argnames="classes")
def _fit(inputs: Array, labels: Array, classes: int, penalty: float) -> tuple[Array, Array]:
    """Weights [d C] and biases [C] of multinomial logistic regression on ``inputs`` [n d].

    Rows without a label (-1) do not count. Where rows are split over devices, so are the logits.
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
    """The probes that a run has still to make, by what its ``summary.json`` says."""
    return [name for name, value in (summary.get("probe") or {}).items() if value is None]
