"""TFDS data sets, prepared as ArrayRecord files, read without TensorFlow.

Storage order is that of the TFDS splits, which shuffles the order of the original files.
"""

import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core import constants, read_only_builder

from jaxmatch.data import images as image_files
from jaxmatch.data.sources import Source
from jaxmatch.errors import InputError, suggest

CHUNK = 1024  # examples that a thread decodes at a time


def load(name: str, image_size: int | None, directory: str | None, extra: bool) -> Source:
    """The splits train, unlabelled (labels -1) and, if asked for, extra; test is the test set.

    Raises InputError where the set is not prepared under ``directory`` or is not labeled images.
    """
    builder = _builder(name, directory)
    splits, features = set(builder.info.splits), dict(builder.info.features)
    image, label = features.get("image"), features.get("label")
    if not (isinstance(image, tfds.features.Image) and isinstance(label, tfds.features.ClassLabel)):
        raise InputError(f"tfds:{name} has no features `image` and `label`, only {list(features)}.")
    wanted = ["train", "test", *(["extra"] if extra else [])]
    if missing := [split for split in wanted if split not in splits]:
        raise InputError(f"tfds:{name} has no split {missing[0]!r}, only {sorted(splits)}.")
    if None in builder.info.features["image"].shape[:2]:
        image_size = image_size or image_files.DEFAULT_SIZE
    unlabeled = sorted(splits & {"unlabelled", "unlabeled"})
    training = ["train", *(["extra"] if extra else []), *unlabeled]
    size = (image_size, image_size) if image_size else None
    parts = [_read(builder, split, size) for split in training]
    images, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    test_images, test_labels = _read(builder, "test", size)
    return Source(
        name=f"tfds:{name}",
        classes=tuple(features["label"].names),
        images=images,
        labels=labels,
        rows=np.arange(len(labels)),
        test_images=test_images,
        test_labels=test_labels,
    )


def _builder(name: str, directory: str | None) -> Any:
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


def _how_to_prepare(name: str, directory: str | None) -> str:
    place = directory or constants.DATA_DIR
    option = f" --directory={directory}" if directory else ""
    return (
        f"tfds:{name} is not prepared as ArrayRecord files under {place}: run once `python -m "
        f'jaxmatch.data.prepare {name}{option}`, which needs pip install "jaxmatch[prepare]".'
    )


def _read(builder: Any, split: str, size: image_files.Size | None) -> tuple[np.ndarray, np.ndarray]:
    """All images [n h w 3] uint8 and labels [n] int32 of a split."""
    skip = {"image": tfds.decode.SkipDecoding()}
    examples = builder.as_data_source(split=split, decoders=skip)

    def decode(chunk: int) -> tuple[np.ndarray, list[int]]:
        numbers = range(chunk * CHUNK, min((chunk + 1) * CHUNK, len(examples)))
        records = examples.__getitems__(list(numbers))
        images = np.stack([image_files.read(record["image"], size) for record in records])
        return images, [record["label"] for record in records]

    with ThreadPoolExecutor() as pool:
        parts = list(pool.map(decode, range(math.ceil(len(examples) / CHUNK))))
    images, labels = zip(*parts, strict=True)
    return np.concatenate(images), np.concatenate(labels).astype(np.int32)
