"""A trained run as a classifier of images."""

import logging
from collections.abc import Mapping
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
from jaxmatch.evaluation.bootstrap import Resampling, intervals
from jaxmatch.evaluation.forward import Answers, Evaluate, make_scored, probabilities
from jaxmatch.evaluation.metrics import evaluation
from jaxmatch.evaluation.predictions import ImagesOrPaths, Predictor
from jaxmatch.evaluation.unknown import chosen, of_run, scores, traced
from jaxmatch.program import Program
from jaxmatch.record.folder import RunFolder
from jaxmatch.record.unknown import KnownImages
from jaxmatch.runtime.checkpoint import BEST, NEWEST, Checkpoints
from jaxmatch.types import PyTree, TrainState
from jaxmatch.weights.trained import Known

log = logging.getLogger(__name__)

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
        calibration: temperatures of the networks at this step, as
            :mod:`jaxmatch.record.calibration` describes them; None leaves probabilities as the
            network gives them.
        place: where the data of the run is now, if it has moved; for :attr:`known_images`.
    """

    folder: Path
    config: ConfigDict
    classes: tuple[str, ...]
    image_shape: tuple[int, int, int]
    step: int
    state: TrainState
    program: Program
    calibration: Mapping[str, Any] | None = None
    place: str = ""

    def variables(self, network: str = "") -> PyTree:
        """The variables of "teacher" or "student"; by default, the one that the method reports.

        Raises:
            InputError: if ``network`` is another name.
        """
        chosen = self._chosen(network)
        return self.state.teacher if chosen == "teacher" else self.state.student()

    def temperature(self, network: str = "") -> float:
        """The number that divides the logits before the softmax; 1 without a calibration.

        Argument and errors are those of :meth:`variables`.
        """
        chosen = self._chosen(network)
        return float(self.calibration[chosen]["temperature"]) if self.calibration else 1.0

    def _chosen(self, network: str) -> str:
        network = network or self.program.algorithm.evaluated
        if network not in NETWORKS:
            raise InputError(f"unknown network {network!r}; {suggest(network, NETWORKS)}")
        return network

    def score(
        self,
        images: Images,
        labels: np.ndarray,
        network: str = "",
        resampling: Resampling | None = None,
    ) -> dict[str, Any]:
        """All metrics (:mod:`jaxmatch.evaluation.metrics`), by name, for true ``labels`` [n].

        Unreadable images do not count. Images and errors are those of :meth:`predict`. With
        ``resampling`` the key ``intervals`` has their confidence intervals
        (:func:`jaxmatch.evaluation.bootstrap.intervals`).

        Raises:
            InputError: also if ``labels`` are not one position of a class for each image.
        """
        labels = np.asarray(labels)
        if labels.shape != (len(images),) or not np.issubdtype(labels.dtype, np.integer):
            raise InputError(
                f"labels must be whole numbers, one for each of {len(images):,} images; they are "
                f"{labels.dtype} of the shape {labels.shape}."
            )
        if labels.size and not 0 <= labels.min() <= labels.max() < len(self.classes):
            raise InputError(
                f"labels must be from 0 to {len(self.classes) - 1}, positions in `classes`; they "
                f"are from {labels.min()} to {labels.max()}."
            )
        answers = probabilities(self.logits(images, network), self.temperature(network))
        found = evaluation(answers, labels, self.classes)
        if resampling is not None:
            found["intervals"] = intervals(answers, labels, self.classes, resampling)
        return found

    @cached_property
    def _network(self) -> Evaluate:
        """Gives logits and strangeness; compiled once for all calls."""
        return make_scored(self.program)

    @cached_property
    def known_images(self) -> KnownImages:
        """How strange known images look to the networks, of ``unknown.json`` or measured now.

        They are the validation set of the run, or else its labeled images, with a warning.

        Raises:
            InputError: if the run has no classifier; or if they must be measured, and the data is
                not what it was.
        """
        self.check_classifies()
        return of_run(RunFolder(self.folder), self.config, self.step, self.place, self.scored)

    def _score(self, unknown: bool | str, network: str) -> str:
        """The name of the score of strangeness; "" if nobody asked for it."""
        if not unknown:
            return ""
        asked = unknown if isinstance(unknown, str) else ""
        return chosen(self.known_images, self._chosen(network), asked)

    def compared(self, score: str, network: str) -> Known:
        """What a file needs to tell how strange images look, as :meth:`predict` tells it.

        Args:
            score: its name; "" for the usual one.
            network: as of :meth:`variables`.

        Raises:
            InputError: as :attr:`known_images`, or if there is no such score.
        """
        name, network = self._score(score or True, network), self._chosen(network)
        return Known(
            score=name,
            measure=traced(name, self.program.algorithm),
            scores=self.known_images.scores[network][name],
            part=self.known_images.part,
        )

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

    def logits(self, images: Images | jax.Array, network: str = "") -> Answers:
        """The logits [n C] of images [n h w 3] uint8, which no temperature divides.

        Arguments and errors are those of :meth:`predict`, but for paths.
        """
        scored = self.scored(images, network)
        return scored._replace(values=scored.values[0])

    def scored(self, images: ImagesOrPaths, network: str = "") -> Answers:
        """As :meth:`logits`, with values of :func:`jaxmatch.evaluation.forward.make_scored`."""
        return self._network(self.variables(network), self._checked(images))

    def _measured(
        self, images: Images, network: str, score: str
    ) -> tuple[Answers, np.ndarray | None]:
        scored = self._network(self.variables(network), images)
        logits, heads = scored.values
        answers = probabilities(scored._replace(values=logits), self.temperature(network))
        if not score:
            return answers, None
        values = scores(logits, heads)[score]
        return answers, self.known_images.unknown(values, self._chosen(network), score)


def load(
    workdir: str | Path,
    step: int | str | None = None,
    *,
    calibrated: bool = True,
    dtype: str = "",
) -> Classifier:
    """Load a checkpoint of a run; no configuration file is executed.

    Args:
        workdir: the run folder.
        step: of the checkpoint; "best" for the one that the run chose by its validation set,
            "newest" for the last. By default the best one if ``config.select`` chose it, else the
            newest.
        calibrated: apply the temperatures in ``calibration.json``, if it has some for the step.
        dtype: that the network computes in, "float32" or "bfloat16"; by default that of the run.
            With another one the predictions differ by rounding.

    Raises:
        InputError: if ``workdir`` is not a run folder or has no such checkpoint, or on an unknown
            dtype.
    """
    run = RunFolder.at(workdir)
    step = int(step) if isinstance(step, str) and step.isdecimal() else step
    values = run.read_config()
    if values is None:
        raise InputError(f"{run.path} is no run folder: it has no config.json.")
    facts = run.read_facts()
    settings = {key: value for key, value in values.items() if key != "facts"}
    alone = jax.process_count() == 1 and jax.default_backend() != "cpu"
    # The run may have been trained on other devices; its memories are placed to fit these.
    here = {"devices": 1 if alone else 0, "memory_placement": "auto"}
    here |= {"dtype": dtype} if dtype else {}
    config = complete({**settings, **here})
    try:
        program = Program.build(config, facts)
    except (TypeError, ValueError, AttributeError, KeyError) as error:  # values nobody checks
        raise run.damaged(str(error)) from error
    with Checkpoints(run.checkpoints) as checkpoints:
        by_default = step is None and bool(config.select) and checkpoints.best() is not None
        chosen = BEST if by_default else None if step == NEWEST else step
        restored = checkpoints.restore(program.abstract, chosen)
    if restored is None:
        raise InputError(f"{run.path} has no checkpoint yet; train it until the first save.")
    state, step = restored
    if by_default:
        log.warning(
            "%s: the checkpoint of step %d, which select=%s chose; --step newest takes the last.",
            run.path,
            step,
            config.select,
        )
    return Classifier(
        folder=run.path,
        config=config,
        classes=facts.classes,
        image_shape=program.image_shape,
        step=step,
        state=state,
        program=program,
        calibration=run.read_calibrations().get(step) if calibrated else None,
    )
