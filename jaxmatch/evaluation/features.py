"""Frozen features of all images of a data set, computed once and kept on disk, memory-mapped.

A cache is a folder of NumPy files: ``features.npy`` [n d] float32, ``ids.npy`` [n] int64, sorted,
``readable.npy`` [n] bool, and ``features.json``, which says of which weights and images they are.
It holds every labeled, unlabeled, validation and test image by its place in the data set, so that
runs with other labels, seeds or validation sets share it if their input has the same scale
(``data.mean``, ``data.std``). The features are as the network pools them: what reads them
normalises them.
"""

import json
import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from jaxmatch.config.dotted import flatten
from jaxmatch.config.stages import stages_of
from jaxmatch.data.lazy import READ, Images, LazyImages, left_out
from jaxmatch.data.record import file_hashes
from jaxmatch.errors import InputError
from jaxmatch.evaluation import encoder
from jaxmatch.evaluation.classifier import load
from jaxmatch.evaluation.encoder import Encoder
from jaxmatch.evaluation.forward import BATCH, make_features
from jaxmatch.record import run_data
from jaxmatch.record.data import Data
from jaxmatch.record.settled import settled, standardized
from jaxmatch.runtime import paths
from jaxmatch.runtime.json_files import damaged, disk_error, read_object, write_json
from jaxmatch.weights import transfer

log = logging.getLogger(__name__)

FOLDER = Path("runs/features")  # of caches whose place nobody chose
FILE = "features.json"
FORMAT = 1
# Ids of images in arrays of their own: a test set, and a validation set that the source has.
TEST, VALIDATION = 2**40, 2**41
ADVICE = "remove the folder, and the same command computes the features again"


class Part(NamedTuple):
    """Some images of a data set."""

    images: Images  # [n h w 3] uint8
    ids: np.ndarray  # [n] int64, one for each image of the data set


class Rows(NamedTuple):
    """Features of some images."""

    features: np.ndarray  # [n d] float32
    readable: np.ndarray  # [n] bool; the features of unreadable images are 0


@dataclass(frozen=True, kw_only=True)
class Cache:
    """The features of all images of a data set.

    Attributes:
        folder: of the files.
        ids: [n] int64, sorted.
        features: [n d] float32, on disk until they are read.
        readable: [n] bool.
    """

    folder: Path
    ids: np.ndarray
    features: np.ndarray
    readable: np.ndarray

    def of(self, ids: np.ndarray) -> Rows:
        """The features of images by their :func:`parts` ids [k].

        Raises:
            InputError: if some are not there.
        """
        at = np.minimum(np.searchsorted(self.ids, ids), len(self.ids) - 1)
        if (self.ids[at] != ids).any():
            raise InputError(f"{self.folder} lacks features of some images; {ADVICE}.")
        return Rows(np.asarray(self.features[at], np.float32), self.readable[at])


def parts(data: Data) -> dict[str, Part]:
    """All images of a run's data with their ids: "training", "test" and, if any, "validation".

    The images of a folder have their place in its listing as id. So do the training images of other
    sources; their test and validation images are numbered from :data:`TEST`, :data:`VALIDATION`.
    """
    source, listed = data.source, data.source.listed
    tests = np.array(listed.test, np.int64) if listed else TEST + np.arange(len(source.test_images))
    found = {
        "training": Part(source.images, source.rows),
        "test": Part(source.test_images, tests),
    }
    if data.validation_images is not None:
        rows = np.array(data.validation_rows, np.int64)
        own = VALIDATION + np.arange(len(data.validation_images))
        found["validation"] = Part(data.validation_images, rows if len(rows) else own)
    return {name: part for name, part in found.items() if len(part.ids)}


def identity(data: Data) -> str:
    """SHA-256 of what identifies the images, but not their labels, of a run's data.

    These are the names and contents of the files of a folder; of another source the hashes of its
    arrays or prepared files, the rows that are used, the names of the classes, and the content of
    held-out arrays.
    """
    source, record = data.source, data.record
    content: dict[str, Any] = {"size": list(source.images.shape[1:3])}
    rows = sorted(row for part in parts(data).values() for row in part.ids.tolist())
    if source.listed is None:
        labels = ("labels", "y_")
        content["parts"] = {k: v for k, v in record.parts.items() if not k.startswith(labels)}
        # Which of them are here: a pool may be thinned, and a test set drawn or without classes.
        content["rows"] = [row for row in rows if row < TEST]
        content["classes"] = list(source.classes)
        content["held out"] = [
            sha256(np.ascontiguousarray(part.images).data).hexdigest()
            for part in parts(data).values()
            if part.ids[0] >= TEST and isinstance(part.images, np.ndarray)
        ]
    else:
        names = [source.listed.names[row] for row in rows]
        hashes = file_hashes(paths.path(source.location), names)
        content["files"] = list(zip(rows, names, hashes, strict=True))
    return sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def default_folder(network: Encoder, data: Data, of_images: str) -> Path:
    """The folder of a cache whose place nobody chose: runs/features/<data>-<8 hex>."""
    kind, _, place = data.name.partition(":")
    name = Path(place).stem or kind
    return FOLDER / f"{name}-{sha256((network.digest + of_images).encode()).hexdigest()[:8]}"


