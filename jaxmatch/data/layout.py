"""The layout of a folder: in which set an image is, and of which class, by folders or by a table.

Training images are <class>/ or train/<class>/, or the rows of labels.csv; test and validation
images are test/<class>/ and val/<class>/; unlabeled images lie in unlabeled/, in train/unlabeled/
or beside the class folders, or are not named by the table. The names of these folders have synonyms
(:func:`jaxmatch.data.table.part_of`). A single folder around all of this is looked through. What
can be read in two ways is refused.
"""

import os
import re
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path

from jaxmatch.data import table
from jaxmatch.data.discovery import BROKEN_LINK, CLOSED, RUN, LeftOut, Tree
from jaxmatch.data.places import (
    HELD_OUT,
    TEST,
    TRAIN,
    VALIDATION,
    Folder,
    Place,
    beside_table,
    by_folder,
    by_row,
    find_folder,
    same_classes,
)
from jaxmatch.data.table import UNLABELED, Row, part_of
from jaxmatch.errors import InputError, counted, printable, some

# Files of a folder that is not meant to be a class.
TEXTS = (
    *(".cfg", ".css", ".csv", ".doc", ".docx", ".html", ".ini", ".ipynb", ".js", ".json"),
    *(".jsonl", ".log", ".md", ".ods", ".odt", ".pdf", ".py", ".rst", ".sh", ".toml", ".tsv"),
    *(".txt", ".xlsx", ".xml", ".yaml", ".yml"),
)
# Names of folders that hold a part of the data, if they hold folders.
FOLD = re.compile(r"(batch|cv|fold|part|session|split|subset)s?[ _-]?\d+", re.IGNORECASE)
# Names of a class that may mean "no label".
VAGUE = ("-1", "na", "nan", "no label", "no_label", "nolabel", "none", "null", "todo", "unassigned",
         "unclassified", "undefined", "unknown", "unsorted")  # fmt: skip


# Names of a class that may mean a set.
LIKE_A_SET = re.compile(
    r"(?<![a-z])((un|not)[ _-]?label\w*|tests?|testing|val(id(ation|ate)?)?|dev|hold[ _-]?out)"
    r"(?![a-z])",
    re.IGNORECASE,
)


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


def plan(root: Path, tree: Tree) -> Plan:
    """Decide what the images of a folder are used for.

    Args:
        root: the folder.
        tree: what it holds.

    Raises:
        InputError: if the layout can be read in two ways, a class folder has no images, or the
            table does not fit.
    """
    if closed := tree.left_out.get(CLOSED):
        raise InputError(
            f"The folder {root / closed[0]} cannot be opened; change its permissions, or move it."
        )
    folder = find_folder(root, tree)
    file = table.find(folder.path)
    found, more = _by_folders(folder, tree) if file is None else _by_table(folder, file)
    places, unused = _places_and_reasons(found)
    places, spellings = same_classes(places)
    notes = [
        *_names_of_folders(folder, tree),
        *more,
        *spellings,
        *_notes_of_sets(folder, places, unused, file is None),
    ]
    name_of_table = folder.inside + file.name if file else ""
    # A file that the table names is an image, whatever the rule of discovery says.
    used = {name_of_table, *(_in_root(folder, name) for name in found)}
    left_out = {
        reason: kept
        for reason, names in tree.left_out.items()
        if (kept := tuple(name for name in names if name not in used))
    }
    for reason, names in sorted(unused.items()):
        left_out[reason] = tuple(sorted(_in_root(folder, name) for name in names))
    return Plan(
        places={_in_root(folder, name): place for name, place in places.items()},
        table=name_of_table,
        left_out=left_out,
        notes=tuple(notes),
    )


def _by_folders(folder: Folder, tree: Tree) -> tuple[dict[str, Place | str], list[str]]:
    """The place of each image by its folders, or why it is left out; then notes."""
    _check_sets(folder)
    found = {name: by_folder(name, folder) for name in folder.images}
    return found, _check_classes(folder, tree)


def _by_table(folder: Folder, file: Path) -> tuple[dict[str, Place | str], list[str]]:
    """The place of each image by the table of labels, or why it is left out; then notes."""
    content = table.read(file)
    rows, notes = table.resolve(content, (folder.path,), folder.images)
    found = {name: by_row(row, name) for name, row in rows.items()}
    found |= {name: beside_table(name) for name in folder.images if name not in rows}
    return found, [*content.notes, *notes, *_notes_of_table(file, folder, found, rows)]


def _places_and_reasons(
    found: Mapping[str, Place | str],
) -> tuple[dict[str, Place], dict[str, list[str]]]:
    """The places of images, and by reason the images that are left out."""
    places = {name: place for name, place in found.items() if isinstance(place, Place)}
    unused: dict[str, list[str]] = {}
    for name, reason in found.items():
        if isinstance(reason, str):
            unused.setdefault(reason, []).append(name)
    return places, unused


def _in_root(folder: Folder, name: str) -> str:
    """A name relative to the given folder; an absolute one stays."""
    return name if os.path.isabs(name) else folder.inside + name


def _has_classes(folder: Folder, top: str) -> bool:
    return any(name and part_of(name) != "unlabeled" for name in folder.below[top])


