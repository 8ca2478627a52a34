"""The split says which training images are labeled: a balanced draw by seed, or a file.

The draw is that of FixMatch's published label sets: legacy NumPy ``RandomState(seed)`` permutes
the images of each class in turn (google-research/fixmatch, TorchSSL and USB agree).
"""

import dataclasses
import hashlib
import json
import os
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Literal

import numpy as np

from jaxmatch.data import record as records
from jaxmatch.data.lazy import Images
from jaxmatch.data.source import Names, Source
from jaxmatch.errors import DiskError, InputError, printable
from jaxmatch.runtime import paths

FILE = "split.json"  # of a run folder
MOST_COMPARED = 10_000  # with more names than this, no similar name is suggested


@dataclass(frozen=True, kw_only=True, eq=False)
class Split:
    """The labeled examples of a run."""

    indices: np.ndarray  # [n] int64 rows of the source's storage order, as drawn
    source: str | None = None  # the source's name; None if it is not recorded
    seed: int | None = None
    labels: np.ndarray | None = None  # [n] labels that a file recorded, to check the source
    # [u] int64 rows of the unlabeled examples, without labeled ones; None: all other images
    unlabeled: np.ndarray | None = None

    @property
    def hash(self) -> str:
        """SHA-256 of the indices as little-endian int64, in hexadecimal.

        Where the unlabeled examples are named, -1 and their rows follow the indices.
        """
        pool = () if self.unlabeled is None else (np.array([-1]), self.unlabeled)
        content = np.concatenate([self.indices, *pool]).astype("<i8")
        return hashlib.sha256(content.tobytes()).hexdigest()


def balanced(source: Source, labels: int | Literal["all"], seed: int) -> Split:
    """Draw ``labels`` images in total, equally many of each class, or take every known label.

    For one seed a larger draw contains the smaller ones.

    Raises:
        InputError: if the number cannot be drawn.
    """
    if labels == "all":
        return Split(indices=source.rows[source.labels >= 0], source=source.name, seed=seed)
    classes = len(source.classes)
    if classes == 0 or labels < classes:
        raise InputError(
            f"labels={labels} is less than one for each of the {classes} classes of {source.name}."
        )
    share, rest = divmod(labels, classes)
    if rest:
        raise InputError(
            f"labels={labels} cannot be shared equally by the {classes} classes of {source.name}: "
            f"use a multiple of {classes}, or name the images in a split file."
        )
    random = np.random.RandomState(seed)
    drawn = []
    for number, name in enumerate(source.classes):
        members = np.flatnonzero(source.labels == number)
        if len(members) < share:
            raise InputError(
                f"labels={labels} asks for {share} images of each class, but class {name!r} of "
                f"{source.name} has {len(members)} labeled training images."
            )
        drawn.append(random.permutation(members)[:share])
    return Split(indices=source.rows[np.concatenate(drawn)], source=source.name, seed=seed)


def locate(source: Source, split: Split) -> np.ndarray:
    """Positions [n] int64 of the labeled examples among the source's training images.

    Raises:
        InputError: if the split belongs to another source, repeats an index, or names an image that
            is no training image, has no known label, or has another label than recorded.
    """
    if split.source is not None and not _is_of(split.source, source):
        raise InputError(f"The label split was drawn from {split.source}, not from {source.name}.")

    def image(row: int) -> str:
        known = 0 <= row < len(source.names)
        return f"image {row} ({source.names[row]})" if known else f"image {row}"

    if len(np.unique(split.indices)) < len(split.indices):
        values, counts = np.unique(split.indices, return_counts=True)
        raise InputError(f"The label split names {image(values[counts > 1][0])} more than once.")
    order = np.argsort(source.rows)
    found = np.searchsorted(source.rows, split.indices, sorter=order)
    positions = order[np.minimum(found, len(order) - 1)]
    if np.any(missing := source.rows[positions] != split.indices):
        raise InputError(
            f"The label split names {image(split.indices[missing][0])}, which is not a training "
            f"image of {source.name}."
        )
    labels = source.labels[positions]
    if np.any(unknown := labels < 0):
        raise InputError(
            f"The label split names {image(split.indices[unknown][0])}, whose label is not known "
            f"in {source.name}."
        )
    if split.labels is not None and np.any(wrong := labels != split.labels):
        raise InputError(
            f"The label split gives {image(split.indices[wrong][0])} label "
            f"{split.labels[wrong][0]}, but in {source.name} it has {labels[wrong][0]}."
        )
    return positions


