"""Turns image files into uint8 arrays of one size: scaled, centre cropped, three channels."""

import hashlib
import io
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from jaxmatch.data import encoded
from jaxmatch.data.encoded import Unreadable
from jaxmatch.data.levels import DEFAULT, SIXTEEN_BITS, Levels, Span, to_rgb
from jaxmatch.errors import InputError, some
from jaxmatch.runtime import paths

LOOKED_AT = 100  # images whose sizes tell those of a data set
DEFAULT_SIZE = 32  # for images without a common size; the size of the CIFAR networks

Size = tuple[int, int]  # height, width
log = logging.getLogger(__name__)

CAMERA_BITS = (10, 12, 14)  # of levels that files of 16 bits often hold


class Facts(NamedTuple):
    """What a file was before it became an image.

    Attributes:
        size: height and width, upright.
        kind: the kind of its pixels in words, such as "16-bit gray".
        span: the range of its levels; None for levels of 8 bits.
        several: whether the file has more frames or pages, which are not used.
    """

    size: Size
    kind: str
    span: Span | None
    several: bool


class Picture(NamedTuple):
    """A decoded file."""

    image: Image.Image  # upright, of the mode RGB
    facts: Facts


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
    levels = Levels.of((background,) if isinstance(background, int) else background, white)
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
        raise Unreadable(f"cannot be opened ({paths.reason(error).lower()})") from error


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
    return Picture(image, Facts((image.height, image.width), rgb.kind, rgb.span, several))


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
            with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as image:
                found.append((image.height, image.width))
        except Exception:
            continue
    if not found:
        raise InputError("There are no readable images among the given files.")
    return found


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """The content of some files.

    Attributes:
        names: of all files, for messages.
        images: [n h w 3] uint8, the readable images.
        reasons: why each file is left out; "" for the readable ones.
        sizes: bytes of each file; 0 if it cannot be read at all.
        hashes: SHA-256 of each file in hexadecimal.
        sizes_found: how many images have each (height, width), before they are resized.
        modes: how many images have each kind of pixels, such as "RGB" or "16-bit gray".
        notes: sentences about anything that a user may not expect.
    """

    names: Sequence[str]
    images: np.ndarray
    reasons: tuple[str, ...]
    sizes: tuple[int, ...]
    hashes: tuple[str, ...]
    sizes_found: Mapping[Size, int]
    modes: Mapping[str, int]
    notes: tuple[str, ...]

    @property
    def readable(self) -> tuple[bool, ...]:
        """Whether each file is an image."""
        return tuple(not reason for reason in self.reasons)

    @property
    def left_out(self) -> dict[str, tuple[str, ...]]:
        """The names of the files that are no readable images, by the reason."""
        found: dict[str, list[str]] = {}
        for name, reason in zip(self.names, self.reasons, strict=True):
            if reason:
                found.setdefault(reason, []).append(name)
        return {reason: tuple(names) for reason, names in found.items()}

    def complain(self, strict: bool) -> None:
        """Log the first names of unreadable files, by the reason.

        Raises:
            InputError: if no file is readable, or, with ``strict``, if one is unreadable.
        """
        listed = "; ".join(f"{some(names)} ({reason})" for reason, names in self.left_out.items())
        if listed and strict:
            raise InputError(f"Not readable as images: {listed}.")
        if not len(self.images):
            why = f": {listed}" if listed else ""
            raise InputError(f"There are no readable images among the given files{why}.")
        if listed:
            log.warning("Left out, not readable as images: %s", listed)


class Block(NamedTuple):
    """Some readable images of many files.

    Attributes:
        names: of the images.
        images: [n h w 3] uint8.
        left_out: the names of unreadable files, by the reason, since the block before.
    """

    names: Sequence[str]
    images: np.ndarray
    left_out: Mapping[str, tuple[str, ...]]


class _Read(NamedTuple):
    """What was found in a file."""

    image: np.ndarray | None
    reason: str = ""
    length: int = 0
    hash: str = ""
    facts: Facts | None = None
    constant: bool = False


