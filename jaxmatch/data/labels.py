"""Labels in arrays: whole numbers or texts become positions in the classes, -1 = unlabeled."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from jaxmatch.data.layout import VAGUE
from jaxmatch.data.places import Place, same_classes
from jaxmatch.data.table import NO_LABEL, UNCLEAR, check_numbers
from jaxmatch.errors import InputError, counted, some
from jaxmatch.runtime import paths

CASTS = (255, 65_535, 4_294_967_295)  # what -1 becomes in an unsigned type


@dataclass(frozen=True, kw_only=True)
class Given:
    """The labels of a set as a file has them.

    Attributes:
        name: of the array.
        values: the array; None if the set has none.
        images: how many images the set has.
    """

    name: str
    values: np.ndarray | None
    images: int


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """The labels of a data set.

    Attributes:
        classes: their names, sorted: numbers by value, texts as texts.
        of: by set, [n] int32 positions in ``classes``, -1 = unlabeled; without the sets that cannot
            be used.
        notes: sentences about what a user may not expect.
    """

    classes: tuple[str, ...]
    of: Mapping[str, np.ndarray]
    notes: tuple[str, ...]


def encode(place: str, given: Mapping[str, Given], label_free: bool) -> Encoded:
    """Encode the labels of the sets "train", "test" and "validation".

    Each label that occurs in the training set is a class. A held-out set without labels is not
    used, and for a label-free method neither is one with other classes. Texts become one class as
    the names of folders do (:func:`jaxmatch.data.places.same_classes`).

    Args:
        place: the file, for messages.
        given: the labels by set.
        label_free: whether the method reads no labels.

    Raises:
        InputError: if labels do not fit.
    """
    notes: list[str] = []
    values: dict[str, np.ndarray] = {}
    for part, each in given.items():
        if each.values is not None:
            values[part] = _checked(place, each, notes)
        elif part == "train":
            values[part] = np.full(each.images, -1)
        else:
            notes.append(f"Not used: {counted(each.images, f'{part} image')} without labels.")
    values |= _same_texts(place, values, notes)
    train = values.get("train", np.zeros(0, np.int64))
    if "train" in given and train.dtype.kind != "U":
        values["train"] = train = _without_casts(given["train"], train, values.get("test"), notes)
    names = np.unique(train[~_unknown(train)])
    if vague := [name for name in map(str, names) if name.lower() in VAGUE]:
        notes.append(
            f"{some(vague)} is a class here; write an empty text if its images have no label."
        )
    of: dict[str, np.ndarray] = {}
    for part, labels in values.items():
        known = ~_unknown(labels)
        if part != "train" and not known.all():
            name, lost = given[part].name, counted(int((~known).sum()), f"{part} image")
            if part == "test" and not known.any() and not label_free:
                raise InputError(
                    f"{place}: {name} has no label; write those that you know into it."
                )
            notes.append(f"Not used, without a label: {lost}; write what you know into {name}.")
            if not known.any():
                continue
        if part != "train" and np.any(other := known & ~np.isin(labels, names)):
            first = f"class {labels[other][0]} occurs in {given[part].name} but not in "
            first += given["train"].name if "train" in given else "the training set"
            if not label_free:
                raise InputError(
                    f"{place}: {first}; add training images of it, or leave its images out."
                )
            notes.append(f"Not used: the {part} set, because {first}.")
            continue
        of[part] = np.full(len(labels), -1, np.int32)
        of[part][known] = np.searchsorted(names, labels[known])
        if part != "train" and (missing := names[~np.isin(names, labels)]).size:
            notes.append(f"The {part} set has no images of {', '.join(map(str, missing[:5]))}.")
    return Encoded(classes=tuple(map(str, names)), of=of, notes=tuple(notes))


def _unknown(labels: np.ndarray) -> np.ndarray:
    """[n] bool: the labels that stand for none."""
    return labels == "" if labels.dtype.kind == "U" else labels < 0


def _same_texts(
    place: str, values: Mapping[str, np.ndarray], notes: list[str]
) -> dict[str, np.ndarray]:
    """The labels by set that are texts, with one text for each class; adds notes.

    Raises:
        InputError: if two texts are the same number.
    """
    texts = {part: labels for part, labels in values.items() if labels.dtype.kind == "U"}
    found = {(part, str(text)) for part, labels in texts.items() for text in np.unique(labels)}
    check_numbers(paths.path(place), {text for _, text in found})
    places, more = same_classes({"/".join(pair): Place(*pair) for pair in sorted(found)})
    notes += more
    for part, text in found:
        if (name := places[f"{part}/{text}"].label) != text:
            texts[part] = np.where(texts[part] == text, name, texts[part])
    return texts


def _checked(place: str, given: Given, notes: list[str]) -> np.ndarray:
    """Labels as [n] int64 or text; adds notes.

    Raises:
        InputError: if they have another form; it names the line that converts them.
    """
    labels, name = given.values, given.name
    assert labels is not None
    needed = f"{place}: {name} must hold one whole number for each image, or one text"
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim == 2 and len(labels) == given.images:
        numbers = labels.dtype.kind in "biuf" and np.isin(labels, (0, 1)).all()
        ones = labels.sum(axis=1) if numbers else np.zeros(0)
        if ones.max(initial=0) != 1:
            raise InputError(
                f"{needed}, not the shape {list(labels.shape)}; an image can have one class only."
            )
        notes.append(f"The rows of {name} have a single 1 each, whose position is the class.")
        if empty := int((ones == 0).sum()):
            notes.append(f"Read as no label: {counted(empty, 'row')} of {name} without a 1.")
        labels = np.where(ones == 0, -1, labels.argmax(axis=1))
    if labels.shape != (given.images,):
        raise InputError(f"{needed}; it has the shape {list(labels.shape)} for {given.images}.")
    if labels.dtype.kind in "US":
        return _texts(place, name, labels, notes)
    if labels.dtype.kind == "f":
        raise InputError(
            f"{needed}, not {labels.dtype}; save {name} = "
            f"numpy.nan_to_num({name}, nan=-1).astype('int64')."
        )
    if labels.dtype.kind not in "iub":
        raise InputError(f"{needed}, not {labels.dtype}.")
    if labels.dtype == np.uint64:  # as int64, its largest values would be negative
        labels = np.minimum(labels, np.uint64(CASTS[-1]))
    return labels.astype(np.int64)


def _texts(place: str, name: str, labels: np.ndarray, notes: list[str]) -> np.ndarray:
    """Labels as text [n]; "" for words that mean no label, with a note."""
    try:
        texts = np.char.strip(labels.astype(str))
    except UnicodeDecodeError as error:
        raise InputError(
            f"{place}: {name} holds bytes that are no ASCII; save it as str."
        ) from error
    lower = np.char.lower(texts)
    if np.any(unclear := np.isin(lower, UNCLEAR)):
        raise InputError(
            f"{place}: {name} has the label {str(texts[unclear][0])!r}: write an empty text if it "
            "means that an image has none, or give the class another name."
        )
    words = np.isin(lower, NO_LABEL)
    for word in np.unique(texts[words]):
        count = int((texts == word).sum())
        notes.append(f"Read as no label: {str(word)!r} in {counted(count, 'row')} of {name}.")
    return np.where(words, "", texts)


def _without_casts(
    given: Given, train: np.ndarray, test: np.ndarray | None, notes: list[str]
) -> np.ndarray:
    """Training labels with -1 in place of what -1 becomes in an unsigned type; adds a note.

    The largest value counts as that if it is the only one, or far above at least two others, and is
    in no test label. For a signed type, which may have been unsigned, there must be test labels.
    """
    known = np.unique(train[train >= 0])
    if len(known) in (0, 2) or known[-1] not in CASTS:
        return train
    if len(known) > 1 and known[-2] > known[-1] // 2:
        return train
    signed = given.values is not None and given.values.dtype.kind != "u"
    if signed if test is None else np.isin(known[-1], test):
        return train
    cast = known[-1]
    rows = counted(int((train == cast).sum()), "row")
    notes.append(
        f"Read as no label: {cast} in {rows} of {given.name}, which is what -1 becomes in an "
        "unsigned type; if it is a class, renumber the classes."
    )
    return np.where(train == cast, -1, train)
