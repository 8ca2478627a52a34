"""The record of a run's data: a later command uses exactly the same data, or refuses.

The record of a set of arrays or prepared files holds hashes of its parts. The record of a folder
holds name, size and hash of each image, so new images can be added and the folder can move.
"""

import hashlib
import json
import os
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from jaxmatch.errors import InputError
from jaxmatch.runtime.json_files import damaged, read_object, write_json
from jaxmatch.runtime.paths import as_os_errors, files_in, read_whole, size

FILE = "data.json"
FORMAT = 1
# First bytes, and last bytes, that the hash of a file of a streamed TFDS set covers.
ENDS = 16 * 2**10
ELSEWHERE = "if the data has moved, give its new place as --data"
REMEDY = f"put it back ({ELSEWHERE}) or train anew in another --workdir"


@dataclass(frozen=True, kw_only=True)
class Listed:
    """The image files of a folder in storage order, with one column for each property.

    Attributes:
        names: paths relative to the folder.
        labels: positions in the classes; -1 = unlabeled.
        sizes: in bytes.
        hashes: SHA-256 in hexadecimal; "" if it was not computed.
        unused: rows of files that are not readable as images.
        test: rows of the test set.
        validation: rows of the validation set.
        table: the labels come from labels.csv.
        drawn: the test set was drawn from the training images.
        apart: the validation set is one of the source, not drawn from the training images.
        ends: a hash covers only the size, the beginning and the end of a file (:data:`ENDS`), in
            older runs on streamed images.
        aliases: the row of each further name (links, spellings).
    """

    names: tuple[str, ...]
    labels: tuple[int, ...]
    sizes: tuple[int, ...]
    hashes: tuple[str, ...]
    unused: tuple[int, ...] = ()
    test: tuple[int, ...] = ()
    validation: tuple[int, ...] = ()
    table: bool = False
    drawn: bool = False
    apart: bool = False
    ends: bool = False
    aliases: Mapping[str, int] = field(default_factory=dict)

    @property
    def training(self) -> np.ndarray:
        """Rows [n] int64 of the training images, including those of a drawn validation set."""
        used = np.ones(len(self.names), bool)
        used[[*self.unused, *self.test, *(self.validation if self.apart else ())]] = False
        return np.flatnonzero(used)


@dataclass(frozen=True, kw_only=True)
class Record:
    """The record of a run's data.

    Attributes:
        name: ``config.data.name`` of the run.
        directory: ``config.data.directory`` of the run.
        location: absolute path of the folder or file; "" for data inside a package.
        classes: names of the classes.
        parts: hashes by part, and a version; empty for a folder.
        listed: the files of a folder.
        added: the row and the class of each image that ``data.added_labels`` labels.
    """

    name: str
    directory: str
    location: str
    classes: tuple[str, ...]
    parts: Mapping[str, str]
    listed: Listed | None = None
    added: tuple[tuple[int, int], ...] = ()

    @property
    def content(self) -> dict[str, Any]:
        """All of it as JSON values; ``added`` only if there are some."""
        found = asdict(self)
        if not self.added:
            del found["added"]
        return found

    @property
    def digest(self) -> str:
        """SHA-256 of all but the place, in hexadecimal; equal on hosts with the same images."""
        content = replace(self, name="", directory="", location="").content
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read(folder: Path) -> Record | None:
    """Read the record of the run in ``folder``; None if it has none.

    Raises:
        InputError: if the record is damaged, or of a newer version.
    """
    path = folder / FILE
    content = read_object(path)
    if content is None:
        return None
    try:
        written = content.pop("format", None)
        if written != FORMAT:
            if isinstance(written, int):
                raise InputError(f"{path} is of a newer version of jaxmatch; use that version.")
            raise ValueError("its format is missing")
        listed = content.pop("listed")
        if not isinstance(content["classes"], list):
            raise ValueError("its classes are no list")
        if not isinstance(content["parts"], dict):
            raise ValueError("its parts are no group")
        added = tuple((int(row), int(label)) for row, label in content.pop("added", ()))
        record = Record(
            **{**content, "classes": tuple(content["classes"])},
            listed=None if listed is None else _listed(listed),
            added=added,
        )
        texts = (record.name, record.directory, record.location, *record.classes)
        if not all(isinstance(text, str) for text in (*texts, *record.parts.values())):
            raise ValueError("a name or hash is no text")
        return record
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise damaged(path, str(error)) from error


def _listed(columns: Mapping[str, Any]) -> Listed:
    listed = Listed(**{key: _immutable(value) for key, value in columns.items()})
    rows = len(listed.names)
    if {len(listed.labels), len(listed.sizes), len(listed.hashes)} != {rows}:
        raise ValueError("its columns differ in length")
    if not all(isinstance(text, str) for text in (*listed.names, *listed.hashes)):
        raise ValueError("a name or hash is no text")
    if any(not 0 <= row < rows for row in (*listed.unused, *listed.test, *listed.validation)):
        raise ValueError("it names rows that it does not have")
    return listed


def _immutable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def write(folder: Path, record: Record) -> None:
    """Write ``record`` to the run in ``folder``, all or nothing.

    Raises:
        DiskError: if it cannot be written.
    """
    write_json(folder / FILE, {"format": FORMAT, **record.content}, indent=None)


