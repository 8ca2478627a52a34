"""The held-out images of a run, and how its networks do on them while it trains."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jax.sharding import NamedSharding

from jaxmatch.data.lazy import Images
from jaxmatch.data.resident import Table
from jaxmatch.evaluation.forward import Answers, make_features, make_predict
from jaxmatch.evaluation.metrics import RECORDED, evaluation, score
from jaxmatch.evaluation.probe import Sets, measure, probe_sets
from jaxmatch.evaluation.selection import Selection
from jaxmatch.program import Program
from jaxmatch.record.run_data import Data
from jaxmatch.types import PyTree, TrainState

# k-NN uses at most this many training and test images while a label-free method trains.
KNN_TRAIN, KNN_TEST = 4000, 1000

Held = tuple[Images | Table, np.ndarray]  # images and their labels


class HeldOut:
    """Held-out images: the test set, if the method reads labels, and the validation set, if any.

    Attributes:
        sets: (images, labels) by name, "test" and "validation".
        parts: some of the images of a set that has more than ``data.eval_images``; but not of a
            validation set that chooses the best checkpoint.
        knn: the images of k-NN during training; None if the method reads labels, or the labels are
            unknown.
        selection: the metric that chooses the best checkpoint; None without ``config.keep_best``.
        recorded: the metrics of an evaluation.
    """

    def __init__(self, program: Program, data: Data):
        """Choose the images; nothing is put on a device.

        Raises:
            InputError: if ``config.keep_best`` names a metric that the data does not have.
        """
        self.program = program
        self.sets: dict[str, Held] = {}
        self.parts: dict[str, Held] = {}
        source = data.source
        if program.algorithm.labeled:
            self.sets["test"] = source.test_images, source.test_labels
        if data.validation_images is not None and data.validation_labels is not None:
            self.sets["validation"] = data.validation_images, data.validation_labels
        self.selection = Selection.of(program.config)
        most = program.config.data.eval_images
        for name, (images, labels) in self.sets.items():
            chooses = name == "validation" and self.selection is not None  # by equal images
            if most and len(images) > most and not chooses:
                assert not isinstance(images, Table)
                rows = np.sort(np.random.RandomState(0).permutation(len(images))[:most])
                self.parts[name] = images[rows], labels[rows]
        self.bytes = sum(
            math.prod(images.shape)
            for images, _ in (*self.sets.values(), *self.parts.values())
            if not isinstance(images, Table)
        )
        self.knn: Sets | None = None
        known = (source.labels >= 0).any() and (source.test_labels >= 0).any()
        if known and not program.algorithm.labeled:
            self.knn = probe_sets(source, KNN_TRAIN, KNN_TEST)
        extra: tuple[str, ...] = ()
        if self.selection is not None:
            validation = self.sets.get("validation", (None, ()))[1]
            self.selection.check(len(program.classes), len(validation))
            extra = (self.selection.metric,)
        self.recorded = tuple(dict.fromkeys((*RECORDED, *extra)))
        self._last: dict[tuple[str, str], Answers] = {}  # of the last evaluation, if they are kept
        self.predict = make_predict(program)
        self.features = make_features(program, spread=True)

    @property
    def usual(self) -> dict[str, Held]:
        """The images of an evaluation during training: the parts, and the sets without a part."""
        return {**self.sets, **self.parts}

    def place(
        self, put: Callable[[PyTree, NamedSharding], PyTree], sharding: NamedSharding
    ) -> None:
        """Put the images of :attr:`sets`, which are arrays, on the devices."""
        for sets in (self.sets, self.parts):
            for name, (images, labels) in sets.items():
                assert isinstance(images, np.ndarray)
                sets[name] = put(Table.of(images), sharding), labels

    def evaluate(self, state: TrainState, whole: bool = True) -> dict[str, float]:
        """The metrics of teacher and student, as ``metrics.jsonl`` names them; or k-NN's accuracy.

        k-NN measures label-free methods, whose classifier is not trained. It learns from all known
        labels, none of which the run sees.

        Args:
            state: the state to evaluate.
            whole: whether all images count, or only those of :attr:`parts`. Their answers are kept
                for a :meth:`report` of the same state.
        """
        if self.knn is not None:
            found = self.probe(state, self.knn, ["knn"])
            return {f"probe/{name}": value for name, value in found}
        sets = self.sets if whole else self.usual
        answers = self._answers(state, sets)
        self._last = answers if whole else {}
        return {
            f"{name}/{network}/{metric}": value
            for (name, network), found in answers.items()
            for metric, value in score(found, sets[name][1], self.recorded).items()
            if value is not None
        }

    def report(self, state: TrainState) -> dict[str, dict[str, Any]]:
        """All metrics of teacher and student on each set: {set: {network: {metric: value}}}."""
        answers, self._last = self._last or self._answers(state, self.sets), {}
        found: dict[str, dict[str, Any]] = {name: {} for name in self.sets}
        for (name, network), each in answers.items():
            found[name][network] = evaluation(each, self.sets[name][1], self.program.classes)
        return found

    def _answers(
        self, state: TrainState, sets: Mapping[str, Held]
    ) -> dict[tuple[str, str], Answers]:
        """The probabilities by set and network."""
        return {
            (name, network): self.predict(variables, images)
            for name, (images, _) in sets.items()
            for network, variables in networks(state).items()
        }

    def probe(
        self, state: TrainState, sets: Sets, names: Sequence[str]
    ) -> Iterator[tuple[str, float]]:
        """Measure the features of the network that the method reports; yields (probe, accuracy)."""
        variables = networks(state)[self.program.algorithm.evaluated]
        return measure(self.features, variables, sets, self.program.mesh, names)


def networks(state: TrainState) -> dict[str, PyTree]:
    """The variables of the networks that are evaluated, by name."""
    return {"teacher": state.teacher, "student": state.student()}