def _is_of(name: str, source: Source) -> bool:
    """Whether a source's name, perhaps with another spelling of the path, names ``source``."""
    kind, _, place = name.partition(":")
    if name == source.name or not place or kind != source.name.partition(":")[0]:
        return name == source.name
    return str(paths.absolute(paths.path(place))) == source.location


def read(path: str | os.PathLike, names: Names | None = None) -> Split:
    """Read a split file: JSON with ``indices``, optionally hash, source, seed, labels, unlabeled.

    If the images have ``names``, it can be a .txt file with one name a line, such as the lists of
    1% and 10% of ImageNet (github.com/google-research/simclr, imagenet_subsets).

    Raises:
        InputError: if the file is missing, malformed, or was changed after it was written.
    """
    path = paths.path(path)
    if path.suffix.lower() == ".txt":
        return _listed(path, names)
    try:
        content = json.loads(paths.read_whole(path).decode("utf-8-sig"))
        indices = np.array(content["indices"])
        labels, unlabeled = (
            np.array(content[key]) if content.get(key) is not None else None
            for key in ("labels", "unlabeled")
        )
    except OSError as error:
        raise InputError(f"Cannot read the split file {path}: {paths.reason(error)}.") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(
            f"{path} is not a split file: JSON with a list `indices`, or a .txt of file names."
        ) from error
    for numbers in (indices, labels):
        if numbers is not None and (
            numbers.shape != (indices.size,) or (numbers.size and numbers.dtype.kind != "i")
        ):
            raise InputError(f"{path}: indices and labels must be whole numbers, equally many.")
    if unlabeled is not None and (
        unlabeled.ndim != 1 or (unlabeled.size and unlabeled.dtype.kind != "i")
    ):
        raise InputError(f"{path}: unlabeled must be a list of whole numbers.")
    for key, kind in (("source", str), ("seed", int), ("hash", str)):
        if not isinstance(content.get(key), kind | None):
            raise InputError(f"{path}: {key} must be {'text' if kind is str else 'a number'}.")
    split = Split(
        indices=indices.astype(np.int64),
        source=content.get("source"),
        seed=content.get("seed"),
        labels=labels,
        unlabeled=None if unlabeled is None else unlabeled.astype(np.int64),
    )
    if content.get("hash", split.hash) != split.hash:
        raise InputError(f"{path} was changed: its indices do not have the hash it records.")
    return split if names is None else _by_name(path, split, names)


def check_number(path: str | os.PathLike, images: int | None, labels: int | Literal["all"]) -> None:
    """Check that a split file has as many images as ``labels`` asks for.

    Args:
        path: the file.
        images: how many it names; None to count them, if the file is there.
        labels: the number; "all" asks for none.

    Raises:
        InputError: if it has another number.
    """
    if labels == "all":
        return
    if images is None:
        images = _number_of_images(paths.path(path))
    if images not in (None, labels):
        raise InputError(
            f"labels={labels} contradicts {path}, which names {images} images: leave out labels, "
            "or name as many images."
        )


