"""Image files to uint8 arrays of one size: scaled, centre cropped, three channels."""

import io
import logging
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from jaxmatch.errors import InputError

DEFAULT_SIZE = 32  # where images have no common size: that of the CIFAR networks

Size = tuple[int, int]  # height, width

logger = logging.getLogger(__name__)


def read(file: Path | bytes, size: Size | None = None) -> np.ndarray:
    """Decode a file, given by path or content, to [h w 3] uint8, of ``size`` where given.

    Raises InputError naming the path where it is not a readable image.
    """
    try:
        with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as opened:
            image = ImageOps.exif_transpose(opened)
        if image.mode.startswith("I;16"):  # Pillow would clip, not scale, its levels
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        elif image.has_transparency_data:  # a palette with transparency has no direct way to RGB
            image = image.convert("RGBA")
        image = image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        name = "an encoded image" if isinstance(file, bytes) else file
        raise InputError(f"Cannot read {name} as an image: {error}.") from error
    return np.asarray(image if size is None else fit(image, size))


def fit(image: Image.Image, size: Size) -> Image.Image:
    """Scale, bicubic, until ``size`` is just covered, and cut what is over, centred."""
    height, width = size
    return ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC)


def resize(images: np.ndarray, size: Size) -> np.ndarray:
    """:func:`fit` for an array [n h w 3] uint8."""
    if images.shape[1:3] == size:
        return images
    resized = np.empty((len(images), *size, 3), np.uint8)
    for number, image in enumerate(images):
        resized[number] = np.asarray(fit(Image.fromarray(image), size))
    return resized


def image_files(paths: Iterable[Path]) -> list[Path]:
    """The files among ``paths`` and the image files under the folders among them, each sorted.

    Raises InputError on a path that does not exist.
    """
    known = Image.registered_extensions()
    files = []
    for path in paths:
        if path.is_dir():
            files += sorted(file for file in path.rglob("*") if file.suffix.lower() in known)
        elif path.exists():
            files.append(path)
        else:
            raise InputError(f"There is no file or folder {path}.")
    return files


def read_images(
    files: Sequence[Path], size: Size, strict: bool = False
) -> tuple[np.ndarray, list[Path]]:
    """The readable ones of ``files``: images [n h w 3] uint8 of ``size`` and paths.

    Logs the names of the others. Raises InputError where there are others and ``strict``, or no
    readable file at all.
    """
    images, readable, failed = np.empty((len(files), *size, 3), np.uint8), [], []
    with ThreadPoolExecutor() as pool:
        for file, image in zip(files, pool.map(partial(_try, size=size), files), strict=True):
            if image is None:
                failed.append(file)
            else:
                images[len(readable)] = image
                readable.append(file)
    names = ", ".join(str(file) for file in failed)
    if failed and strict:
        raise InputError(f"Not readable as images: {names}.")
    if failed:
        logger.warning("Left out, not readable as images: %s", names)
    if not readable:
        raise InputError("There are no readable images among the given files.")
    return images[: len(readable)], readable


def _try(file: Path, size: Size) -> np.ndarray | None:
    try:
        return read(file, size)
    except InputError:
        return None
