"""The data of a run: chosen when it is new, and exactly that for every later command."""

import logging
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from jaxmatch.algorithms import build_algorithm
from jaxmatch.config.checks import check_numbers
from jaxmatch.data import record as records
from jaxmatch.data import sources, splits
from jaxmatch.data.copies import array_hashes, copies, listed_hashes
from jaxmatch.data.facts import Facts
from jaxmatch.data.lazy import Images
from jaxmatch.data.record import ELSEWHERE, Record, file_hashes
from jaxmatch.data.source import Reading, Source
from jaxmatch.data.splits import Split
from jaxmatch.errors import InputError
from jaxmatch.record.folder import RunFolder
from jaxmatch.runtime import hosts, paths
from jaxmatch.weights.transfer import STAGE, names_weights, source_folder

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Data:
    """The images of a run in host memory."""

    source: Source
    split: Split  # of no image for a label-free method
    include_labeled: bool = True  # in the unlabeled pool
    validation_images: Images | None = None  # [v h w 3] uint8
    validation_labels: np.ndarray | None = None  # [v] int32
    validation_rows: tuple[int, ...] = ()  # in storage order, sorted
    name: str = ""  # as configured
    directory: str = ""  # of prepared TFDS sets, as configured
    known: Record | None = None  # of data that a run was begun with

    @cached_property
    def record(self) -> Record:
        """What identifies the images, for later commands; streamed ones are hashed now."""
        if self.known is not None:
            return self.known
        source = self.source
        listed = source.listed
        if listed is not None:
            listed = replace(listed, validation=self.validation_rows)
            if listed.ends:
                rows = sorted({*self.split.indices.tolist(), *listed.validation, *listed.test})
                names = [listed.names[row] for row in rows]
                hashes = dict(
                    zip(rows, file_hashes(paths.path(source.location), names, True), strict=True)
                )
                listed = replace(
                    listed, hashes=tuple(hashes.get(row, "") for row in range(len(listed.names)))
                )
        return Record(
            name=self.name,
            directory=self.directory,
            location=source.location,
            classes=source.classes,
            parts=source.parts,
            listed=listed,
        )

    def seen_by(self, earlier: Iterable[Record]) -> list[str]:
        """A sentence for each of some earlier runs that was trained on test images of this one."""
        listed = self.record.listed
        if listed is None:
            return []
        tests, texts = listed_hashes(listed, listed.test), []
        for record in earlier:
            theirs = record.listed
            if theirs is None or theirs.ends != listed.ends:
                continue
            seen = set(listed_hashes(theirs, theirs.training.tolist()).values()) - {""}
            if names := [name for name, found in tests.items() if found in seen]:
                texts.append(
                    f"{len(names)} test images, such as {names[0]}, were training images of an "
                    "earlier run that this one builds on: the accuracy will be too high."
                )
        return texts

    def copies(self) -> list[str]:
        """A sentence for each pair of sets that have images in common, by their content."""
        source, listed = self.source, self.record.listed
        labeled = set(self.split.indices.tolist())
        pool = source.rows.tolist()
        if listed is not None:
            rows = {
                "test": listed.test,
                "validation": listed.validation,
                "labeled": sorted(labeled),
                "unlabeled": [row for row in pool if row not in labeled],
            }
            return copies({name: listed_hashes(listed, some) for name, some in rows.items()})
        training = array_hashes(source.images, "training image")
        of = dict(zip(pool, training.items(), strict=False))
        sets = {
            "test": array_hashes(source.test_images, "test image"),
            "labeled": dict(of[row] for row in labeled if row in of),
            "unlabeled": dict(of[row] for row in pool if row in of and row not in labeled),
        }
        if self.validation_images is not None:
            sets["validation"] = array_hashes(self.validation_images, "validation image")
        return copies(sets)

    def facts(self) -> Facts:
        """What a trained run needs to know of its data when the data is not there."""
        source = self.source
        taken = 0 if self.include_labeled else len(self.split.indices)
        height, width, channels = source.images.shape[1:]
        return Facts(
            classes=source.classes,
            image_shape=(height, width, channels),
            labels=tuple(int(label) for label in self.labels()),
            unlabeled=len(source.images) - taken,
        )

    def labels(self) -> np.ndarray:
        """The true label of each labeled example, in split order."""
        return self.source.labels[splits.locate(self.source, self.split)]


def load(
    config: ConfigDict, folder: Path, place: str = "", kept: str = ""
) -> tuple[Data, tuple[records.Record, ...]]:
    """The data of the run in ``folder`` if it has begun, else that of a new one.

    A new run takes over the test set that a run it starts from, or learns from, drew from the same
    folder, wherever that was then.

    Args:
        config: of the run.
        folder: of the run.
        place: where the data is now, if it has moved.
        kept: a file of images that a later stage labels, so that they are in no test set.

    Returns:
        The data, and the records of the data of those other runs if the run is new.

    Raises:
        InputError: as :func:`load_new` and :func:`load_recorded`.
    """
    if hosts.from_leader(lambda: RunFolder(folder).begun):
        return load_recorded(config, folder, place=place), ()
    earlier = _records_of_earlier_runs(config, folder)
    here = location(config, place)
    drawn = [record for record in earlier.values() if _drew_here(record, here)]
    stage = earlier.get(config.init_from) if config.init_from.startswith(STAGE) else None
    if stage and stage.name == config.data.name and stage.listed and stage.listed.drawn:
        drawn = [stage]  # wherever its folder was, it is that of this stage
    test_of = drawn[0] if drawn else None
    data = load_new(config, place=place, test_of=test_of, kept=kept)
    return data, tuple(earlier.values())