def read_files(
    files: Sequence[Path],
    fitting: Fitting,
    levels: Levels = DEFAULT,
    names: Sequence[str] | None = None,
) -> Loaded:
    """Read all of ``files``.

    Args:
        files: to read.
        fitting: to images of one size.
        levels: how pixels become 8-bit RGB.
        names: of the files, for messages; by default their paths.

    Raises:
        InputError: if the images do not fit into memory.
    """
    names = [str(file) for file in files] if names is None else names
    try:
        images = np.empty((len(files), *fitting.size, 3), np.uint8)
    except (MemoryError, ValueError) as error:
        height, width = fitting.size
        raise InputError(
            f"{len(files)} images of {height} x {width} pixels do not fit into memory; give a "
            "smaller data.image_size, or data.stream=True."
        ) from error

    def load(file: Path) -> _Read:
        try:
            content = content_of(file)
        except Unreadable as error:
            return _Read(None, error.reason)
        length, hashed = len(content), hashlib.sha256(content).hexdigest()
        try:
            picture = examine(content, levels)
        except Unreadable as error:
            return _Read(None, error.reason, length, hashed)
        image = fitting.apply(picture.image)
        constant = bool((image == image[0, 0]).all())
        return _Read(image, "", length, hashed, picture.facts, constant)

    found: list[_Read] = []
    count = 0
    with ThreadPoolExecutor() as pool:
        for each in pool.map(load, files):
            if each.image is not None:
                images[count] = each.image
                count += 1
            found.append(each._replace(image=None))
    facts = [each.facts for each in found if each.facts is not None]
    return Loaded(
        names=names,
        images=images[:count],
        reasons=tuple(each.reason for each in found),
        sizes=tuple(each.length for each in found),
        hashes=tuple(each.hash for each in found),
        sizes_found=Counter(each.size for each in facts),
        modes=Counter(each.kind for each in facts),
        notes=(
            *_notes_about_levels(facts),
            *_notes_about_files(
                "hold several frames or pages, of which the first is used",
                [
                    name
                    for name, each in zip(names, found, strict=True)
                    if each.facts and each.facts.several
                ],
            ),
            *_notes_about_files(
                "have one color everywhere",
                [name for name, each in zip(names, found, strict=True) if each.constant],
            ),
        ),
    )


def read_blocks(
    files: Sequence[Path], fitting: Fitting, levels: Levels, size: int
) -> Iterator[Block]:
    """Read files in blocks of ``size`` images, so that few of them are in memory at a time.

    The last block is smaller if the files end. It is empty only if there is no readable file.
    """
    names: list[str] = []
    left_out: dict[str, tuple[str, ...]] = {}
    images = np.empty((0, *fitting.size, 3), np.uint8)
    for start in range(0, len(files), size):
        loaded = read_files(files[start : start + size], fitting, levels)
        names += [name for name, good in zip(loaded.names, loaded.readable, strict=True) if good]
        images = np.concatenate([images, loaded.images])
        for reason, some_names in loaded.left_out.items():
            left_out[reason] = (*left_out.get(reason, ()), *some_names)
        if len(names) > size:  # otherwise the block may be the last one
            yield Block(names[:size], images[:size], left_out)
            names, images, left_out = names[size:], images[size:], {}
    yield Block(names, images, left_out)


def _notes_about_files(what: str, names: Sequence[str]) -> Iterator[str]:
    if names:
        yield f"{len(names):,} of the images {what}: {some(names)}."


def _notes_about_levels(facts: Sequence[Facts]) -> Iterator[str]:
    """A sentence for each kind of levels of more than 8 bits."""
    groups: dict[tuple[str, float], list[Span]] = {}
    for each in facts:
        if each.span is not None:
            groups.setdefault((each.kind, each.span.white), []).append(each.span)
    for (kind, white), spans in groups.items():
        low, high = min(span.low for span in spans), max(span.high for span in spans)
        text = (
            f"{len(spans):,} of the images are {kind}, with levels from {low:.6g} to {high:.6g}; "
            f"{white:.10g} is white."
        )
        bits = next((bits for bits in CAMERA_BITS if high < 2**bits), None)
        if white == SIXTEEN_BITS and bits:
            remedy = (
                f"set data.white_level={2**bits - 1}"
                if kind.startswith("16-bit gray")
                else "save them with 8 bits"
            )
            text += f" They are dark, as levels of {bits} bits are in files of 16; {remedy}."
        yield text
