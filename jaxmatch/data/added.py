"""Labels that a run adds to those of its data, from the tables that ``data.added_labels`` names.

They label images wherever these lie, so a folder with class folders takes them as well as one with
a table of its own. ``jaxmatch suggest`` writes such tables for people to fill in.
"""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from jaxmatch.data import table
from jaxmatch.data.source import Source
from jaxmatch.data.splits import Split
from jaxmatch.data.table import UNLABELED, Table
from jaxmatch.errors import InputError, counted, printable
from jaxmatch.runtime import paths

log = logging.getLogger(__name__)

KEY = "data.added_labels"
Added = Mapping[int, int]  # the class of each image, by its row in the source's storage order


def files(text: str) -> tuple[str, ...]:
    """The tables that ``data.added_labels`` names, separated by commas.

    A name with commas in it is that of a table that exists; the longest such name counts.
    """
    parts, found = text.split(","), []
    while parts:
        ends = range(len(parts), 0, -1)
        names = {end: ",".join(parts[:end]).strip() for end in ends}
        end = next((end for end in ends[:-1] if paths.is_file(paths.path(names[end]))), 1)
        found += [names[end]] if names[end] else []
        parts = parts[end:]
    return tuple(found)


def key_of(source: Source) -> str:
    """The column that names an image of a source: "path" of files, else "index"."""
    return "index" if source.listed is None else "path"


def read(text: str, source: Source, split: Split, before: Sequence[Path] = ()) -> Added:
    """The labels that tables add to those of a run.

    A table has the columns ``path`` (of a folder's image, relative to the folder) or ``index`` (the
    place of an image in the storage order of another source), and ``label``. Rows with an empty
    label do not count, nor do rows of images that are labeled examples of the run already.

    Args:
        text: of ``data.added_labels``.
        source: the data of the run, without a validation set that is held back.
        split: the labeled examples without the added ones.
        before: earlier places of the folder of images.

    Raises:
        InputError: if a table cannot be read or has no label at all; or it names an image that is
            none of the training images, a class that the data does not have, or another label than
            the data or another table. The message names the first such row.
    """
    found: dict[int, int] = {}
    origin: dict[int, str] = {}
    known = dict(zip(source.rows.tolist(), source.labels.tolist(), strict=True))
    alike = table.unique((table.plain_label(name), name) for name in source.classes)
    classes = {name: number for number, name in enumerate(source.classes)}
    for name in files(text):
        file = paths.path(name)
        content = table.read(file, key_of(source), source.classes)
        for note in content.notes:
            log.warning("%s", note)
        rows = _rows(content, source, before)
        if not rows:
            raise InputError(
                f"{KEY}: {name} has no label; fill in the column label, or leave the table out."
            )
        for row, (image, label) in rows.items():
            what = f"{KEY}: {name} gives {printable(image)} the label {label!r}"
            number = classes.get(label, classes.get(alike.get(table.plain_label(label), "")))
            if number is None:
                raise InputError(
                    f"{what}, which is none of the classes {', '.join(source.classes)}; correct "
                    "it. A new class begins with labeled images in the data itself."
                )
            if row not in known:
                raise InputError(f"{what}, {_why_not(source, row)}; remove the row.")
            other = known[row] if known[row] >= 0 else found.get(row, number)
            if other != number:
                where = "the data" if known[row] >= 0 else origin[row]
                raise InputError(
                    f"{what}, but {where} has {source.classes[other]!r}; correct one of them."
                )
            found[row], origin[row] = number, name
    taken = set(split.indices.tolist())
    return {row: number for row, number in sorted(found.items()) if row not in taken}


def apply(source: Source, split: Split, added: Added) -> tuple[Source, Split]:
    """The source with the labels, and the split with the images, which come last in it."""
    if not added:
        return source, split
    rows = np.array(list(added), np.int64)
    at = {row: position for position, row in enumerate(source.rows.tolist())}
    labels = source.labels.copy()
    labels[[at[row] for row in added]] = list(added.values())
    counts = Counter(source.classes[number] for number in added.values())
    listed = ", ".join(f"{name} {count:,}" for name, count in sorted(counts.items()))
    note = f"Labels added by {KEY}: {counted(len(added), 'image')} ({listed})."
    survey = replace(source.survey, notes=(*source.survey.notes, note))
    indices = np.concatenate([split.indices, rows])
    return replace(source, labels=labels, survey=survey), replace(split, indices=indices)


def without(split: Split, added: Added) -> Split:
    """The split without the images that :func:`apply` added."""
    own = ~np.isin(split.indices, np.array(list(added), np.int64))
    return replace(split, indices=split.indices[own])


def check(
    text: str, source: Source, split: Split, added: Added, before: Sequence[Path] = ()
) -> None:
    """Check that the tables still add the labels that a run began with.

    Tables that are gone are not checked, since the run has a record of their labels.

    Args:
        text: of ``data.added_labels``.
        source: the data of the run.
        split: all labeled examples of the run.
        added: what the run recorded.
        before: earlier places of the folder of images.

    Raises:
        InputError: if they add others.
    """
    names = files(text)
    if not all(paths.path(name).exists() for name in names):
        return
    labels = source.labels.copy()
    labels[np.isin(source.rows, np.array(list(added), np.int64))] = -1
    plain = replace(source, labels=labels)
    if dict(read(text, plain, without(split, added), before)) != dict(added):
        raise InputError(
            f"{KEY}: {', '.join(names)} has other labels than the run began with; put the old "
            "table back, or train anew in another --workdir (--config.init_from starts from this "
            "run)."
        )


def _rows(content: Table, source: Source, before: Sequence[Path]) -> dict[int, tuple[str, str]]:
    """The image as the table names it, and its label, by the image's row.

    Raises:
        InputError: if a name is that of no image, or an image has two labels.
    """
    filled = replace(content, rows=tuple(row for row in content.rows if row.label != UNLABELED))
    if source.listed is None:
        return _by_index(filled, source)
    listed = source.listed
    places = {name: row for row, name in enumerate(listed.names)} | dict(listed.aliases)
    named, _ = table.resolve(filled, (paths.path(source.location), *before), places)
    found: dict[int, tuple[str, str]] = {}
    for name, row in named.items():
        if name not in places:
            raise InputError(
                f"{content.file} names {printable(row.path)}, which is no image of {source.name}; "
                "remove the row."
            )
        _put(content, found, places[name], name, row.label)
    return found


def _by_index(content: Table, source: Source) -> dict[int, tuple[str, str]]:
    found: dict[int, tuple[str, str]] = {}
    for row in content.rows:
        if not row.path.isdecimal():
            raise InputError(
                f"{content.file} has the index {row.path!r}; write the place of an image in "
                f"{source.name}, a whole number from 0 on."
            )
        _put(content, found, int(row.path), f"image {row.path}", row.label)
    return found


def _put(
    content: Table, found: dict[int, tuple[str, str]], row: int, name: str, label: str
) -> None:
    _, before = found.setdefault(row, (name, label))
    if before != label:
        raise InputError(
            f"{content.file} names {printable(name)} more than once, as {before!r} and {label!r}."
        )


def _why_not(source: Source, row: int) -> str:
    """Why an image is none of the training images."""
    listed = source.listed
    if listed is not None and row in listed.unused:
        return "which is not readable as an image"
    if listed is not None and row in listed.test:
        return "which is a test image"
    if listed is not None and row in listed.validation:
        return "which is a validation image"
    return "which is no training image of the run (it may be held out for validation)"
