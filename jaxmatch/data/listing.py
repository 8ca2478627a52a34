"""Finds the images of a folder and their classes; reads no image.

Storage order is the order of the sorted relative paths, so it does not depend on the file system.
A file that has several names, by links or spellings, is one image.
"""

import csv
import io
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from jaxmatch.data import splits
from jaxmatch.data.source import Names
from jaxmatch.errors import InputError
from jaxmatch.runtime import paths

TABLE = "labels.csv"
RESERVED = ("train", "test", "unlabeled")  # folders that are no classes
UNLABELED = ""

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Listing:
    """The images of a folder by name.

    Attributes:
        given: the folder as the user names it.
        root: its path.
        classes_of: the class of each image, by its path relative to ``root``; "" = unlabeled.
        test: the images of the folder ``test``.
        aliases: further names of images, each with the image's name in ``classes_of``.
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

    @property
    def naming(self) -> Names:
        """The names of all images outside of the folder ``test``."""
        rows = {name: row for row, name in enumerate(self.names) if name not in self.test}
        aliases = {alias: rows[name] for alias, name in self.aliases.items() if name in rows}
        return Names(source=f"folder:{self.given}", rows=aliases | rows, roots=(self.root,))


def find(directory: str) -> Listing:
    """Find the images of a folder.

    Training images are DIR/<class>/ or DIR/train/<class>/, or the rows of DIR/labels.csv with the
    columns path (relative to DIR, or absolute) and label (empty = unlabeled). Unlabeled images are
    also those of DIR/unlabeled/, and image files beside the class folders. Test images are those
    of DIR/test/<class>/.

    If a file has several names, the first of these counts: a name in the test folder, a name with a
    class, a file that is no link, the first name in alphabetical order.

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
    aliases = _aliases(root, classes_of, test)
    leaked = {name for alias, name in aliases.items() if name in test and alias not in test}
    if leaked:
        log.warning(
            "%d images of %s are in the test folder and elsewhere; they are used as test images "
            "only.",
            len(leaked),
            directory,
        )
    return Listing(
        given=directory,
        root=root,
        classes_of={name: label for name, label in classes_of.items() if name not in aliases},
        test=frozenset(test) - frozenset(aliases),
        aliases=aliases,
    )


def current_labels(root: Path, *before: Path) -> Callable[[str], str | None] | None:
    """A function from a name to the label in the folder's table; None if there is no table.

    ``before`` are earlier places of the folder, for absolute paths in the table.
    """
    if not (root / TABLE).is_file():
        return None
    return dict(_table(root, *before)).get


def _aliases(root: Path, classes_of: Mapping[str, str], test: Mapping[str, str]) -> dict[str, str]:
    """The further names of files that have several, each with the name that counts."""

    def rank(name: str) -> tuple[bool, bool, bool, str]:
        path = root / name
        link = not paths.in_bucket(path) and path.is_symlink()
        return name not in test, not classes_of[name], link, name

    same: dict[object, list[str]] = {}
    for name in classes_of:
        same.setdefault(_file(root / name), []).append(name)
    aliases: dict[str, str] = {}
    for group in same.values():
        if len(group) == 1:  # without the ranks, which cost a call for each file
            continue
        first, *others = sorted(group, key=rank)
        for other in others:
            if classes_of[other] not in (classes_of[first], UNLABELED):
                raise InputError(
                    f"{root / first} and {root / other} are one image, but of the classes "
                    f"{classes_of[first]!r} and {classes_of[other]!r}; remove one of them."
                )
        aliases |= dict.fromkeys(others, first)
    return aliases


def _training(root: Path) -> dict[str, str]:
    """The class of each training file, by its path relative to ``root``."""
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
    """Relative paths of the files in ``folder``, and with ``deep`` below it; none is hidden."""
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
    """A value that is equal for all names of one file."""
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
                f"{root / TABLE} must have the first line `path,label`, and both in each row."
            )
        path, label = splits.relative((root, *before), row["path"].strip()), row["label"].strip()
        if seen.setdefault(path, label) != label:
            raise InputError(
                f"{root / TABLE} names {path} more than once, as {seen[path]!r} and {label!r}."
            )
    yield from seen.items()
