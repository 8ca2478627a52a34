"""The held-out images of a run, and how its networks do on them while it trains."""

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from jax.sharding import NamedSharding

from jaxmatch.data.lazy import Images
from jaxmatch.data.resident import Table
from jaxmatch.evaluation.forward import make_features, make_predict
from jaxmatch.evaluation.metrics import score
from jaxmatch.evaluation.probe import Sets, measure, probe_sets
from jaxmatch.program import Program
from jaxmatch.record.run_data import Data
from jaxmatch.types import PyTree, TrainState

# k-NN uses at most this many training and test images while a label-free method trains.
KNN_TRAIN, KNN_TEST = 4000, 1000


class HeldOut:
    """Held-out images: the test set, if the method reads labels, and the validation set, if any.

    Attributes:
        sets: (images, labels) by name, "test" and "validation".
        knn: the images of k-NN during training; None if the method reads labels, or the labels are
            unknown.
    """

    def __init__(self, program: Program, data: Data):
        """Choose the images; nothing is put on a device."""
        self.program = program
        self.sets: dict[str, tuple[Images | Table, np.ndarray]] = {}
        source = data.source
        if program.algorithm.labeled:
            self.sets["test"] = source.test_images, source.test_labels
        if data.validation_images is not None and data.validation_labels is not None:
            self.sets["validation"] = data.validation_images, data.validation_labels
        self.bytes = sum(
            math.prod(images.shape)
            for images, _ in self.sets.values()
            if not isinstance(images, Table)
        )
        self.knn: Sets | None = None
        known = (source.labels >= 0).any() and (source.test_labels >= 0).any()
        if known and not program.algorithm.labeled:
            self.knn = probe_sets(source, KNN_TRAIN, KNN_TEST)
        self.predict = make_predict(program)
        self.features = make_features(program, spread=True)

    def place(
        self, put: Callable[[PyTree, NamedSharding], PyTree], sharding: NamedSharding
    ) -> None:
        """Put the images of :attr:`sets`, which are arrays, on the devices."""
        for name, (images, labels) in self.sets.items():
            assert isinstance(images, np.ndarray)
            self.sets[name] = put(Table.of(images), sharding), labels

    def evaluate(self, state: TrainState) -> dict[str, float]:
        """The metrics of teacher and student, as ``metrics.jsonl`` names them; or k-NN's accuracy.

        k-NN measures label-free methods, whose classifier is not trained. It learns from all known
        labels, none of which the run sees.
        """
        if self.knn is not None:
            found = self.probe(state, self.knn, ["knn"])
            return {f"probe/{name}": value for name, value in found}
        return {
            f"{name}/{network}/{metric}": value
            for name, (images, labels) in self.sets.items()
            for network, variables in networks(state).items()
            for metric, value in score(self.predict(variables, images), labels).items()
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
