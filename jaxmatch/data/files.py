"""Reads many image files into one array, and tells what was found in them."""

import hashlib
import logging
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxmatch.data.encoded import Unreadable
from jaxmatch.data.images import Fitting, Origin, Size, content_of, examine
from jaxmatch.data.levels import DEFAULT, SIXTEEN_BITS, Levels, Span
from jaxmatch.errors import InputError, by_reason, grouped, some

NO_IMAGES = "There are no readable images among the given files"
CAMERA_BITS = (10, 12, 14)  # of levels that files of 16 bits often hold

log = logging.getLogger(__name__)


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
        pairs = zip(self.reasons, self.names, strict=True)
        return grouped((reason, name) for reason, name in pairs if reason)

    def complain(self, strict: bool) -> None:
        """Log the first names of unreadable files, by the reason.

        Raises:
            InputError: if no file is readable, or, with ``strict``, if one is unreadable.
        """
        listed = by_reason(self.left_out)
        if listed and strict:
            raise InputError(f"Not readable as images ({listed}).")
        if not len(self.images):
            raise InputError(NO_IMAGES + (f" ({listed})." if listed else "."))
        if listed:
            log.warning("Left out, not readable as images (%s).", listed)


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
    origin: Origin | None = None
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

    found: list[_Read] = []
    count = 0
    with ThreadPoolExecutor() as pool:
        for each in pool.map(partial(_read_file, fitting=fitting, levels=levels), files):
            if each.image is not None:
                images[count] = each.image
                count += 1
            found.append(each._replace(image=None))
    origins = [each.origin for each in found if each.origin is not None]
    return Loaded(
        names=names,
        images=images[:count],
        reasons=tuple(each.reason for each in found),
        sizes=tuple(each.length for each in found),
        hashes=tuple(each.hash for each in found),
        sizes_found=_counted(each.size for each in origins),
        modes=_counted(each.kind for each in origins),
        notes=(*_notes_about_levels(origins), *_notes_about_files(names, found)),
    )


def _read_file(file: Path, fitting: Fitting, levels: Levels) -> _Read:
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
    return _Read(image, "", length, hashed, picture.origin, constant)


def read_blocks(
    files: Sequence[Path],
    fitting: Fitting,
    levels: Levels,
    size: int,
    names: Sequence[str] | None = None,
) -> Iterator[Block]:
    """Read files in blocks of ``size`` images, so that few of them are in memory at a time.

    ``names`` are those of the files in the blocks, by default their paths.
    The last block is smaller if the files end. It is empty only if there is no readable file.
    """
    names = [str(file) for file in files] if names is None else names
    read: list[str] = []
    left_out: list[tuple[str, str]] = []
    images = np.empty((0, *fitting.size, 3), np.uint8)
    for start in range(0, len(files), size):
        part = slice(start, start + size)
        loaded = read_files(files[part], fitting, levels, names[part])
        images = np.concatenate([images, loaded.images])
        pairs = list(zip(loaded.reasons, loaded.names, strict=True))
        read += [name for reason, name in pairs if not reason]
        left_out += [pair for pair in pairs if pair[0]]
        if len(read) > size:  # otherwise the block may be the last one
            yield Block(read[:size], images[:size], grouped(left_out))
            read, images, left_out = read[size:], images[size:], []
    yield Block(read, images, grouped(left_out))


def _counted(values: Iterable[Hashable]) -> dict[Any, int]:
    """How often each value occurs; the most frequent comes first."""
    return dict(Counter(values).most_common())


def _notes_about_files(names: Sequence[str], found: Sequence[_Read]) -> Iterator[str]:
    """Sentences about files with several images, and about images of one color."""
    pairs = list(zip(names, found, strict=True))
    for what, listed in (
        (
            "hold several frames or pages, of which the first is used",
            [name for name, each in pairs if each.origin and each.origin.several],
        ),
        ("have one color everywhere", [name for name, each in pairs if each.constant]),
    ):
        if listed:
            yield f"{len(listed):,} of the images {what}: {some(listed)}."


def _notes_about_levels(origins: Sequence[Origin]) -> Iterator[str]:
    """A sentence for each kind of levels that are no unsigned ones of 8 bits."""
    groups: dict[tuple[str, float, bool], list[Span]] = {}
    for each in origins:
        if each.span is not None:
            key = (each.kind, each.span.white, each.span.settable)
            groups.setdefault(key, []).append(each.span)
    for (kind, white, settable), spans in groups.items():
        low, high = min(span.low for span in spans), max(span.high for span in spans)
        text = (
            f"{len(spans):,} of the images are {kind}, with levels from {low:.6g} to {high:.6g}; "
            f"{white:.10g} is white."
        )
        bits = next((bits for bits in CAMERA_BITS if high < 2**bits), None)
        if white == SIXTEEN_BITS and bits:
            remedy = f"set data.white_level={2**bits - 1}" if settable else "save them with 8 bits"
            text += f" They are dark, as levels of {bits} bits are in files of 16; {remedy}."
        yield text
