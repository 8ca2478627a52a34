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
from jaxmatch.evaluation.forward import make_predict
from jaxmatch.program import Program
from jaxmatch.record.folder import RunFolder
from jaxmatch.runtime.checkpoint import Checkpoints
from jaxmatch.types import TrainState

NETWORKS = ("teacher", "student")


class Predictions(NamedTuple):
    """What a classifier says of ``n`` images; of one that is not readable: label -1, else NaN."""

    label: np.ndarray  # [n] int64 position in ``Classifier.classes``
    confidence: np.ndarray  # [n] float32, the largest probability
    probabilities: np.ndarray  # [n C] float32


@dataclass(frozen=True, kw_only=True)
class Classifier:
    """One checkpoint of a run; made by :func:`load`.

    Attributes:
        folder: the run's folder; of a run in stages its last stage's.
        config: the run's configuration.
        classes: class names.
        image_shape: (height, width, 3) of the images it takes.
        step: the checkpoint's step.
        state: all that the checkpoint holds.
    """

    folder: Path
    config: ConfigDict
    classes: tuple[str, ...]
    image_shape: tuple[int, int, int]
    step: int
    state: TrainState
    program: Program

    def variables(self, network: str = "") -> Any:
        """The variables of "teacher" or "student", by default the one the method reports.

        Raises InputError on another name.
        """
        network = network or self.program.algorithm.evaluated
        if network not in NETWORKS:
            raise InputError(f"unknown network {network!r}; {suggest(network, NETWORKS)}")
        return self.state.teacher if network == "teacher" else self.state.student()

    def predict(self, images: Images, network: str = "") -> Predictions:
        """Classify ``images`` [n h w 3] uint8, the size of the training images.

        Raises:
            InputError: on images of another shape or dtype, or none; on LazyImages of which none
                is readable, or, under ``data.strict``, not all are.
        """
        if not isinstance(images, LazyImages):
            images = np.asarray(images)
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != self.image_shape:
            raise InputError(
                f"predict takes uint8 images of shape (n, {', '.join(map(str, self.image_shape))}),"
                f" not {images.dtype} {images.shape}."
            )
        if not self.program.algorithm.labeled:
            raise InputError(
                f"{self.folder} was trained without labels and has no classifier; use jaxmatch "
                "probe, or train one with --config.init_from."
            )
        if not len(images):
            raise InputError("there are no images to predict.")
        program = self.program
        strict = self.config.data.strict
        compute = make_predict(*program.forward, strict=strict)
        found, readable = compute(self.variables(network), images)
        found = np.where(readable[:, None], found, np.float32(np.nan))
        return Predictions(np.where(readable, found.argmax(-1), -1), found.max(-1), found)


def load(workdir: str | Path, step: int | None = None) -> Classifier:
    """Load the newest checkpoint of a run, or that of ``step``; no configuration file is executed.

    Raises:
        InputError: if ``workdir`` is no run folder or has no such checkpoint.
    """
    found = RunFolder.at(workdir)
    values = found.read_config()
    if values is None:
        raise InputError(f"{found.path} is no run folder: it has no config.json.")
    facts = found.read_facts()
    del values["facts"]
    alone = jax.process_count() == 1 and jax.default_backend() != "cpu"
    # Wherever it was trained: memories may lie as they fit here.
    here = {"devices": 1 if alone else 0, "memory_placement": "auto"}
    config = complete({**values, **here})
    try:
        program = Program.build(config, facts)
    except (TypeError, ValueError, AttributeError, KeyError) as error:  # no check met these values
        raise found.damaged(str(error)) from error
    with Checkpoints(found.checkpoints) as checkpoints:
        restored = checkpoints.restore(program.abstract, step)
    if restored is None:
        raise InputError(f"{found.path} has no checkpoint yet.")
    state, taken = restored
    return Classifier(
        folder=found.path,
        config=config,
        classes=facts.classes,
        image_shape=program.image_shape,
        step=taken,
        state=state,
        program=program,
    )
