"""Load the data of a run: a new run chooses it, every later command gets exactly the same."""

import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
from ml_collections import ConfigDict

from jaxmatch.algorithms import build_algorithm
from jaxmatch.config.checks import check_numbers
from jaxmatch.config.presets import DATASETS
from jaxmatch.data import added as added_labels
from jaxmatch.data import record as records
from jaxmatch.data import sources, splits, unequal
from jaxmatch.data.added import Added
from jaxmatch.data.levels import Levels
from jaxmatch.data.record import ELSEWHERE, Record
from jaxmatch.data.source import Reading, Source
from jaxmatch.data.splits import Split
from jaxmatch.data.unequal import Shares
from jaxmatch.errors import InputError
from jaxmatch.record import pseudo_labels
from jaxmatch.record.data import Data
from jaxmatch.record.folder import RunFolder
from jaxmatch.runtime import hosts, paths
from jaxmatch.weights.transfer import STAGE, names_weights, source_folder

log = logging.getLogger(__name__)


def load(
    config: ConfigDict, folder: Path, place: str = "", kept: str = ""
) -> tuple[Data, tuple[records.Record, ...]]:
    """Load the data of the run in ``folder`` if it has begun, else that of a new run.

    A new run keeps the test set of a run that it starts from or learns from, if that run drew it
    from the same folder of images, even if the folder has moved since.

    Args:
        config: of the run.
        folder: of the run.
        place: where the data is now, if it has moved.
        kept: a file of images that a later stage labels; they are in no test set.

    Returns:
        The data and, for a new run, the records of the runs that it starts from or learns from.

    Raises:
        InputError: as :func:`load_new` and :func:`load_recorded`.
    """
    if hosts.from_leader(lambda: RunFolder(folder).begun):
        data = load_recorded(config, folder, place=place)
        added_labels.check(
            config.data.added_labels, data.source, data.split, data.added, _roots(data.known)
        )
        return with_pseudo_labels(config, data), ()
    earlier = _records_of_earlier_runs(config, folder)
    here = location(config, place)
    drawn = [record for record in earlier.values() if _drew_test_set_here(record, here)]
    stage = earlier.get(config.init_from) if config.init_from.startswith(STAGE) else None
    if stage and stage.name == config.data.name and stage.listed and stage.listed.drawn:
        drawn = [stage]  # stages of a run have the same folder of images, even if it has moved
    test_of = drawn[0] if drawn else None
    data = load_new(config, place=place, test_of=test_of, kept=kept)
    return with_pseudo_labels(config, data), tuple(earlier.values())


def with_pseudo_labels(config: ConfigDict, data: Data) -> Data:
    """The data with the pseudo-labels of ``config.data.pseudo_labels``, if it names a file.

    Raises:
        InputError: if the file is of other classes or images, or damaged.
    """
    if not config.data.pseudo_labels:
        return data
    path = paths.path(config.data.pseudo_labels).expanduser()
    found = pseudo_labels.matched(path, data.source, data.record, data.split)
    learns = not build_algorithm(config.algorithm).unlabeled
    return replace(data, pseudo=found, learns_pseudo=learns)


def _records_of_earlier_runs(config: ConfigDict, folder: Path) -> dict[str, records.Record]:
    """The records of the runs that a new run starts from or learns from: {configured name: it}."""
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
                "%s has no record of its images, because an older version wrote it: it may have "
                "been trained on test images of this run.",
                run.path,
            )
    return found


