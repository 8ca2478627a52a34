"""Suggests which unlabeled images of a run to label next, by a rule of :mod:`.acquisition`."""

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.special import softmax

from jaxmatch.data import splits, table
from jaxmatch.data.added import key_of
from jaxmatch.data.copies import array_hashes
from jaxmatch.data.record import file_hashes
from jaxmatch.data.source import Source
from jaxmatch.errors import InputError, counted, suggest
from jaxmatch.evaluation.acquisition import RULES, Pool, usual_rule
from jaxmatch.evaluation.classifier import Classifier
from jaxmatch.evaluation.forward import make_outputs
from jaxmatch.record import pseudo_labels, run_data
from jaxmatch.record.data import Data
from jaxmatch.runtime import paths

log = logging.getLogger(__name__)

COLUMNS = ["label", "prediction", "confidence"]  # of the table to fill in, after that of the key
AUTO = "auto"  # the rule that suits the number of labels
MOST_CHOSEN = 5_000
MOST = 100_000  # images that a rule chooses from; of more, so many are drawn at random


@dataclass(frozen=True, kw_only=True, eq=False)
class Suggestions:
    """Images to label next, the most useful ones first.

    Attributes:
        source: the data of the run.
        key: "path" of the images of a folder, else "index".
        names: [k] paths relative to the folder, or places in the source's storage order.
        positions: [k] int64 positions among ``source.images``.
        probabilities: [k C] float64.
        similar: [k] int64, how many images each one stands for; empty if the rule forms no groups.
        classes: the C class names.
        pool: how many images they were chosen from.
        rule: the name of the rule that chose them.
        left_out: how many unlabeled images could not be chosen, by the reason.
    """

    source: Source
    key: str
    names: tuple[str, ...]
    positions: np.ndarray
    probabilities: np.ndarray
    similar: np.ndarray
    classes: tuple[str, ...]
    pool: int
    rule: str
    left_out: Mapping[str, int]

    def __len__(self) -> int:
        """The number of images."""
        return len(self.names)

    @property
    def predictions(self) -> tuple[str, ...]:
        """The most probable class of each image."""
        return tuple(self.classes[number] for number in self.probabilities.argmax(1))

    @property
    def confidence(self) -> np.ndarray:
        """The largest probability of each image [k]."""
        return self.probabilities.max(1)


def check_rule(rule: str) -> None:
    """Check the name of a rule.

    Raises:
        InputError: if there is no such rule.
    """
    if rule not in (known := [AUTO, *RULES]):
        raise InputError(f"unknown rule --by={rule}; {suggest(rule, known)}")


def choose(
    classifier: Classifier, count: int, *, rule: str = AUTO, seed: int = 0, place: str = ""
) -> Suggestions:
    """Choose ``count`` unlabeled images, or all if there are fewer.

    The network that the run reports sees each image once, without augmentation. Labeled,
    validation and test images, exact copies of these, second copies and unreadable images are not
    chosen. In memory are the features and logits of at most :data:`MOST` images.

    Args:
        classifier: of the run.
        count: how many.
        rule: a name in :data:`~jaxmatch.evaluation.acquisition.RULES`, or "auto" for
            :func:`~jaxmatch.evaluation.acquisition.usual_rule`.
        seed: of the rule's random numbers.
        place: where the data is now, if it has moved.

    Raises:
        InputError: if the run has no classifier, the data has changed, or no image is left.
    """
    check_rule(rule)
    if not 1 <= count <= MOST_CHOSEN:
        raise InputError(f"-n {count}: ask for 1 to {MOST_CHOSEN:,} images.")
    folder = classifier.folder
    if not classifier.program.algorithm.labeled:
        raise InputError(
            f"{folder} was trained without labels and has no classifier that could be uncertain; "
            "fine-tune it on a few labels first (--config=finetune, --config.init_from)."
        )
    data = run_data.load_recorded(classifier.config, folder, place=place)
    source = data.source
    pool, copied = candidates(data)
    left_out = {"exact copies of others": copied} if copied else {}
    if source.listed is not None:
        names = pseudo_labels.names(source, source.rows[pool])
        writable = np.array([table.takes(name) for name in names], bool)
        if lost := int((~writable).sum()):
            left_out["with a line break in their names, or a blank at an end"] = lost
        pool = pool[writable]
    if len(pool) > MOST:
        left_out["not drawn"] = len(pool) - MOST
        log.warning(
            "%s of %s unlabeled images are drawn to choose from.", f"{MOST:,}", f"{len(pool):,}"
        )
        pool = np.sort(np.random.default_rng([seed, 1]).permutation(pool)[:MOST])
    if not len(pool):
        raise InputError(f"{folder} has no unlabeled images left; add some to the data.")
    labeled = splits.locate(source, data.split)
    shown = np.concatenate([pool, labeled])
    found = make_outputs(classifier.program)(classifier.variables(), source.images[shown])
    readable, features = found.readable, found.values["features"].astype(np.float32)
    ours = np.arange(len(shown)) < len(pool)
    if lost := int((ours & ~readable).sum()):
        left_out["not readable"] = lost
    kept = ours & readable
    pool = shown[kept]
    if not len(pool):
        raise InputError(f"{folder} has no readable unlabeled images left; add some to the data.")
    logits = found.values["logits"][kept].astype(np.float64)
    probabilities = softmax(logits / classifier.temperature(), axis=1)
    if rule == AUTO:
        rule = usual_rule(len(labeled), len(classifier.classes))
    known = Pool(features[kept], probabilities, features[~ours & readable])
    choice = RULES[rule](known, min(count, len(pool)), seed)
    chosen = pool[choice.positions]
    return Suggestions(
        source=source,
        key=key_of(source),
        names=pseudo_labels.names(source, source.rows[chosen]),
        positions=chosen,
        probabilities=probabilities[choice.positions],
        similar=choice.similar,
        classes=classifier.classes,
        pool=len(pool),
        rule=rule,
        left_out=left_out,
    )


