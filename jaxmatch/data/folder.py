"""A folder of image files: class sub-folders, or a table of labels, and images without labels."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from jaxmatch.data import images as image_files
from jaxmatch.data import record as records
from jaxmatch.data import splits
from jaxmatch.data.files import read_files
from jaxmatch.data.images import Fitting
from jaxmatch.data.lazy import Files, Images, LazyImages
from jaxmatch.data.levels import Levels
from jaxmatch.data.listing import Listing, current_labels, find
from jaxmatch.data.record import Listed, Record
from jaxmatch.data.source import Reading, Source, Survey
from jaxmatch.data.survey import headers
from jaxmatch.data.table import UNLABELED
from jaxmatch.errors import InputError, by_reason, some
from jaxmatch.runtime import paths

TEST_SHARE = 0.2  # of the labeled images of each class, if there is no test folder


def load(place: str, reading: Reading) -> Source:
    """Read the images of a folder, each scaled and centre cropped to [size size 3] uint8.

    The test set is that of the folder. If it has none, it is that of ``reading.test_of``, or a
    fifth of the labeled images of each class, drawn by ``reading.seed``; images of
    ``reading.split`` are not drawn. With ``reading.stream`` only names are read, and a later read
    finds the unreadable files. Otherwise these are logged, or an error with ``reading.strict``.

    Raises:
        InputError: if the content does not fit.
    """
    found = find(place)
    if reading.label_free:
        found = _without_other_classes(found)
    names = found.names
    classes = _classes(found)
    number = {name: position for position, name in enumerate(classes)} | {UNLABELED: -1}
    labels = np.array([number[found.classes_of[name]] for name in names], np.int32)
    kept = splits.read(reading.split, found.naming).indices.tolist() if reading.split else []
    inherited = _drawn_before(reading.test_of, found) if reading.test_of else None
    if inherited and not found.test:
        there = [row for row in kept if 0 <= row < len(names)]  # others are told with the split
        _check_apart(inherited, [names[row] for row in there])
    test = found.test or inherited
    images, used, sizes, hashes, pixels = _read(found.root, names, range(len(names)), reading)
    readable = np.isin(np.arange(len(names)), used)
    validation = np.array([name in found.validation for name in names], bool)
    if test is None:
        free = readable & ~validation
        held_out = _draw_test(labels, free, kept, len(classes), reading.seed)
    else:
        held_out = np.array([name in test for name in names])
    listed = Listed(
        names=names,
        labels=tuple(labels.tolist()),
        sizes=sizes,
        hashes=hashes,
        unused=tuple(np.flatnonzero(~readable).tolist()),
        test=tuple(np.flatnonzero(held_out & readable).tolist()),
        validation=tuple(np.flatnonzero(validation & readable).tolist()),
        table=bool(found.table),
        drawn=not found.test,
        apart=bool(found.validation),
        aliases=found.aliased,
    )
    survey = _survey(found, pixels, reading.levels)
    tested = {classes[label] for label in labels[held_out & readable]}
    if listed.drawn and tested and (untested := sorted({*classes} - tested)):
        note = f"The test set, drawn from the labeled images, has none of {some(untested)}."
        survey = replace(survey, notes=(*survey.notes, note))
    source = _source(place, found.root, classes, listed, images, used, survey)
    for position in set(range(len(classes))) - set(source.labels.tolist()):
        lost = {
            reason: own
            for reason, listed in survey.left_out.items()
            if (own := [each for each in listed if found.classes_of.get(each) == classes[position]])
        }
        why = f" ({by_reason(lost)})" if lost else ""
        raise InputError(
            f"Class {classes[position]!r} of {place} has no readable image{why}; "
            "convert its files to PNG or JPEG, or remove them."
        )
    if not (reading.label_free or len(source.test_images)):
        raise InputError(_no_test_set(found))
    return source


def _no_test_set(found: Listing) -> str:
    """The message if no test set can be drawn."""
    notes = " ".join(("", *found.notes))
    if any(found.classes_of.values()):
        return (
            f"{found.given} has too few labeled images for a test set: add test/<class>/ folders."
            f"{notes}"
        )
    if found.table:
        return f"{found.table} of {found.given} has no labels; write those you know into it.{notes}"
    texts = [name for names in found.left_out.values() for name in names]
    tables = sorted(name for name in texts if name.lower().endswith((".csv", ".tsv")))
    seen = f" (there is {some(tables)}, which has another name or place)" if tables else ""
    return (
        f"{found.given} has images but no labels: put the labeled ones into folders <class>/, or "
        f"name them in a table {found.given.rstrip('/')}/labels.csv with the first line "
        f"`path,label`{seen}.{notes}"
    )


def _survey(found: Listing, pixels: Survey | None, levels: Levels) -> Survey:
    """What was found in the folder and in its images.

    ``pixels`` is None if the images stay on disk; then headers tell their sizes and kinds, and some
    images the range of levels of more than 8 bits.
    """
    if pixels is None:
        sizes, modes = headers(found.root, found.names)
        pixels = Survey(sizes=sizes, modes=modes)
        if any("-bit" in kind or "float" in kind for kind in modes):
            files = [found.root / name for name in _spread(found.names)]
            pixels = replace(pixels, notes=read_files(files, Fitting(size=(8, 8)), levels).notes)
    left_out = {**found.left_out, **pixels.left_out}
    return replace(pixels, left_out=left_out, notes=(*found.notes, *pixels.notes))


def sizes(place: str, reading: Reading) -> list[tuple[int, int]]:
    """(height, width) of some images of a folder, evenly spaced in storage order.

    Raises:
        InputError: if there is no readable image.
    """
    found = find(place)
    names = _spread(found.names)
    try:
        return image_files.sizes(found.root / name for name in names)
    except InputError as error:
        files = [found.root / name for name in names]
        lost = read_files(files, Fitting(size=(8, 8)), reading.levels, names).left_out
        raise InputError(
            f"No image of {place} is readable ({by_reason(lost)}); convert them to PNG or JPEG."
        ) from error


def _spread(names: Sequence[str]) -> Sequence[str]:
    """Some names, evenly spaced."""
    return names[:: max(1, len(names) // image_files.LOOKED_AT)]


def load_recorded(
    record: Record,
    place: str,
    reading: Reading,
    needed: Collection[int] | None,
    kind: Callable[[int], str],
) -> Source:
    """Read the images of a run again by their names; the folder may hold others now.

    Args:
        record: what the data of the run was.
        place: where the folder is now.
        reading: how the run read the images.
        needed: the rows of the images that must be unchanged; None for all, which are then read at
            once unless they are streamed. Otherwise the images stay on disk.
        kind: what a row is to the run, for messages.

    Raises:
        InputError: naming the first needed image that is missing, changed or relabelled.
    """
    root, listed = paths.path(place), record.listed
    assert listed is not None
    used = sorted({*listed.training.tolist(), *listed.test, *listed.validation})
    rows = used if needed is None else needed
    labels = current_labels(root, listed.names, paths.path(record.location))
    records.check_files(record, root, rows, labels, kind)
    if needed is not None:
        reading = replace(reading, stream=True)
    images, readable, _, _, pixels = _read(root, listed.names, used, reading, known=listed)
    if len(readable) < len(used):
        raise InputError(f"Some images of {place} were readable before, and are not now.")
    return _source(place, root, record.classes, listed, images, used, pixels or Survey())


def _classes(found: Listing) -> tuple[str, ...]:
    """The classes of the training images, sorted."""
    held_out = {"test": found.test, "validation": found.validation}
    apart = found.test | found.validation
    classes = {label for name, label in found.classes_of.items() if name not in apart}
    for part, names in held_out.items():
        tested = {found.classes_of[name] for name in names}
        if untrained := sorted(tested - (classes - {UNLABELED})):
            raise InputError(
                f"Class {untrained[0]!r} of {found.given} has {part} but no training images; add "
                "some, or remove it."
            )
    return tuple(sorted(classes - {UNLABELED}))


def _without_other_classes(found: Listing) -> Listing:
    """For a method that reads no labels: without a held-out set of classes that do not train."""
    for part in ("test", "validation"):
        held_out = getattr(found, part)
        apart = found.test | found.validation
        trained = {label for name, label in found.classes_of.items() if name not in apart}
        other = sorted({found.classes_of[name] for name in held_out} - (trained - {UNLABELED}))
        if not other or len(held_out) == len(found.classes_of):
            continue
        note = f"Not used: the {part} set, because no training image is of {some(other)}."
        reason = f"{part} images of classes that no training image has"
        found = replace(
            found,
            classes_of={n: label for n, label in found.classes_of.items() if n not in held_out},
            left_out={**found.left_out, reason: tuple(sorted(held_out))},
            aliases={alias: n for alias, n in found.aliases.items() if n not in held_out},
            notes=(*found.notes, note),
            **{part: frozenset()},
        )
    return found


def _drawn_before(record: Record, found: Listing) -> frozenset[str]:
    """The test images that an earlier run drew from the folder.

    Raises:
        InputError: naming the first that is missing, changed or of another class.
    """
    listed = record.listed
    assert listed is not None
    records.check_files(
        record,
        found.root,
        listed.test,
        current_labels(found.root, listed.names),
        lambda row: "a test image of the run that this one builds on",
        "put it back, or choose the test set yourself in folders test/<class>/",
    )
    return frozenset(listed.names[row] for row in listed.test)


def _check_apart(test: frozenset[str], labeled: Sequence[str]) -> None:
    """Check that no image of an earlier run's test set is to be labeled."""
    if taken := [name for name in labeled if name in test]:
        raise InputError(
            f"{taken[0]} is to be labeled, but is a test image of the run that this one builds "
            "on; name another image, or train that run anew with the same split."
        )


