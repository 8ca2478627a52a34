"""The held-out images of a run, and how its networks do on them while it trains."""

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from jax.sharding import NamedSharding

from jaxmatch.data.lazy import Images
from jaxmatch.data.resident import Table
from jaxmatch.evaluation import temperature, unknown
from jaxmatch.evaluation.bootstrap import Resampling, intervals
from jaxmatch.evaluation.forward import (
    Answers,
    make_features,
    make_logits,
    make_scored,
    never,
    probabilities,
)
from jaxmatch.evaluation.metrics import evaluation, score
from jaxmatch.evaluation.probe import Sets, measure, probe_sets
from jaxmatch.evaluation.selection import Selection
from jaxmatch.program import Program
from jaxmatch.record.data import Data
from jaxmatch.record.metrics import TEST_IMAGES
from jaxmatch.record.unknown import KnownImages
from jaxmatch.types import PyTree, TrainState

# k-NN uses at most this many training and test images while a label-free method trains.
KNN_TRAIN, KNN_TEST = 4000, 1000

VALIDATION = "validation"
Held = tuple[Images | Table, np.ndarray]  # images and their labels


class HeldOut:
    """Held-out images: the test set, if the method reads labels, and the validation set, if any.

    Attributes:
        sets: (images, labels) by name, "test" and :data:`VALIDATION`.
        parts: some of the images of a set that has more than ``data.eval_images``; but not of a
            validation set that chooses the best checkpoint.
        knn: the images of k-NN during training; None if the method reads labels, or the labels are
            unknown.
        selection: the metric that chooses the best checkpoint; None if there is none.
    """

    def __init__(self, program: Program, data: Data):
        """Choose the images; nothing is put on a device.

        Raises:
            InputError: if the best checkpoint is chosen by a metric that the data does not have.
        """
        self.program = program
        self.sets: dict[str, Held] = {}
        self.parts: dict[str, Held] = {}
        source = data.source
        if program.algorithm.labeled:
            self.sets["test"] = source.test_images, source.test_labels
        if data.validation_images is not None and data.validation_labels is not None:
            self.sets[VALIDATION] = data.validation_images, data.validation_labels
        self.selection = Selection.of(program.config)
        most = program.config.data.eval_images
        for name, (images, labels) in self.sets.items():
            chooses = name == VALIDATION and self.selection is not None  # by equal images
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
        if self.selection is not None:
            _, labels = self.sets.get(VALIDATION, (None, np.zeros(0, np.int32)))
            self.selection.check(len(program.classes), labels)
        # Logits of the last evaluation by set and network, of sets that it had whole.
        self._last: dict[tuple[str, str], Answers] = {}
        self.logits = make_logits(program)
        self.scored = make_scored(program)
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

    def evaluate(
        self, state: TrainState, whole: bool = True, between: Callable[[], None] = never
    ) -> dict[str, float]:
        """The metrics of teacher and student, as ``metrics.jsonl`` names them; or k-NN's accuracy.

        k-NN measures label-free methods, whose classifier is not trained. It learns from all known
        labels, none of which the run sees.

        Args:
            state: the state to evaluate.
            whole: whether all images count, or only those of :attr:`parts`; of the latter's test
                images ``test/images`` is the number. Logits that a :meth:`calibration` or
                :meth:`report` of the same state needs are kept.
            between: as :class:`jaxmatch.evaluation.forward.Evaluate` calls it.
        """
        if self.knn is not None:
            found = self.probe(state, self.knn, ["knn"], between)
            return {f"probe/{name}": value for name, value in found}
        sets = self.sets if whole else self.usual
        answers = self._logits_of(state, sets, between)
        self._last = {
            key: found
            for key, found in answers.items()
            if whole or (key[0] == VALIDATION and self.selection is not None)
        }
        some = self.parts.get("test") if not whole else None
        return ({TEST_IMAGES: len(some[1])} if some else {}) | {
            f"{name}/{network}/{metric}": value
            for (name, network), found in answers.items()
            for metric, value in score(probabilities(found), sets[name][1]).items()
            if value is not None
        }

    def calibration(self, state: TrainState) -> dict[str, Any] | None:
        """The temperatures of teacher and student, fitted to the validation set.

        :func:`jaxmatch.evaluation.temperature.of_networks` describes them. None without a
        validation set.
        """
        if VALIDATION not in self.sets:
            return None
        logits = {network: each for (_, network), each in self._kept(state, [VALIDATION])}
        return temperature.of_networks(logits, self.sets[VALIDATION][1])

    def known_images(self, state: TrainState, step: int) -> KnownImages | None:
        """How strange the validation set looks to the networks of a state; None without one."""
        if VALIDATION not in self.sets:
            return None
        logits = {network: each for (_, network), each in self._kept(state, [VALIDATION])}

        def scored(images: Images | Table, network: str) -> Answers:
            if unknown.has_heads(self.program.algorithm):
                return self.scored(networks(state)[network], images)
            return logits[network]._replace(values=(logits[network].values, None))

        return unknown.measure(self.sets[VALIDATION][0], VALIDATION, step, scored)

    def report(
        self, state: TrainState, calibration: Mapping[str, Any] | None = None
    ) -> dict[str, dict[str, Any]]:
        """All metrics of teacher and student on each set: {set: {network: {metric: value}}}.

        On the test set the network that the method reports has ``intervals``, too
        (:func:`jaxmatch.evaluation.bootstrap.intervals`).

        Args:
            state: the state to evaluate.
            calibration: as :meth:`calibration` returns it; the metrics are those with it.
        """
        found: dict[str, dict[str, Any]] = {name: {} for name in self.sets}
        for (name, network), logits in self._kept(state, self.sets):
            scale = calibration[network]["temperature"] if calibration else 1.0
            answers, labels = probabilities(logits, scale), self.sets[name][1]
            found[name][network] = evaluation(answers, labels, self.program.classes)
            if (name, network) == ("test", self.program.algorithm.evaluated):
                found[name][network]["intervals"] = intervals(
                    answers, labels, self.program.classes, Resampling()
                )
        self._last = {}
        return found

    def _kept(
        self, state: TrainState, names: Collection[str]
    ) -> list[tuple[tuple[str, str], Answers]]:
        """The logits of the sets ``names`` by set and network, as far as possible those kept."""
        kept = {name for name, _ in self._last}
        missing = {name: self.sets[name] for name in names if name not in kept}
        self._last |= self._logits_of(state, missing)
        return [(key, logits) for key, logits in self._last.items() if key[0] in names]

    def _logits_of(
        self,
        state: TrainState,
        sets: Mapping[str, Held],
        between: Callable[[], None] = never,
    ) -> dict[tuple[str, str], Answers]:
        """The logits by set and network."""
        return {
            (name, network): self.logits(variables, images, between)
            for name, (images, _) in sets.items()
            for network, variables in networks(state).items()
        }

    def probe(
        self,
        state: TrainState,
        sets: Sets,
        names: Sequence[str],
        between: Callable[[], None] = never,
    ) -> Iterator[tuple[str, float]]:
        """Measure the features of the network that the method reports; yields (probe, accuracy)."""
        variables = networks(state)[self.program.algorithm.evaluated]
        compute = partial(self.features, between=between)
        return measure(compute, variables, sets, self.program.mesh, names)


def networks(state: TrainState) -> dict[str, PyTree]:
    """The variables of the networks that are evaluated, by name."""
    return {"teacher": state.teacher, "student": state.student()}
