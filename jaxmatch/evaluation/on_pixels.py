"""Baselines on pixels: classical classifiers on the images that a run sees, before augmentation.

The estimators are scikit-learn's (Pedregosa et al., "Scikit-learn: Machine Learning in Python",
JMLR 2011), with fixed settings, so that nothing is chosen on test images. Label spreading (Zhou et
al., "Learning with Local and Global Consistency", NeurIPS 2003) learns from the unlabeled images,
too.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, balanced_accuracy_score, roc_auc_score
from sklearn.metrics.pairwise import rbf_kernel
from sklearn.neighbors import KNeighborsClassifier
from sklearn.semi_supervised import LabelSpreading
from sklearn.svm import SVC

from jaxmatch.data import splits
from jaxmatch.data.lazy import READ, Images, LazyImages
from jaxmatch.errors import InputError
from jaxmatch.evaluation.comparison import TITLES
from jaxmatch.evaluation.probe import smallest_class
from jaxmatch.record.data import Data

MOST_SIDE = 64  # pixels; larger images are averaged down to this side
# More images than these are thinned at random.
MOST_LABELED, MOST_UNLABELED, MOST_TEST = 5_000, 10_000, 10_000
MOST_CLASSES = 200
COMPONENTS = 50
MOST_FOR_COMPONENTS = 5_000  # images that the principal components are those of
NEIGHBOURS = 5
SPREADING_NEIGHBOURS = 10
CHUNK = 500  # images that are converted at a time

METRICS = {"accuracy": accuracy_score, "balanced_accuracy": balanced_accuracy_score}

Prepare = Callable[[np.ndarray], np.ndarray]  # pixels [n d] uint8 to what a classifier takes


class Fitted(NamedTuple):
    """A classifier that has learned."""

    model: Any  # of scikit-learn
    prepare: Prepare
    settings: str


class Part(NamedTuple):
    """Some images of a run."""

    pixels: np.ndarray  # [n d] uint8
    labels: np.ndarray  # [n] int32; -1 where they are not known or not used


class Sets(NamedTuple):
    """What the baselines learn from, and what they are tested on."""

    labeled: Part
    unlabeled: Part
    held_out: Mapping[str, Part]  # "test" and, if there is one, "validation"
    shape: tuple[int, int, int]  # height, width and channels of the pixels
    notes: tuple[str, ...]  # sentences about what was reduced


def each(sets: Sets, seed: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the name and the result of each baseline, as :func:`measure` describes it."""
    learn = {
        "logistic_regression": _logistic_regression,
        "svc": _svc,
        "knn": _knn,
        "label_spreading": _label_spreading,
    }
    reduce = None
    for name, fit in learn.items():
        with warnings.catch_warnings():
            # Of fits that stop at their limit, and of classes that no test image has.
            warnings.simplefilter("ignore")
            reduce = reduce or _components(sets, seed)
            fitted = fit(sets, reduce)
            scores = {part: _score(fitted, some) for part, some in sets.held_out.items()}
        held_out = {part: scores.get(part) for part in ("test", "validation")}
        yield name, {"title": TITLES[name], "settings": fitted.settings, **held_out}


def _score(fitted: Fitted, part: Part) -> dict[str, float]:
    """Each metric of scikit-learn on labeled images; the area under ROC if there are two classes.

    As in :func:`jaxmatch.evaluation.metrics.roc_auc`, the second class is the positive one.
    """
    model = fitted.model
    inputs = [fitted.prepare(some) for some in _chunks(part.pixels)]
    found = np.concatenate([model.predict(some) for some in inputs])
    measured = {name: float(metric(part.labels, found)) for name, metric in METRICS.items()}
    if len(model.classes_) == 2 and np.array_equal(np.unique(part.labels), model.classes_):
        scores = np.concatenate([_score_of_second(model, some) for some in inputs])
        measured["roc_auc"] = float(roc_auc_score(part.labels, scores))
    return measured


