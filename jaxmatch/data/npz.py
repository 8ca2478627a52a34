"""A NumPy file of training, validation, test and unlabeled images."""

import io
import math
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from jaxmatch.data import labels as label_arrays
from jaxmatch.data.levels import ROUNDING
from jaxmatch.data.record import array_hash
from jaxmatch.data.source import UNLABELED_PART, Reading, Source, Survey
from jaxmatch.data.table import part_of
from jaxmatch.errors import InputError
from jaxmatch.runtime import paths

SETS = ("train", "test", "validation")
IMAGES, LABELS = ("x", "image", "images"), ("y", "label", "labels")
KEYS = (*(f"{kind}_{part}" for part in SETS for kind in "xy"), UNLABELED_PART)
# What NumPy raises on damaged or other files, beside OSError.
DAMAGED = (
    *(ValueError, TypeError, AttributeError, EOFError, NotImplementedError, RuntimeError),
    *(zipfile.BadZipFile, zlib.error),
)
FORMS = "[n h w], [n h w 1] or [n h w 3]"


def load(place: str, reading: Reading) -> Source:
    """Arrays x_train, y_train, x_test, y_test, and optionally x_val, y_val and x_unlabeled.

    They may also be called train_images, train_labels and so on, as in MedMNIST. Images are uint8
    [n h w], [n h w 1] or [n h w 3]. Labels [n] are whole numbers (-1 = unlabeled) or texts
    ("" = unlabeled); each label that occurs in y_train is a class. Test and validation images
    without a label are left out. Storage order is x_train, then x_unlabeled. With
    ``reading.label_free`` any images alone will do.

    Raises:
        InputError: if the file cannot be read, or an array is missing or does not fit.
    """
    names, content, ignored = _read_all(place)
    arrays = {key: content[name] for key, name in names.items()}
    _check_present(place, arrays, [*content, *ignored], reading.label_free)
    pictures = {key: value for key, value in arrays.items() if key.startswith("x_")}
    _check_images(place, names, pictures)
    images = {key: _in_colors(value) for key, value in pictures.items()}
    shape = _common_shape(place, names, images)
    given = {
        part: label_arrays.Given(
            name=names.get(f"y_{part}", ""),
            values=arrays.get(f"y_{part}"),
            images=len(images[f"x_{part}"]),
        )
        for part in SETS
        if f"x_{part}" in images
    }
    found = label_arrays.encode(place, given, reading.label_free)
    train, test, validation = (_used(part, images, found.of, shape) for part in SETS)
    extra = images.get(UNLABELED_PART, np.zeros((0, *shape), np.uint8))
    labels = np.concatenate([train[1], np.full(len(extra), -1, np.int32)])
    notes = [*_notes_of_names(names, ignored), *found.notes]
    return Source(
        name=f"npz:{place}",
        classes=found.classes,
        images=np.concatenate([train[0], extra]),
        labels=labels,
        rows=np.arange(len(labels)),
        test_images=test[0],
        test_labels=test[1],
        validation_images=validation[0],
        validation_labels=validation[1],
        location=str(paths.absolute(paths.path(place))),
        parts={key: array_hash(value) for key, value in arrays.items()},
        survey=Survey(
            notes=tuple(notes),
            left_out={"not read": tuple(ignored)} if ignored else {},
            sizes={shape[:2]: sum(map(len, images.values()))},
            modes=_modes(arrays),
        ),
    )


def _used(
    part: str,
    images: Mapping[str, np.ndarray],
    labels: Mapping[str, np.ndarray],
    shape: tuple[int, int, int],
) -> tuple[np.ndarray, np.ndarray]:
    """The images and labels of a set that are used: all to train, the labeled ones otherwise."""
    if part not in labels:
        return np.zeros((0, *shape), np.uint8), np.zeros(0, np.int32)
    of, known = images[f"x_{part}"], labels[part] >= 0
    if part == "train" or known.all():
        return of, labels[part]
    return of[known], labels[part][known]


def sizes(place: str, reading: Reading) -> list[tuple[int, int]]:
    """(height, width) of the images of a file.

    Raises:
        InputError: as :func:`load`.
    """
    return list(load(place, replace(reading, label_free=True)).survey.sizes)


