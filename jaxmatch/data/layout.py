"""The layout of a folder: in which set an image is, and of which class, by folders or by a table.

Training images are <class>/ or train/<class>/, or the rows of labels.csv; test and validation
images are test/<class>/ and val/<class>/; unlabeled images lie in unlabeled/, in train/unlabeled/
or beside the class folders, or are not named by the table. The names of these folders have synonyms
(:func:`jaxmatch.data.table.part_of`). A single folder around all of this is looked through. What
can be read in two ways is refused.
"""

import os
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from jaxmatch.data import table
from jaxmatch.data.discovery import RUN, LeftOut, Tree, printable
from jaxmatch.data.table import UNLABELED, Row, part_of
from jaxmatch.errors import InputError, counted

TRAIN, TEST, VALIDATION = "train", "test", "validation"
HELD_OUT = (TEST, VALIDATION)
# Files of a folder that is not meant to be a class.
TEXTS = (
    *(".cfg", ".css", ".csv", ".doc", ".docx", ".html", ".ini", ".ipynb", ".js", ".json"),
    *(".jsonl", ".log", ".md", ".ods", ".odt", ".pdf", ".py", ".rst", ".sh", ".toml", ".tsv"),
    *(".txt", ".xlsx", ".xml", ".yaml", ".yml"),
)
# Names of a class that may mean "no label".
VAGUE = ("-1", "na", "nan", "no label", "no_label", "nolabel", "none", "null", "todo", "unassigned",
         "unclassified", "undefined", "unknown", "unsorted")  # fmt: skip


