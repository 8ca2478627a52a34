"""Files of pseudo-labels: predictions for the unlabeled images of a run, which another learns from.

A file is a table (``.csv``) with a row for each image: ``path`` (of a folder's image) or ``index``
(its place in another source), ``content`` (identifies the image), ``class``, ``confidence`` and a
column ``p:<class>`` for each class. Class and numbers are empty where an image was not readable.
``.npz`` holds the same as arrays, for large sets.
"""

import csv
import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxmatch.data import splits
from jaxmatch.data.npz import DAMAGED
from jaxmatch.data.record import Record, file_hashes
from jaxmatch.data.source import Source
from jaxmatch.data.table import NAMES as LABEL_TABLES
from jaxmatch.data.table import line
from jaxmatch.errors import InputError, some
from jaxmatch.runtime import paths

SUFFIXES = (".csv", ".npz")
PREFIX = "p:"  # of the columns of probabilities
DIGITS = 16  # hexadecimal digits of a content
COLUMNS = ["content", "class", "confidence"]
LABELS = ("labels", "y_")  # begin the names of parts that are no images


@dataclass(frozen=True, kw_only=True, eq=False)
class Table:
    """The content of a file of pseudo-labels.

    Attributes:
        names: [n] paths, or places in the source.
        contents: [n] texts that identify the images.
        classes: the C class names.
        confidence: [n] float32.
        probabilities: [n C] float32; NaN in the rows of unreadable images.
        labels: [n] int64; -1 for unreadable images.
    """

    names: tuple[str, ...]
    contents: tuple[str, ...]
    classes: tuple[str, ...]
    confidence: np.ndarray
    probabilities: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True, kw_only=True, eq=False)
class PseudoLabels:
    """Pseudo-labels for the training images of a run.

    Attributes:
        probabilities: [n C] float32 of all training images, in the source's order: one-hot true
            labels for labeled images, equal ones for unreadable images.
        rows: [m] positions of the unlabeled images that have a pseudo-label.
        labels: [m] int32, their pseudo-labels.
        digest: SHA-256 of the file, in hexadecimal.
    """

    probabilities: np.ndarray
    rows: np.ndarray
    labels: np.ndarray
    digest: str


def names(source: Source, rows: np.ndarray) -> tuple[str, ...]:
    """The names of training images by their rows [n] in storage order."""
    if source.listed is None:
        return tuple(map(str, rows.tolist()))
    return tuple(source.listed.names[row] for row in rows)


def contents(source: Source, record: Record, rows: np.ndarray) -> tuple[str, ...]:
    """Texts that identify training images by their rows [n].

    For a folder they are hashes of the files, else one hash of all images.
    """
    if source.listed is not None:
        found = file_hashes(paths.path(source.location), names(source, rows))
        return tuple(each[:DIGITS] for each in found)
    parts = {key: part for key, part in record.parts.items() if not key.startswith(LABELS)}
    whole = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    return (whole[:DIGITS],) * len(rows)


def check_file(path: Path) -> None:
    """Check that pseudo-labels can be written to ``path``.

    Raises:
        InputError: if not.
    """
    if path.suffix not in SUFFIXES:
        raise InputError(f"{path}: pseudo-labels are written as {' or '.join(SUFFIXES)}.")
    paths.check_output(path)
    if path.name.lower() in LABEL_TABLES:
        raise InputError(
            f"{path} has the name of a folder's table of labels; give another --output."
        )
    if path.suffix == ".npz" and path.is_file():
        try:
            read(path)
        except InputError as error:
            raise InputError(
                f"{path} exists, is no file of pseudo-labels, and would be lost; give another "
                "--output."
            ) from error
        return
    columns = (f"{first},content,class,confidence" for first in ("path", "index"))
    paths.check_replaces(path, tuple(map(str.encode, columns)), "pseudo-labels")


def write(path: Path, table: Table, of_files: bool) -> None:
    """Write pseudo-labels, whole or not at all.

    Args:
        path: of the file.
        table: its content.
        of_files: whether the names are paths.

    Raises:
        DiskError: if it cannot be written.
    """
    if path.suffix == ".npz":
        buffer = io.BytesIO()
        np.savez_compressed(
            buffer,
            **{"path" if of_files else "index": np.array(table.names, str)},  # pyright: ignore
            content=np.array(table.contents, str),
            classes=np.array(table.classes, str),
            label=table.labels,
            confidence=table.confidence,
            probabilities=table.probabilities,
        )
        paths.write_output(path, buffer.getvalue())
        return
    columns = ["path" if of_files else "index", "content", "class", "confidence"]
    lines = [line([*columns, *(PREFIX + name for name in table.classes)])]
    for name, content, label, confidence, row in zip(
        table.names,
        table.contents,
        table.labels.tolist(),
        table.confidence,
        table.probabilities,
        strict=True,
    ):
        known = label >= 0
        values = [table.classes[label], confidence, *row] if known else [""] * (2 + len(row))
        lines.append(line([name, content, *values]))
    paths.write_output(path, "".join(lines).encode("utf-8", "surrogateescape"))


def read(path: Path) -> tuple[Table, str]:
    """Read a file of pseudo-labels, and its SHA-256 in hexadecimal.

    Raises:
        InputError: if it is missing, or no such file.
    """
    try:
        content = paths.read_whole(path)
    except OSError as error:
        raise InputError(
            f"data.pseudo_labels={path} cannot be read ({paths.reason(error)}); jaxmatch "
            "pseudo-label writes such a file."
        ) from error
    try:
        table = _from_npz(content) if path.suffix == ".npz" else _from_csv(content)
    except (csv.Error, KeyError, IndexError, OSError, *DAMAGED) as error:
        raise InputError(
            f"{path} is no file of pseudo-labels ({error}); jaxmatch pseudo-label writes one."
        ) from error
    return table, hashlib.sha256(content).hexdigest()


