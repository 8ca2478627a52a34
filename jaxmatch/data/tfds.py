"""Reads TFDS data sets without TensorFlow; they are prepared as ArrayRecord files.

Storage order is that of the TFDS splits, which is a shuffled order of the original files.
"""

import contextlib
import hashlib
import io
import logging
import math
import os
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core import constants, read_only_builder

from jaxmatch.data import images as image_files
from jaxmatch.data.lazy import LazyImages, TfdsRecords
from jaxmatch.data.record import Record, check_parts, file_hash
from jaxmatch.data.source import Reading, Source, Survey
from jaxmatch.errors import InputError, suggest
from jaxmatch.runtime import hosts, paths

log = logging.getLogger(__name__)

# Test splits of another name than "test". The labels of ImageNet's test split are not public.
TEST_SPLITS = {"imagenet2012": "validation", "imagenet2012_subset": "validation"}
TEST_SHARE = 0.2  # of each class, of sets without a test split
FILE_NAMES = ("file_name", "filename")  # features of that meaning
CHUNK = 1024  # examples that a thread decodes at a time


def load(place: str, reading: Reading) -> Source:
    """Read a prepared set: train, unlabelled (labels -1), and extra if asked for; test is held out.

    ImageNet's test set is its validation split. Of a set without a test split (EuroSAT) the last
    fifth of each class by file name is held out, as in USB's benchmark. With ``reading.stream`` the
    images stay on disk, and only labels and file names are read.

    Raises:
        InputError: if the set is not prepared under ``reading.directory``, or does not hold labeled
            images.
    """
    image_size = reading.image_size
    builder = _builder(place, reading.directory)
    splits, features = set(builder.info.splits), _features(builder, place)
    test = TEST_SPLITS.get(builder.info.name, "test")
    training = ["train", *(["extra"] if reading.extra else [])]
    held_out = [test] if splits - {"train"} else []
    if missing := [split for split in (*training, *held_out) if split not in splits]:
        raise InputError(f"tfds:{place} has no split {missing[0]!r}, only {sorted(splits)}.")
    if None in features["image"].shape[:2]:
        image_size = image_size or image_files.DEFAULT_SIZE
    training += sorted(splits & {"unlabelled", "unlabeled"})
    size = (image_size, image_size) if image_size else features["image"].shape[:2]
    read = partial(_lazy if reading.stream else _read, builder, size=size, reading=reading)
    images, labels, names = read(training)
    rows, notes = np.arange(len(labels)), ()
    if held_out:
        test_images, test_labels, _ = read(held_out)
    else:
        tests = _last_of_each_class(labels, names)
        test_images, test_labels, rows = images[tests], labels[tests], np.setdiff1d(rows, tests)
        images, labels = images[rows], labels[rows]
        notes = (f"tfds:{place} has no test split; the last fifth of each class is the test set.",)
    return Source(
        name=f"tfds:{place}",
        classes=tuple(features["label"].names),
        images=images,
        labels=labels,
        rows=rows,
        test_images=test_images,
        test_labels=test_labels,
        names=names if reading.stream else (),
        location=str(Path(reading.directory or constants.DATA_DIR).expanduser().resolve()),
        parts=_parts(builder, [*training, *held_out], reading.stream),
        survey=Survey(notes=notes),
    )


