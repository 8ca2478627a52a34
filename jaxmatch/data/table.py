"""The table of labels of a folder, ``labels.csv``: the label and the set of each image."""

import csv
import io
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache
from pathlib import Path
from typing import Any

from jaxmatch.data import splits
from jaxmatch.errors import InputError, counted, printable
from jaxmatch.runtime import paths

NAMES = ("labels.csv", "labels.tsv")
UNLABELED = ""
# What a column may be called: in lower case, without spaces, hyphens and underscores.
COLUMNS = {
    "path": ("path", "filepath", "imagepath", "imgpath", "file", "filename", "image", "imagename",
             "imagefile", "img", "imgname"),
    "label": ("label", "labels", "class", "classes", "classname", "labelname", "category",
              "target", "y"),
    "split": ("split", "set", "subset", "partition"),
}  # fmt: skip
DELIMITERS = (",", ";", "\t", "|")
# Labels that other programs write for "no label".
NO_LABEL = ("-1", "-1.0", "nan", "null", "?", "<na>", "#n/a", "n/a", "unlabeled", "unlabelled")
UNCLEAR = ("none", "na")  # either no label, or the name of a class
HELPFUL = ("prediction", "confidence")  # columns of jaxmatch suggest, which nobody needs to read
_PARTS = {
    "train": r"train(ing)?|labell?ed",
    "test": r"test(ing)?",
    "validation": r"val(id(ation)?)?",
    "unlabeled": r"un[ _-]?labell?ed",
}
_PART = re.compile(
    f"({'|'.join(f'(?P<{part}>{words})' for part, words in _PARTS.items())})"
    "([ _-]?(set|data|images|split))?",
    re.IGNORECASE,
)
_NUMBER = re.compile(r"[+-]?\d+(\.\d*)?")


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of the table.

    Attributes:
        path: as written.
        label: the class; "" = unlabeled.
        part: "train", "validation", "test" or "unlabeled"; "" if the table does not say.
    """

    path: str
    label: str
    part: str = ""


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of labels.

    Attributes:
        file: its path.
        rows: in their order.
        notes: what the user may not expect, in sentences.
    """

    file: Path
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()


@lru_cache(maxsize=10_000)
def part_of(name: str) -> str:
    """The set that a folder's name or a word means: a key of the table above; "" for no set."""
    found = _PART.fullmatch(name.strip())
    return next(part for part in _PARTS if found[part]) if found else ""


def read(file: Path, key: str = "path", classes: Collection[str] = ()) -> Table:
    """Read a table with a column for the path, one for the label, and perhaps one for the set.

    Cells are separated by commas, semicolons, tabs or ``|``. Empty labels mean unlabeled.

    Args:
        file: its path.
        key: "path", or "index" if the images have no paths: the column in the place of the path.
        classes: known names of classes, which are labels even if they are words for "no label".

    Raises:
        InputError: if it cannot be read, lacks a column or a cell, or has a label that may or may
            not mean "no label".
    """
    (header, *body), delimiter, numbers = _cells(file)
    columns = _columns(header)
    if key != "path":
        words = [cell.strip().lower() for cell in header]
        columns.pop("path", None)
        columns |= {"path": words.index(key)} if key in words else {}
    if not {"path", "label"} <= columns.keys():
        raise InputError(
            f"{file} must have the first line `{key},label`, and both in each row; a third column "
            f"`split` may say train, validation or test. Its first line is `{','.join(header)}`."
        )
    rows = []
    for number, cells in zip(numbers[1:], body, strict=True):
        if len(cells) > len(header) and any(cells[len(header) :]):
            raise InputError(
                f"{file} has more cells than columns in line {number}; put a text that contains "
                f"{delimiter!r} in quotes."
            )
        found = {
            kind: cells[place].strip() for kind, place in columns.items() if place < len(cells)
        }
        if "label" not in found or not found["path"]:
            lacks = key if "label" in found else "cell for the label"
            raise InputError(f"{file} has no {lacks} in line {number}; add it, or remove the row.")
        if any("\n" in cell or "\r" in cell for cell in found.values()):
            raise InputError(
                f"{file} has a line break inside of quotes in line {number}; a quote is missing or "
                "too many there."
            )
        rows.append(_row(file, found, classes))
    lost = _label_notes(file, body, columns["label"], classes)
    notes = [*_header_notes(file, header, columns), *lost]
    check_numbers(file, {row.label for row in rows})
    return Table(file=file, rows=tuple(rows), notes=tuple(notes))


