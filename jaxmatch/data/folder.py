"""A folder of image files: class sub-folders, or a table of labels, and images without labels.

Storage order is that of the sorted relative paths of all files, so it depends on no file system.
A file that is there under several names, by links or spellings, is one image.
"""

import csv
import io
import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from jaxmatch.data import record as records
from jaxmatch.data import splits
from jaxmatch.data.images import read_files
from jaxmatch.data.lazy import Files, Images, LazyImages
from jaxmatch.data.record import Listed, Record
from jaxmatch.data.source import Names, Source
from jaxmatch.errors import InputError
from jaxmatch.runtime import paths

TABLE = "labels.csv"
TEST_SHARE = 0.2  # of the labeled images of each class, where there is no test folder
RESERVED = ("train", "test", "unlabeled")
UNLABELED = ""

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Listing:
    """The images of a folder, unread.

    Attributes:
        given: the folder as the user names it.
        root: its path.
        classes_of: the class of each image, by its path relative to ``root``; "" = unlabeled.
        test: those of the folder ``test``.
        aliases: other names of images, each with the one that they have here.
    """

    given: str
    root: Path
    classes_of: Mapping[str, str]
    test: frozenset[str]
    aliases: Mapping[str, str]

    @property
    def names(self) -> tuple[str, ...]:
        """The images in storage order."""
        return tuple(sorted(self.classes_of))

    @property
    def aliased(self) -> dict[str, int]:
        """The row of each further name."""
        rows = {name: row for row, name in enumerate(self.names)}
        return {alias: rows[name] for alias, name in self.aliases.items()}

    def naming(self) -> Names:
        """What a list of labeled images may say; images of the folder ``test`` are not among it."""
        rows = {name: row for row, name in enumerate(self.names) if name not in self.test}
        aliases = {alias: rows[name] for alias, name in self.aliases.items() if name in rows}
        return Names(source=f"folder:{self.given}", rows=aliases | rows, roots=(self.root,))


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How the images of a folder are read: their square size, and whether they stay on disk."""

    size: int
    share: float = 1.0  # of an image's sides that a centre crop keeps
    strict: bool = False  # whether an unreadable file is an error
    stream: bool = False


def listing(directory: str) -> Listing:
    """Find the images of a folder.

    Training images are DIR/<class>/ or DIR/train/<class>/, or the rows of DIR/labels.csv with
    columns path (relative to DIR, or absolute) and label (empty = unlabeled); unlabeled ones
    besides are those of DIR/unlabeled/ and image files beside the class folders. Test images are
    those of DIR/test/<class>/.

    Of a file under several names the one in the test folder counts, then one with a class, then a
    file rather than a link, then the first by name.

    Raises:
        InputError: if there are no images, or one of them has two classes.
    """
    root = paths.path(directory).expanduser()
    if not root.is_dir():
        raise InputError(f"There is no folder {directory}.")
    test = dict(_classes(root, root / "test"))
    classes_of = _training(root) | test
    if not classes_of:
        raise InputError(f"There are no images in {directory}.")

    def rank(name: str) -> tuple[bool, bool, bool, str]:
        path = root / name
        link = not paths.in_bucket(path) and path.is_symlink()
        return name not in test, not classes_of[name], link, name

    same: dict[object, list[str]] = {}
    for name in classes_of:
        same.setdefault(_file(root / name), []).append(name)
    aliases: dict[str, str] = {}
    leaked = 0
    for group in same.values():
        if len(group) == 1:
            continue
        first, *others = sorted(group, key=rank)
        for other in others:
            if classes_of[other] not in (classes_of[first], UNLABELED):
                raise InputError(
                    f"{root / first} and {root / other} are one image, but of the classes "
                    f"{classes_of[first]!r} and {classes_of[other]!r}; remove one of them."
                )
        leaked += first in test and any(other not in test for other in others)
        aliases |= dict.fromkeys(others, first)
    if leaked:
        log.warning(
            "%d images of %s are in the test folder and elsewhere: they are test images only.",
            leaked,
            directory,
        )
    return Listing(
        given=directory,
        root=root,
        classes_of={name: label for name, label in classes_of.items() if name not in aliases},
        test=frozenset(test) - frozenset(aliases),
        aliases=aliases,
    )


def load(
    found: Listing,
    reading: Reading,
    *,
    seed: int,
    label_free: bool = False,
    kept: Collection[int] = (),
    test: Collection[str] | None = None,
) -> Source:
    """Read the images of a folder, each scaled and centre cropped to [size size 3] uint8.

    The test set is the folder ``test``; where there is none, the names ``test``, or a fifth of the
    labeled images of each class, drawn by ``seed`` from those whose rows are not in ``kept``. With
    ``reading.stream`` only names are read, and unreadable files are met later; else they are
    logged, or fatal if ``reading.strict``.

    Raises:
        InputError: if the content does not fit.
    """
    names, directory = found.names, found.given
    tests = {found.classes_of[name] for name in found.test}
    classes = sorted(
        {found.classes_of[name] for name in names if name not in found.test} - {UNLABELED}
    )
    if strange := sorted(tests - set(classes)):
        raise InputError(f"Class {strange[0]!r} of {directory} has test but no training images.")
    number = {name: position for position, name in enumerate(classes)} | {UNLABELED: -1}
    labels = np.array([number[found.classes_of[name]] for name in names], np.int32)
    images, used, sizes, hashes = _read(found.root, names, range(len(names)), reading)
    free = np.isin(np.arange(len(names)), used)
    if found.test:
        held_out = np.array([name in found.test for name in names])
    elif test is not None:
        if taken := [names[row] for row in kept if names[row] in test]:
            raise InputError(
                f"{taken[0]} is to be labeled, but is a test image of the run that this one builds "
                "on; name another image, or train that run anew with the same split."
            )
        held_out = np.array([name in test for name in names])
    else:
        held_out = _drawn_test(labels, free, np.array(sorted(kept), np.int64), len(classes), seed)
    listed = Listed(
        names=names,
        labels=tuple(labels.tolist()),
        sizes=sizes,
        hashes=hashes,
        unused=tuple(np.flatnonzero(~free).tolist()),
        test=tuple(np.flatnonzero(held_out & free).tolist()),
        table=(found.root / TABLE).is_file(),
        drawn=not found.test,
        ends=reading.stream,
        aliases=found.aliased,
    )
    source = _source(directory, found.root, tuple(classes), listed, images, used)
    for position in set(range(len(classes))) - set(source.labels.tolist()):
        raise InputError(f"Class {classes[position]!r} of {directory} has no readable image.")
    if not (label_free or len(source.test_images)):
        raise InputError(
            f"{directory} has too few labeled images for a test set: add test/<class>/ folders."
        )
    return source


def load_recorded(
    record: Record, directory: str, reading: Reading, needed: Collection[int] | None, kind: Callable
) -> Source:
    """The images of a run again, by their names, whatever else the folder holds by now.

    Args:
        record: of the run.
        directory: where the folder is now.
        reading: how the run read them.
        needed: rows that must be what they were; None for all, which are then read at once
            unless streamed. Otherwise the images stay on disk.
        kind: as :func:`jaxmatch.data.record.check_files` takes it.

    Raises:
        InputError: naming the first needed image that is missing, changed or relabelled.
    """
    root, listed = paths.path(directory).expanduser(), record.listed
    assert listed is not None
    rows = [*listed.training.tolist(), *listed.test] if needed is None else needed
    before = paths.path(record.location)
    records.check_files(record, root, rows, label_now(root, before), kind)
    used = sorted({*listed.training.tolist(), *listed.test})
    lazily = Reading(size=reading.size, share=reading.share, stream=True)
    images, readable, *_ = _read(
        root, listed.names, used, reading if needed is None else lazily, known=listed
    )
    if len(readable) < len(used):
        raise InputError(f"Images of {directory} that were readable are so no longer.")
    return _source(directory, root, record.classes, listed, images, used)


def check_test(record: Record, found: Listing) -> list[str]:
    """The test images that a run drew from a folder, which still has them.

    Raises:
        InputError: naming the first that is missing, changed or of another class.
    """
    listed = record.listed
    assert listed is not None
    records.check_files(
        record,
        found.root,
        listed.test,
        label_now(found.root),
        lambda row: "a test image of the run that this one builds on",
        "put it back, or choose the test set yourself in folders test/<class>/",
    )
    return [listed.names[row] for row in listed.test]


def label_now(root: Path, *before: Path) -> Callable[[str], str | None] | None:
    """The label that the folder's table has for a name; None where there is no table.

    ``before``: where the folder was, for absolute paths in the table.
    """
    if not (root / TABLE).is_file():
        return None
    return dict(_table(root, *before)).get


def _source(
    directory: str,
    root: Path,
    classes: tuple[str, ...],
    listed: Listed,
    images: Images,
    used: Sequence[int],
) -> Source:
    """A source of ``images``, which are those of the rows ``used``."""
    rows = np.array(used, np.int64)
    test = np.isin(rows, np.array(listed.test, np.int64))
    labels = np.array(listed.labels, np.int32)[rows]
    return Source(
        name=f"folder:{directory}",
        classes=classes,
        images=images[~test],
        labels=labels[~test],
        rows=rows[~test],
        test_images=images[test],
        test_labels=labels[test],
        names=listed.names,
        aliases=listed.aliases,
        location=str(paths.absolute(root)),
        listed=listed,
    )


def _read(
    root: Path,
    names: Sequence[str],
    rows: Sequence[int],
    reading: Reading,
    known: Listed | None = None,
) -> tuple[Images, list[int], tuple[int, ...], tuple[str, ...]]:
    """Images of the readable ones of ``rows``, these rows, and sizes and hashes of all names.

    The latter are those of ``known``, if given.
    """
    size = (reading.size, reading.size)
    if reading.stream:
        files = Files(root=paths.absolute(root), paths=tuple(names))
        lazy = LazyImages(
            records=files, rows=np.array(rows, np.int64), size=size, share=reading.share
        )
        if known is not None:
            return lazy, list(rows), known.sizes, known.hashes
        sizes = tuple(paths.size(root / name) for name in names)
        return lazy, list(rows), sizes, ("",) * len(names)
    found = read_files([root / names[row] for row in rows], size, reading.share)
    found.complain(reading.strict)
    used = [row for row, readable in zip(rows, found.readable, strict=True) if readable]
    return found.images, used, found.sizes, found.hashes


def _training(root: Path) -> dict[str, str]:
    """Class of each training file, by its path relative to ``root``."""
    unlabeled = dict.fromkeys(_files(root, root / "unlabeled"), UNLABELED)
    if (root / TABLE).is_file():
        table = dict(_table(root))
        for name in table:
            if not (root / name).is_file():
                raise InputError(f"{root / TABLE} names {name}, but there is no such file.")
        return unlabeled | table
    base = root / "train" if (root / "train").is_dir() else root
    known = Image.registered_extensions()
    files = (name for name in _files(root, base, deep=False) if Path(name).suffix.lower() in known)
    unlabeled |= dict.fromkeys(files, UNLABELED)
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


def _files(root: Path, folder: Path, deep: bool = True) -> Iterator[str]:
    """Relative paths of all files in ``folder``, and in those in it, that are not hidden."""
    if paths.in_bucket(folder):
        inside = folder.relative_to(root).as_posix()
        found = (f"{inside}/{name}".removeprefix("./") for name in paths.files_in(folder))
    else:
        entries = folder.rglob("*") if deep else folder.iterdir()
        found = (path.relative_to(root).as_posix() for path in entries if path.is_file())
    depth = len(folder.relative_to(root).parts) + 1
    for name in found:
        parts = Path(name).parts
        if not any(part.startswith(".") for part in parts) and (deep or len(parts) == depth):
            yield name


def _file(path: Path) -> object:
    """The same for all names of one file."""
    if paths.in_bucket(path):
        return str(path)
    found = path.stat()
    return (found.st_dev, found.st_ino) if found.st_ino else path.resolve()


def _table(root: Path, *before: Path) -> Iterator[tuple[str, str]]:
    """(Relative path, class) of each row of the table of labels."""
    seen: dict[str, str] = {}
    try:
        text = paths.read_whole(root / TABLE).decode("utf-8-sig")
        table = list(csv.DictReader(io.StringIO(text, newline="")))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"Cannot read {root / TABLE}: {error}.") from error
    for row in table:
        if row.get("path") is None or row.get("label") is None:
            raise InputError(
                f"{root / TABLE} must have a first line `path,label` and both in rows."
            )
        path, label = splits.relative((root, *before), row["path"].strip()), row["label"].strip()
        if seen.setdefault(path, label) != label:
            raise InputError(
                f"{root / TABLE} names {path} more than once, as {seen[path]!r} and {label!r}."
            )
    yield from seen.items()


def _drawn_test(
    labels: np.ndarray, free: np.ndarray, kept: np.ndarray, classes: int, seed: int
) -> np.ndarray:
    """A fifth of each class [n] bool, at least one image but never the last one.

    ``free`` [n] bool are those that may be drawn at all, ``kept`` rows that stay for training.
    """
    random = np.random.RandomState([seed, 2])  # a stream apart from those of the label splits
    test = np.zeros(len(labels), bool)
    for number in range(classes):
        members = np.flatnonzero((labels == number) & free)
        left = np.setdiff1d(members, kept)
        left = random.permutation(left)
        most = len(left) - (len(left) == len(members))
        test[left[: min(max(1, round(TEST_SHARE * len(left))), most)]] = True
    return test