def _source(
    directory: str,
    root: Path,
    classes: tuple[str, ...],
    listed: Listed,
    images: Images,
    used: Sequence[int],
    survey: Survey,
) -> Source:
    """The source of ``images``, which belong to the rows ``used``."""
    rows = np.array(used, np.int64)
    test = np.isin(rows, np.array(listed.test, np.int64))
    apart = np.isin(rows, np.array(listed.validation if listed.apart else (), np.int64))
    training = ~(test | apart)
    labels = np.array(listed.labels, np.int32)[rows]
    return Source(
        name=f"folder:{directory}",
        classes=classes,
        images=images[training],
        labels=labels[training],
        rows=rows[training],
        test_images=images[test],
        test_labels=labels[test],
        validation_images=images[apart],
        validation_labels=labels[apart],
        names=listed.names,
        aliases=listed.aliases,
        location=str(paths.absolute(root)),
        listed=listed,
        survey=survey,
    )


def _read(
    root: Path,
    names: Sequence[str],
    rows: Sequence[int],
    reading: Reading,
    known: Listed | None = None,
) -> tuple[Images, list[int], tuple[int, ...], tuple[str, ...], Survey | None]:
    """Read ``rows``: their readable images, the rows of these, and sizes and hashes of all names.

    If ``known`` is given, the sizes and hashes are its own. There is no survey of images that stay
    on disk.
    """
    side = reading.image_size or image_files.DEFAULT_SIZE
    size = (side, side)
    if reading.stream:
        files = Files(root=paths.absolute(root), paths=tuple(names))
        lazy = LazyImages(
            records=files,
            rows=np.array(rows, np.int64),
            size=size,
            share=reading.share,
            levels=reading.levels,
        )
        if known is not None:
            return lazy, list(rows), known.sizes, known.hashes, None
        sizes = tuple(paths.size(root / name) for name in names)
        return lazy, list(rows), sizes, ("",) * len(names), None
    found = read_files(
        [root / names[row] for row in rows],
        Fitting(size=size, share=reading.share),
        reading.levels,
        [names[row] for row in rows],
    )
    found.complain(reading.strict)
    used = [row for row, readable in zip(rows, found.readable, strict=True) if readable]
    survey = Survey(
        left_out=found.left_out, notes=found.notes, sizes=found.sizes_found, modes=found.modes
    )
    return found.images, used, found.sizes, found.hashes, survey


def _draw_test(
    labels: np.ndarray, readable: np.ndarray, kept: Sequence[int], classes: int, seed: int
) -> np.ndarray:
    """Draw a fifth of each class [n] bool: at least one image, but never the last one.

    Args:
        labels: [n] the class of each image, -1 = unlabeled.
        readable: [n] bool, the images that can be drawn.
        kept: rows that stay training images.
        classes: how many there are.
        seed: of the draw.
    """
    random = np.random.RandomState([seed, 2])  # a stream of its own, apart from the label splits
    test = np.zeros(len(labels), bool)
    for number in range(classes):
        members = np.flatnonzero((labels == number) & readable)
        free = random.permutation(np.setdiff1d(members, np.array(sorted(kept), np.int64)))
        most = len(free) - (len(free) == len(members))
        test[free[: min(max(1, round(TEST_SHARE * len(free))), most)]] = True
    return test