@dataclass(frozen=True)
class Place:
    """The set of an image, "train", "validation" or "test", and its class; "" = unlabeled."""

    part: str
    label: str


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a folder's images are used for.

    Attributes:
        places: by the image's name relative to the folder.
        table: the name of the table of labels; "" if there is none.
        left_out: names of files and folders that are not used, by the reason.
        notes: sentences about what a user may not expect.
    """

    places: Mapping[str, Place]
    table: str = ""
    left_out: LeftOut = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class _Folder:
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


def plan(root: Path, tree: Tree) -> Plan:
    """Decide what the images of a folder are used for.

    Args:
        root: the folder.
        tree: what it holds.

    Raises:
        InputError: if the layout can be read in two ways, a class folder has no images, or the
            table does not fit.
    """
    folder = _folder(root, tree)
    file = table.find(folder.path)
    notes = _names_of_folders(folder)
    left_out = dict(tree.left_out)
    if file is None:
        _check_sets(folder)
        found = {name: _by_folder(name, folder) for name in folder.images}
        notes += _check_classes(folder, tree)
        name_of_table = ""
    else:
        content = table.read(file)
        rows, more = table.resolve(content, (folder.path,), folder.images)
        found = {name: _by_row(row, name) for name, row in rows.items()}
        found |= {name: _beside_table(name) for name in folder.images if name not in rows}
        name_of_table = folder.inside + file.name
        notes += [*content.notes, *more, *_notes_of_table(file, folder, found, rows)]
        named = {folder.inside + name for name in rows} | {name_of_table}
        left_out = {
            reason: kept
            for reason, names in left_out.items()
            if (kept := tuple(name for name in names if name not in named))
        }
    places = {name: place for name, place in found.items() if isinstance(place, Place)}
    unused: dict[str, list[str]] = {}
    for name, reason in found.items():
        if isinstance(reason, str):
            unused.setdefault(reason, []).append(folder.inside + name)
    left_out |= {reason: tuple(sorted(names)) for reason, names in sorted(unused.items())}
    places, more = _same_classes(places)
    notes += [*more, *_notes_of_sets(folder, places, unused, file is None)]
    return Plan(
        places={_in_root(folder, name): place for name, place in places.items()},
        table=name_of_table,
        left_out=left_out,
        notes=tuple(notes),
    )


def _in_root(folder: _Folder, name: str) -> str:
    """A name relative to the given folder; an absolute one stays."""
    return name if os.path.isabs(name) else folder.inside + name


def _folder(root: Path, tree: Tree) -> _Folder:
    """The folder of the sets or classes: the given one, or the only one in it that holds images."""

    def at(inside: str) -> _Folder:
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
        return _Folder(
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


def _has_classes(folder: _Folder, top: str) -> bool:
    return any(name and part_of(name) != "unlabeled" for name in folder.below[top])


def _check_sets(folder: _Folder) -> None:
    """Refuse a folder that may be a set as well as a class.

    Raises:
        InputError: naming it.
    """
    for part in (TRAIN, *HELD_OUT):
        top = folder.sets.get(part)
        if top is None or _has_classes(folder, top) or not folder.others:
            continue
        if part != TRAIN and TRAIN in folder.sets:
            continue
        known = ", ".join(folder.others[:3])
        raise InputError(
            f"{folder.path / top} holds images but no class folders, and {known} beside it: it can "
            f"be a class or the {part} set. If it is a class, put all class folders into a folder "
            f"train; if it is a set, sort its images into {top}/<class>/, or into unlabeled/ if "
            "their classes are not known."
        )


def _by_folder(name: str, folder: _Folder) -> Place | str:
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


def _by_row(row: Row, name: str) -> Place | str:
    """The place of an image that the table names; its folder counts if the row names no set."""
    top, _, rest = name.partition("/")
    by_folder = part_of(top) if rest else ""
    part = row.part or (by_folder if by_folder in HELD_OUT else TRAIN)
    if part in HELD_OUT and not row.label:
        return f"without a label, in the {part} set"
    return Place(part if part in HELD_OUT else TRAIN, row.label)


def _beside_table(name: str) -> Place | str:
    """The place of an image that the table does not name."""
    top, _, rest = name.partition("/")
    if rest and part_of(top) in HELD_OUT:
        return _held_out(top, rest)
    return Place(TRAIN, UNLABELED)


def _check_classes(folder: _Folder, tree: Tree) -> list[str]:
    """Check the class folders; returns notes.

    Raises:
        InputError: if one has no images, or holds the folder of a set.
    """
    inside = (name[len(folder.inside) :] for name in tree.folders if name.startswith(folder.inside))
    folders = [name.split("/") for name in inside]
    tops = {parts[0] for parts in folders if part_of(parts[0]) in (TRAIN, *HELD_OUT)}
    classes = [parts for parts in folders if len(parts) == 1 and not part_of(parts[0])]
    found = [] if TRAIN in folder.sets else classes
    found += [parts for parts in folders if len(parts) == 2 and parts[0] in tops]
    nested: list[str] = []
    notes: list[str] = []
    for parts in found:
        name = "/".join(parts)
        if part_of(parts[-1]) == "unlabeled":
            continue
        below = folder.below.get(name, set())
        _check_apart(folder, name, below - {""})
        nested += [f"{name}/{each}" for each in sorted(below - {""})]
        if not below:
            notes += _without_images(folder, tree, name)
    if nested:
        notes.append(f"Folders inside a class folder are no classes of their own: {_some(nested)}.")
    if empty := sorted({parts[0] for parts in folders if part_of(parts[0])} - folder.below.keys()):
        notes.append(f"The folder {_some(empty)} has no images.")
    return notes


def _check_apart(folder: _Folder, name: str, inside: Iterable[str]) -> None:
    """Refuse sets inside of a class folder.

    Raises:
        InputError: naming one.
    """
    last = name.rpartition("/")[2]
    for each in sorted(inside):
        if part_of(each) or part_of(last):
            raise InputError(
                f"{folder.path / name / each} is a set inside of a class, or a class inside of a "
                "set inside of a set; use <set>/<class>/ such as train/cat/ and test/cat/."
            )


def _without_images(folder: _Folder, tree: Tree, name: str) -> list[str]:
    """Notes about a class folder without images.

    Raises:
        InputError: if it may be meant as a class.
    """
    path, inside = folder.path / name, f"{folder.inside}{name}/"
    found = [
        (reason, each)
        for reason, names in tree.left_out.items()
        for each in names
        if each.startswith(inside)
    ]
    if any(reason == RUN for reason, _ in found):
        return []
    visible = [(reason, each) for reason, each in found if reason.startswith("no image")]
    if visible and all(each.lower().endswith(TEXTS) for _, each in visible):
        return [f"The folder {name} has no images and is no class."]
    if not found:
        raise InputError(
            f"The class folder {path} is empty; put images into it, or remove it if it is no class."
        )
    reasons = ", ".join(sorted({reason for reason, _ in visible or found}))
    raise InputError(
        f"The class folder {path} has no images, only files such as "
        f"{printable((visible or found)[0][1])} ({reasons}); convert them to PNG or JPEG, or "
        "remove the folder if it is no class."
    )


def _same_classes(places: Mapping[str, Place]) -> tuple[dict[str, Place], list[str]]:
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


def _names_of_folders(folder: _Folder) -> list[str]:
    """Notes on folders that have an unusual name or place."""
    notes = []
    if folder.inside:
        notes.append(f"All images lie in {folder.inside}, which is read as the data folder.")
    usual = {TRAIN: "train", TEST: "test", VALIDATION: "val", "unlabeled": "unlabeled"}
    for part, top in sorted(folder.sets.items()):
        if top != usual[part]:
            title = "unlabeled images" if part == "unlabeled" else f"{part} set"
            notes.append(f"The folder {top} holds the {title}.")
    return notes


def _notes_of_table(
    file: Path, folder: _Folder, found: Mapping[str, Place | str], rows: Mapping[str, Row]
) -> list[str]:
    notes = []
    unnamed = [
        name
        for name in sorted(found.keys() - rows.keys())
        if found[name] == Place(TRAIN, UNLABELED) and part_of(name.partition("/")[0]) != "unlabeled"
    ]
    if unnamed:
        notes.append(
            f"Used without a label: {counted(len(unnamed), 'image')} that {file.name} does not "
            f"name, such as {printable(unnamed[0])}."
        )
    for part in HELD_OUT:
        top = folder.sets.get(part, "")
        inside = [name for name, row in rows.items() if not row.part and name.startswith(f"{top}/")]
        if top and inside:
            notes.append(
                f"Used as {part} images, because of the folder {top}: "
                f"{counted(len(inside), 'row')} of {file.name}."
            )
    if folder.others:
        notes.append(
            f"The labels are those of {file.name}; folders such as {_some(folder.others)} are not "
            "read as classes."
        )
    return notes


def _notes_of_sets(
    folder: _Folder,
    places: Mapping[str, Place],
    unused: Mapping[str, Sequence[str]],
    by_folders: bool,
) -> list[str]:
    """Notes on images that are used in another way, or for less, than a user may expect."""
    notes = []
    for reason, names in unused.items():
        tops = {name[len(folder.inside) :].partition("/")[0] for name in names}
        beside = reason.startswith("beside")
        some = f" ({_some(sorted(tops))})" if beside else ""
        remedy = "move" if beside else "label with jaxmatch predict, or sort"
        notes.append(
            f"Not used, {reason}: {counted(len(names), 'image')}{some}; {remedy} what you need "
            "into class folders there."
        )
    classes = {
        part: {p.label for p in places.values() if p.part == part} for part in (TRAIN, *HELD_OUT)
    }
    trained = classes[TRAIN] - {UNLABELED}
    if by_folders:
        base = f"{folder.sets[TRAIN]}/" if TRAIN in folder.sets else ""
        loose = [
            name
            for name, place in places.items()
            if place.part == TRAIN and name.startswith(base) and "/" not in name[len(base) :]
        ]
        if loose and trained:
            notes.append(
                f"Used without a label: {counted(len(loose), 'image')} beside the class folders, "
                f"such as {printable(loose[0])}."
            )
    for part in HELD_OUT:
        if classes[part] and (missing := sorted(trained - classes[part])):
            notes.append(f"The {part} set has no images of {_some(missing)}.")
    if vague := sorted(label for label in trained if label.lower() in VAGUE):
        notes.append(
            f"{_some(vague)} is a class here; move its images to unlabeled/, or leave the label "
            "empty, if they have no label."
        )
    for name in sorted(
        {name.split("/")[1] for name in places if _sorted_unlabeled(name)} & trained
    ):
        notes.append(f"The images in the folder {name} of unlabeled images are unlabeled.")
    return notes


def _sorted_unlabeled(name: str) -> bool:
    top, _, rest = name.partition("/")
    return part_of(top) == "unlabeled" and "/" in rest


def _some(names: Sequence[str], most: int = 5) -> str:
    """The first names, and how many more there are."""
    shown = ", ".join(map(printable, names[:most]))
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