def _last_of_each_class(labels: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """The rows, sorted, of the last fifth of each class by file name, or by storage without names.

    The first int(0.8 n) of n images stay (github.com/microsoft/Semi-supervised-learning @ 1ef4cbe,
    ``semilearn/datasets/cv_datasets/eurosat.py``).
    """
    order = np.argsort(np.array(names), kind="stable") if names else np.arange(len(labels))
    chosen = []
    for number in np.unique(labels):
        members = order[labels[order] == number]
        chosen.append(members[int((1 - TEST_SHARE) * len(members)) :])
    return np.sort(np.concatenate(chosen))


def sizes(place: str, reading: Reading) -> list[tuple[int, int]]:
    """(height, width) of the images of a prepared set, of some if they differ.

    Raises:
        InputError: as :func:`load`.
    """
    builder = _builder(place, reading.directory)
    height, width = _features(builder, place)["image"].shape[:2]
    if height and width:
        return [(height, width)]
    images, _, _ = _lazy(builder, ["train"], (1, 1), reading)
    rows = range(0, len(images), max(1, len(images) // image_files.LOOKED_AT))
    return image_files.sizes(images.records.read(row) for row in rows)


def load_recorded(record: Record, place: str, reading: Reading) -> Source:
    """Read the set of a run again, in the version that the run read.

    Raises:
        InputError: naming the first split whose files have changed.
    """
    if "version" in record.parts:
        name, colon, version = place.partition(":")
        place = f"{name}:{version if colon else record.parts['version']}"
        builder = _builder(place, reading.directory)
        splits = [part for part in record.parts if part in builder.info.splits]
        # First compare the files: changed records may not be readable.
        check_parts(record, _parts(builder, splits, reading.stream), str(builder.data_dir))
    return load(place, reading)


def _parts(builder: tfds.core.DatasetBuilder, splits: Iterable[str], ends: bool) -> dict[str, str]:
    hashes = {split: _split_hash(builder, split, ends) for split in splits}
    return {"version": str(builder.info.version), **hashes}


def _split_hash(builder: tfds.core.DatasetBuilder, split: str, ends: bool) -> str:
    """SHA-256 of the names and hashes (:func:`file_hash`) of a split's record files."""
    shards = _shards(builder, split)
    with ThreadPoolExecutor() as pool:
        hashes = pool.map(partial(file_hash, ends=ends), shards)
        listed = [f"{path.name} {found}\n" for path, found in zip(shards, hashes, strict=True)]
    return hashlib.sha256("".join(listed).encode()).hexdigest()


def _builder(name: str, directory: str | None) -> tfds.core.DatasetBuilder:
    if directory and paths.in_bucket(paths.path(directory)):
        raise InputError(
            f"data.directory={directory}: ArrayRecord files are read from a file system; copy them "
            "to one or mount the bucket."
        )
    try:
        builder = read_only_builder.builder_from_files(name, data_dir=directory)
    except ValueError as error:
        known = tfds.list_builders(with_community_datasets=False)
        if name.partition("/")[0].partition(":")[0] not in known:
            raise InputError(f"TFDS has no data set {name!r}: {suggest(name, known)}") from error
        raise InputError(_how_to_prepare(name, directory)) from error
    formats = {file_format.value for file_format in builder.info.available_file_formats()}
    if "array_record" not in formats:
        raise InputError(_how_to_prepare(name, directory))
    return builder


def _features(builder: tfds.core.DatasetBuilder, place: str) -> dict[str, Any]:
    """The features of a set by name, among them an image and its label.

    Raises:
        InputError: if one of the two is missing or of another kind.
    """
    features = dict(builder.info.features)
    image, label = features.get("image"), features.get("label")
    if not (isinstance(image, tfds.features.Image) and isinstance(label, tfds.features.ClassLabel)):
        raise InputError(
            f"tfds:{place} has no features `image` and `label`, only {list(features)}."
        )
    return features


def _how_to_prepare(name: str, directory: str | None) -> str:
    place = directory or constants.DATA_DIR
    option = f" --directory={directory}" if directory else ""
    return (
        f"tfds:{name} is not prepared as ArrayRecord files under {place}: run once `python -m "
        f'jaxmatch.data.prepare {name}{option}`, which needs pip install "jaxmatch[prepare]".'
    )


def _shards(builder: tfds.core.DatasetBuilder, split: str) -> list[Path]:
    """The record files of a split.

    Raises:
        InputError: if one is not there.
    """
    shards = [Path(path) for path in builder.info.splits[split].filepaths]
    if missing := [path for path in shards if not path.is_file()]:
        raise InputError(f"tfds:{builder.info.name} lacks {missing[0]}; prepare it anew.")
    return shards


def _examples(builder: tfds.core.DatasetBuilder, split: str) -> Any:
    """The examples of a split, with encoded images.

    Raises:
        InputError: if one of its files is not there.
    """
    _shards(builder, split)
    skip = {"image": tfds.decode.SkipDecoding()}
    return builder.as_data_source(split=split, decoders=skip)


def _read(
    builder: tfds.core.DatasetBuilder,
    splits: list[str],
    size: image_files.Size,
    reading: Reading,
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """All images [n h w 3] uint8 of some splits, labels [n] int32 and file names, if known.

    Raises:
        InputError: if a record is damaged.
    """

    def decode(examples: Any, chunk: int) -> tuple[np.ndarray, list[int], list[str]]:
        numbers = range(chunk * CHUNK, min((chunk + 1) * CHUNK, len(examples)))
        records = [_whole(record) for record in examples.__getitems__(list(numbers))]
        contents = (record["image"] for record in records)
        decoded = [image_files.read(file, size, reading.share, reading.levels) for file in contents]
        return (
            np.stack(decoded),
            [record["label"] for record in records],
            [name for record in records if (name := _file_name(record))],
        )

    sources = [_examples(builder, split) for split in splits]
    with _damage_told(f"tfds:{builder.info.name}"), ThreadPoolExecutor() as pool:
        parts = [
            pool.submit(decode, examples, chunk)
            for examples in sources
            for chunk in range(math.ceil(len(examples) / CHUNK))
        ]
        images, labels, names = zip(*(part.result() for part in parts), strict=True)
    labels = np.concatenate(labels).astype(np.int32)
    known = tuple(name for part in names for name in part)
    return np.concatenate(images), labels, known if len(known) == len(labels) else ()


def _whole(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """The record; one of a file that was cut off has no image.

    Raises:
        ValueError: if it has none.
    """
    if record["image"] is None:
        raise ValueError("a file is cut off")
    return record


@contextlib.contextmanager
def _damage_told(what: str) -> Iterator[None]:
    """Name what cannot be read; array_record and TFDS raise several kinds of errors on damage."""
    try:
        yield
    except Exception as error:
        raise InputError(f"{what} cannot be read ({error}); prepare it anew.") from error


def _file_name(record: Mapping[str, Any]) -> str:
    """The name of an example's file; empty if the set does not keep it."""
    return next((record[key].decode() for key in FILE_NAMES if key in record), "")


def _lazy(
    builder: tfds.core.DatasetBuilder,
    splits: list[str],
    size: image_files.Size,
    reading: Reading,
) -> tuple[LazyImages, np.ndarray, tuple[str, ...]]:
    """The images of some splits, not yet read, their labels [n] int32 and file names, if known."""
    records = TfdsRecords(
        name_of_set=builder.info.name, splits=tuple(_examples(builder, split) for split in splits)
    )
    found = [_index(builder, split) for split in splits]
    labels = np.concatenate([labels for labels, _ in found])
    names = tuple(name for _, names in found for name in names.tolist())
    images = LazyImages(
        records=records,
        rows=np.arange(len(records)),
        size=size,
        share=reading.share,
        levels=reading.levels,
    )
    return images, labels, names if len(names) == len(labels) else ()


def _index(builder: tfds.core.DatasetBuilder, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Labels [n] int32 and file names [n] (or none) of a split, the same for all processes.

    They are inside the records. So one process once reads all records, 144 GB for ImageNet, and
    keeps the result beside the prepared files, or else in the user's cache.

    Raises:
        InputError: if a process has other prepared files than process 0.
    """
    shards = _shards(builder, split)
    written = [(path.name, path.stat().st_size) for path in shards]
    hosts.check_same(f"prepared {builder.info.name}", repr(written))
    labels, names = hosts.leaders_arrays(lambda: _read_index(builder, split, written))
    return labels, names


def _read_index(
    builder: tfds.core.DatasetBuilder, split: str, written: list[tuple[str, int]]
) -> list[np.ndarray]:
    """Labels and names of a split; ``written`` has name and size of each prepared file."""
    digest = hashlib.sha256(repr((str(builder.data_dir), written)).encode()).hexdigest()[:16]
    beside = Path(builder.data_dir) / f"jaxmatch-{split}-{digest}.npz"
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "jaxmatch"
    files = (beside, cache / beside.name)
    examples = _examples(builder, split)
    for file in files:
        if (found := _kept(file, len(examples))) is not None:
            return found
    log.warning("Reading the labels of %d images of %s, once.", len(examples), builder.info.name)

    def read(chunk: int) -> list[tuple[int, str]]:
        numbers = range(chunk * CHUNK, min((chunk + 1) * CHUNK, len(examples)))
        return [
            (int(record["label"]), _file_name(record))
            for record in map(_whole, map(examples.__getitem__, numbers))
        ]

    with _damage_told(f"The labels of tfds:{builder.info.name}"), ThreadPoolExecutor() as pool:
        parts = pool.map(read, range(math.ceil(len(examples) / CHUNK)))
        found = [pair for part in parts for pair in part]
    labels = np.array([label for label, _ in found], np.int32)
    names = np.array([name for _, name in found if name], str)
    for file in files:
        # No process number: another container on the same folder may have the same one.
        partial = file.with_suffix(f".{uuid.uuid4().hex}.partial")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as opened:
                np.savez(opened, labels=labels, names=names)
            partial.replace(file)
            break
        except OSError:  # the user cannot write to the data folder
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
    return [labels, names]


def _kept(file: Path, count: int) -> list[np.ndarray] | None:
    """Labels and names of ``count`` examples that an earlier run wrote; None if there are none."""
    if not file.exists():
        return None
    try:
        # NumPy would leave the handle of a damaged file open if it opened the file itself.
        with np.load(io.BytesIO(file.read_bytes()), allow_pickle=False) as arrays:
            labels, names = arrays["labels"], arrays["names"]
        fits = labels.shape == (count,) and names.shape in ((0,), (count,))
        if fits and labels.dtype == np.int32:
            return [labels, names]
    # NumPy raises more errors on damaged files than it documents.
    except Exception:
        log.debug("%s", file, exc_info=True)
    log.warning("%s is damaged; it is written again.", file)
    return None
