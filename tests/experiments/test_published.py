"""The published figures: every cell of a source is there, and some known ones are right."""

import re

import pytest

from experiments.tables import published
from experiments.tables.sweep import METHODS, TABLES

CELL = re.compile(r"\d+\.\d+(±\d+\.\d+)?")
LABELS = {name: table.labels for name, table in TABLES.items() if name != "imagenet"}
SOURCES = {source.name: source for source in published.SOURCES}


def value(cell):
    return float(cell.partition("±")[0])


@pytest.mark.parametrize(
    ("name", "rows", "tables"),
    [
        ("FixMatch paper", 8, {"cifar10": 21, "cifar100": 21, "svhn": 21, "stl10": 8}),
        ("TorchSSL", 12, {"cifar10": 36, "cifar100": 36, "svhn": 36, "stl10": 33}),
        ("USB 2022, best", 18, {"cifar10": 54, "cifar100": 54, "svhn": 54, "stl10": 54}),
        ("USB 2022, last 20", 18, {"cifar10": 54, "cifar100": 54, "svhn": 54, "stl10": 54}),
        ("USB 2023, best", 18, {"cifar10": 54, "cifar100": 54, "svhn": 54, "stl10": 0}),
    ],
)
def test_every_cell_of_a_source_is_there(name, rows, tables):
    source = SOURCES[name]
    names = set()
    for table, count in tables.items():
        cells = source.cells(table)
        assert len(cells) == count
        for (row, labels), text in cells.items():
            assert CELL.fullmatch(text), text
            assert 0 < value(text) <= 100
            assert labels in LABELS[table]
            assert row in METHODS or row in ("crmatch", "PseudoLabel_Flex", "UDA_Flex")
            names.add(row)
    assert len(names) == rows
    for doubted in source.doubts:
        row = doubted if isinstance(doubted, str) else doubted[0]
        assert row in names


@pytest.mark.parametrize(
    ("name", "table", "row", "cells"),
    [
        ("FixMatch paper", "cifar10", "fixmatch", "13.81±3.37 5.07±0.65 4.26±0.05"),
        ("FixMatch paper", "svhn", "fixmatch_ctaugment", "7.65±7.65 2.64±0.64 2.36±0.19"),
        ("FixMatch paper", "stl10", "remixmatch", "- - 5.23±0.45"),
        ("TorchSSL", "cifar100", "flexmatch", "39.94±1.62 26.49±0.20 21.90±0.15"),
        ("TorchSSL", "stl10", "vat_entmin", "74.74±0.38 56.42±1.97 37.95±1.12"),
        ("USB 2022, best", "stl10", "comatch", "13.74±4.2 7.63±0.94 5.71±0.08"),
        ("USB 2022, last 20", "cifar100", "uda", "99.0±0.0 99.0±0.0 99.0±0.0"),
        ("USB 2023, best", "svhn", "simmatch", "3.19±0.74 2.26±0.11 2.08±0.06"),
        ("USB 2023, best", "cifar10", "mean_teacher", "76.93±2.29 56.06±2.03 15.47±0.43"),
    ],
)
def test_known_cells(name, table, row, cells):
    found = SOURCES[name].cells(table)
    assert [found.get((row, labels), "-") for labels in LABELS[table]] == cells.split()


def test_the_best_evaluation_is_not_worse_than_the_last_ones():
    best, last = SOURCES["USB 2022, best"], SOURCES["USB 2022, last 20"]
    for table in LABELS:
        later = last.cells(table)
        for key, text in best.cells(table).items():
            assert value(text) <= value(later[key]), (table, key)


def test_errors_are_what_accuracies_leave():
    given = []
    for row in published._rows("authors.csv"):
        assert row["source"] in published.AUTHORS
        assert row["method"] in METHODS
        assert row["labels"] in LABELS[row["table"]]
        given.append((row["given"], [row["error"]]))
    for row in published._rows("imagenet.csv"):
        assert row["source"] in published.IMAGENET
        assert row["method"] in ("", *TABLES["imagenet"].methods)
        assert row["labels"] in ("1%", "10%", "100k")
        given.append((row["given"], [row["top1"], row["top5"]]))
        if "-" not in (row["top1"], row["top5"]):
            assert value(row["top5"]) < value(row["top1"])
    assert len(given) == 26 + 49
    for text, errors in given:
        printed, kind = text.rsplit(" ", 1)
        for one, error in zip(printed.split(" / "), errors, strict=True):
            if kind == "error" or one == "-":
                assert error == one
            else:
                assert kind == "accuracy"
                assert value(error) == pytest.approx(100 - value(one), abs=1e-9)
                assert error.partition("±")[2] == one.partition("±")[2]
