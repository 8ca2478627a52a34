"""Images of a run that tell how its network errs: the mistakes, the doubts, the pseudo-labels.

They are kept in the run folder, as small pictures, so that a second report needs neither the data
nor the network.
"""

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from PIL import Image

from jaxmatch.algorithms import build_algorithm
from jaxmatch.config.saved import complete
from jaxmatch.data import splits
from jaxmatch.data.lazy import Images, pixels
from jaxmatch.data.source import Source
from jaxmatch.data.thumbnails import thumbnail
from jaxmatch.evaluation.bootstrap import Resampling, intervals
from jaxmatch.evaluation.classifier import Classifier, load
from jaxmatch.evaluation.forward import Answers
from jaxmatch.evaluation.metrics import evaluation
from jaxmatch.evaluation.predictions import Predictions
from jaxmatch.record.folder import RunFolder, keep
from jaxmatch.record.metrics import for_summary
from jaxmatch.record.run_data import load_recorded
from jaxmatch.runtime.checkpoint import Checkpoints

FORMAT = 1
MOST_IMAGES = 5_000  # of a set that are classified, drawn evenly
SHOWN = 12  # images of a kind
OF_CLASS = 8  # unlabeled images of a predicted class
CLASSES = 12  # with unlabeled images: those with the most
SIDE = 96  # of a picture in pixels, at most


class Example(TypedDict):
    """An image and its prediction.

    ``picture`` is a PNG or JPEG in base64, ``truth`` the name of the true class, or "" if it is not
    known, ``confidence`` the probability of the predicted class.
    """

    picture: str
    name: str
    truth: str
    prediction: str
    confidence: float


def examples(folder: str | Path, place: str = "") -> dict[str, Any]:
    """The examples of a run's checkpoint that is used by default, by the network it reports.

    The keys are ``format``, ``step``, ``network``, ``temperature``; ``test`` and ``unlabeled``,
    pairs of the number of images that were classified and of all; ``mistakes`` (test images, the
    most confident first), ``uncertain`` (test images, the least confident first),
    ``wrong_pseudo_labels`` (unlabeled images whose true class is known and another than the
    prediction, the most confident first), each a list of :class:`Example`; ``by_class``, the
    ``count`` and some ``examples`` of the unlabeled images by predicted class; and ``metrics`` and
    ``intervals`` of the classified test images (:mod:`jaxmatch.evaluation.bootstrap`).

    Args:
        folder: of the run.
        place: where the data is now, if it has moved.

    Raises:
        InputError: if the run has no classifier or checkpoint, or its data is gone or changed.
    """
    files = RunFolder.at(folder)
    made = _made(files)
    if made is not None and (kept := files.read_examples(made)) is not None:
        return kept
    classifier = load(folder)
    classifier.check_classifies()
    found = {
        "format": FORMAT,
        "step": classifier.step,
        "network": classifier.program.algorithm.evaluated,
        "temperature": classifier.temperature(),
        **_found(classifier, place),
    }
    keep(files.write_examples, found)
    return found


def _made(files: RunFolder) -> dict[str, Any] | None:
    """What the examples of the checkpoint in use begin with; None if there is no checkpoint.

    It is told from the run's files alone, because a network takes long to load.
    """
    values = files.read_config() or {}
    try:
        config = complete({key: value for key, value in values.items() if key != "facts"})
        network = build_algorithm(config.algorithm).evaluated
    except (TypeError, ValueError, AttributeError, KeyError):  # loading the run says what is wrong
        return None
    with Checkpoints(files.checkpoints) as checkpoints:
        best = checkpoints.best() if config.select else None
        steps = [best.step] if best else checkpoints.steps()
    if not steps:
        return None
    calibration = files.read_calibrations().get(steps[-1], {})
    temperature = calibration.get(network, {}).get("temperature", 1.0)
    return {"format": FORMAT, "step": steps[-1], "network": network, "temperature": temperature}