def _read_all(place: str) -> tuple[dict[str, str], dict[str, np.ndarray], list[str]]:
    """The array's name for each key such as "x_train", the arrays by name, and other names."""
    try:
        path = paths.path(place)
        if path.is_dir():
            raise InputError(
                f"{place} is a folder; give the .npz file, or read a folder of images by "
                f"folder:{place}."
            )
        in_bucket = paths.in_bucket(path)
        # NumPy would leave the handle of a damaged file open if it opened the file itself.
        file = io.BytesIO(paths.read_whole(path)) if in_bucket else path.open("rb")
        with file, np.load(file, allow_pickle=False) as archive:
            names: dict[str, str] = {}
            for name in archive.files:
                key = _key(name)
                if key in names:
                    raise InputError(f"{place} has two arrays {names[key]} and {name}; keep one.")
                if key:
                    names[key] = name
            names = {key: names[key] for key in KEYS if key in names}
            content = {name: _array(place, archive, name) for name in names.values()}
            return names, content, [name for name in archive.files if name not in content]
    except OSError as error:
        raise InputError(f"Cannot read {place}: {paths.reason(error)}.") from error
    except DAMAGED as error:
        raise InputError(
            f"{place} is damaged, or no .npz file of plain arrays (images of one size, no Python "
            "objects)."
        ) from error


