"""Turns image files into uint8 arrays of one size: scaled, centre cropped, three channels."""

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from jaxmatch.data import encoded
from jaxmatch.data.encoded import Unreadable
from jaxmatch.data.levels import DEFAULT, Levels, Span, to_rgb
from jaxmatch.errors import InputError
from jaxmatch.runtime import paths

LOOKED_AT = 100  # images whose sizes tell those of a data set
DEFAULT_SIZE = 32  # for images without a common size; the size of the CIFAR networks

Size = tuple[int, int]  # height, width


class Origin(NamedTuple):
    """What a file was before it became an image.

    Attributes:
        size: height and width, upright.
        kind: the kind of its pixels in words, such as "16-bit gray".
        span: the range of its levels; None for unsigned levels of 8 bits.
        several: whether the file has more frames or pages, which are not used.
    """

    size: Size
    kind: str
    span: Span | None
    several: bool


class Picture(NamedTuple):
    """A decoded file."""

    image: Image.Image  # upright, of the mode RGB
    origin: Origin


@dataclass(frozen=True, kw_only=True)
class Native:
    """How a data set of small images of one size makes its own images from what it is given.

    Attributes:
        size: height and width of the images that it is given.
        repeat: how often it repeats each pixel, across and down.
        pad: the black pixels that it then adds at each side.
    """

    size: Size
    repeat: int = 1
    pad: int = 0

    def apply(self, images: np.ndarray) -> np.ndarray:
        """Repeat and pad images [n h w ...] of ``size``."""
        larger = images.repeat(self.repeat, axis=1).repeat(self.repeat, axis=2)
        sides = ((self.pad, self.pad), (self.pad, self.pad))
        return np.pad(larger, ((0, 0), *sides, *[(0, 0)] * (images.ndim - 3)))


@dataclass(frozen=True, kw_only=True)
class Fitting:
    """How a picture of any size becomes an image of a data set.

    Attributes:
        size: height and width of the image.
        share: the share of the sides that a centre crop keeps (:func:`fit`).
        native: what the data set does before that; a picture that has the size of its result
            already is taken as it is, and any other is first fitted to ``native.size``.
    """

    size: Size
    share: float = 1.0
    native: Native | None = None

    def apply(self, picture: Image.Image) -> np.ndarray:
        """An image [h w 3] uint8 from an RGB picture."""
        native = self.native
        if native is not None:
            height, width = (side * native.repeat + 2 * native.pad for side in native.size)
            if picture.size != (width, height):
                small = np.asarray(fit(picture, native.size))
                picture = Image.fromarray(native.apply(small[None])[0])
        return np.asarray(fit(picture, self.size, self.share))


def read_image(
    path: str | Path,
    size: Size | None = None,
    background: int | Sequence[int] = 255,
    *,
    share: float = 1.0,
    white: float | None = None,
) -> np.ndarray:
    """Read an image file as training, evaluation and ``predict`` do: [h w 3] uint8.

    The image is upright (EXIF orientation) and the first one of a file with several. Its pixels
    become 8-bit RGB by the rules of :mod:`jaxmatch.data.levels`.

    Args:
        path: of the file.
        size: height and width to scale and crop to, by :func:`fit`; None leaves the size.
        background: the level, or the three levels, behind transparent pixels.
        share: of the sides that a centre crop keeps, where ``size`` is given.
        white: the level of gray images of more than 8 bits that becomes 255; None is the largest of
            the type.

    Raises:
        InputError: with the reason, if the file is not a readable image.
    """
    parts = (background,) if np.ndim(background) == 0 else background
    levels = Levels.of(np.asarray(parts).tolist(), white)
    return read(paths.path(path), size, share, levels)


def decode(file: Path | bytes, levels: Levels = DEFAULT) -> Image.Image:
    """Decode a file, given by path or content, to an upright RGB image.

    Raises:
        InputError: with the path and the reason, if it is not a readable image.
    """
    try:
        return examine(content_of(file), levels).image
    except Unreadable as error:
        name = "an encoded image" if isinstance(file, bytes) else file
        raise Unreadable(error.reason, error.detail, name) from error


def content_of(file: Path | bytes) -> bytes:
    """The content of a file.

    Raises:
        Unreadable: if it cannot be opened.
    """
    if isinstance(file, bytes):
        return file
    try:
        return paths.read_whole(file)
    except OSError as error:
        raise Unreadable(cannot_open(error)) from error
    except ValueError as error:  # a path with a null byte
        raise Unreadable(f"cannot be opened ({error})") from error


def cannot_open(error: OSError) -> str:
    """The reason for a file that cannot be opened."""
    return f"cannot be opened ({paths.reason(error).lower()})"


def examine(content: bytes, levels: Levels) -> Picture:
    """Decode the content of a file.

    Raises:
        Unreadable: if it is not a readable image.
    """
    decoded = encoded.load(content)
    try:
        rgb = to_rgb(decoded, levels)
    except Unreadable:
        raise
    # Pillow raises more errors on damaged files than it documents.
    except Exception as error:
        raise Unreadable(encoded.DAMAGED, str(error)) from error
    image = encoded.upright(rgb.image, decoded.image)
    several = encoded.has_more_frames(decoded.image)
    return Picture(image, Origin((image.height, image.width), rgb.kind, rgb.span, several))


def read(
    file: Path | bytes, size: Size | None = None, share: float = 1.0, levels: Levels = DEFAULT
) -> np.ndarray:
    """Decode a file to [h w 3] uint8; if ``size`` is given, scale and crop it by :func:`fit`.

    Raises:
        InputError: if the file is not a readable image (:func:`decode`).
    """
    image = decode(file, levels)
    return np.asarray(image if size is None else fit(image, size, share))


def fit(image: Image.Image, size: Size, share: float = 1.0) -> Image.Image:
    """Crop the largest centred rectangle with the shape of ``size`` and scale it (bicubic).

    Only the central ``share`` of the rectangle's sides is kept. ImageNet networks are tested with
    0.875: the 224 central pixels of 256.
    """
    height, width = size
    border = (1 - share) / 2
    return ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC, border)


def resize(images: np.ndarray, size: Size, share: float = 1.0) -> np.ndarray:
    """:func:`fit` for an array [n h w 3] uint8."""
    if images.shape[1:3] == size and share == 1:
        return images
    resized = np.empty((len(images), *size, 3), np.uint8)
    for number, image in enumerate(images):
        resized[number] = np.asarray(fit(Image.fromarray(image), size, share))
    return resized


def sizes(files: Iterable[Path | bytes]) -> list[tuple[int, int]]:
    """(height, width) of the readable images among ``files``; only their headers are read.

    Raises:
        InputError: if there is no readable image.
    """
    found = []
    for file in files:
        try:
            # Pillow opens no path in a bucket by itself.
            with (
                io.BytesIO(file) if isinstance(file, bytes) else file.open("rb") as opened,
                Image.open(opened) as image,
            ):
                found.append((image.height, image.width))
        except Exception:
            continue
    if not found:
        raise InputError("There are no readable images among the given files.")
    return found