def _records_of_earlier_runs(config: ConfigDict, folder: Path) -> dict[str, records.Record]:
    """The records of data of the runs that a new run starts from or learns from, by their names."""
    found = {}
    for name in (config.init_from, *config.frozen.values()):
        if not name or names_weights(name):
            continue
        run = RunFolder.at(source_folder(name, folder))
        record = run.read_record()
        if record is not None:
            found[name] = record
        elif run.config_file.exists():
            log.warning(
                "%s has no record of its images, as older versions wrote none: it may have been "
                "trained on test images of this run.",
                run.path,
            )
    return found


def _drew_here(record: Record, here: str) -> bool:
    """Whether a run drew its test set from the folder ``here``, by place or by content."""
    listed = record.listed
    if listed is None or not listed.drawn or not here:
        return False
    return record.location == here or records.holds(listed, paths.path(here), listed.test)


def load_new(
    config: ConfigDict,
    split: Split | None = None,
    *,
    place: str = "",
    test_of: Record | None = None,
    kept: str = "",
) -> Data:
    """Load the data of a new run and choose its labeled examples.

    Args:
        config: of the run.
        split: the labeled examples of a run that has begun.
        place: where the data is, if not where the configuration says.
        test_of: a run on the same folder, whose drawn test set stays the test set.
        kept: a file of images that are in no test set that is drawn.

    Raises:
        InputError: if the data cannot be read, or not as configured.
    """
    check_numbers(config)
    data, algorithm = config.data, build_algorithm(config.algorithm)
    name, directory = _at(data.name, data.directory, place)

    def load() -> Source:
        reading = replace(
            _reading(config, directory),
            seed=config.seed,
            strict=data.strict,
            label_free=not algorithm.labeled,
            split=kept or ("" if split else data.split),
            test_of=test_of,
        )
        return sources.load(name, reading)

    source = _in_all(name, load)
    return _chosen(config, source, split)


def _in_all(name: str, load: Callable[[], Source]) -> Source:
    """What ``load`` returns; where hosts have data of their own, one that fails ends all."""
    # The hosts talk to each other about a prepared set while they load it.
    return load() if name.startswith("tfds:") else hosts.agreed(load)


def location(config: ConfigDict, place: str = "") -> str:
    """The folder of images of a configuration, resolved, if it has one; it may be at ``place``."""
    kind, _, folder = _at(config.data.name, "", place)[0].partition(":")
    return str(paths.absolute(paths.path(folder).expanduser())) if kind == "folder" else ""


def load_recorded(
    config: ConfigDict, folder: Path, *, place: str = "", needed: str = "all"
) -> Data:
    """Load exactly the data that the run in ``folder`` was begun with.

    Args:
        config: of the run.
        folder: of the run.
        place: where its folder of images, its file or its TFDS directory is now; by default where
            the configuration says, if that has changed, else where it was.
        needed: "held": labeled, validation and test images must be what they were; "known": those
            with a known label too; "all". Other images are not looked at.

    Raises:
        InputError: naming the first needed image that is missing, changed or relabelled.
    """
    split, record = RunFolder(folder).read_split(), RunFolder(folder).read_record()
    if record is None:
        if place:
            raise InputError(f"{folder} has no record of its data; give the place in --config.")
        log.warning(
            "%s has no record of its images, as older versions wrote none: they are taken by "
            "their position, so the data must be what it was.",
            folder,
        )
        return _as_told(folder, load_new(config, split))
    name, directory = _place(config, record, place)
    listed = record.listed
    rows: Collection[int] | None = None if needed == "all" else ()
    labeled = set(split.indices.tolist())
    tests, validations = (set(listed.test), set(listed.validation)) if listed else (set(), set())

    def kind(row: int) -> str:
        for title, rows in (("test", tests), ("labeled", labeled), ("validation", validations)):
            if row in rows:
                return f"a {title} image of the run"
        return "a training image of the run"

    if listed is not None and needed != "all":
        rows = {*labeled, *tests, *validations}
        if needed == "known":
            rows |= {row for row in listed.training.tolist() if listed.labels[row] >= 0}

    def load() -> Source:
        return sources.load_recorded(record, name, _reading(config, directory), rows, kind)

    source = _in_all(name, load)
    if needed == "all":
        before = [paths.path(record.location)] if listed is not None else []
        _check_same_split(config, split, source, before)
    moved = replace(
        record,
        name=config.data.name,
        directory=config.data.directory,
        location=source.location,
    )
    found = _chosen(config, source, replace(split, source=source.name))
    return replace(found, known=moved)