def _score_of_second(model: Any, inputs: np.ndarray) -> np.ndarray:
    """A number [n] that is larger the more the second of two classes is expected."""
    if hasattr(model, "decision_function"):
        return model.decision_function(inputs)
    # Label spreading gives no probabilities to images that no label has reached.
    return np.nan_to_num(model.predict_proba(inputs)[:, 1], nan=0.5)


def _logistic_regression(sets: Sets, reduce: Prepare) -> Fitted:
    model = LogisticRegression(C=1.0, max_iter=300)
    model.fit(_levels(sets.labeled.pixels), sets.labeled.labels)
    return Fitted(model, _levels, "pixels in [0, 1], C=1")


def _svc(sets: Sets, reduce: Prepare) -> Fitted:
    train = _levels(sets.labeled.pixels)
    # gamma="scale" of scikit-learn, whose own kernel takes many times as long.
    gamma = 1 / max(train.shape[1] * float(train.var(dtype=np.float64)), 1e-12)
    model = SVC(C=10.0, kernel=partial(rbf_kernel, gamma=gamma))
    model.fit(train, sets.labeled.labels)
    settings = 'pixels in [0, 1], RBF kernel, C=10, gamma="scale"'
    return Fitted(model, _levels, settings)


def _knn(sets: Sets, reduce: Prepare) -> Fitted:
    neighbours = min(NEIGHBOURS, smallest_class(sets.labeled.labels))
    train = reduce(sets.labeled.pixels)
    model = KNeighborsClassifier(neighbours, weights="distance").fit(train, sets.labeled.labels)
    settings = (
        f"{train.shape[1]} principal components, k={neighbours}, votes weighted by 1/distance"
    )
    return Fitted(model, reduce, settings)


def _label_spreading(sets: Sets, reduce: Prepare) -> Fitted:
    train = reduce(np.concatenate([sets.labeled.pixels, sets.unlabeled.pixels]))
    labels = np.concatenate([sets.labeled.labels, sets.unlabeled.labels])
    neighbours = min(SPREADING_NEIGHBOURS, len(train) - 1)
    model = LabelSpreading(kernel="knn", n_neighbors=neighbours, alpha=0.8, max_iter=200)
    model.fit(train, labels)
    settings = f"{train.shape[1]} principal components, graph of {neighbours} neighbors, alpha=0.8"
    return Fitted(model, reduce, settings)


def _components(sets: Sets, seed: int) -> Prepare:
    """A function from pixels [n d] uint8 to principal components [n k] of the training images."""
    every = np.concatenate([sets.labeled.pixels, sets.unlabeled.pixels])
    some = thinned(np.arange(len(every)), MOST_FOR_COMPONENTS, seed)
    count = min(COMPONENTS, len(some) - 1, every.shape[1])
    model = PCA(count, svd_solver="randomized", random_state=seed).fit(_levels(every[some]))

    def reduce(pixels: np.ndarray) -> np.ndarray:
        return np.concatenate([model.transform(_levels(few)) for few in _chunks(pixels)])

    return reduce


def _levels(pixels: np.ndarray) -> np.ndarray:
    """Pixels as float32 in [0, 1]."""
    return pixels.astype(np.float32) / np.float32(255)


def _chunks(pixels: np.ndarray) -> Iterator[np.ndarray]:
    return (pixels[first : first + CHUNK] for first in range(0, len(pixels), CHUNK))


