"""Load the data of a run: a new run chooses it, every later command gets exactly the same."""

import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from jaxmatch.algorithms import build_algorithm
from jaxmatch.config.checks import check_numbers
from jaxmatch.data import added as added_labels
from jaxmatch.data import record as records
from jaxmatch.data import sources, splits
from jaxmatch.data.levels import Levels
from jaxmatch.data.record import ELSEWHERE, Record
from jaxmatch.data.source import Reading, Source
from jaxmatch.data.splits import Split
from jaxmatch.errors import InputError
from jaxmatch.record import pseudo_labels
from jaxmatch.record.choice import choose
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
    path = paths.path(config.data.pseudo_labels)
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
    _check_used(config)
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

    return choose(config, _read_together(name, read), split)


def _check_used(config: ConfigDict) -> None:
    """Refuse settings of other sources, which would have no effect.

    Raises:
        InputError: naming the first.
    """
    data = config.data
    in_directory = sources.scheme_of(data.name).in_directory
    used = {"directory": in_directory, "extra": data.name.startswith("tfds:svhn")}
    for key, has_effect in used.items():
        if data[key] and not has_effect:
            raise InputError(f"data.{key}={data[key]} has no effect on {data.name}; leave it out.")


def _read_together(name: str, read: Callable[[], Source]) -> Source:
    """Read the data in every process; if one fails, all raise."""
    # While the processes read a TFDS set they talk to each other, so they fail together already.
    return read() if name.startswith("tfds:") else hosts.agreed(read)


def location(config: ConfigDict, place: str = "") -> str:
    """The resolved folder of images of a configuration, or ``place``; "" for other sources."""
    kind, _, folder = moved_to(place, config.data.name, "")[0].partition(":")
    return str(paths.absolute(paths.path(folder))) if kind == "folder" else ""


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
    data = choose(config, source, replace(own, source=source.name), added)
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
    path = paths.path(name.partition(":")[2])
    if sources.names_path(record.name) and not path.exists():
        if given:
            raise InputError(f"There is no {given}; give --data the path where the data is now.")
        raise InputError(f"There is no {path}, where the data of the run was; {ELSEWHERE}.")
    return name, directory


def moved_to(place: str, name: str, directory: str) -> tuple[str, str]:
    """``data.name`` and ``data.directory`` of the same data at ``place``, if that is given.

    Raises:
        InputError: if the data is part of a package.
    """
    if not place:
        return name, directory
    if sources.scheme_of(name).in_directory:
        return name, place
    kind, colon, _ = name.partition(":")
    if not colon:
        raise InputError(f"{name} is part of a package and cannot move; leave out --data.")
    return f"{kind}:{place}", directory


def reading(config: ConfigDict, directory: str) -> Reading:
    """How the configuration reads its images."""
    data = config.data
    return Reading(
        image_size=data.image_size,
        directory=str(paths.path(directory)) if directory else None,
        extra=data.extra,
        stream=data.stream,
        share=data.center_crop,
        levels=Levels.of(data.background, data.white_level),
        known_classes=tuple(data.known_classes),
        strangers=data.strangers,
    )


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
    if not file or not paths.path(file).exists():
        return  # the run folder has a copy
    names = replace(source.naming, roots=(*source.naming.roots, *old_roots))
    if not np.array_equal(splits.read(file, names).indices, split.indices):
        raise InputError(
            f"{file} names other images than the run began with; put the old list back, or train "
            "anew in another --workdir."
        )