def plain_label(label: str) -> str:
    """A label without differences that nobody sees: of Unicode normal form, and blanks around."""
    return unicodedata.normalize("NFC", label).strip()


def line(cells: Iterable[Any]) -> str:
    """A line of a table with commas; cells with line breaks of any kind are in quotes."""
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\r\n").writerow(cells)
    return text.getvalue().removesuffix("\r\n") + "\n"


def takes(name: str) -> bool:
    """Whether :func:`read` gives the name of a file as it is."""
    return name == name.strip() and not {"\n", "\r"} & set(name)


def header(file: Path) -> tuple[str, ...]:
    """The names of a table's columns in lower case.

    Raises:
        InputError: if it cannot be read.
    """
    (names, *_), *_ = _cells(file)
    return tuple(name.strip().lower() for name in names)


def filled(file: Path) -> int:
    """How many rows of a table have something in the column of the label.

    Raises:
        InputError: if it cannot be read.
    """
    (header, *body), *_ = _cells(file)
    place = _columns(header).get("label", len(header))
    return sum(bool("".join(cells[place : place + 1]).strip()) for cells in body)


def resolve(
    table: Table,
    roots: Sequence[Path],
    images: Iterable[str],
    now: Callable[[], Iterable[str]] | None = None,
) -> tuple[dict[str, Row], list[str]]:
    """The row of each image, by its name, and notes.

    A path is relative to the first of ``roots`` or absolute; later ones are its earlier places. If
    there is no such file, the path may differ in case, Unicode normal form or slashes, or its first
    folders may be others or missing, as long as it fits one of ``images`` only. A file that is
    missing in its folder is not looked for in folders that the table names, too.

    Args:
        table: of labels.
        roots: the folder of the images, and its earlier places.
        images: their names relative to it.
        now: gives the names of all images in the folder, if ``images`` are those of a run. Rows
            that fit none of the run's are left out then, and one that fits an image added since is
            not taken for one of the run's with a similar name.

    Raises:
        InputError: naming the first row without a file, or an image of two classes.
    """
    images = set(images)
    rows: dict[str, Row] = {}
    missing: list[Row] = []
    for row in table.rows:
        name = row.path if row.path in images else splits.relative(roots, row.path)
        if name not in images and not paths.is_file(roots[0] / name):
            missing.append(row)
        elif name in images or now is None:
            _add(table, rows, name, row)
    if not missing:
        return rows, []
    similar = _Similar.of(images, rows, () if now is None else now())
    lost, found = [], []
    for row in missing:
        name = similar.find(row.path)
        if name in images:
            _add(table, rows, name, row)
            found.append((row.path, name))
        elif not name:
            lost.append(row)
    if lost and now is None:
        raise _no_file(table, lost, similar)
    if not found:
        return rows, []
    (path, name), *_ = found
    return rows, [
        f"Found by a similar name: {counted(len(found), 'file')} of {table.file.name}, such as "
        f"{printable(path)} as {printable(name)}."
    ]