def _number_of_images(path: Path) -> int | None:
    """How many images a split file names; None if it cannot be read, which is told later."""
    try:
        if path.suffix.lower() == ".txt":
            return len({*_lines(path)})
        return len(json.loads(paths.read_whole(path).decode("utf-8-sig"))["indices"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _by_name(path: Path, split: Split, names: Names) -> Split:
    """The split of another run on a folder; that run's record gives the names of its rows."""
    record = records.read(path.parent)
    if path.name != FILE or record is None or record.listed is None or not names.roots:
        return split
    listed = record.listed

    def here(rows: np.ndarray) -> np.ndarray:
        if len(rows) and not 0 <= rows.min() <= rows.max() < len(listed.names):
            raise InputError(
                f"{path} names images that {records.FILE} beside it does not have; restore both "
                "files of that run, or name another split."
            )
        wanted = [listed.names[row] for row in rows]
        for name in wanted:
            if name not in names.rows:
                raise InputError(
                    f"{path} names {name}, which is no training image of {names.source}."
                )
        return np.array([names.rows[name] for name in wanted], np.int64)

    unlabeled = None if split.unlabeled is None else np.sort(here(split.unlabeled))
    return Split(indices=here(split.indices), unlabeled=unlabeled)


def _lines(path: Path) -> list[str]:
    """The lines of a list that are not empty; names need not be UTF-8.

    Raises:
        OSError: if it cannot be read.
    """
    text = paths.read_whole(path).decode("utf-8-sig", "surrogateescape")
    lines = (line.strip() for line in text.replace("\r", "\n").split("\n"))
    return [line for line in lines if line]


def _listed(path: Path, names: Names | None) -> Split:
    """The images that a list names, by their path or by a unique last part of it.

    A name may have another Unicode normal form than that of the file.
    """
    try:
        wanted = _lines(path)
    except OSError as error:
        raise InputError(f"Cannot read the split file {path}: {paths.reason(error)}.") from error
    if names is None:
        raise InputError(f"{path} is not a split file: JSON with a list `indices`.")
    if not names.rows:
        raise InputError(f"{path} lists names, but the images of {names.source} have none.")
    if not wanted:
        raise InputError(f"{path} names no image; write the labeled ones, one a line.")
    last: dict[str, int] = {}
    twice: set[str] = set()
    whole = {_normal(name): row for name, row in names.rows.items()} | dict(names.rows)
    for name, row in names.rows.items():
        key = _normal(name.rsplit("/", 1)[-1])
        if last.setdefault(key, row) != row:
            twice.add(key)
    rows: dict[int, None] = {}
    for text in wanted:
        for spelled in (text, text.replace("\\", "/")):
            name = relative(names.roots, spelled) if names.roots else spelled
            key = _normal(name)
            row = whole.get(name, whole.get(key, last.get(key) if key not in twice else None))
            if row is not None:
                break
        else:
            if key in twice:
                problem = "stands for several images; write its path."
            else:
                known = [] if len(names.rows) > MOST_COMPARED else [*names.rows, *last]
                near = get_close_matches(name, known, 1, cutoff=0.5)
                hint = f"; did you mean {near[0]!r}?" if near else "."
                problem = f"is no training image of {names.source}{hint}"
            raise InputError(f"{path} names {printable(text)}, which {problem}")
        rows[row] = None
    return Split(indices=np.array(list(rows), np.int64))


def _normal(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def relative(roots: Sequence[Path], text: str) -> str:
    """The path ``text`` in the spelling of names: relative to the folder, without ``.`` and ``..``.

    An absolute path outside of the folder stays absolute.

    Args:
        roots: the folder, then its earlier places, for absolute paths.
        text: the path, absolute or relative to the folder.
    """
    for root in roots:
        if paths.in_bucket(root):
            if text.startswith(f"{root}/"):
                return os.path.normpath(text.removeprefix(f"{root}/"))
            continue
        above = os.path.abspath(root)
        path = os.path.normpath(os.path.join(above, text))
        for candidate in (path, os.path.realpath(path)):
            for base in (above, os.path.realpath(root)):
                if candidate.startswith(base.rstrip(os.sep) + os.sep):
                    return Path(os.path.relpath(candidate, base)).as_posix()
    return Path(os.path.normpath(text)).as_posix()


def write(path: str | os.PathLike, split: Split) -> None:
    """Write ``split`` as JSON, all or nothing.

    Raises:
        DiskError: if it cannot be written.
    """
    path = paths.path(path)
    content = {
        "indices": split.indices.tolist(),
        "hash": split.hash,
        "source": split.source,
        "seed": split.seed,
        **({} if split.unlabeled is None else {"unlabeled": split.unlabeled.tolist()}),
    }
    try:
        paths.write_whole(path, (json.dumps(content) + "\n").encode())
    except OSError as error:
        raise DiskError(f"Cannot write the split file {path}: {paths.reason(error)}.") from error


def validation(
    source: Source,
    count: int,
    seed: int,
    keep: Split | None = None,
    draw: Literal["stratified", "balanced"] = "stratified",
    spare: int = 0,
) -> tuple[Source, Images, np.ndarray]:
    """Move ``count`` labeled training images to a validation set.

    Args:
        source: the data set.
        count: of the validation set.
        seed: of the draw.
        keep: images that stay in the source.
        draw: "stratified" draws as many of each class as it has (:func:`stratified`), "balanced"
            equally many, as far as a class has them.
        spare: how many labeled images of each class stay beside those of ``keep``.

    Returns:
        The source without them, their images [count h w c] uint8 and their labels [count] int32.

    Raises:
        InputError: if too few images have a label.
    """
    free = source.labels >= 0
    if keep is not None:
        free[locate(source, keep)] = False
    classes = len(source.classes)
    available = np.maximum(np.bincount(source.labels[free], minlength=classes) - spare, 0)
    if not 0 < count <= available.sum():
        raise InputError(
            f"validation={count} must lie between 1 and the {available.sum()} training images of "
            f"{source.name} that have a label and are not used as labeled examples"
            f"{f', of which each class keeps {spare}' if spare else ''}."
        )
    if draw == "balanced":
        shares = np.zeros_like(available)
        for _ in range(count):
            shares[np.argmin(np.where(shares < available, shares, count))] += 1
    else:
        sizes = np.bincount(source.labels[source.labels >= 0], minlength=classes)
        shares = stratified(sizes, available, count)
    random = np.random.RandomState([seed, 1])  # a stream of its own, apart from the label splits
    held = np.zeros_like(free)
    for number, share in enumerate(shares):
        held[random.permutation(np.flatnonzero(free & (source.labels == number)))[:share]] = True
    return take(source, held)


def stratified(sizes: np.ndarray, available: np.ndarray, count: int) -> np.ndarray:
    """Share ``count`` images among classes in proportion to their sizes, by largest remainders.

    Args:
        sizes: [C] images of each class.
        available: [C] images of each class that can be drawn; what a class lacks goes to others.
        count: at most the sum of ``available``.

    Returns:
        [C] int64, whose sum is ``count``; between equal remainders the first class counts.
    """
    shares = np.zeros(len(sizes), np.int64)
    open_classes = available > 0
    while (left := count - shares.sum()) > 0:
        weights = np.where(open_classes, sizes, 0)
        # Whole numbers, since rounded quotas could have a wrong order.
        quotas, remainders = np.divmod(left * weights, weights.sum())
        most = np.argsort(-remainders, kind="stable")[: left - quotas.sum()]
        quotas[most] += 1
        shares = np.minimum(shares + quotas, available)
        open_classes = shares < available
    return shares


def take(source: Source, held: np.ndarray) -> tuple[Source, Images, np.ndarray]:
    """The source without the images ``held`` [n] bool, then their images and labels."""
    rest = dataclasses.replace(
        source,
        images=source.images[~held],
        labels=source.labels[~held],
        rows=source.rows[~held],
    )
    return rest, source.images[held], source.labels[held]