def cached(network: Encoder, data: Data, folder: Path | None = None) -> tuple[Cache, bool]:
    """The features of all images of ``data``, computed if the cache does not exist.

    Args:
        network: the encoder.
        data: of a run.
        folder: of the cache; by default :func:`default_folder`.

    Returns:
        The cache, and whether it existed.

    Raises:
        InputError: if the cache in ``folder`` is of other weights or images, or damaged; or no
            image is readable.
        DiskError: if it cannot be written.
    """
    of_images = identity(data)
    folder = folder or default_folder(network, data, of_images)
    if (found := opened(network, of_images, folder)) is not None:
        return found, True
    _write(network, data, of_images, folder)
    found = opened(network, of_images, folder)
    assert found is not None
    return found, False


def opened(network: Encoder, of_images: str, folder: Path) -> Cache | None:
    """The cache in ``folder``; None if there is none.

    Args:
        network: the encoder that it must be of.
        of_images: the :func:`identity` of the data that it must be of.
        folder: of the cache.

    Raises:
        InputError: if it is of other weights or images, or damaged.
    """
    _check_place(folder)
    about = read_object(folder / FILE, ADVICE)
    if about is None:
        if folder.is_dir() and any(folder.iterdir()):
            raise InputError(
                f"{folder} is no cache of features: it has no {FILE}; choose another folder."
            )
        return None
    if about.get("format") != FORMAT:
        raise damaged(folder / FILE, "it is of another version", ADVICE)
    if what := _difference(about, network, of_images):
        raise InputError(f"{folder} holds features of {what}: remove it, or choose another folder.")
    try:
        ids, readable = (np.load(folder / f"{name}.npy") for name in ("ids", "readable"))
        features = np.load(folder / "features.npy", mmap_mode="r")
        whole = len(ids) == len(readable) == len(features) == about["count"]
    except (OSError, ValueError, KeyError) as error:
        raise damaged(folder, str(error), ADVICE) from error
    if not whole:
        raise damaged(folder, "its files differ in length", ADVICE)
    return Cache(folder=folder, ids=ids, features=features, readable=readable)


def _difference(about: Mapping[str, Any], network: Encoder, of_images: str) -> str:
    """What a cache is of that is not wanted; "" if nothing."""
    # Caches of before lack the settings.
    old, new = (flatten(each) for each in (about.get("settings", {}), network.settings))
    size = old.get("image_shape", new["image_shape"])
    if about.get("images") != of_images and size == new["image_shape"]:
        return f"other images ({about.get('data')})"
    if about.get("weights") == network.digest:
        return ""
    changed = [key for key in new if key in old and old[key] != new[key]]
    if changed:
        return f"other settings ({changed[0]}={old[changed[0]]}, now {new[changed[0]]})"
    return f"another network ({about.get('network')})"


def _check_place(folder: Path) -> None:
    if paths.in_bucket(folder):
        raise InputError(f"{folder}: a cache is memory-mapped, so it needs a folder on a disk.")
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; name a folder for the features.")


def _write(network: Encoder, data: Data, of_images: str, folder: Path) -> None:
    """Compute all features into a new cache, which appears whole or not at all."""
    found = parts(data)
    ids = np.concatenate([part.ids for part in found.values()])
    order = np.empty(len(ids), np.int64)  # the row of each image in the cache
    order[np.argsort(ids, kind="stable")] = np.arange(len(ids))
    try:
        paths.make_folder(folder.parent)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".features-") as name:
            place = Path(name) / "whole"
            place.mkdir()
            readable, features, first = np.zeros(len(ids), bool), None, 0
            for rows in compute(network, [part.images for part in found.values()]):
                if features is None:
                    features = np.lib.format.open_memmap(
                        place / "features.npy", "w+", np.float32, (len(ids), rows.features.shape[1])
                    )
                at = order[first : first + len(rows.readable)]
                features[at], readable[at] = rows
                first += len(at)
            assert features is not None
            features.flush()
            width = features.shape[1]
            del features
            np.save(place / "ids.npy", np.sort(ids))
            np.save(place / "readable.npy", readable)
            about = {
                "format": FORMAT,
                "weights": network.digest,
                "settings": network.settings,
                "images": of_images,
                "network": network.name,
                "data": data.name,
                "count": len(ids),
                "width": width,
                "normalized": False,
            }
            write_json(place / FILE, about)
            place.replace(folder)  # which is at most an empty folder
    except OSError as error:
        raise disk_error(folder, error) from error