def array_hash(*arrays: np.ndarray) -> str:
    """SHA-256 over types, shapes and values, in hexadecimal."""
    found = hashlib.sha256()
    for array in arrays:
        found.update(f"{array.dtype.str} {array.shape}\n".encode())
        found.update(np.ascontiguousarray(array).data)
    return found.hexdigest()


def file_hash(path: Path, ends: bool = False) -> str:
    """SHA-256 of a file in hexadecimal; with ``ends`` only of its size, first and last bytes.

    Raises:
        OSError: if it cannot be read.
    """
    if not ends:
        return hashlib.sha256(read_whole(path)).hexdigest()
    with as_os_errors(path), path.open("rb") as file:
        length = file.seek(0, os.SEEK_END)
        file.seek(0)
        first = file.read(ENDS)
        file.seek(max(0, length - ENDS))
        return hashlib.sha256(f"{length}\n".encode() + first + file.read(ENDS)).hexdigest()


def file_hashes(root: Path, names: Sequence[str], ends: bool = False) -> list[str]:
    """:func:`file_hash` of each of ``names`` under ``root``."""
    with ThreadPoolExecutor() as pool:
        return list(pool.map(lambda name: file_hash(root / name, ends), names))


def check_parts(record: Record, parts: Mapping[str, str], where: str) -> None:
    """Compare the hashes of ``parts`` with the record; unused parts may be absent.

    Raises:
        InputError: naming the first part that has changed.
    """
    for part, found in parts.items():
        if record.parts.get(part) != found:
            raise InputError(
                f"{part} of {where} is not what the run was trained with: it has changed since. "
                f"{REMEDY[0].upper()}{REMEDY[1:]}."
            )


def check_files(
    record: Record,
    root: Path,
    rows: Iterable[int],
    label_now: Callable[[str], str | None] | None,
    kind: Callable[[int], str],
    remedy: str = REMEDY,
) -> None:
    """Check that the images of a folder are unchanged.

    Args:
        record: the record of a folder.
        root: the folder's path now.
        rows: the rows of the needed images, in any order.
        label_now: from a name to its label in labels.csv, None if it has none; None if there is no
            table.
        kind: from a row to its use in the run, such as "a test image of the run".
        remedy: the advice at the end of the message.

    Raises:
        InputError: naming the first image that is missing, changed or relabelled.
    """
    listed = record.listed
    assert listed is not None
    rows = sorted(rows)

    def problem(row: int) -> str:
        path = root / listed.names[row]
        try:
            if size(path) != listed.sizes[row]:
                return "has changed"
            if listed.hashes[row] and file_hash(path, listed.ends) != listed.hashes[row]:
                return "has changed"
        except OSError:
            return "is missing"
        label = listed.labels[row]
        if label < 0 or label_now is None:
            return ""
        now = label_now(listed.names[row])
        if now is None:
            lost = listed.table and row not in apart
            return "has no label in labels.csv any more" if lost else ""
        before = record.classes[label]
        return (
            ""
            if _same(now, before, row in apart)
            else f"has the label {now!r} now, not {before!r},"
        )

    # The class of an image in the folder of a set can be its sub-folder, not the table's label.
    apart = {*(() if listed.drawn else listed.test), *(listed.validation if listed.apart else ())}
    with ThreadPoolExecutor() as pool:
        problems = list(pool.map(problem, rows))
    wrong = [(row, text) for row, text in zip(rows, problems, strict=True) if text]
    if not wrong:
        return
    row, text = wrong[0]
    others = f", and {len(wrong) - 1} more are not as they were" if len(wrong) > 1 else ""
    found = _renamed(listed, root, row) if text == "is missing" else None
    moved = f" ({found} has its content)" if found else ""
    raise InputError(f"{root / listed.names[row]}, {kind(row)}, {text}{moved}{others}: {remedy}.")


def _same(now: str, before: str, folded: bool) -> bool:
    """Whether two names of a class agree, in any Unicode normal form and, if folded, any case."""
    now, before = (unicodedata.normalize("NFC", name) for name in (now, before))
    return now == before or (folded and now.casefold() == before.casefold())


def holds(listed: Listed, root: Path, rows: Iterable[int]) -> bool:
    """Whether a folder has the files of some rows under the same names, unchanged."""
    rows = list(rows)
    try:
        if any(size(root / listed.names[row]) != listed.sizes[row] for row in rows):
            return False
        hashes = file_hashes(root, [listed.names[row] for row in rows], listed.ends)
    except OSError:
        return False
    return all(listed.hashes[row] in ("", found) for row, found in zip(rows, hashes, strict=True))


def _renamed(listed: Listed, root: Path, row: int) -> str | None:
    """Another file with the content of a row; None if there is none, or the row has no hash."""
    if not listed.hashes[row]:
        return None
    known = set(listed.names)
    new = (name for name in files_in(root) if name not in known)
    same = (name for name in new if size(root / name) == listed.sizes[row])
    return next(
        (name for name in same if file_hash(root / name, listed.ends) == listed.hashes[row]), None
    )
