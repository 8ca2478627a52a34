"""Images in, predictions out: what is common to runs and exported files."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import numpy as np

from jaxmatch.data.discovery import find_images
from jaxmatch.data.files import NO_IMAGES, read_blocks
from jaxmatch.data.images import Fitting
from jaxmatch.data.lazy import Images, LazyImages
from jaxmatch.data.levels import Levels
from jaxmatch.errors import InputError, by_reason, grouped
from jaxmatch.evaluation.forward import BATCH, Answers

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


class Predictor:
    """The base of classifiers: they compute probabilities, it reads images and names classes.

    Attributes:
        classes: class names.
        image_shape: (height, width, 3) of the images to classify.
    """

    classes: tuple[str, ...]
    image_shape: tuple[int, int, int]

    @property
    def fitting(self) -> Fitting:
        """How a picture of any size becomes an image."""
        raise NotImplementedError

    @property
    def levels(self) -> Levels:
        """How the levels of a picture become 0..255."""
        raise NotImplementedError

    def check_classifies(self) -> None:
        """Check that there is a classifier, and not only an encoder.

        Raises:
            InputError: if not.
        """

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
                stay on disk (LazyImages), if one is not readable; or if ``unknown`` is asked for,
                but no known images are there.
        """
        if isinstance(images, Iterator):
            images = list(images)
        if not (given := _paths(images)):
            checked = self._checked(images)
            return self._predictions(
                *self._measured(checked, network, self._score(unknown, network))
            )
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
        self, paths: AnyPath | Iterable[AnyPath], network: str = "", unknown: bool | str = False
    ) -> Iterator[Predictions]:
        """As :meth:`predict` for paths, in blocks, of which one at a time is in memory.

        The paths of all blocks are sorted. The first block also has what was left out in folders,
        each block what was left out since the block before.

        Raises:
            InputError: before the first block, as :meth:`predict`.
        """
        self.check_classifies()
        score = self._score(unknown, network)
        found = find_images([paths] if isinstance(paths, str | os.PathLike) else paths)
        elsewhere, padding = found.left_out, 0
        for block in read_blocks(found.files, self.fitting, self.levels, BATCH, found.names):
            left_out = {**elsewhere, **block.left_out}
            count = len(block.images)
            if not count:
                listed = f" ({by_reason(left_out)})" if left_out else ""
                raise InputError(f"{NO_IMAGES}{listed}.")
            # Later blocks have the shape of the first, so that nothing is compiled again.
            padding = padding and BATCH - count
            images = block.images
            if padding:
                images = np.pad(images, ((0, padding), (0, 0), (0, 0), (0, 0)))
            answers, strange = self._measured(images, network, score)
            values = Answers(answers.values[:count], np.ones(count, bool))
            known = self._predictions(values, None if strange is None else strange[:count])
            yield replace(known, paths=tuple(block.names), left_out=left_out)
            elsewhere, padding = {}, BATCH

    def _checked(self, images: Any) -> Images:
        """The images as arrays, or as they are if they stay on disk."""
        if not isinstance(images, LazyImages):
            try:
                images = np.asarray(images)
            except ValueError as error:  # NumPy calls this an inhomogeneous shape
                raise InputError(
                    "the images have different sizes; give arrays of one size, or the paths of "
                    "image files."
                ) from error
        if images.shape[:1] == (0,):
            raise InputError("there are no images to predict; give at least one.")
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != self.image_shape:
            raise InputError(
                f"predict takes uint8 images of shape (n, {', '.join(map(str, self.image_shape))}),"
                f" but these are {images.dtype} {images.shape}; the paths of image files are fine "
                "at any size."
            )
        self.check_classifies()
        return images

    def _score(self, unknown: bool | str, network: str) -> str:
        """The name of the score of strangeness; "" if nobody asked for it.

        Raises:
            InputError: if somebody asked, but it is not known.
        """
        raise NotImplementedError

    def _measured(
        self, images: Images, network: str, score: str
    ) -> tuple[Answers, np.ndarray | None]:
        """Probabilities [n C] of images [n h w 3] uint8, and what ``unknown`` is by a score."""
        raise NotImplementedError

    def _predictions(self, answers: Answers, unknown: np.ndarray | None) -> Predictions:
        readable = answers.readable
        found = np.where(readable[:, None], answers.values, np.float32(np.nan))
        return Predictions(
            label=np.where(readable, found.argmax(-1), -1),
            confidence=found.max(-1),
            probabilities=found,
            classes=self.classes,
            unknown=None if unknown is None else np.where(readable, unknown, np.float32(np.nan)),
        )


def _paths(images: Any) -> list[AnyPath]:
    """The paths in ``images``; none if they are arrays."""
    if isinstance(images, str | os.PathLike):
        return [images]
    if hasattr(images, "to_numpy"):  # a column of pandas
        images = images.to_numpy()
    if isinstance(images, np.ndarray) and images.dtype.kind in "UTO":  # texts
        images = images.ravel().tolist()
    listed = images if isinstance(images, list | tuple | set | frozenset) else ()
    return list(listed) if all(isinstance(each, str | os.PathLike) for each in listed) else []