@dataclass(frozen=True, kw_only=True)
class _Similar:
    """Images by their names without differences in spelling.

    Attributes:
        whole: the image of each plain path that only one has; the run's own before others.
        ends: the same for each end of a plain path, from a slash on.
        folders: the ends of the plain paths of all folders of images.
        named: the plain paths of the folders by which a table names images.
    """

    whole: Mapping[str, str]
    ends: Mapping[str, str]
    folders: Set[str]
    named: Set[str]

    @classmethod
    def of(cls, images: Set[str], found: Iterable[str], now: Iterable[str]) -> "_Similar":
        """The images of these names, and others that are there ``now``.

        The table names those ``found`` by their paths.
        """
        others = {*now} - images
        folders = {os.path.dirname(_plain(name)) for name in images | others}
        return cls(
            whole=_whole(others) | _whole(images),
            ends=_by_ends(others) | _by_ends(images),
            folders={end for folder in folders for end in _ends(folder)} - {""},
            named={os.path.dirname(_plain(name)) for name in found} - {""},
        )

    def find(self, path: str) -> str:
        """The image that a path means; "" if none or several fit.

        The longest end of the path that means an image counts. If an image's folder is found
        first, the image is missing in it.
        """
        plain = _plain(path)
        for end in _ends(plain):
            if name := self.whole.get(end) or self.ends.get(end, ""):
                moved = "/" in plain and "/" not in end  # into a folder of another name
                return "" if moved and os.path.dirname(_plain(name)) in self.named else name
            if self.folder_is_known(end):
                return ""
        return ""

    def folder_is_known(self, plain: str) -> bool:
        """Whether the folder of a plain path is the end of a folder of images."""
        return os.path.dirname(plain) in self.folders


def _ends(plain: str) -> list[str]:
    """A path, and what is left of it without its first folder, and so on."""
    parts = plain.split("/")
    return ["/".join(parts[start:]) for start in range(len(parts))]


def _add(table: Table, rows: dict[str, Row], name: str, row: Row) -> None:
    before = rows.setdefault(name, row)
    if before.label != row.label or before.part != row.part:
        one, other = (
            (before.label, row.label) if before.label != row.label else (before.part, row.part)
        )
        raise InputError(f"{table.file} names {name} more than once, as {one!r} and {other!r}.")


def _no_file(table: Table, lost: Sequence[Row], similar: _Similar) -> InputError:
    """The error for rows without a file."""
    key = _plain(lost[0].path)
    others = f", nor for {counted(len(lost) - 1, 'other row')}" if len(lost) > 1 else ""
    known = next((end for end in _ends(key) if similar.folder_is_known(end)), key.split("/")[-1])
    stem_or_name = re.compile(rf"(.*/)?{re.escape(known)}(\.\w+)?")
    near = [name for plain, name in sorted(similar.whole.items()) if stem_or_name.fullmatch(plain)]
    advice = "correct the paths, or remove the rows"
    if near:
        advice = f"write paths relative to the folder, with extension, such as {printable(near[0])}"
    first = f"{table.file} names {printable(lost[0].path)}"
    return InputError(f"{first}, but there is no such file{others}: {advice}.")


def _whole(names: Iterable[str]) -> dict[str, str]:
    return unique((_plain(name), name) for name in names)


def _by_ends(names: Iterable[str]) -> dict[str, str]:
    return unique((end, name) for name in names for end in _ends(_plain(name)))


