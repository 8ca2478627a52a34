"""What was found where the images are: counts, sizes, what was left out, and notes, as people read.

Every command that trains begins with it, so that nobody trains on other images than they believe.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxmatch.data import splits
from jaxmatch.errors import counted, printable
from jaxmatch.record.data import Data
from jaxmatch.record.folder import FINDINGS_ADVICE, RunFolder
from jaxmatch.runtime.json_files import damaged

Findings = Mapping[str, Any]  # a JSON object, as :func:`find` makes it

KINDS = ("labeled", "unlabeled", "validation", "test")
MOST_CLASSES = 8  # with more, the lines of a log give a range over the classes
MOST_LISTED = 4  # different image sizes and modes that a line lists


def find(data: Data) -> dict[str, Any]:
    """The facts about the images of a run, as a JSON object.

    - ``name``, ``classes``: of the source;
    - ``labeled``, ``unlabeled``, ``validation``, ``test``: numbers of images. An image that the run
      uses as labeled is none of the unlabeled ones, even if the pool contains it, too;
    - ``counts``: the same numbers for each class, by its name. ``unlabeled`` counts those whose
      class is known from the source, which the method does not read;
    - ``unknown``: the unlabeled images whose class is not known;
    - ``test_drawn``: whether the test set was drawn from the training images;
    - ``left_out``: numbers of files or images that are not used, by the reason;
    - ``notes``: sentences about what a user may not expect;
    - ``sizes``: ``{height, width, count}`` of the images as they are stored, the most frequent
      first, and ``modes``: their numbers by kind of pixels; empty if that is not known;
    - ``size``: height and width that the network sees.
    """
    source, survey = data.source, data.source.survey
    labeled = np.zeros(len(source.rows), bool)
    labeled[splits.locate(source, data.split)] = True
    held = data.validation_labels
    parts = {
        "labeled": source.labels[labeled],
        "unlabeled": source.labels[~labeled],
        "validation": np.zeros(0, np.int32) if held is None else held,
        "test": source.test_labels,
    }
    classes = len(source.classes)
    by_class = {
        kind: np.bincount(labels[labels >= 0], minlength=classes).tolist()
        for kind, labels in parts.items()
    }
    sizes = sorted(survey.sizes.items(), key=lambda item: -item[1])
    return {
        "name": data.name or source.name,
        "classes": list(source.classes),
        "counts": {
            name: {kind: by_class[kind][number] for kind in KINDS}
            for number, name in enumerate(source.classes)
        },
        **{kind: len(labels) for kind, labels in parts.items()},
        "unknown": int((parts["unlabeled"] < 0).sum()),
        "test_drawn": source.listed is not None and source.listed.drawn,
        "left_out": {reason: len(names) for reason, names in survey.left_out.items()},
        "notes": [*survey.notes, *_pseudo(data), *_unused(data), *data.warnings],
        "sizes": [
            {"height": height, "width": width, "count": count} for (height, width), count in sizes
        ],
        "modes": dict(sorted(survey.modes.items(), key=lambda item: -item[1])),
        "size": list(source.images.shape[1:3]),
    }


def _pseudo(data: Data) -> list[str]:
    """A sentence about the images that have pseudo-labels, if there are some."""
    if data.pseudo is None:
        return []
    use = "are labeled examples, too" if data.learns_pseudo else "are targets"
    return [f"pseudo-labels of {len(data.pseudo.rows):,} unlabeled images {use}."]


def _unused(data: Data) -> list[str]:
    """A sentence about the training images that a long tail leaves out, if there are some."""
    if not data.unused:
        return []
    return [f"{data.unused:,} training images are not used: data.imbalance_unlabeled."]


def read(folder: Path) -> Findings | None:
    """What the run in ``folder`` found; None if an older version wrote it.

    Raises:
        InputError: if the file cannot be read or is damaged.
    """
    run = RunFolder(folder)
    found = run.read_findings()
    try:
        if found is not None:
            lines(found)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        problem = f"{type(error).__name__}: {error}"
        raise damaged(run.findings_file, problem, FINDINGS_ADVICE) from error
    return found


def lines(found: Findings) -> list[str]:
    """The facts in a few lines of text."""
    return [
        f"data: {printable(found['name'])}: {total(found)}",
        *([classes] if (classes := class_line(found)) else []),
        f"images: {pixels(found)}",
        *remarks(found),
    ]


def total(found: Findings) -> str:
    """The numbers of images, and of classes, in one clause."""
    unlabeled = f"{found['unlabeled']:,} unlabeled"
    if 0 < found["unknown"] < found["unlabeled"]:
        unlabeled += f" ({found['unknown']:,} of unknown class)"
    shown = {
        "labeled": f"{found['labeled']:,} labeled",
        "unlabeled": unlabeled,
        "validation": f"{found['validation']:,} validation" if found["validation"] else "",
        "test": counted(found["test"], "test image"),
    }
    drawn = " (drawn from the training images)" if found["test_drawn"] else ""
    names = found["classes"]
    return f"{', '.join(filter(None, shown.values()))}{drawn}, {len(names)} classes"


def class_line(found: Findings) -> str:
    """The numbers of images of each class, or their range over many classes; empty without."""
    counts = found["counts"]
    kinds = [kind for kind in KINDS if any(each[kind] for each in counts.values())]
    if not kinds:
        return ""
    if len(counts) <= MOST_CLASSES:
        parts = (
            f"{printable(name)} ({', '.join(f'{each[kind]:,} {kind}' for kind in kinds)})"
            for name, each in counts.items()
        )
        return f"classes: {', '.join(parts)}"
    ranges = []
    for kind in kinds:
        numbers = [each[kind] for each in counts.values()]
        least, most = min(numbers), max(numbers)
        ranges.append(f"{least:,}{'' if least == most else f' to {most:,}'} {kind}")
    first, *_, last = map(printable, counts)
    return f"classes: {first} ... {last}, each with {', '.join(ranges)}"


def pixels(found: Findings) -> str:
    """The sizes and kinds of the stored images, and the size that the network sees."""
    height, width = found["size"]
    used = f"used at {width}x{height}"
    sizes = {f"{each['width']}x{each['height']}": each["count"] for each in found["sizes"]}
    stored = [_listed(each) for each in (sizes, found["modes"]) if each]
    return f"{', '.join(stored)}; {used}" if stored else used


def remarks(found: Findings) -> list[str]:
    """A line about what was left out, if anything was, and one for each note."""
    reasons = [f"{count:,} {printable(reason)}" for reason, count in found["left_out"].items()]
    left_out = [f"left out: {', '.join(reasons)}"] if reasons else []
    return [*left_out, *(f"note: {printable(note)}" for note in found["notes"])]


def _listed(counts: Mapping[str, int]) -> str:
    """The most frequent of ``counts``, which are sorted, and how many other kinds there are."""
    if len(counts) == 1:
        return next(iter(counts))
    shown = [f"{name} ({count:,})" for name, count in list(counts.items())[:MOST_LISTED]]
    more = len(counts) - len(shown)
    return ", ".join(shown) + (f" and {more:,} others" if more else "")
