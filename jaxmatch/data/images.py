"""Turns image files into uint8 arrays of one size: scaled, centre cropped, three channels."""

import hashlib
import io
import logging
import math
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from jaxmatch.errors import InputError

LOOKED_AT = 100  # images whose sizes tell those of a data set
DEFAULT_SIZE = 32  # for images without a common size; the size of the CIFAR networks

Size = tuple[int, int]  # height, width

logger = logging.getLogger(__name__)


def decode(file: Path | bytes) -> Image.Image:
    """Decode a file, given by path or content, to an upright RGB image.

    Raises:
        InputError: naming the path, if it is not a readable image, or has more pixels than Pillow
            considers safe (:data:`PIL.Image.MAX_IMAGE_PIXELS`).
    """
    try:
        with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as opened:
            if opened.width * opened.height > (Image.MAX_IMAGE_PIXELS or math.inf):
                raise ValueError(f"{opened.width} x {opened.height} pixels are too many")
            opened.load()
            ImageOps.exif_transpose(opened, in_place=True)
            image: Image.Image = opened
        if image.mode.startswith("I;16"):  # Pillow would clip, not scale, its levels
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        elif image.has_transparency_data:  # Pillow cannot convert such a palette to RGB directly
            image = image.convert("RGBA")
        return image if image.mode == "RGB" else image.convert("RGB")  # convert always copies
    # Pillow raises more errors on damaged files than it documents.
    except Exception as error:
        name = "an encoded image" if isinstance(file, bytes) else file
        raise InputError(f"Cannot read {name} as an image: {error}.") from error


def read(file: Path | bytes, size: Size | None = None, share: float = 1.0) -> np.ndarray:
    """Decode a file to [h w 3] uint8; if ``size`` is given, scale and crop it by :func:`fit`.

    Raises:
        InputError: if the file is not a readable image (:func:`decode`).
    """
    image = decode(file)
    return np.asarray(image if size is None else fit(image, size, share))


def fit(image: Image.Image, size: Size, share: float = 1.0) -> Image.Image:
    """Crop the largest centred rectangle with the shape of ``size`` and scale it (bicubic).

    Only the central ``share`` of the rectangle's sides is kept. ImageNet networks are tested with
    0.875: the 224 central pixels of 256.
    """
    height, width = size
    border = (1 - share) / 2
    return ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC, border)


def resize(images: np.ndarray, size: Size) -> np.ndarray:
    """:func:`fit` for an array [n h w 3] uint8."""
    if images.shape[1:3] == size:
        return images
    resized = np.empty((len(images), *size, 3), np.uint8)
    for number, image in enumerate(images):
        resized[number] = np.asarray(fit(Image.fromarray(image), size))
    return resized


def sizes(files: Iterable[Path | bytes]) -> list[tuple[int, int]]:
    """(height, width) of the readable images among ``files``; only their headers are read.

    Raises:
        InputError: if there is no readable image.
    """
    found = []
    for file in files:
        try:
            with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as image:
                found.append((image.height, image.width))
        except Exception:
            continue
    if not found:
        raise InputError("There are no readable images among the given files.")
    return found


def image_files(paths: Iterable[Path]) -> list[Path]:
    """The files of ``paths``, and the image files under the folders of ``paths``, sorted by folder.

    A file with several names occurs once, under its first name.

    Raises:
        InputError: if a path does not exist.
    """
    known = Image.registered_extensions()
    files: dict[Path, Path] = {}
    for path in paths:
        if path.is_dir():
            found = sorted(file for file in path.rglob("*") if file.suffix.lower() in known)
        elif path.exists():
            found = [path]
        else:
            raise InputError(f"There is no file or folder {path}.")
        for file in found:
            files.setdefault(file.resolve(), file)
    return list(files.values())


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """The content of some files.

    Attributes:
        files: all files.
        images: [n h w 3] uint8, the readable images.
        readable: whether each file is an image.
        sizes: bytes of each file; 0 if it cannot be read at all.
        hashes: SHA-256 of each file in hexadecimal.
    """

    files: Sequence[Path]
    images: np.ndarray
    readable: tuple[bool, ...]
    sizes: tuple[int, ...]
    hashes: tuple[str, ...]

    def complain(self, strict: bool) -> None:
        """Log the names of unreadable files.

        Raises:
            InputError: if no file is readable, or, with ``strict``, if one is unreadable.
        """
        failed = [
            str(file) for file, good in zip(self.files, self.readable, strict=True) if not good
        ]
        names = ", ".join(failed)
        if failed and strict:
            raise InputError(f"Not readable as images: {names}.")
        if failed:
            logger.warning("Left out, not readable as images: %s", names)
        if not len(self.images):
            raise InputError("There are no readable images among the given files.")


def read_files(files: Sequence[Path], size: Size, share: float = 1.0) -> Loaded:
    """Read all of ``files``, each scaled and cut to ``size`` by :func:`fit`."""
    try:
        images = np.empty((len(files), *size, 3), np.uint8)
    except (MemoryError, ValueError) as error:
        raise InputError(
            f"{len(files)} images of {size[0]} x {size[1]} pixels do not fit into memory; give a "
            "smaller data.image_size, or data.stream=True."
        ) from error

    def load(file: Path) -> tuple[np.ndarray | None, int, str]:
        try:
            content = file.read_bytes()
        except OSError:
            return None, 0, ""
        try:
            image = read(content, size, share)
        except InputError:
            image = None
        return image, len(content), hashlib.sha256(content).hexdigest()

    readable, sizes, hashes, count = [], [], [], 0
    with ThreadPoolExecutor() as pool:
        for image, length, found in pool.map(load, files):
            readable.append(image is not None)
            sizes.append(length)
            hashes.append(found)
            if image is not None:
                images[count] = image
                count += 1
    return Loaded(
        files=files,
        images=images[:count],
        readable=tuple(readable),
        sizes=tuple(sizes),
        hashes=tuple(hashes),
    )


def read_images(
    files: Sequence[Path], size: Size, strict: bool = False, share: float = 1.0
) -> tuple[np.ndarray, list[Path]]:
    """Images [n h w 3] uint8 of ``size`` (:func:`fit`) and paths of the readable ``files``.

    The names of unreadable files are logged.

    Raises:
        InputError: if no file is readable, or, with ``strict``, if one is unreadable.
    """
    found = read_files(files, size, share)
    found.complain(strict)
    return found.images, [file for file, good in zip(files, found.readable, strict=True) if good]
