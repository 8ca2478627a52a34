"""Where an image of a folder belongs, by its folders or by its row in the table of labels."""

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from jaxmatch.data import table
from jaxmatch.data.discovery import Tree
from jaxmatch.data.table import UNLABELED, Row, part_of
from jaxmatch.errors import InputError

TRAIN, TEST, VALIDATION = "train", "test", "validation"
HELD_OUT = (TEST, VALIDATION)


@dataclass(frozen=True)
class Place:
    """The set of an image, "train", "validation" or "test", and its class; "" = unlabeled."""

    part: str
    label: str


@dataclass(frozen=True, kw_only=True)
class Folder:
    """The folder that directly holds the sets or classes.

    Attributes:
        path: of it.
        inside: its name relative to the given folder, "" or ending with a slash.
        images: names relative to it.
        sets: the folder of each set.
        others: folders with images that are no set.
        below: for each folder of the first two levels that has images, the folders in it that have
            some; "" stands for images directly in it.
    """

    path: Path
    inside: str
    images: tuple[str, ...]
    sets: Mapping[str, str]
    others: tuple[str, ...]
    below: Mapping[str, set[str]]


def find_folder(root: Path, tree: Tree) -> Folder:
    """The folder of the sets or classes: the given one, or the only one in it that holds images."""

    def at(inside: str) -> Folder:
        images = tuple(name[len(inside) :] for name in tree.images)
        below: dict[str, set[str]] = {}
        for name in images:
            first, *parts = name.split("/", 3)
            if parts:
                below.setdefault(first, set()).add(parts[0] if len(parts) > 1 else "")
            if len(parts) > 1:
                second = below.setdefault(f"{first}/{parts[0]}", set())
                second.add(parts[1] if len(parts) > 2 else "")
        tops = sorted(name for name in below if "/" not in name)
        path = root / inside if inside else root
        return Folder(
            path=path,
            inside=inside,
            images=images,
            sets=_sets(path, tops),
            others=tuple(top for top in tops if not part_of(top)),
            below=below,
        )

    given = folder = at("")
    while not folder.sets and len(folder.others) == 1 and table.find(folder.path) is None:
        if any("/" not in name for name in folder.images):
            break
        folder = at(f"{folder.inside}{folder.others[0]}/")
        if folder.sets or len(folder.others) > 1 or table.find(folder.path) is not None:
            return folder
    return given


def _sets(path: Path, tops: Sequence[str]) -> dict[str, str]:
    """The folder of each set; there may be several of unlabeled images.

    Raises:
        InputError: if there are several of another set.
    """
    found: dict[str, str] = {}
    for top in tops:
        part = part_of(top)
        if part in (TRAIN, *HELD_OUT) and part in found:
            raise InputError(
                f"{path} has two folders of the {part} set, {found[part]} and {top}; keep one."
            )
        if part:
            found[part] = top
    return found


def by_folder(name: str, folder: Folder) -> Place | str:
    """The place of an image by its folders, or why it is left out."""
    top, _, rest = name.partition("/")
    part = part_of(top) if rest else ""
    if part == "unlabeled":
        return Place(TRAIN, UNLABELED)
    if part in HELD_OUT:
        return _held_out(top, rest)
    if TRAIN in folder.sets:
        if part != TRAIN:
            return f"beside the folder {folder.sets[TRAIN]}"
        top, _, rest = rest.partition("/")
    if not rest or part_of(top) == "unlabeled":
        return Place(TRAIN, UNLABELED)
    return Place(TRAIN, top)


def _held_out(top: str, rest: str) -> Place | str:
    """The place of an image in the folder ``top`` of the test or validation set."""
    label, _, file = rest.partition("/")
    if not file or part_of(label) == "unlabeled":
        return f"without a class, in the folder {top}"
    return Place(part_of(top), label)


def by_row(row: Row, name: str) -> Place | str:
    """The place of an image that the table names; its folder counts if the row names no set."""
    top, _, rest = name.partition("/")
    part = row.part or (part_of(top) if rest else "")
    if part not in HELD_OUT:
        return Place(TRAIN, row.label)
    return Place(part, row.label) if row.label else f"without a label, in the {part} set"


def beside_table(name: str) -> Place | str:
    """The place of an image that the table does not name."""
    top, _, rest = name.partition("/")
    if rest and part_of(top) in HELD_OUT:
        return _held_out(top, rest)
    return Place(TRAIN, UNLABELED)


def same_classes(places: Mapping[str, Place]) -> tuple[dict[str, Place], list[str]]:
    """Give a class one name, whatever its Unicode normal form, and in the test set its case."""

    def normal(label: str) -> str:
        return unicodedata.normalize("NFC", label)

    written: dict[str, set[str]] = {}
    for label in {place.label for place in places.values()}:
        written.setdefault(normal(label), set()).add(label)
    name_of = {
        label: next(iter(labels)) if len(labels) == 1 else key
        for key, labels in written.items()
        for label in labels
    }
    trained = {name_of[place.label] for place in places.values() if place.part == TRAIN} - {""}
    folded: dict[str, list[str]] = {}
    for label in sorted(trained):
        folded.setdefault(normal(label).casefold(), []).append(label)
    notes = [
        f"The classes {' and '.join(labels)} differ only in case."
        for labels in folded.values()
        if len(labels) > 1
    ]
    for label in sorted(set(name_of.values()) - trained - {UNLABELED}):
        same = folded.get(normal(label).casefold(), [])
        if len(same) == 1:
            notes.append(f"The held-out class {label} is the training class {same[0]}.")
            name_of |= {old: same[0] for old, new in name_of.items() if new == label}
    changed = {old for old, new in name_of.items() if old != new}
    return {
        name: replace(place, label=name_of[place.label]) if place.label in changed else place
        for name, place in places.items()
    }, notes