def _from_csv(content: bytes) -> Table:
    rows = list(csv.reader(io.StringIO(content.decode("utf-8", "surrogateescape"), newline="")))
    head = rows[0] if rows else []
    if len(head) < 6 or head[0] not in ("path", "index") or head[1:4] != COLUMNS:
        raise ValueError(f"its columns are not path or index, {', '.join(COLUMNS)}, p:CLASS, ...")
    if not all(name.startswith(PREFIX) for name in head[4:]):
        raise ValueError("its last columns are not p:CLASS")
    classes = tuple(name.removeprefix(PREFIX) for name in head[4:])
    if any(len(row) != len(head) for row in rows[1:]):
        raise ValueError("a row is too short or too long")
    numbers = [[float(each) if each else np.nan for each in row[3:]] for row in rows[1:]]
    found = np.array(numbers, np.float32).reshape(-1, 1 + len(classes))
    places = {name: number for number, name in enumerate(classes)}
    labels = [places[row[2]] if row[2] else -1 for row in rows[1:]]
    return _checked(
        [row[0] for row in rows[1:]],
        [row[1] for row in rows[1:]],
        classes,
        np.array(labels, np.int64),
        found[:, 0],
        found[:, 1:],
    )


def _from_npz(content: bytes) -> Table:
    found = np.load(io.BytesIO(content), allow_pickle=False)
    if not isinstance(found, np.lib.npyio.NpzFile):
        raise ValueError("it is a single array")
    name = "path" if "path" in found.files else "index"
    return _checked(
        found[name].tolist(),
        found["content"].tolist(),
        tuple(found["classes"].tolist()),
        found["label"].astype(np.int64),
        found["confidence"].astype(np.float32),
        found["probabilities"].astype(np.float32),
    )


def _checked(
    names: Sequence[str],
    contents: Sequence[str],
    classes: tuple[str, ...],
    labels: np.ndarray,
    confidence: np.ndarray,
    probabilities: np.ndarray,
) -> Table:
    """The table of these columns.

    Raises:
        ValueError: if they do not fit each other, or a probability is none.
    """
    count = len(names)
    lengths = {len(contents), len(labels), len(confidence), len(probabilities)}
    if lengths != {count} or probabilities.shape != (count, len(classes)):
        raise ValueError("its columns differ in length")
    if len(set(names)) < count:
        raise ValueError("it names an image twice")
    if not count:
        raise ValueError("it has no rows")
    known = labels >= 0
    if (labels >= len(classes)).any():
        raise ValueError("it has a label that is no class")
    given = probabilities[known]
    if not (np.isfinite(given) & (given >= 0)).all() or (np.abs(given.sum(1) - 1) > 1e-3).any():
        raise ValueError("the probabilities of an image are not numbers that add up to 1")
    return Table(
        names=tuple(names),
        contents=tuple(contents),
        classes=classes,
        confidence=confidence,
        probabilities=probabilities,
        labels=labels,
    )


def matched(path: Path, source: Source, record: Record, split: splits.Split) -> PseudoLabels:
    """The pseudo-labels of a file for the unlabeled images of a run.

    Labeled images keep their true labels, also if the file has a row for them.

    Args:
        path: the file.
        source: the data of the run, without its validation set.
        record: of the data.
        split: the labeled images.

    Raises:
        InputError: if the file is of other classes or images; it names the first one.
    """
    table, digest = read(path)
    where = f"data.pseudo_labels={path}"
    if table.classes != source.classes:
        raise InputError(
            f"{where} is of other classes ({some(table.classes)}) than {source.name} "
            f"({some(source.classes)}); make it from runs on the same classes."
        )
    ours = names(source, source.rows)
    places = {name: position for position, name in enumerate(ours)}
    if unknown := [name for name in table.names if name not in places]:
        raise InputError(
            f"{where} has rows for images that are no training images of this run: {unknown[0]!r}"
            f"{_more(unknown)}; make it from runs on the same data with the same seed."
        )
    at = np.array([places[name] for name in table.names], np.int64)
    labeled = splits.locate(source, split)
    lacking = np.setdiff1d(np.arange(len(ours)), np.concatenate([at, labeled]))
    if len(lacking):
        raise InputError(
            f"{where} has no row for unlabeled images of this run: {ours[lacking[0]]!r}"
            f"{_more(lacking)}; make it from runs with the same labeled images."
        )
    found = contents(source, record, source.rows[at])
    pairs = zip(table.names, table.contents, found, strict=True)
    if changed := [name for name, theirs, mine in pairs if theirs != mine]:
        raise InputError(
            f"{where} was made from images of other content: {changed[0]!r}{_more(changed)}; make "
            "it anew."
        )
    probabilities = np.full((len(ours), len(source.classes)), 1 / len(source.classes), np.float32)
    given = table.labels >= 0
    probabilities[at[given]] = table.probabilities[given]
    probabilities[labeled] = np.eye(len(source.classes), dtype=np.float32)[source.labels[labeled]]
    kept = given & ~np.isin(at, labeled)
    order = np.argsort(at[kept], kind="stable")
    return PseudoLabels(
        probabilities=probabilities,
        rows=at[kept][order],
        labels=table.labels[kept][order].astype(np.int32),
        digest=digest,
    )


def _more(found: Any) -> str:
    return f" (and {len(found) - 1:,} more)" if len(found) > 1 else ""
