"""Writes the predictions for files and folders as a table, row by row as they are computed."""

import contextlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from jaxmatch.data.discovery import extensions
from jaxmatch.data.table import NAMES as LABEL_TABLES
from jaxmatch.data.table import line
from jaxmatch.errors import InputError
from jaxmatch.evaluation.predictions import Predictions, Predictor
from jaxmatch.runtime.paths import check_output, check_replaces, in_bucket, writing_output

LeftOut = dict[str, list[str]]  # paths by reason
WriteRow = Callable[[Sequence[Any]], None]

LINES_OF_JSON = (".jsonl", ".ndjson")
CELLS = (".csv", ".txt", "")  # commas between them
COLUMNS = ("path", "class", "confidence")
UNKNOWN = "unknown"
LEFT_OUT_COLUMNS = ("path", "reason")
# How the tables begin.
OWN = tuple(text.encode() for text in (",".join(COLUMNS), ",".join(LEFT_OUT_COLUMNS), '{"path": '))


def check_outputs(*outputs: Path | None) -> None:
    """Check, before long work starts, that tables can be written to ``outputs``.

    Raises:
        InputError: if not, or if two of them are one file.
    """
    given = [output for output in outputs if output is not None]
    for output in given:
        check_output(output)
        if output.suffix.lower() in extensions():  # -o *.png would replace the first photograph
            raise InputError(
                f"{output} has the name of an image; give the table a name that ends in .csv or "
                ".jsonl."
            )
        if output.suffix.lower() not in (*LINES_OF_JSON, *CELLS):
            raise InputError(
                f"{output}: a table is written as .csv, or as .jsonl with a JSON object a line."
            )
        if output.name.lower() in LABEL_TABLES:
            raise InputError(
                f"{output} has the name of a folder's table of labels, and predictions there would "
                "be taken for labels; give another --output."
            )
        check_replaces(output, OWN, "predictions")
    if len({_place(output) for output in given}) < len(given):
        raise InputError(f"{given[0]} is named twice; give the files different names.")


def predict(
    classifier: Predictor,
    paths: Iterable[str | os.PathLike],
    output: Path,
    *,
    probabilities: bool = False,
    unknown: bool | str = False,
    left_out: Path | None = None,
    tell: Callable[[int], None] = lambda done: None,
) -> Mapping[str, Sequence[str]]:
    """Classify files and folders and write a row for each image: path, class, confidence.

    A table is CSV, or JSON Lines if its name ends in .jsonl. Numbers have all digits of their
    float32. A path is written as it was given, byte by byte (in JSON, bytes that are no UTF-8 are
    lone surrogates, as Python's ``os.fsdecode`` makes them). Files appear whole or not at all.

    Args:
        classifier: the network.
        paths: image files, and folders of them.
        output: the table to write.
        probabilities: add a column ``p:<class>`` for each class.
        unknown: add a column ``unknown``, as of
            :meth:`~jaxmatch.evaluation.classifier.Classifier.predict`.
        left_out: a table to write of path and reason of everything that has no row.
        tell: is called with the number of rows so far after each block of them.

    Returns:
        The paths of everything that has no row, by the reason.

    Raises:
        InputError: as :meth:`~jaxmatch.evaluation.predictions.Predictor.predict_files`.
        DiskError: if a table cannot be written.
    """
    names = [UNKNOWN] if unknown else []
    names += [f"p:{name}" for name in classifier.classes] if probabilities else []
    missing: LeftOut = {}
    done = 0
    blocks = classifier.predict_files(paths, unknown=unknown)
    first = list(islice(blocks, 1))  # before a file is opened in one of the folders
    with contextlib.ExitStack() as files:
        write = _table(files.enter_context(writing_output(output)), output, [*COLUMNS, *names])
        for block in chain(first, blocks):
            for row in _rows(block, probabilities):
                write(row)
            for reason, found in block.left_out.items():
                missing.setdefault(reason, []).extend(found)
            done += len(block)
            tell(done)
        if left_out is not None:
            file = files.enter_context(writing_output(left_out))
            write = _table(file, left_out, LEFT_OUT_COLUMNS)
            for path, reason in sorted((path, why) for why in missing for path in missing[why]):
                write((_text(path), reason))
    return missing


def _rows(block: Predictions, probabilities: bool) -> Iterator[list[Any]]:
    for number, (path, name) in enumerate(zip(block.paths, block.names, strict=True)):
        unknown = () if block.unknown is None else (block.unknown[number],)
        row = block.probabilities[number] if probabilities else ()
        yield [_text(path), name, block.confidence[number], *unknown, *row]


def _table(file: BinaryIO, path: Path, columns: Sequence[str]) -> WriteRow:
    """A function that writes a row; the format follows from the ending of ``path``."""
    text = _Text(file)
    if path.suffix.lower() in LINES_OF_JSON:

        def write(row: Sequence[Any]) -> None:
            values = dict(zip(columns, map(_number, row), strict=True))
            text.write(json.dumps(values) + "\n")

        return write

    def write_cells(row: Sequence[Any]) -> None:
        text.write(line(row))

    write_cells(columns)
    return write_cells


class _Text(NamedTuple):
    """A binary file that takes text, with the bytes of :func:`_text` unchanged."""

    file: BinaryIO

    def write(self, text: str) -> int:
        return self.file.write(text.encode("utf-8", "surrogateescape"))


def _number(value: Any) -> Any:
    """A float32 as the shortest number that JSON readers turn into it."""
    return float(str(value)) if isinstance(value, np.floating) else value


def _text(path: str) -> str:
    """A path that is written with the bytes that it has on disk, whatever the locale."""
    return path if "://" in path else os.fsencode(path).decode("utf-8", "surrogateescape")


def _place(path: Path) -> str:
    return str(path) if in_bucket(path) else os.path.realpath(path)
