"""A trained run as a classifier of images."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxmatch.config.saved import complete
from jaxmatch.data import sources
from jaxmatch.data.images import Fitting
from jaxmatch.data.lazy import Images
from jaxmatch.data.levels import Levels
from jaxmatch.errors import InputError, suggest
from jaxmatch.evaluation.forward import Answers, Evaluate, make_predict
from jaxmatch.evaluation.metrics import evaluation
from jaxmatch.evaluation.predictions import Predictor
from jaxmatch.program import Program
from jaxmatch.record.folder import RunFolder
from jaxmatch.runtime.checkpoint import Checkpoints
from jaxmatch.types import PyTree, TrainState

NETWORKS = ("teacher", "student")


@dataclass(frozen=True, kw_only=True)
class Classifier(Predictor):
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

    def score(self, images: Images, labels: np.ndarray, network: str = "") -> dict[str, Any]:
        """All metrics (:mod:`jaxmatch.evaluation.metrics`), by name, for true ``labels`` [n].

        Unreadable images do not count. Images and errors are those of :meth:`predict`.
        """
        answers = self._probabilities(self._checked(images), network)
        return evaluation(answers, labels, self.classes)

    @cached_property
    def _network(self) -> Evaluate:
        """Compiled once for all calls."""
        return make_predict(self.program)

    @property
    def fitting(self) -> Fitting:
        """How a picture of any size becomes an image."""
        data = self.config.data
        return sources.fitting(data.name, self.image_shape[:2], data.center_crop)

    @property
    def levels(self) -> Levels:
        """How the levels of a picture become 0..255."""
        return Levels.of(self.config.data.background, self.config.data.white_level)

    def check_classifies(self) -> None:
        """Check that the run trained a classifier.

        Raises:
            InputError: if not, because the method reads no labels.
        """
        if not self.program.algorithm.labeled:
            raise InputError(
                f"{self.folder} was trained without labels and has no classifier; use jaxmatch "
                "probe, or train one with --config.init_from."
            )

    def _probabilities(self, images: Images, network: str) -> Answers:
        return self._network(self.variables(network), images)


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