def _check_sets(folder: Folder) -> None:
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


def _check_classes(folder: Folder, tree: Tree) -> list[str]:
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
    names = {parts[-1] for parts in found}
    nested: list[str] = []
    notes: list[str] = []
    for parts in found:
        name = "/".join(parts)
        if part_of(parts[-1]) == "unlabeled":
            continue
        below = folder.below.get(name, set())
        _check_apart(folder, name, below, names)
        nested += [f"{name}/{each}" for each in sorted(below - {""})]
        if not below:
            notes += _without_images(folder, tree, name)
    if nested:
        first, *others = sorted({name.rpartition("/")[0] for name in nested})
        alone = not others and "" not in folder.below[first]
        remedy = f"; folder:{folder.path / first} reads them as classes" if alone else ""
        notes.append(
            f"Folders inside a class folder are no classes of their own: {some(nested)}{remedy}."
        )
    if empty := sorted({parts[0] for parts in folders if part_of(parts[0])} - folder.below.keys()):
        notes.append(f"The folder {some(empty)} has no images.")
    return notes


def _check_apart(folder: Folder, name: str, below: Set[str], classes: Set[str]) -> None:
    """Refuse sets inside of a class folder, and a set that has the name of none.

    Args:
        folder: of the sets or classes.
        name: of the class folder.
        below: the folders in it; "" if it has images.
        classes: the names of all class folders.

    Raises:
        InputError: naming the first such folder.
    """
    last = name.rpartition("/")[2]
    for each in sorted(below - {""}):
        if part_of(each) or part_of(last):
            where = f"the class {last}" if part_of(each) else f"the set {name.rpartition('/')[0]}"
            raise InputError(
                f"{folder.path / name}{f'/{each}' if part_of(each) else ''} is a set inside of "
                f"{where}; put classes into sets, such as train/cat/ and test/cat/."
            )
        if FOLD.fullmatch(last) and "" not in below:
            raise InputError(
                f"{folder.path / name} holds folders, so it looks like a part of the data and no "
                "class; put its class folders into train, val or test, or give it another name."
            )
        if each in classes - {last} and "" not in below:
            raise InputError(
                f"{folder.path / name} is no class, because it has a folder {each} for a class: "
                f"call it train, val or test if it is a set, or move it out of {folder.path}."
            )


def _without_images(folder: Folder, tree: Tree, name: str) -> list[str]:
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
    visible = [
        (reason, each) for reason, each in found if reason.startswith(("no image", "no decoder"))
    ]
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


def _names_of_folders(folder: Folder, tree: Tree) -> list[str]:
    """Notes on folders that have an unusual name or place, and on lost ones."""
    notes = []
    if broken := tree.left_out.get(BROKEN_LINK):
        notes.append(f"Links to nothing: {some(broken)}.")
    if folder.inside:
        notes.append(f"All images lie in {folder.inside}, which is read as the data folder.")
    usual = {TRAIN: "train", TEST: "test", VALIDATION: "val", "unlabeled": "unlabeled"}
    for part, top in sorted(folder.sets.items()):
        if top != usual[part]:
            title = {"unlabeled": "unlabeled images", TRAIN: "training set"}.get(
                part, f"{part} set"
            )
            notes.append(f"The folder {top} holds the {title}.")
    return notes


def _notes_of_table(
    file: Path, folder: Folder, found: Mapping[str, Place | str], rows: Mapping[str, Row]
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
            f"The labels are those of {file.name}; folders such as {some(folder.others)} are not "
            "read as classes."
        )
    return notes


def _notes_of_sets(
    folder: Folder,
    places: Mapping[str, Place],
    unused: Mapping[str, Sequence[str]],
    by_folders: bool,
) -> list[str]:
    """Notes on images that are used in another way, or for less, than a user may expect."""
    notes = []
    for reason, names in unused.items():
        top = reason.rpartition("folder ")[2]
        which, remedy = (
            "",
            f"label with jaxmatch predict, or sort what you need into {top}/<class>/",
        )
        if reason.startswith("beside"):
            tops = {name.partition("/")[0] for name in names}
            which, remedy = f" ({some(sorted(tops))})", f"move what you need into {top}/<class>/"
        elif reason.startswith("without a label"):
            remedy = "write what you know into the table"
        notes.append(f"Not used, {reason}: {counted(len(names), 'image')}{which}; {remedy}.")
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
            notes.append(f"The {part} set has no images of {some(missing)}.")
    if vague := sorted(label for label in trained if label.lower() in VAGUE):
        notes.append(
            f"{some(vague)} is a class here; move its images to unlabeled/, or leave the label "
            "empty, if they have no label."
        )
    if by_folders and (sets := sorted(label for label in trained if LIKE_A_SET.search(label))):
        notes.append(
            f"{some(sets)} is a class here; if it is a set, call its folder test, val or unlabeled."
        )
    for name in sorted(
        {name.split("/")[1] for name in places if _sorted_unlabeled(name)} & trained
    ):
        notes.append(f"The images in the folder {name} of unlabeled images are unlabeled.")
    return notes


def _sorted_unlabeled(name: str) -> bool:
    top, _, rest = name.partition("/")
    return part_of(top) == "unlabeled" and "/" in rest
