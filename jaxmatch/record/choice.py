"""Choose which images of a source a run learns from: labeled, validation and unlabeled ones."""

from typing import Literal

import numpy as np
from ml_collections import ConfigDict

from jaxmatch.algorithms import build_algorithm
from jaxmatch.config.presets import DATASETS
from jaxmatch.data import added as added_labels
from jaxmatch.data import splits, unequal
from jaxmatch.data.added import Added
from jaxmatch.data.source import Source
from jaxmatch.data.splits import Split
from jaxmatch.data.unequal import Shares
from jaxmatch.errors import InputError
from jaxmatch.record.data import Data


def choose(
    config: ConfigDict, source: Source, split: Split | None, added: Added | None = None
) -> Data:
    """Choose the labeled examples (unless ``split`` has them) and the validation set.

    The labels that ``data.added_labels`` adds come last (unless ``added`` has them), so that test
    and validation set are those of a run without them.

    Raises:
        InputError: if the source lacks the images that are asked for, or settings contradict the
            method, the source or each other.
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
            source, data.validation, config.seed, split, data.validation_draw, spare=split is None
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
    """``config.data.labels`` as a number or "all".

    Raises:
        InputError: if it is neither.
    """
    if labels == "all":
        return "all"
    if not str(labels).isdecimal():
        raise InputError(f"data.labels={labels} is neither a whole number nor all.")
    return int(labels)
