"""What the features of a run are worth without its classifier: k nearest neighbours, linear probe.

k-NN as in Wu et al., "Unsupervised Feature Learning via Non-Parametric Instance Discrimination",
CVPR 2018, https://arxiv.org/abs/1805.01978, but with unweighted votes; the linear probe is
multinomial logistic regression on frozen features, the usual evaluation of pre-training.
"""

from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxmatch.build import load_data
from jaxmatch.classifier import Classifier, load
from jaxmatch.data.lazy import Images
from jaxmatch.data.sources import Source
from jaxmatch.data.splits import read
from jaxmatch.errors import InputError
from jaxmatch.evaluate import Evaluate, make_features
from jaxmatch.losses import cross_entropy
from jaxmatch.similarity import inner_products, normalize
from jaxmatch.types import Array, PyTree

NEIGHBOURS = 20
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


def probe(
    workdir: str | Path, step: int | None = None, knn: bool = True, linear: bool = True
) -> dict[str, Any]:
    """Probe the network that a run reports, of its newest checkpoint or that of ``step``.

    Of a run in stages that is the last one. The probe learns from all training images with a known
    label, whatever the run was allowed to see.

    Returns:
        step, evaluated ("teacher" or "student") and, as asked for, the test accuracies knn, linear.

    Raises:
        InputError: if ``workdir`` is no run folder, or its data has no test images or no labels.
    """
    classifier = load(workdir, step)
    data = load_data(classifier.config, read(classifier.folder / "split.json"))
    sets = probe_sets(data.source)
    compute = _features_of(classifier)
    return {
        "step": classifier.step,
        "evaluated": classifier.parts.algorithm.evaluated,
        **measure(compute, classifier.variables(), sets, knn=knn, linear=linear),
    }


def features(classifier: Classifier, images: np.ndarray) -> np.ndarray:
    """Pooled features [n d] of ``images`` [n h w 3] uint8 by the network that the run reports."""
    return _features_of(classifier)(classifier.variables(), images)


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
    compute: Evaluate, variables: PyTree, sets: Sets, knn: bool = True, linear: bool = True
) -> dict[str, float]:
    """Test accuracies "knn" and "linear", as asked for, of the features that ``compute`` gives."""
    train, test = (compute(variables, part.images) for part in sets)
    arguments = (train, sets.train.labels, test, sets.test.labels)
    accuracies = {}
    if knn:
        accuracies["knn"] = knn_accuracy(*arguments)
    if linear:
        accuracies["linear"] = linear_accuracy(*arguments)
    return accuracies


def knn_accuracy(
    train_features: np.ndarray,
    train_labels: np.ndarray,
    test_features: np.ndarray,
    test_labels: np.ndarray,
    neighbours: int = NEIGHBOURS,
) -> float:
    """Share of test images whose nearest training images, by cosine, mostly have their class.

    Each of the ``neighbours`` (at most all there are) has one vote; among classes of equally many
    votes the larger sum of similarities wins, then the smaller class.

    Args:
        train_features: [n d].
        train_labels: [n] int, 0 or more.
        test_features: [m d].
        test_labels: [m] int.
        neighbours: k, at least 1.
    """
    vote = partial(
        _vote,
        memory=normalize(jnp.asarray(train_features)),
        labels=jnp.asarray(train_labels),
        neighbours=min(neighbours, len(train_features)),
        classes=int(np.max(train_labels)) + 1,
    )
    found = [
        vote(jnp.asarray(test_features[start : start + QUERIES]))
        for start in range(0, len(test_features), QUERIES)
    ]
    return float(np.mean(np.concatenate(jax.device_get(found)) == test_labels))


@partial(jax.jit, static_argnames=("neighbours", "classes"))
def _vote(queries: Array, memory: Array, labels: Array, neighbours: int, classes: int) -> Array:
    """The class that the neighbours of each of ``queries`` [q d] elect: [q] int32."""
    similarities = inner_products(normalize(queries), memory)  # [q n]
    similarity, nearest = jax.lax.top_k(similarities, neighbours)  # [q k]
    votes = jax.nn.one_hot(labels[nearest], classes)  # [q k C]
    count = votes.sum(1)
    elected = count == count.max(1, keepdims=True)
    weight = jnp.einsum("qk,qkc->qc", similarity, votes, precision="highest")
    return jnp.where(elected, weight, -jnp.inf).argmax(1)


def linear_accuracy(
    train_features: np.ndarray,
    train_labels: np.ndarray,
    test_features: np.ndarray,
    test_labels: np.ndarray,
    penalty: float = PENALTY,
) -> float:
    """Share of test images that a linear classifier, fitted to the training features, gets right.

    The classifier minimises mean H(y, softmax(W f + b)) + penalty / 2 |W|^2, convex in W and b,
    over the whole training set, with f standardised by its mean and deviation there. L-BFGS from
    zero, so the same at every call; it stops when the gradient's norm is below 1e-4, or after 500
    iterations.

    Args:
        train_features: [n d].
        train_labels: [n] int, 0 or more.
        test_features: [m d].
        test_labels: [m] int.
        penalty: positive; scikit-learn's C is 1 / (n penalty).
    """
    mean, deviation = train_features.mean(0), train_features.std(0)
    scale = np.where(deviation > 0, deviation, 1)
    train, test = ((each - mean) / scale for each in (train_features, test_features))
    classes = int(np.max(train_labels)) + 1
    weights, bias = jax.device_get(_fit(train, train_labels, classes, penalty))
    return float(np.mean((test @ weights + bias).argmax(1) == test_labels))


@partial(jax.jit, static_argnames="classes")
def _fit(inputs: Array, labels: Array, classes: int, penalty: float) -> tuple[Array, Array]:
    """Weights [d C] and biases [C] of multinomial logistic regression on ``inputs`` [n d]."""

    def objective(params: tuple[Array, Array]) -> Array:
        weights, bias = params
        logits = jnp.matmul(inputs, weights, precision="highest") + bias
        return cross_entropy(logits, labels).mean() + penalty / 2 * jnp.square(weights).sum()

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


def _features_of(classifier: Classifier) -> Evaluate:
    parts = classifier.parts
    return make_features(parts.network, parts.mean, parts.std, parts.mesh)
