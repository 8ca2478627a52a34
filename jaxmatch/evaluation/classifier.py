"""A trained run as a classifier of images."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxmatch.config.saved import complete
from jaxmatch.data.lazy import Images, LazyImages
from jaxmatch.errors import InputError, suggest
from jaxmatch.evaluation.forward import Answers, make_predict
from jaxmatch.evaluation.metrics import evaluation
from jaxmatch.program import Program
from jaxmatch.record.folder import RunFolder
from jaxmatch.runtime.checkpoint import Checkpoints
from jaxmatch.types import PyTree, TrainState

NETWORKS = ("teacher", "student")


class Predictions(NamedTuple):
    """Predictions for n images; an unreadable image has the label -1 and NaN elsewhere."""

    label: np.ndarray  # [n] int64 position in ``Classifier.classes``
    confidence: np.ndarray  # [n] float32, the largest probability
    probabilities: np.ndarray  # [n C] float32


@dataclass(frozen=True, kw_only=True)
class Classifier:
    """One checkpoint of a run; made by :func:`load`.

    Attributes:
        folder: the run folder; for a run in stages, the folder of its last stage.
        config: the run's configuration.
        classes: class names.
        image_shape: (height, width, 3) of the images to classify.
        step: the checkpoint's step.
        state: the whole content of the checkpoint.
        program: network, method and devices of the configuration.
    """

    folder: Path
    config: ConfigDict
    classes: tuple[str, ...]
    image_shape: tuple[int, int, int]
    step: int
    state: TrainState
    program: Program

    def variables(self, network: str = "") -> PyTree:
        """The variables of "teacher" or "student"; by default, the one that the method reports.

        Raises:
            InputError: if ``network`` is another name.
        """
        network = network or self.program.algorithm.evaluated
        if network not in NETWORKS:
            raise InputError(f"unknown network {network!r}; {suggest(network, NETWORKS)}")
        return self.state.teacher if network == "teacher" else self.state.student()

    def predict(self, images: Images, network: str = "") -> Predictions:
        """Classify ``images`` [n h w 3] uint8 of the size of the training images.

        Raises:
            InputError: if images have another shape or dtype, if there are none, if no one is
                readable, or, under ``data.strict``, if one is not readable.
        """
        found, readable = self._answers(images, network)
        found = np.where(readable[:, None], found, np.float32(np.nan))
        return Predictions(np.where(readable, found.argmax(-1), -1), found.max(-1), found)

    def score(self, images: Images, labels: np.ndarray, network: str = "") -> dict[str, Any]:
        """All metrics (:mod:`jaxmatch.evaluation.metrics`), by name, for true ``labels`` [n].

        Unreadable images do not count. Images and errors are those of :meth:`predict`.
        """
        return evaluation(self._answers(images, network), labels, self.classes)

    def _answers(self, images: Images, network: str) -> Answers:
        if not isinstance(images, LazyImages):
            images = np.asarray(images)
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != self.image_shape:
            raise InputError(
                f"predict takes uint8 images of shape (n, {', '.join(map(str, self.image_shape))}),"
                f" but these are {images.dtype} {images.shape}."
            )
        if not self.program.algorithm.labeled:
            raise InputError(
                f"{self.folder} was trained without labels and has no classifier; use jaxmatch "
                "probe, or train one with --config.init_from."
            )
        if not len(images):
            raise InputError("there are no images to predict; give at least one.")
        return make_predict(self.program)(self.variables(network), images)


def load(workdir: str | Path, step: int | str | None = None) -> Classifier:
    """Load the newest checkpoint of a run, or that of ``step``; no configuration file is executed.

    ``step="best"`` loads the checkpoint that ``config.keep_best`` chose.

    Raises:
        InputError: if ``workdir`` is not a run folder or has no such checkpoint.
    """
    run = RunFolder.at(workdir)
    values = run.read_config()
    if values is None:
        raise InputError(f"{run.path} is no run folder: it has no config.json.")
    facts = run.read_facts()
    settings = {key: value for key, value in values.items() if key != "facts"}
    alone = jax.process_count() == 1 and jax.default_backend() != "cpu"
    # The run may have been trained on other devices; its memories are placed to fit these.
    here = {"devices": 1 if alone else 0, "memory_placement": "auto"}
    config = complete({**settings, **here})
    try:
        program = Program.build(config, facts)
    except (TypeError, ValueError, AttributeError, KeyError) as error:  # values nobody checks
        raise run.damaged(str(error)) from error
    with Checkpoints(run.checkpoints) as checkpoints:
        restored = checkpoints.restore(program.abstract, step)
    if restored is None:
        raise InputError(f"{run.path} has no checkpoint yet; train it until the first save.")
    state, step = restored
    return Classifier(
        folder=run.path,
        config=config,
        classes=facts.classes,
        image_shape=program.image_shape,
        step=step,
        state=state,
        program=program,
    )