def unique(names: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Of (key, name), the name of each key that only one has."""
    found: dict[str, str] = {}
    several = set()
    for key, name in names:
        if found.setdefault(key, name) != name:
            several.add(key)
    return {each: name for each, name in found.items() if each not in several}


def _plain(text: str) -> str:
    """A path without differences in case, Unicode normal form and slashes."""
    text = unicodedata.normalize("NFC", text).casefold().replace("\\", "/")
    return os.path.normpath(text).lstrip("/")


def _cells(file: Path) -> tuple[list[list[str]], str, list[int]]:
    """The cells of all rows that are not empty, the delimiter, and the line of each row."""
    try:
        content = paths.read_whole(file)
        wide = content.startswith((b"\xff\xfe", b"\xfe\xff"))
        text = content.decode("utf-16") if wide else content.decode("utf-8-sig", "surrogateescape")
        if "\0" in text:
            raise ValueError("it holds null bytes")
        first, _, rest = text.partition("\n")
        above = 0
        if re.fullmatch(r"sep=.\s*", first):  # Excel's own line
            text, above = rest, 1
        best = max(DELIMITERS, key=lambda each: len(_columns(next(_rows(text, each), (0, []))[1])))
        found = list(_rows(text, best)) or [(1, [])]
        return [cells for _, cells in found], best, [above + number for number, _ in found]
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"Cannot read {file}: {error}.") from error


def _rows(text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """The first line and the cells of each row that is not empty."""
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
    first = 1
    for cells in rows:
        if any(cell.strip() for cell in cells):
            yield first, cells
        first = rows.line_num + 1


def _columns(header: Sequence[str]) -> dict[str, int]:
    """The position of each kind of column; the first known name of a kind counts."""
    words = [re.sub(r"[ _-]", "", cell.strip().lower()) for cell in header]
    found = {}
    for kind, known in COLUMNS.items():
        places = [words.index(word) for word in known if word in words]
        found |= {kind: places[0]} if places else {}
    return found


def _row(file: Path, cells: Mapping[str, str], classes: Collection[str]) -> Row:
    label, part = cells["label"], ""
    if re.search("[\ud800-\udfff]", label):  # bytes that are no UTF-8
        raise InputError(f"Cannot read {file}: the label {printable(label)!r} is not UTF-8.")
    if label.lower() in UNCLEAR and label not in classes:
        raise InputError(
            f"{file} has the label {label!r}: leave the label empty if it means that an image has "
            "none, or give the class another name."
        )
    if word := cells.get("split", ""):
        part = part_of(word) or ("validation" if word.lower() == "dev" else "")
        if not part:
            raise InputError(
                f"{file} has the split {word!r}; write train, validation, test or nothing, or "
                "give the column another name."
            )
    no_label = label.lower() in NO_LABEL and label not in classes
    unlabeled = no_label or part == "unlabeled"
    return Row(path=cells["path"], label=UNLABELED if unlabeled else label, part=part)


def _header_notes(file: Path, header: Sequence[str], columns: Mapping[str, int]) -> list[str]:
    notes = []
    for kind, place in columns.items():
        if header[place].strip().lower() not in (kind, "index"):
            notes.append(
                f"The column {header[place].strip()!r} of {file.name} is read as the {kind}."
            )
    others = [
        cell.strip()
        for place, cell in enumerate(header)
        if place not in columns.values() and cell and cell.strip() not in HELPFUL
    ]
    if others:
        notes.append(f"Columns of {file.name} that are not read: {', '.join(others)}.")
    return notes


def _label_notes(
    file: Path, body: Sequence[Sequence[str]], place: int, classes: Collection[str]
) -> list[str]:
    found = Counter(cells[place].strip() for cells in body)
    return [
        f"Read as no label: {label!r} in {counted(count, 'row')} of {file.name}; if it is a class, "
        "give it another name."
        for label, count in found.items()
        if label.lower() in NO_LABEL and label not in classes
    ]


def check_numbers(file: Path, labels: Iterable[str]) -> None:
    """Refuse labels that write one number in two ways.

    Raises:
        InputError: naming two of them.
    """
    seen: dict[Decimal, str] = {}
    for label in sorted(labels):
        if not _NUMBER.fullmatch(label):
            continue
        other = seen.setdefault(Decimal(label), label)
        if other != label:
            raise InputError(
                f"{file} has the labels {other!r} and {label!r}, which are the same number; write "
                "one of them only."
            )


def find(folder: Path) -> Path | None:
    """The table in a folder, in any case of its name; None if there is none.

    Raises:
        InputError: if there are several.
    """
    if not folder.is_dir():
        return None
    if paths.in_bucket(folder):
        found = [folder / name for name in NAMES if (folder / name).is_file()]
    else:
        names = sorted(name for name in os.listdir(folder) if name.lower() in NAMES)
        found = [folder / name for name in names if (folder / name).is_file()]
    if len(found) > 1:
        raise InputError(
            f"{folder} has several tables, {found[0].name} and {found[1].name}; keep one."
        )
    return found[0] if found else None