def _found(classifier: Classifier, place: str) -> dict[str, Any]:
    data = load_recorded(classifier.config, classifier.folder, place=place)
    source = data.source
    labeled = set(splits.locate(source, data.split).tolist())
    pool = np.array([row for row in range(len(source.images)) if row not in labeled], np.int64)
    test = _Set(classifier, source.test_images, source.test_labels, _test_names(source))
    unlabeled = _Set(
        classifier,
        source.images,
        source.labels,
        lambda row: _name(source, int(source.rows[row]), "training image"),
        pool,
    )
    wrong = unlabeled.known & (unlabeled.labels != unlabeled.found.label)
    return {
        "test": test.numbers,
        "unlabeled": unlabeled.numbers,
        **test.figures(),
        "mistakes": test.first(test.known & (test.labels != test.found.label), -1),
        "uncertain": test.first(np.ones(len(test.rows), bool), 1),
        "wrong_pseudo_labels": unlabeled.first(wrong, -1),
        "by_class": unlabeled.by_class(),
    }


class _Set:
    """Images of a set, evenly drawn if there are many, and their predictions."""

    def __init__(
        self,
        classifier: Classifier,
        images: Images,
        labels: np.ndarray,
        name: Callable[[int], str],
        rows: np.ndarray | None = None,
    ):
        every = np.arange(len(images)) if rows is None else rows
        step = max(1, -(-len(every) // MOST_IMAGES))
        self.rows, self.all = every[::step], len(every)
        self.images, self.name, self.classes = images, name, classifier.classes
        self.labels = labels[self.rows]
        empty = np.zeros((0, len(self.classes)), np.float32)
        none = Predictions(
            label=np.zeros(0, np.int64),
            confidence=np.zeros(0, np.float32),
            probabilities=empty,
            classes=self.classes,
        )
        self.found = classifier.predict(images[self.rows]) if len(self.rows) else none
        self.readable = self.found.label >= 0

    @property
    def numbers(self) -> list[int]:
        """How many images are classified, and how many there are."""
        return [len(self.rows), self.all]

    @property
    def known(self) -> np.ndarray:
        """Which images have a true class."""
        return self.labels >= 0

    def figures(self) -> dict[str, Any]:
        """The metrics of the images whose class is known, and their intervals."""
        answers = Answers(self.found.probabilities, self.readable)
        return {
            "metrics": for_summary(evaluation(answers, self.labels, self.classes)),
            "intervals": intervals(answers, self.labels, self.classes, Resampling()),
        }

    def first(self, which: np.ndarray, sign: int, count: int = SHOWN) -> list[Example]:
        """The least (``sign`` 1) or most (-1) confident of the images ``which`` [n] bool."""
        places = np.flatnonzero(which & self.readable)
        order = np.argsort(sign * self.found.confidence[places], kind="stable")
        return [self.example(place) for place in places[order[:count]].tolist()]

    def by_class(self) -> dict[str, Any]:
        """Some images of each predicted class, evenly drawn over the confidence."""
        numbers = np.bincount(self.found.label[self.readable], minlength=len(self.classes))
        found = {}
        for number in np.argsort(-numbers, kind="stable")[:CLASSES].tolist():
            places = np.flatnonzero(self.found.label == number)
            if not len(places):
                continue
            ordered = places[np.argsort(-self.found.confidence[places], kind="stable")]
            chosen = np.unique(np.linspace(0, len(ordered) - 1, OF_CLASS).astype(int))
            found[self.classes[number]] = {
                "count": len(places),
                "examples": [self.example(place) for place in ordered[chosen].tolist()],
            }
        return found

    def picture(self, row: int) -> bytes:
        """An image by its place in the set, as the network sees it."""
        return thumbnail(Image.fromarray(pixels(self.images, row)), SIDE)

    def example(self, place: int) -> Example:
        """An image by its place among those that are classified."""
        label, row = int(self.labels[place]), int(self.rows[place])
        return {
            "picture": base64.b64encode(self.picture(row)).decode(),
            "name": self.name(row),
            "truth": self.classes[label] if label >= 0 else "",
            "prediction": self.found.names[place],
            "confidence": round(float(self.found.confidence[place]), 4),
        }


def _test_names(source: Source) -> Callable[[int], str]:
    listed = source.listed
    rows = sorted({*listed.test} - {*listed.unused}) if listed is not None else ()
    return lambda row: _name(source, rows[row] if rows else row, "test image", bool(rows))


def _name(source: Source, row: int, kind: str, listed: bool = True) -> str:
    """The name of an image by its place in storage order, or what it is."""
    names = source.listed.names if source.listed is not None else source.names
    return names[row] if listed and names else f"{kind} {row}"
