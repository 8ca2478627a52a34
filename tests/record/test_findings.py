"""What was found: the facts about the images of a run, and their lines of text."""

import json

import numpy as np
import pytest

from jaxmatch.data.record import Listed
from jaxmatch.data.source import Source, Survey
from jaxmatch.data.splits import Split
from jaxmatch.record.data import Data
from jaxmatch.record.findings import find, lines, printable

CLASSES = ("cat", "dog")


def data(labels, labeled, classes=CLASSES, survey=None, drawn=False, **changes):
    """A data set of training images with these labels, of which some are labeled examples."""
    labels, rows = np.array(labels, np.int32), np.arange(len(labels))
    images = np.arange(len(labels) * 12, dtype=np.uint8).reshape(-1, 2, 2, 3)
    names = tuple(f"{row}.png" for row in range(len(labels)))
    listed = Listed(
        names=names, labels=tuple(labels), sizes=(1,) * len(rows), hashes=names, drawn=drawn
    )
    source = Source(
        name="folder:pets",
        classes=classes,
        images=images,
        labels=labels,
        rows=rows,
        test_images=np.zeros((3, 2, 2, 3), np.uint8),
        test_labels=np.array([0, 1, 1], np.int32),
        listed=listed if drawn else None,
        survey=survey or Survey(),
    )
    return Data(source=source, split=Split(indices=np.array(labeled, np.int64)), **changes)


def test_counts_of_each_kind_and_class():
    found = find(
        data(
            [0, 0, 0, 1, 1, -1, -1],
            [0, 3],
            validation_images=np.zeros((1, 2, 2, 3), np.uint8),
            validation_labels=np.array([1], np.int32),
        )
    )
    assert found["counts"] == {
        "cat": {"labeled": 1, "unlabeled": 2, "validation": 0, "test": 1},
        "dog": {"labeled": 1, "unlabeled": 1, "validation": 1, "test": 2},
    }
    totals = {key: found[key] for key in ("labeled", "unlabeled", "validation", "test", "unknown")}
    assert totals == {"labeled": 2, "unlabeled": 5, "validation": 1, "test": 3, "unknown": 2}
    assert (found["name"], found["classes"]) == ("folder:pets", ["cat", "dog"])
    assert (found["size"], found["test_drawn"]) == ([2, 2], False)
    assert json.loads(json.dumps(found)) == found


@pytest.mark.parametrize(
    ("labels", "labeled", "expected"),
    [
        ([0, 0, 1, 1], [0, 2], "2 labeled, 2 unlabeled, 3 test images, 2 classes"),
        (
            [0, 0, 1, -1],
            [0, 2],
            "2 labeled, 2 unlabeled (1 of unknown class), 3 test images, 2 classes",
        ),
        ([0, 1, -1, -1], [0, 1], "2 labeled, 2 unlabeled, 3 test images, 2 classes"),
        ([0, 1], [0, 1], "2 labeled, 0 unlabeled, 3 test images, 2 classes"),
        ([-1, -1], [], "0 labeled, 2 unlabeled, 3 test images, 2 classes"),
    ],
)
def test_the_first_line_has_the_numbers(labels, labeled, expected):
    first, *_ = lines(find(data(labels, labeled, name="folder:other/pets")))
    assert first == f"data: folder:other/pets: {expected}"


def test_lines_of_everything():
    survey = Survey(
        left_out={"hidden": (".a", ".b"), "not readable as an image": ("x.png",)},
        notes=("Notes come last.",),
        sizes={(40, 60): 7, (30, 30): 2, (1, 1): 1, (2, 2): 1, (3, 3): 1, (4, 4): 1},
        modes={"RGB": 5, "gray": 2},
    )
    found = find(data([0, 0, 1, 1], [0, 2], survey=survey, drawn=True))
    assert lines(found) == [
        "data: folder:pets: 2 labeled, 2 unlabeled, 3 test images (drawn from the training "
        "images), 2 classes",
        "classes: cat (1 labeled, 1 unlabeled, 1 test), dog (1 labeled, 1 unlabeled, 2 test)",
        "images: 60x40 (7), 30x30 (2), 1x1 (1), 2x2 (1) and 2 others, RGB (5), gray (2); "
        "used at 2x2",
        "left out: 2 hidden, 1 not readable as an image",
        "note: Notes come last.",
    ]
    assert found["left_out"] == {"hidden": 2, "not readable as an image": 1}
    assert found["sizes"][0] == {"height": 40, "width": 60, "count": 7}


def test_many_classes_are_a_range():
    classes = tuple(f"class {number}" for number in range(9))
    labels = [*range(9), *range(9), 8]
    found = find(data(labels, range(9), classes))
    assert lines(found)[1] == (
        "classes: class 0 ... class 8, each with 1 labeled, 1 to 2 unlabeled, 0 to 2 test"
    )


def test_copies_are_notes():
    given = data([0, 0, 1, 1], [0, 2])
    given.source.images[1] = given.source.images[0]
    (note,) = find(given)["notes"]
    assert note.startswith("1 labeled image has an exact copy among the unlabeled images")


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("café", "café"),
        ("caf\udce9", "caf\\udce9"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("two\nlines", "two\\nlines"),
    ],
)
def test_names_cannot_break_a_terminal(name, shown):
    assert printable(name) == shown
    found = find(data([0, 1], [0, 1], classes=(name, "b")))
    assert f"classes: {shown} (1 labeled" in lines(found)[1]