def _drew_test_set_here(record: Record, here: str) -> bool:
    """Whether a run drew its test set from the folder ``here``, by its place or its content."""
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
        split: the labeled examples, if they are chosen already.
        place: where the data is; by default where the configuration says.
        test_of: a run on the same folder of images whose test set is kept.
        kept: a file of images that are never drawn for the test set.

    Raises:
        InputError: if the data cannot be read as configured.
    """
    check_numbers(config)
    data, algorithm = config.data, build_algorithm(config.algorithm)
    name, directory = moved_to(place, data.name, data.directory)

    def read() -> Source:
        settings = replace(
            reading(config, directory),
            seed=config.seed,
            strict=data.strict,
            label_free=not algorithm.labeled,
            split=kept or ("" if split else data.split),
            test_of=test_of,
        )
        return sources.load(name, settings)

    return _choose(config, _read_together(name, read), split)


def _read_together(name: str, read: Callable[[], Source]) -> Source:
    """Read the data in every process; if one fails, all raise."""
    # While the processes read a TFDS set they talk to each other, so they fail together already.
    return read() if name.startswith("tfds:") else hosts.agreed(read)


def location(config: ConfigDict, place: str = "") -> str:
    """The resolved folder of images of a configuration, or ``place``; "" for other sources."""
    kind, _, folder = moved_to(place, config.data.name, "")[0].partition(":")
    return str(paths.absolute(paths.path(folder).expanduser())) if kind == "folder" else ""


def load_recorded(
    config: ConfigDict, folder: Path, *, place: str = "", needed: str = "all"
) -> Data:
    """Load exactly the data that the run in ``folder`` began with.

    Args:
        config: of the run.
        folder: of the run.
        place: where its folder of images, its file or its TFDS directory is now; by default the
            place in the configuration if that has changed, else the recorded place.
        needed: the images that must be unchanged: "held" (labeled, validation and test images),
            "known" (these, and all with a known label) or "all". Others are not read.

    Raises:
        InputError: if a needed image is missing, changed or relabelled; it names the first one.
    """
    split, record = RunFolder(folder).read_split(), RunFolder(folder).read_record()
    if record is None:
        if place:
            raise InputError(f"{folder} has no record of its data; give the place in --config.")
        log.warning(
            "%s has no record of its images, because an older version wrote it: images are "
            "identified by their position, so the data must be unchanged.",
            folder,
        )
        return _check_facts(folder, load_new(config, split))
    name, directory = _find(config, record, place)
    listed, added = record.listed, dict(record.added)
    own = added_labels.without(split, added)
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

    def read() -> Source:
        return sources.load_recorded(record, name, reading(config, directory), rows, kind)

    source = _read_together(name, read)
    if needed == "all":
        _check_same_split(config, own, source, _roots(record))
    moved = replace(
        record,
        name=config.data.name,
        directory=config.data.directory,
        location=source.location,
    )
    data = _choose(config, source, replace(own, source=source.name), added)
    return replace(data, known=moved)


def _roots(record: Record | None) -> list[Path]:
    """The earlier place of a folder of images."""
    return [paths.path(record.location)] if record is not None and record.listed else []


def _check_facts(folder: Path, data: Data) -> Data:
    """Check the data of a run without a record against the facts in ``config.json``.

    Raises:
        InputError: if they differ.
    """
    if not RunFolder(folder).config_file.exists():  # the folder holds only a split
        return data
    recorded, found = RunFolder(folder).read_facts(), data.facts()
    for key in ("classes", "labels", "unlabeled"):
        if getattr(recorded, key) != getattr(found, key):
            raise InputError(
                f"{folder} began with other data than {data.name} holds now: its {key} differ; put "
                "the old data back, or train anew."
            )
    return data


def _find(config: ConfigDict, record: Record, place: str) -> tuple[str, str]:
    """``data.name`` and ``data.directory`` with the place where recorded data is now."""
    name, directory = config.data.name, config.data.directory
    given = place
    if not place and (name, directory) == (record.name, record.directory):
        there = record.location and paths.path(record.location).exists()
        place = record.location if there else ""
    name, directory = moved_to(place, record.name if place else name, directory)
    path = paths.path(name.partition(":")[2]).expanduser()
    if sources.names_path(record.name) and not path.exists():
        if given:
            raise InputError(f"There is no {given}; give --data the path where the data is now.")
        raise InputError(f"There is no {path}, where the data of the run was; {ELSEWHERE}.")
    return name, directory


def moved_to(place: str, name: str, directory: str) -> tuple[str, str]:
    """``data.name`` and ``data.directory`` of the same data at ``place``, if that is given."""
    if not place:
        return name, directory
    kind, colon, _ = name.partition(":")
    if not colon:
        raise InputError(f"{name} is part of a package and cannot move; leave out --data.")
    return (name, place) if kind == "tfds" else (f"{kind}:{place}", directory)


def reading(config: ConfigDict, directory: str) -> Reading:
    """How the configuration reads its images."""
    data = config.data
    return Reading(
        image_size=data.image_size,
        directory=directory or None,
        extra=data.extra,
        stream=data.stream,
        share=data.center_crop,
        levels=Levels.of(data.background, data.white_level),
        known_classes=tuple(data.known_classes),
        strangers=data.strangers,
    )


def _choose(
    config: ConfigDict, source: Source, split: Split | None, added: Added | None = None
) -> Data:
    """Choose the labeled examples (unless ``split`` has them) and the validation set.

    The labels that ``data.added_labels`` adds come last (unless ``added`` has them), so that test
    and validation set are those of a run without them.
    """
    data, algorithm = config.data, build_algorithm(config.algorithm)
    if algorithm.labeled and not len(source.test_images):
        raise InputError(f"{data.name} has no test images.")
    if not algorithm.labeled:
        if data.labels != "none" or data.split or data.validation or data.added_labels:
            raise InputError(
                f"{config.algorithm.name} reads no labels: data.labels must be none, data.split "
                "and data.added_labels empty, and data.validation 0."
            )
        empty = split or Split(indices=np.zeros(0, np.int64), source=source.name)
        empty, pool = _pool(config, source, empty)
        return Data(
            source=pool,
            split=empty,
            name=data.name,
            directory=data.directory,
            unused=len(source.rows) - len(pool.rows),
        )
    if split is None and data.split:
        split = splits.read(data.split, source.naming)
        _check_classes(source, split, data.split)
        _check_number(config, split)
    labels, shares = labels_number(data.labels), Shares.of(data)
    if split is None and (labels != "all" or shares.largest):
        split = unequal.draw(source, labels, config.seed, shares)
    whole, own = source, len(source.validation_labels)
    if data.validation and own:
        raise InputError(
            f"data.validation={data.validation} would hold out training images, but {data.name} "
            f"has a validation set of {own} images; leave data.validation out."
        )
    rows: tuple[int, ...] = ()
    if own:
        held_images, held_labels = source.validation_images, source.validation_labels
        rows = () if source.listed is None else source.listed.validation
    elif data.validation:  # before labels="all" takes every labeled image
        source, held_images, held_labels = splits.validation(
            source, data.validation, config.seed, split, data.validation_draw
        )
        rows = tuple(np.setdiff1d(whole.rows, source.rows).tolist())
    else:
        held_images = held_labels = None
    split = split or unequal.draw(source, labels, config.seed, shares)
    splits.locate(source, split)
    if added is None:
        added = added_labels.read(data.added_labels, source, split)
    source, split = added_labels.apply(source, split, added)
    split, pool = _pool(config, source, split)
    return Data(
        source=pool,
        split=split,
        added=added,
        include_labeled=data.include_labeled,
        validation_images=held_images,
        validation_labels=held_labels,
        validation_rows=rows,
        name=data.name,
        directory=data.directory,
        unused=len(source.rows) - len(pool.rows),
    )


def _pool(config: ConfigDict, source: Source, split: Split) -> tuple[Split, Source]:
    """The split with its unlabeled images, if those are a long tail, and the source of only these.

    A split that names them is that of a run that has begun, or a file of one.
    """
    shares = Shares.of(config.data)
    if split.unlabeled is None and shares.unlabeled is not None:
        split = unequal.draw_unlabeled(source, split, config.seed, shares)
    return split, unequal.restricted(source, split)


def _check_same_split(
    config: ConfigDict, split: Split, source: Source, old_roots: Sequence[Path]
) -> None:
    """Check that the file ``config.data.split`` still names the images that the run began with.

    Args:
        config: of the run.
        split: the labeled examples that the run began with.
        source: the data.
        old_roots: earlier places of the folder of images.

    Raises:
        InputError: if it names others.
    """
    file = config.data.split
    if not file or not paths.path(file).expanduser().exists():
        return  # the run folder has a copy
    names = replace(source.naming, roots=(*source.naming.roots, *old_roots))
    if not np.array_equal(splits.read(file, names).indices, split.indices):
        raise InputError(
            f"{file} names other images than the run began with; put the old list back, or train "
            "anew in another --workdir."
        )


def _check_classes(source: Source, split: Split, file: str) -> None:
    """Check that a file of labeled images names at least one image of each class.

    Raises:
        InputError: if it does not.
    """
    if not len(split.indices):
        raise InputError(f"{file} names no image; name at least one of each class.")
    labels = source.labels[splits.locate(source, split)]
    for number, name in enumerate(source.classes):
        if number not in labels:
            raise InputError(
                f"{file} names no image of class {name!r}; name at least one of each class."
            )


def _check_number(config: ConfigDict, split: Split) -> None:
    """Check that a file of labeled images has as many as the configuration asks for.

    The number that a data set has by default is no such demand.

    Raises:
        InputError: if it has more or fewer.
    """
    data = config.data
    usual = DATASETS.get(data.name, {}).get("data.labels", "all")
    if data.labels != usual:
        splits.check_number(data.split, len(split.indices), labels_number(data.labels))


def labels_number(labels: str) -> int | Literal["all"]:
    """``config.data.labels`` as a number or "all"."""
    if labels == "all":
        return "all"
    if not str(labels).isdecimal():
        raise InputError(f"data.labels={labels} is neither a whole number nor all.")
    return int(labels)
