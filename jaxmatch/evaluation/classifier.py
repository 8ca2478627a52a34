"""A trained run as a classifier of images."""

import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxmatch.config.saved import complete
from jaxmatch.data import sources
from jaxmatch.data.discovery import find_images
from jaxmatch.data.files import NO_IMAGES, read_blocks
from jaxmatch.data.lazy import Images, LazyImages
from jaxmatch.data.levels import Levels
from jaxmatch.errors import InputError, by_reason, grouped, suggest
from jaxmatch.evaluation.bootstrap import Resampling, intervals
from jaxmatch.evaluation.forward import BATCH, Answers, Evaluate, make_scored, probabilities
from jaxmatch.evaluation.metrics import evaluation
from jaxmatch.evaluation.unknown import chosen, of_run, scores
from jaxmatch.program import Program
from jaxmatch.record.folder import RunFolder
from jaxmatch.record.unknown import KnownImages
from jaxmatch.runtime.checkpoint import BEST, NEWEST, Checkpoints
from jaxmatch.types import PyTree, TrainState

log = logging.getLogger(__name__)

NETWORKS = ("teacher", "student")
AnyPath = str | os.PathLike
ImagesOrPaths = Images | jax.Array | Sequence[np.ndarray] | AnyPath | Iterable[AnyPath]