def compute(network: Encoder, images: Sequence[Images]) -> Iterator[Rows]:
    """Yield the features of successive images, some at a time.

    The names of unreadable ones are logged at the end.

    Raises:
        InputError: if no image is readable, or, under ``data.strict``, one is not.
    """
    run = make_features(network.program)
    total = sum(map(len, images))
    size, lost = min(BATCH, total), total
    unreadable: dict[int, list[int]] = {}  # rows by the position of their images
    buffer = np.zeros((size, *network.program.image_shape), np.uint8)
    flags, filled = np.ones(size, bool), 0

    def rows() -> Rows:
        found = run(network.variables, buffer).values[:filled].astype(np.float32)
        found[~flags[:filled]] = 0
        return Rows(found, flags[:filled].copy())

    for number, some in enumerate(images):
        first = 0
        while first < len(some):
            taken = np.arange(first, min(len(some), first + size - filled))
            place = slice(filled, filled + len(taken))
            if isinstance(some, LazyImages):
                buffer[place], state = some.read(taken)
                flags[place] = state == READ
                if not flags[place].all():
                    unreadable.setdefault(number, []).extend(some.rows[taken[~flags[place]]])
            else:
                buffer[place], flags[place] = some[taken], True
            first, filled = taken[-1] + 1, filled + len(taken)
            lost -= int(flags[place].sum())
            if filled == size:
                yield rows()
                filled = 0
    if filled:
        yield rows()
    for number, bad in unreadable.items():
        some = images[number]
        assert isinstance(some, LazyImages)
        listed = left_out(some.records, map(int, bad), some.levels)
        if network.program.config.data.strict or lost == total:
            raise InputError(f"Not readable as images ({listed}).")
        log.warning("Left out, not readable as images (%s).", listed)


def of_config(config: ConfigDict, folder: Path | None = None) -> tuple[Mapping[str, Any], bool]:
    """Cache the features that the encoder of ``config.init_from`` has for the data of ``config``.

    Args:
        config: of a run; of a run in stages the last stage counts.
        folder: of the cache; by default :func:`default_folder`.

    Returns:
        As :func:`about`, and whether the cache existed.

    Raises:
        InputError: as :func:`cached`, or if there is no such network or data.
        DiskError: if the cache cannot be written.
    """
    *_, last = stages_of(config).values()
    chosen, _ = settled(last)
    if not chosen.init_from or chosen.init_from.startswith(transfer.STAGE):
        raise InputError(
            "there is no network to take features from: give --config.init_from=RUN_OR_FILE, or "
            "--workdir=RUN of a trained run."
        )
    data = run_data.load_new(chosen)
    chosen = standardized(chosen, data.source.images)
    network = encoder.of_init(chosen, data.facts(), Path())
    cache, existed = cached(network, data, folder)
    return about(cache, network, data), existed


def of_run(
    workdir: str | Path,
    step: int | str | None = None,
    place: str = "",
    folder: Path | None = None,
) -> tuple[Mapping[str, Any], bool]:
    """Cache the features that the network of a run, which it reports, has for the run's data.

    Args:
        workdir: the run folder; of a run in stages the last stage counts.
        step: the checkpoint's step, "best" or "newest"; by default as in
            :func:`jaxmatch.evaluation.classifier.load`.
        place: where the data is now, if it has moved.
        folder: of the cache; by default :func:`default_folder`.

    Returns:
        As :func:`of_config`.

    Raises:
        InputError: as :func:`cached`, or if there is no such run or data.
        DiskError: if the cache cannot be written.
    """
    classifier = load(workdir, step)
    data = run_data.load_recorded(classifier.config, classifier.folder, place=place)
    network = encoder.of_run(classifier)
    cache, existed = cached(network, data, folder)
    return about(cache, network, data), existed


def gathered(network: Encoder, images: Images, cache: Cache | None, ids: np.ndarray) -> Rows:
    """The features of ``images`` [n], whose ids are ``ids`` [n], of a cache or computed now."""
    if cache is not None:
        return cache.of(ids)
    if not len(ids):
        return Rows(np.zeros((0, 0), np.float32), np.zeros(0, bool))
    rows = list(compute(network, [images]))
    return Rows(*(np.concatenate(each) for each in zip(*rows, strict=True)))


def about(cache: Cache, network: Encoder, data: Data) -> Mapping[str, Any]:
    """What a cache holds, as a JSON object."""
    return {
        "folder": str(cache.folder),
        "network": network.name,
        "data": data.name,
        "count": len(cache.ids),
        "unreadable": int((~cache.readable).sum()),
        "width": int(cache.features.shape[1]),
        "weights": network.digest,
    }
