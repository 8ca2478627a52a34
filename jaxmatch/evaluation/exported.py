"""An exported file as a classifier of images, which needs nothing of the run that it is from."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jaxmatch.data.images import Fitting
from jaxmatch.data.lazy import Images, LazyImages
from jaxmatch.data.levels import Levels
from jaxmatch.errors import InputError
from jaxmatch.evaluation import classifier
from jaxmatch.evaluation.classifier import Classifier
from jaxmatch.evaluation.forward import BATCH, Answers
from jaxmatch.evaluation.predictions import Predictor
from jaxmatch.runtime import paths
from jaxmatch.weights.exported import read_exported
from jaxmatch.weights.shipped import Answer, Shipped


@dataclass(frozen=True, kw_only=True)
class Exported(Predictor):
    """A classifier in a file that ``jaxmatch export`` has written; made by :func:`load`.

    Attributes:
        path: of the file.
        classes: class names.
        image_shape: (height, width, 3) of the images to classify.
        facts: all that the file says of itself.
        answer: the function in it.
    """

    path: Path
    classes: tuple[str, ...]
    image_shape: tuple[int, int, int]
    facts: Shipped
    answer: Answer

    @property
    def fitting(self) -> Fitting:
        """How a picture of any size becomes an image."""
        return self.facts.fitting

    @property
    def levels(self) -> Levels:
        """How the levels of a picture become 0..255."""
        return self.facts.levels

    def _score(self, unknown: bool | str, network: str) -> str:
        """The name of the score of strangeness in the file; "" if nobody asked for it.

        Raises:
            InputError: if somebody asked for one that is not in the file.
        """
        if not unknown:
            return ""
        held = self.facts.unknown
        if held is None:
            raise InputError(
                f"{self.path} was exported without --unknown, so it does not know how strange "
                "known images look; export it again with it."
            )
        if isinstance(unknown, str) and unknown != held["score"]:
            raise InputError(f"{self.path} holds the score {held['score']} alone, not {unknown!r}.")
        return held["score"]

    def _measured(
        self, images: Images, network: str, score: str
    ) -> tuple[Answers, np.ndarray | None]:
        held = self.facts.origin.get("network")
        if network and network != held:
            raise InputError(f"{self.path} holds the {held} alone, not {network!r}.")
        if isinstance(images, LazyImages):
            raise InputError("an exported file takes arrays of images, or the paths of files.")
        # Equal batches: a program is compiled for each size.
        width = min(len(images), BATCH)
        parts: list[np.ndarray] = []
        shares: list[np.ndarray] = []
        for start in range(0, len(images), width):
            block = images[start : start + width]
            padded = np.pad(block, ((0, width - len(block)), (0, 0), (0, 0), (0, 0)))
            found, share = self.answer(padded)
            parts.append(found[: len(block)])
            if share is not None:
                shares.append(share[: len(block)])
        answers = Answers(np.concatenate(parts), np.ones(len(images), bool))
        return answers, np.concatenate(shares) if score else None


def load(
    run_or_export: str | Path,
    step: int | str | None = None,
    *,
    calibrated: bool = True,
    dtype: str = "",
) -> Classifier | Exported:
    """Load a checkpoint of a run, or a classifier that ``jaxmatch export`` has written.

    Args:
        run_or_export: a run folder, or a ``.stablehlo`` or ``.onnx`` file.
        step: of the checkpoint, as :func:`jaxmatch.evaluation.classifier.load` takes it.
        calibrated: of a run, apply its temperatures; a file has the one that it was written with.
        dtype: of a run, that its network computes in: "float32" or "bfloat16".

    Raises:
        InputError: if it is neither, or the run has no such checkpoint, or on an unknown dtype, or
            if a step, a dtype or ``calibrated=False`` is given for a file.
    """
    if not os.fspath(run_or_export):
        raise InputError("the path is empty; give a run folder or an exported file.")
    place = paths.path(run_or_export)
    if not place.is_file():
        if place.suffix.lower() in (".stablehlo", ".onnx") and not place.exists():
            raise InputError(f"There is no file {place}.")
        return classifier.load(run_or_export, step, calibrated=calibrated, dtype=dtype)
    if step is not None:
        raise InputError(f"{place} is an exported file, which holds one step; leave out --step.")
    if not calibrated:
        raise InputError(
            f"{place} is an exported file, which has its temperature in it; --uncalibrated needs a "
            "run folder."
        )
    if dtype:
        raise InputError(f"{place} computes in what it was exported with; give --dtype to export.")
    facts, answer = read_exported(place)
    return Exported(
        path=place,
        classes=facts.classes,
        image_shape=facts.image_shape,
        facts=facts,
        answer=answer,
    )