def candidates(data: Data) -> tuple[np.ndarray, int]:
    """Positions [n] of the training images that can be labeled, and how many copies are left out.

    These are the images that are no labeled examples, with different contents: only the first of
    equal ones, and none that equals a labeled, validation or test image. Streamed images of TFDS
    sets are not compared.
    """
    source = data.source
    labeled = splits.locate(source, data.split)
    free = np.setdiff1d(np.arange(len(source.rows)), labeled)
    if source.listed is None:
        contents = list(array_hashes(source.images, "").values())
        images = [source.test_images]
        images += [] if data.validation_images is None else [data.validation_images]
        seen = {found for some in images for found in array_hashes(some, "").values()}
        seen |= {contents[position] for position in labeled} if contents else set()
        hashes = dict(enumerate(contents))
    else:
        hashes, seen = _file_contents(data, free)
    kept = []
    for position in free.tolist():
        content = hashes.get(position, "")
        if content and content in seen:
            continue
        seen.add(content)
        kept.append(position)
    return np.array(kept, np.int64), len(free) - len(kept)


def _file_contents(data: Data, free: np.ndarray) -> tuple[dict[int, str], set[str]]:
    """Hashes of the files at the positions ``free``, and of files that are in use.

    Only files that have the size of another one are read.
    """
    source, listed = data.source, data.record.listed
    assert listed is not None
    rows = dict(zip(free.tolist(), source.rows[free].tolist(), strict=True))
    used = {*data.split.indices.tolist(), *listed.test, *listed.validation}
    sizes, counts = np.unique(
        [listed.sizes[row] for row in {*rows.values(), *used}], return_counts=True
    )
    shared = set(sizes[counts > 1].tolist())
    alike = sorted(row for row in {*rows.values(), *used} if listed.sizes[row] in shared)
    names = [listed.names[row] for row in alike]
    root = paths.path(source.location)
    contents = dict(zip(alike, file_hashes(root, names), strict=True))
    hashes = {position: contents[row] for position, row in rows.items() if row in contents}
    return hashes, {contents[row] for row in used if row in contents}


def check_table(file: Path) -> None:
    """Check, before long work starts, that a table to fill in can be written to ``file``.

    Raises:
        InputError: if not, or if it holds labels that somebody has filled in.
    """
    paths.check_output(file)
    if file.suffix.lower() != ".csv":
        raise InputError(f"{file}: the table to fill in is a .csv; give it such a name.")
    if not file.is_file() or not paths.size(file):
        return
    try:
        (key, *columns), filled = table.header(file), table.filled(file)
    except InputError:
        key, columns, filled = "", [], 0
    if filled:  # a class may have a name that means "no label" elsewhere
        raise InputError(
            f"{file} has {counted(filled, 'label')} that would be lost; give another --output."
        )
    if key not in ("path", "index") or columns not in (COLUMNS[:1], COLUMNS[:2], COLUMNS):
        raise InputError(
            f"{file} is no table that suggest has written, and would be lost; give another "
            "--output."
        )


def header(found: Suggestions) -> bytes:
    """The first line of the table."""
    return f"{','.join([found.key, *COLUMNS])}\n".encode()


def cells(found: Suggestions) -> list[tuple[bytes, bytes]]:
    """What stands before and after the label in each line of the table.

    A path has the bytes that it has on disk.
    """
    return [
        (quoted(name) + b",", f",{quoted(predicted).decode()},{confidence:.4f}\n".encode())
        for name, predicted, confidence in zip(
            found.names, found.predictions, found.confidence, strict=True
        )
    ]


def quoted(text: str) -> bytes:
    """A cell of the table, in quotes where it needs some."""
    return os.fsencode(table.line([text]).removesuffix("\n"))


def write_table(file: Path, found: Suggestions) -> None:
    """Write the table to fill in: path (or index), label (empty), prediction, confidence.

    Raises:
        DiskError: if it cannot be written.
    """
    lines = (before + after for before, after in cells(found))
    paths.write_output(file, b"".join([header(found), *lines]))
