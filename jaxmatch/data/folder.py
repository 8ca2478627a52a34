"""A folder of image files: class sub-folders, or a table of labels, and images without labels.

Storage order is that of the sorted relative paths of all files, so it depends on no file system.
"""

import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from jaxmatch.data.images import read_images
from jaxmatch.data.lazy import Files, Images, LazyImages
from jaxmatch.data.sources import Source
from jaxmatch.errors import InputError

TABLE = "labels.csv"
TEST_SHARE = 0.2  # of the labeled images of each class, where there is no test folder
RESERVED = ("train", "test", "unlabeled")
UNLABELED = ""


def load(
    directory: str,
    seed: int,
    size: int,
    strict: bool,
    label_free: bool,
    stream: bool = False,
    share: float = 1.0,
) -> Source:
    """Read all images of a folder, each scaled and centre cropped to [size size 3] uint8.

    With ``stream`` only their names are read, and unreadable ones are met later.

    Training images are DIR/<class>/ or DIR/train/<class>/, or the rows of DIR/labels.csv with
    columns path (relative to DIR) and label (empty = unlabeled); unlabeled ones besides are those
    of DIR/unlabeled/ and image files beside the class folders. The test set is DIR/test/<class>/,
    else a fifth of the labeled images of each class, drawn by ``seed``. Unreadable files are
    logged, or fatal if ``strict``. Raises InputError.
    """
    root = Path(directory).expanduser()
    if not root.is_dir():
        raise InputError(f"There is no folder {directory}.")
    training, test = _training(root), dict(_classes(root, root / "test"))
    classes = sorted(set(training.values()) - {UNLABELED})
    if strange := sorted(set(test.values()) - set(classes)):
        raise InputError(f"Class {strange[0]!r} of {directory} has test but no training images.")
    classes_of = training | test
    paths = sorted(classes_of)
    if not paths:
        raise InputError(f"There are no images in {directory}.")
    images: Images
    if stream:
        rows = np.arange(len(paths))
        files = Files(root=root.resolve(), paths=tuple(paths))
        images, found = LazyImages(records=files, rows=rows, size=(size, size), share=share), paths
    else:
        path_of = {root / path: path for path in paths}
        images, readable = read_images(list(path_of), (size, size), strict, share)
        found = [path_of[file] for file in readable]
        row = {path: position for position, path in enumerate(paths)}
        rows = np.array([row[path] for path in found])
    number = {name: position for position, name in enumerate(classes)} | {UNLABELED: -1}
    labels = np.array([number[classes_of[path]] for path in found], np.int32)
    if test:
        held_out = np.array([path in test for path in found])
    else:
        held_out = _drawn_test(labels, len(classes), seed)
    for position in set(range(len(classes))) - set(labels[~held_out]):
        raise InputError(f"Class {classes[position]!r} of {directory} has no readable image.")
    if not (label_free or np.any(held_out)):
        raise InputError(
            f"{directory} has too few labeled images for a test set: add test/<class>/ folders."
        )
    return Source(
        name=f"folder:{directory}",
        classes=tuple(classes),
        images=images[~held_out],
        labels=labels[~held_out],
        rows=rows[~held_out],
        test_images=images[held_out],
        test_labels=labels[held_out],
        names=tuple(paths),
    )


def _training(root: Path) -> dict[str, str]:
    """Class of each training file, by its path relative to ``root``."""
    unlabeled = dict.fromkeys(_files(root, root / "unlabeled"), UNLABELED)
    if (root / TABLE).is_file():
        return unlabeled | dict(_table(root))
    base = root / "train" if (root / "train").is_dir() else root
    known = Image.registered_extensions()
    loose = (path for path in base.iterdir() if path.is_file() and path.suffix.lower() in known)
    unlabeled |= {path.relative_to(root).as_posix(): UNLABELED for path in loose}
    return unlabeled | dict(_classes(root, base))


def _classes(root: Path, base: Path) -> Iterator[tuple[str, str]]:
    """(Relative path, class) of each file in the class folders of ``base``."""
    for folder in sorted(base.iterdir()) if base.is_dir() else ():
        hidden = folder.name.startswith(".") or (base == root and folder.name in RESERVED)
        if folder.is_dir() and not hidden:
            files = list(_files(root, folder))
            if not files:
                raise InputError(f"The class folder {folder} is empty.")
            yield from ((path, folder.name) for path in files)


def _files(root: Path, folder: Path) -> Iterator[str]:
    """Relative paths of all files under ``folder`` that are not hidden."""
    for path in folder.rglob("*"):
        if path.is_file() and not any(
            part.startswith(".") for part in path.relative_to(root).parts
        ):
            yield path.relative_to(root).as_posix()


def _table(root: Path) -> Iterator[tuple[str, str]]:
    """(Relative path, class) of each row of the table of labels."""
    seen = set()
    try:
        with open(root / TABLE, encoding="utf-8-sig", newline="") as file:
            table = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"Cannot read {root / TABLE}: {error}.") from error
    for row in table:
        if row.get("path") is None or row.get("label") is None:
            raise InputError(
                f"{root / TABLE} must have a first line `path,label` and both in rows."
            )
        path = Path(row["path"]).as_posix()
        if not (root / path).is_file():
            raise InputError(f"{root / TABLE} names {path}, but there is no such file.")
        if path in seen:
            raise InputError(f"{root / TABLE} names {path} more than once.")
        seen.add(path)
        yield path, row["label"].strip()


def _drawn_test(labels: np.ndarray, classes: int, seed: int) -> np.ndarray:
    """A fifth of each class [n] bool, at least one image but never the last one."""
    random = np.random.RandomState([seed, 2])  # a stream apart from those of the label splits
    test = np.zeros(len(labels), bool)
    for number in range(classes):
        members = random.permutation(np.flatnonzero(labels == number))
        test[members[: min(max(1, round(TEST_SHARE * len(members))), len(members) - 1)]] = True
    return test
