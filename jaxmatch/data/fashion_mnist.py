"""Fashion-MNIST, from the files in the IDX format that its authors publish.

Xiao, Rasul & Vollgraf, "Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning
Algorithms", 2017, https://arxiv.org/abs/1708.07747. Debian's package ``dataset-fashion-mnist``
installs them.
"""

import gzip
import math
import zlib
from pathlib import Path

import numpy as np

from jaxmatch.data.record import array_hash
from jaxmatch.data.source import Reading, Source
from jaxmatch.errors import InputError

INSTALLED = Path("/usr/share/datasets/fashion-mnist")
CLASSES = (
    *("T-shirt", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag"),
    "Ankle boot",
)
SIDE = 28
UNSIGNED_BYTES = 8  # the third byte of an IDX file


def load(place: str, reading: Reading) -> Source:
    """The 60,000 + 10,000 images of 28x28 pixels, gray levels in three channels, in file order.

    The files ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte`` and ``t10k-...``, with or
    without ``.gz``, are read from ``reading.directory`` (``config.data.directory``), or from where
    Debian's package installs them.

    Raises:
        InputError: if a file is missing, damaged, or of another shape.
    """
    folder = Path(reading.directory) if reading.directory else INSTALLED
    arrays = {
        f"{part} {kind}": read_idx(_file(folder, f"{prefix}-{kind}-idx{axes}-ubyte"))
        for part, prefix in (("train", "train"), ("test", "t10k"))
        for kind, axes in (("images", 3), ("labels", 1))
    }
    for part in ("train", "test"):
        images, labels = arrays[f"{part} images"], arrays[f"{part} labels"]
        if images.shape != (len(labels), SIDE, SIDE) or labels.max(initial=0) >= len(CLASSES):
            raise InputError(
                f"{folder} has {part} images {images.shape} and labels {labels.shape} up to "
                f"{labels.max(initial=0)}, which is not Fashion-MNIST; get its files again."
            )
    images, test_images = (
        np.repeat(arrays[f"{part} images"][..., None], 3, axis=-1) for part in ("train", "test")
    )
    labels, test_labels = (arrays[f"{part} labels"].astype(np.int32) for part in ("train", "test"))
    return Source(
        name="fashion_mnist",
        classes=CLASSES,
        images=images,
        labels=labels,
        rows=np.arange(len(labels)),
        test_images=test_images,
        test_labels=test_labels,
        location=str(folder),
        parts={name: array_hash(array) for name, array in arrays.items()},
    )


def sizes(place: str, reading: Reading) -> list[tuple[int, int]]:
    """(height, width) of the images, without reading them."""
    return [(SIDE, SIDE)]


def read_idx(file: Path) -> np.ndarray:
    """The array of bytes in a file of the IDX format, of any shape.

    Raises:
        InputError: if the file cannot be read, or does not hold bytes of the shape that it states.
    """
    try:
        content = file.read_bytes()
        if file.suffix == ".gz":
            content = gzip.decompress(content)
        axes = content[3]
        shape = np.frombuffer(content, ">i4", axes, 4)
        start = 4 + 4 * axes
        if content[:3] != bytes((0, 0, UNSIGNED_BYTES)) or len(content) - start != math.prod(shape):
            raise ValueError("its header does not fit its length")
    except (OSError, EOFError, ValueError, IndexError, zlib.error) as error:
        raise InputError(f"{file} cannot be read as an IDX file ({error}); get it again.") from None
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _file(folder: Path, name: str) -> Path:
    for file in (folder / name, folder / f"{name}.gz"):
        if file.exists():
            return file
    raise InputError(
        f"Fashion-MNIST's {name} is not in {folder}: install Debian's package "
        "dataset-fashion-mnist, or name the folder of the files by "
        "--config.data.directory=FOLDER."
    )