def gather(data: Data, seed: int) -> Sets:
    """Read the images that the baselines use, thinned and made smaller as far as needed.

    Raises:
        InputError: as :func:`measure`.
    """
    source = data.source
    if len(source.classes) > MOST_CLASSES:
        raise InputError(
            f"{data.name} has {len(source.classes)} classes, and baselines on pixels are made for "
            f"at most {MOST_CLASSES}; compare with --config=supervised on the same labels."
        )
    notes, pixels, labels = [], {}, {}
    for name, (images, known, rows, most) in used(data).items():
        if len(rows) > most:
            notes.append(f"{most:,} of {len(rows):,} {name} images are used, drawn by the seed.")
        rows = thinned(rows, most, seed)
        pixels[name], readable = _read(images, rows)
        labels[name] = known[rows[readable]]
    check_labels(data, labels)
    height, width, channels = pixels["labeled"].shape[1:]
    if (height, width) != source.images.shape[1:3]:
        whole = "x".join(map(str, source.images.shape[1:3]))
        notes.append(f"The images of {whole} are averaged down to {height}x{width}.")
    if all((some == some[..., :1]).all() for some in pixels.values()):  # gray
        channels = 1
    size = height * width * channels
    parts = {
        name: Part(some[..., :channels].reshape(len(some), size), labels[name])
        for name, some in pixels.items()
    }
    return Sets(
        labeled=parts.pop("labeled"),
        unlabeled=parts.pop("unlabeled"),
        held_out={name: part for name, part in parts.items() if len(part.labels)},
        shape=(height, width, channels),
        notes=tuple(notes),
    )


def check_labels(data: Data, labels: Mapping[str, np.ndarray]) -> None:
    """Check that there is something to learn and something to test on.

    Args:
        data: for messages.
        labels: of the readable images by part, "labeled" and "test" among them.

    Raises:
        InputError: if not.
    """
    names = data.source.classes
    if len(classes := np.unique(labels["labeled"])) < 2:
        what = f"are all of class {names[classes[0]]!r}" if len(classes) else "are none"
        raise InputError(
            f"The readable labeled images of {data.name} {what}: a baseline needs two classes or "
            "more."
        )
    if not len(labels["test"]):
        raise InputError(f"{data.name} has no test images with known labels.")


def used(data: Data) -> dict[str, tuple[Images, np.ndarray, np.ndarray, int]]:
    """Images, labels, the rows to use and the most of them, by part of the data."""
    source = data.source
    labeled = splits.locate(source, data.split)
    unlabeled = np.setdiff1d(np.arange(len(source.images)), labeled)
    hidden = np.full(len(source.images), -1, np.int32)
    tested = np.flatnonzero(source.test_labels >= 0)
    parts = {
        "labeled": (source.images, source.labels, labeled, MOST_LABELED),
        "unlabeled": (source.images, hidden, unlabeled, MOST_UNLABELED),
        "test": (source.test_images, source.test_labels, tested, MOST_TEST),
    }
    if data.validation_images is not None and data.validation_labels is not None:
        images, labels = data.validation_images, data.validation_labels
        parts["validation"] = images, labels, np.arange(len(labels)), MOST_TEST
    return parts


def thinned(rows: np.ndarray, most: int, seed: int) -> np.ndarray:
    """At most ``most`` of ``rows``, drawn by the seed, in order."""
    if len(rows) <= most:
        return rows
    return rows[np.sort(np.random.RandomState(seed).permutation(len(rows))[:most])]


def _read(images: Images, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The readable images at ``rows`` [n], made smaller: [r h w 3] uint8, and which [n] bool."""
    height, width = images.shape[1:3]
    scale = min(1, MOST_SIDE / max(height, width))
    size = max(1, round(height * scale)), max(1, round(width * scale))
    found, readable = [np.empty((0, *size, 3), np.uint8)], np.ones(len(rows), bool)
    for first in range(0, len(rows), CHUNK):
        some = rows[first : first + CHUNK]
        if isinstance(images, LazyImages):
            read, state = images.read(some)
            readable[first : first + CHUNK] = state == READ
            read = read[state == READ]
        else:
            read = images[some]
        if scale < 1 and len(read):
            read = np.stack([_smaller(image, size) for image in read])
        found.append(read)
    return np.concatenate(found), readable


def _smaller(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """An image [h w 3] uint8 of ``size`` (height, width): means over the pixels of each box."""
    return np.asarray(Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BOX))
