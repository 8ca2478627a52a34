"""A NumPy file of training, test and unlabeled images."""

import io
import zipfile

import numpy as np

from jaxmatch.data.record import array_hash
from jaxmatch.data.source import UNLABELED_PART, Reading, Source
from jaxmatch.errors import InputError
from jaxmatch.runtime import paths

REQUIRED = ("x_train", "y_train", "x_test", "y_test")
ARRAYS = (*REQUIRED, UNLABELED_PART)


def load(place: str, reading: Reading) -> Source:
    """Arrays x_train, y_train (-1 = unlabeled), x_test, y_test and optionally x_unlabeled.

    Images are uint8 [n h w], [n h w 1] or [n h w 3]. Labels are whole numbers; each number that
    occurs in y_train is a class. Storage order is x_train, then x_unlabeled.

    Raises:
        InputError: if the file cannot be read, or an array is missing or does not fit.
    """
    arrays = _read(place)
    for missing in set(REQUIRED) - set(arrays):
        raise InputError(f"{place} has no array {missing!r}.")
    images = {
        key: _checked_images(place, key, value)
        for key, value in arrays.items()
        if key.startswith("x_")
    }
    for key, value in images.items():
        if value.shape[1:3] != images["x_train"].shape[1:3]:
            raise InputError(f"{place}: the images of {key} differ in size from those of x_train.")
    for part in ("train", "test"):
        labels = arrays[f"y_{part}"]
        if labels.shape != (len(images[f"x_{part}"]),) or labels.dtype.kind not in "iu":
            raise InputError(f"{place}: y_{part} must hold one whole number for each image.")
    train, test = arrays["y_train"].astype(np.int64), arrays["y_test"].astype(np.int64)
    numbers = np.unique(train[train >= 0])
    if np.any(unknown := ~np.isin(test, numbers)):
        raise InputError(f"{place}: class {test[unknown][0]} occurs in y_test but not in y_train.")
    extra = images.get(UNLABELED_PART, images["x_train"][:0])
    labels = np.where(train >= 0, np.searchsorted(numbers, train), -1)
    labels = np.concatenate([labels, np.full(len(extra), -1)]).astype(np.int32)
    return Source(
        name=f"npz:{place}",
        classes=tuple(str(number) for number in numbers),
        images=np.concatenate([images["x_train"], extra]),
        labels=labels,
        rows=np.arange(len(labels)),
        test_images=images["x_test"],
        test_labels=np.searchsorted(numbers, test).astype(np.int32),
        location=str(paths.absolute(paths.path(place).expanduser())),
        parts={key: array_hash(arrays[key]) for key in ARRAYS if key in arrays},
    )


def sizes(place: str, reading: Reading) -> list[tuple[int, int]]:
    """(height, width) of the images of a file.

    Raises:
        InputError: if the file cannot be read.
    """
    for key, array in _read(place).items():
        if key.startswith("x_") and array.ndim in (3, 4):
            return [(array.shape[1], array.shape[2])]
    raise InputError(f"{place} has no images [n h w] or [n h w c] under a name such as x_train.")


def _read(place: str) -> dict[str, np.ndarray]:
    try:
        path = paths.path(place).expanduser()
        file = io.BytesIO(paths.read_whole(path)) if paths.in_bucket(path) else path
        with np.load(file, allow_pickle=False) as content:
            return {key: content[key] for key in content if key.startswith(("x_", "y_"))}
    except OSError as error:
        raise InputError(f"Cannot read {place}: {paths.reason(error)}.") from error
    except (ValueError, TypeError, AttributeError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(
            f"{place} is not an .npz file of plain arrays (images of one size, no Python objects)."
        ) from error


def _checked_images(place: str, key: str, images: np.ndarray) -> np.ndarray:
    """Grey or colour images as [n h w 3]."""
    if images.dtype != np.uint8:
        raise InputError(f"{place}: {key} must hold uint8 levels 0..255, not {images.dtype}.")
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim == 4 and images.shape[3] == 1:
        return np.repeat(images, 3, axis=-1)
    if images.ndim == 4 and images.shape[3] == 3:
        return images
    raise InputError(
        f"{place}: {key} must have shape [n h w], [n h w 1] or [n h w 3], not {images.shape}."
    )