@dataclass(frozen=True, kw_only=True, eq=False)
class Predictions:
    """Predictions for n images; an unreadable image has the label -1 and NaN elsewhere.

    They unpack as ``label, confidence, probabilities = predictions``.

    Attributes:
        label: [n] int64 position in ``classes``.
        confidence: [n] float32, the largest probability.
        probabilities: [n C] float32.
        classes: the C class names.
        paths: of the n images, if they are files; sorted.
        left_out: the paths of files that are no readable images, and of others that were found in
            folders, by the reason. They have no predictions.
        unknown: [n] float32 in [0, 1), the share of known images that look less strange; None if
            nobody asked for it.
    """

    label: np.ndarray
    confidence: np.ndarray
    probabilities: np.ndarray
    classes: tuple[str, ...]
    paths: tuple[str, ...] = ()
    left_out: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    unknown: np.ndarray | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The class name of each image; "" for an unreadable one."""
        return tuple(self.classes[label] if label >= 0 else "" for label in self.label.tolist())

    def __iter__(self) -> Iterator[np.ndarray]:
        """Label, confidence and probabilities."""
        return iter((self.label, self.confidence, self.probabilities))

    def __len__(self) -> int:
        """The number of images."""
        return len(self.label)


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

    def predict(
        self, images: ImagesOrPaths, network: str = "", unknown: bool | str = False
    ) -> Predictions:
        """Classify images, or image files and folders of them.

        ::

            found = jaxmatch.load("runs/photos").predict("photos/unlabeled")
            for path, name, confidence in zip(found.paths, found.names, found.confidence):
                print(path, name, confidence)

        Args:
            images: [n h w 3] uint8 of the size of the training images; or the path of an image file
                or a folder, or several of them. Which files of a folder are images is decided as
                for training (:mod:`jaxmatch.data.discovery`), and each is scaled, cropped or padded
                as the images of the run were.
            network: "teacher" or "student"; by default, the one that the method reports.
            unknown: also tell the share of known images that look less strange than each image, by
                a score of :mod:`jaxmatch.evaluation.unknown`: its name, or True for the usual one.

        Raises:
            InputError: if a path does not exist, if images have another shape or dtype, if there
                are none, if no one is readable, or, under ``data.strict`` and where ``images``
                stay on disk (LazyImages), if one is not readable; or as :attr:`known_images`.
        """
        if isinstance(images, Iterator):
            images = list(images)
        if not (given := _paths(images)):
            scored = self.scored(images, network)
            return self._predictions(scored, network, self._score(unknown, network))
        blocks = list(self.predict_files(given, network, unknown))
        parts = [part for block in blocks for part in block.left_out.items()]
        left_out = grouped((reason, name) for reason, names in parts for name in names)

        def joined(name: str) -> np.ndarray:
            return np.concatenate([getattr(block, name) for block in blocks])

        return replace(
            blocks[0],
            label=joined("label"),
            confidence=joined("confidence"),
            probabilities=joined("probabilities"),
            paths=tuple(path for block in blocks for path in block.paths),
            left_out=left_out,
            unknown=joined("unknown") if unknown else None,
        )

    def predict_files(
        self, paths: Iterable[AnyPath], network: str = "", unknown: bool | str = False
    ) -> Iterator[Predictions]:
        """As :meth:`predict` for paths, in blocks, of which one at a time is in memory.

        The paths of all blocks are sorted. The first block also has what was left out in folders,
        each block what was left out since the block before.

        Raises:
            InputError: before the first block, as :meth:`predict`.
        """
        self.check_classifies()
        score = self._score(unknown, network)
        variables, data = self.variables(network), self.config.data
        found = find_images(paths)
        fitting = sources.fitting(data.name, self.image_shape[:2], data.center_crop)
        levels = Levels.of(data.background, data.white_level)
        elsewhere, padding = found.left_out, 0
        for block in read_blocks(found.files, fitting, levels, BATCH):
            left_out = {**elsewhere, **block.left_out}
            count = len(block.images)
            if not count:
                listed = f" ({by_reason(left_out)})" if left_out else ""
                raise InputError(f"{NO_IMAGES}{listed}.")
            # Later blocks have the shape of the first, so that nothing is compiled again and the
            # last digits do not depend on the number of files.
            padding = padding and BATCH - count
            images = block.images
            if padding:
                images = np.pad(images, ((0, padding), (0, 0), (0, 0), (0, 0)))
            scored = self._network(variables, images)
            first = jax.tree.map(lambda rows, count=count: rows[:count], scored)
            known = self._predictions(first, network, score)
            yield replace(known, paths=tuple(block.names), left_out=left_out)
            elsewhere, padding = {}, BATCH

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
        """
        answers = self._probabilities(images, network)
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

    def _probabilities(self, images: Any, network: str) -> Answers:
        return probabilities(self.logits(images, network), self.temperature(network))

    def logits(self, images: Images | jax.Array, network: str = "") -> Answers:
        """The logits [n C] of images [n h w 3] uint8, which no temperature divides.

        Arguments and errors are those of :meth:`predict`, but for paths.
        """
        scored = self.scored(images, network)
        return scored._replace(values=scored.values[0])

    def scored(self, images: ImagesOrPaths, network: str = "") -> Answers:
        """As :meth:`logits`, with values of :func:`jaxmatch.evaluation.forward.make_scored`."""
        if not isinstance(images, LazyImages):
            images = np.asarray(images)
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != self.image_shape:
            raise InputError(
                f"predict takes uint8 images of shape (n, {', '.join(map(str, self.image_shape))}),"
                f" but these are {images.dtype} {images.shape}; the paths of image files are fine "
                "at any size."
            )
        self.check_classifies()
        if not len(images):
            raise InputError("there are no images to predict; give at least one.")
        return self._network(self.variables(network), images)

    def _predictions(self, scored: Answers, network: str, score: str) -> Predictions:
        logits, heads = scored.values
        readable = scored.readable
        found = probabilities(scored._replace(values=logits), self.temperature(network)).values
        found = np.where(readable[:, None], found, np.float32(np.nan))
        unknown = None
        if score:
            values = scores(logits, heads)[score]
            share = self.known_images.unknown(values, self._chosen(network), score)
            unknown = np.where(readable, share, np.float32(np.nan))
        return Predictions(
            label=np.where(readable, found.argmax(-1), -1),
            confidence=found.max(-1),
            probabilities=found,
            classes=self.classes,
            unknown=unknown,
        )


def _paths(images: Any) -> list[AnyPath]:
    """The paths in ``images``; none if they are arrays."""
    if isinstance(images, str | os.PathLike):
        return [images]
    if isinstance(images, np.ndarray) and images.dtype.kind == "U":
        return images.ravel().tolist()
    listed = images if isinstance(images, list | tuple) else ()
    return list(listed) if all(isinstance(each, str | os.PathLike) for each in listed) else []


def load(
    workdir: str | Path, step: int | str | None = None, *, calibrated: bool = True
) -> Classifier:
    """Load a checkpoint of a run; no configuration file is executed.

    Args:
        workdir: the run folder.
        step: of the checkpoint; "best" for the one that the run chose by its validation set,
            "newest" for the last. By default the best one if ``config.select`` chose it, else the
            newest.
        calibrated: apply the temperatures in ``calibration.json``, if it has some for the step.

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