def _as_told(folder: Path, data: Data) -> Data:
    """``data`` of a run without a record; InputError where it is not what config.json tells."""
    if not RunFolder(folder).config_file.exists():  # a split alone
        return data
    told, found = RunFolder(folder).read_facts(), data.facts()
    for key in ("classes", "labels", "unlabeled"):
        if getattr(told, key) != getattr(found, key):
            raise InputError(
                f"{folder} has no record of its images, and what {data.name} holds now is not what "
                f"it was begun with: its {key} differ; put the old data back, or train anew."
            )
    return data


def _place(config: ConfigDict, record: Record, place: str) -> tuple[str, str]:
    """``data.name`` and ``data.directory`` with the place where recorded data is now."""
    name, directory = config.data.name, config.data.directory
    given = place
    if not place and (name, directory) == (record.name, record.directory):
        there = record.location and paths.path(record.location).exists()
        place = record.location if there else ""
    name, directory = _at(record.name if place else name, directory, place)
    path = paths.path(name.partition(":")[2]).expanduser()
    if sources.names_path(record.name) and not path.exists():
        if given:
            raise InputError(
                f"There is no {given}; give --data the path of the data, as it is now."
            )
        raise InputError(f"There is no {path}, where the data of the run was; {ELSEWHERE}.")
    return name, directory


def _at(name: str, directory: str, place: str) -> tuple[str, str]:
    """``data.name`` and ``data.directory`` of the same data at ``place``, if that is not empty."""
    if not place:
        return name, directory
    kind, colon, _ = name.partition(":")
    if not colon:
        raise InputError(f"{name} is part of a package and has no place; leave --data out.")
    return (name, place) if kind == "tfds" else (f"{kind}:{place}", directory)


def _reading(config: ConfigDict, directory: str) -> Reading:
    """How the configuration reads its images."""
    data = config.data
    return Reading(
        image_size=data.image_size,
        directory=directory or None,
        extra=data.extra,
        stream=data.stream,
        share=data.center_crop,
    )


def _chosen(config: ConfigDict, source: Source, split: Split | None) -> Data:
    """The data of a run on ``source``: labeled examples and validation set, as configured."""
    data, algorithm = config.data, build_algorithm(config.algorithm)
    if algorithm.labeled and not len(source.test_images):
        raise InputError(f"{data.name} has no test images.")
    if not algorithm.labeled:
        if data.labels != "none" or data.split or data.validation:
            raise InputError(
                f"{config.algorithm.name} reads no labels: data.labels must be none, data.split "
                "empty and data.validation 0."
            )
        empty = Split(indices=np.zeros(0, np.int64), source=source.name)
        return Data(source=source, split=empty, name=data.name, directory=data.directory)
    if split is None and data.split:
        split = splits.read(data.split, source.naming)
        _check_classes(source, split, data.split)
    labels = labels_number(data.labels)
    if split is None and labels != "all":
        split = splits.balanced(source, labels, config.seed)
    whole = source
    if data.validation:  # before "all" labels are taken, so that some are left for it
        source, held_images, held_labels = splits.validation(
            source, data.validation, config.seed, keep=split
        )
    else:
        held_images = held_labels = None
    split = split or splits.balanced(source, labels, config.seed)
    splits.locate(source, split)
    return Data(
        source=source,
        split=split,
        include_labeled=data.include_labeled,
        validation_images=held_images,
        validation_labels=held_labels,
        validation_rows=tuple(np.setdiff1d(whole.rows, source.rows).tolist()),
        name=data.name,
        directory=data.directory,
    )


def _check_same_split(
    config: ConfigDict, split: Split, source: Source, before: Sequence[Path]
) -> None:
    """InputError where ``config.data.split`` names other images by now than the run began with.

    ``before``: where the folder of images was.
    """
    file = config.data.split
    if not file or not paths.path(file).expanduser().exists():
        return  # the run has its own copy
    names = replace(source.naming, roots=(*source.naming.roots, *before))
    if not np.array_equal(splits.read(file, names).indices, split.indices):
        raise InputError(
            f"{file} names other images than the run was begun with; put the old list back, or "
            "train anew in another --workdir."
        )


def _check_classes(source: Source, split: Split, file: str) -> None:
    """InputError where a file of labeled images leaves out a class."""
    if not len(split.indices):
        raise InputError(f"{file} names no image; name at least one of each class.")
    labels = source.labels[splits.locate(source, split)]
    for number, name in enumerate(source.classes):
        if number not in labels:
            raise InputError(
                f"{file} names no image of class {name!r}; name at least one of each class."
            )


def labels_number(labels: str) -> Any:
    """``config.data.labels`` as a number or "all"."""
    if labels != "all" and not str(labels).isdecimal():
        raise InputError(f"data.labels={labels} is neither a whole number nor all.")
    return labels if labels == "all" else int(labels)