def _array(place: str, archive: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    try:
        return archive[name]
    except ValueError as error:
        remedy = f"{name} = {name}.astype(str)" if (_key(name)[:1] == "y") else "numpy.stack"
        raise InputError(
            f"{place}: {name} is not a plain array (images of one size, no Python objects); save "
            f"it as one, for instance with {remedy}."
        ) from error


def _key(name: str) -> str:
    """The key of an array's name: "x_train" also for "train_images"; "" for no known name."""
    kind, _, part = name.partition("_")
    if kind.lower() not in (*IMAGES, *LABELS):
        part, _, kind = name.rpartition("_")
    key = f"{'x' if kind.lower() in IMAGES else 'y'}_{part_of(part)}"
    return key if kind.lower() in (*IMAGES, *LABELS) and key in KEYS else ""


def _check_present(
    place: str,
    arrays: Mapping[str, np.ndarray],
    known: Sequence[str],
    label_free: bool,
) -> None:
    """Check that the arrays are there that a method needs.

    Raises:
        InputError: naming the first that is missing.
    """
    listed = ", ".join(known) or "none"
    if label_free:
        if not {"x_train", UNLABELED_PART} & arrays.keys():
            raise InputError(
                f"{place} has no array 'x_train' or 'x_unlabeled' to train on; it has {listed}."
            )
        if not any(arrays[key].size for key in ("x_train", UNLABELED_PART) if key in arrays):
            raise InputError(f"{place} has no images to train on: its arrays of them are empty.")
        return
    for key in ("x_train", "y_train", "x_test", "y_test"):
        if key not in arrays:
            raise InputError(
                f"{place} has no array {key!r}, which a method that reads labels needs; it has "
                f"{listed}."
            )


def _notes_of_names(names: Mapping[str, str], ignored: Sequence[str]) -> list[str]:
    usual = {"x_validation": "x_val", "y_validation": "y_val"}
    renamed = [f"{name} as {usual.get(key, key)}" for key, name in names.items()
               if name not in (key, usual.get(key))]  # fmt: skip
    notes = [f"Read under another name: {', '.join(renamed)}."] if renamed else []
    alone = [name for key, name in names.items() if key[0] == "y" and f"x{key[1:]}" not in names]
    if others := [*ignored, *alone]:
        notes.append(f"Arrays that are not read: {', '.join(others)}.")
    return notes


def _modes(arrays: Mapping[str, np.ndarray]) -> dict[str, int]:
    modes: dict[str, int] = {}
    for key, value in arrays.items():
        if key.startswith("x_"):
            mode = "RGB" if value.ndim == 4 and value.shape[3] == 3 else "gray"
            modes[mode] = modes.get(mode, 0) + len(value)
    return modes


def _check_images(place: str, names: Mapping[str, str], images: Mapping[str, np.ndarray]) -> None:
    """Check the form and the type of all arrays of images.

    Raises:
        InputError: if one has another; it names the line that converts all arrays of its type.
    """
    for key, value in images.items():
        if remedy := _remedy_for_form(names[key], value.shape):
            raise InputError(
                f"{place}: {names[key]} must have shape {FORMS}, not {list(value.shape)}{remedy}."
            )
    others = {names[key]: value for key, value in images.items() if value.dtype != np.uint8}
    if others:
        kind = _kind(next(iter(others.values())))
        alike = {name: value for name, value in others.items() if _kind(value) == kind}
        raise InputError(
            f"{place}: {' and '.join(alike)} must hold uint8 levels 0..255, not "
            f"{_remedy_for_type(kind, alike)}."
        )


def _kind(images: np.ndarray) -> str:
    """The kind of the levels of images, with one for all whole numbers."""
    return "i" if images.dtype.kind == "u" else images.dtype.kind


def _in_colors(images: np.ndarray) -> np.ndarray:
    """Grey or colour images as [n h w 3]."""
    if images.ndim == 3:
        images = images[..., None]
    return np.repeat(images, 3, axis=-1) if images.shape[3] == 1 else images


def _common_shape(
    place: str, names: Mapping[str, str], images: Mapping[str, np.ndarray]
) -> tuple[int, int, int]:
    """The shape (h, w, 3) of all images.

    Raises:
        InputError: if they differ in size.
    """
    first = next(iter(images))
    for key, value in images.items():
        if value.shape[1:3] != images[first].shape[1:3]:
            raise InputError(
                f"{place}: the images of {names[key]} differ in size from those of {names[first]}."
            )
    height, width = images[first].shape[1:3]
    return height, width, 3


def _remedy_for_form(name: str, shape: Sequence[int]) -> str:
    """The end of the message about a shape of images; "" if it is a right one."""
    if len(shape) == 3 or (len(shape) == 4 and shape[3] in (1, 3)):
        return ""
    line = ""
    if len(shape) == 4 and shape[1] in (1, 3):
        line = f"{name}.transpose(0, 2, 3, 1)"
    elif len(shape) == 4 and shape[3] in (2, 4):
        line = f"{name}[..., :{shape[3] - 1}], without transparency"
    elif len(shape) == 2:
        for channels in (1, 3):
            side = round((shape[1] / channels) ** 0.5)
            if channels * side**2 == shape[1]:
                line = f"{name}.reshape(-1, {channels}, {side}, {side}).transpose(0, 2, 3, 1)"
                break
    return f"; save {name} = {line}" if line else "; save it in one of these"


def _remedy_for_type(kind: str, arrays: Mapping[str, np.ndarray]) -> str:
    """The types of images that are not uint8, their range, and the lines that convert them.

    Args:
        kind: of all arrays (:func:`_kind`).
        arrays: by name; they share one conversion, so that equal levels stay equal.
    """
    types = " and ".join(dict.fromkeys(str(value.dtype) for value in arrays.values()))
    filled = [value for value in arrays.values() if value.size]
    if kind not in "bif" or not filled:
        return types
    if kind == "b":
        return f"{types}; save {_lines(arrays, '({} * 255)')}"
    ends = [end.item() for value in filled for end in (value.min(), value.max())]
    if not all(map(math.isfinite, ends)):
        return f"{types} with values that are not finite"
    low, high = min(ends), max(ends)

    def within(least: float, most: float) -> bool:
        slack = ROUNDING * most if kind == "f" else 0
        return low >= least - slack and high <= most + slack

    if kind == "f" and within(0, 1):
        change = "({} * 255).round()"
    elif kind == "f" and within(-1, 1):
        change = "(({} + 1) * 127.5).round()"
    elif within(0, 255):
        change = "{}.round()" if kind == "f" else "{}"
    elif kind == "i" and low >= 0:
        change = f"({{}} >> {high.bit_length() - 8})"
    else:
        change = f"(({{}} - {low:g}) * (255 / {high - low:g})).round()"
    return f"{types} {low:g}..{high:g}; save {_lines(arrays, change)}"


def _lines(names: Iterable[str], change: str) -> str:
    """The line that converts each array, as one line."""
    return "; ".join(f"{name} = {change.format(name)}.astype('uint8')" for name in names)
