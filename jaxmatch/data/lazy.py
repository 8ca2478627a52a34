"""Images that stay encoded on disk until they are read, and are indexed like an array."""

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import DTypeLike

from jaxmatch.data import images as image_files
from jaxmatch.data.encoded import Unreadable
from jaxmatch.data.levels import DEFAULT, Levels
from jaxmatch.errors import InputError, by_reason, grouped

SUBSTITUTES = 64  # unreadable images in a row after which the data set counts as missing
# States of an image: it was read, a later image replaced it, or neither.
READ, REPLACED, MISSING = range(3)


class Records(Protocol):
    """Encoded images by row. They are pickled for the workers of a loader."""

    def __len__(self) -> int:
        """The number of rows."""
        ...

    def read(self, row: int) -> bytes:
        """The encoded image.

        Raises:
            OSError: if it cannot be read.
        """
        ...

    def name(self, row: int) -> str:
        """The name of a row for messages."""
        ...


@dataclass(frozen=True, kw_only=True)
class Files:
    """Images in one file each."""

    root: Path
    paths: tuple[str, ...]  # relative to root

    def __len__(self) -> int:
        """The number of files."""
        return len(self.paths)

    def read(self, row: int) -> bytes:
        """The content of a file."""
        return (self.root / self.paths[row]).read_bytes()

    def name(self, row: int) -> str:
        """The path of a file."""
        return str(self.root / self.paths[row])


class Examples(Protocol):
    """The examples of a split by row."""

    def __len__(self) -> int:
        """The number of examples."""
        ...

    def __getitem__(self, row: int, /) -> dict[str, Any]:
        """All features of an example."""
        ...


@dataclass(frozen=True, kw_only=True)
class TfdsRecords:
    """The images of TFDS splits, one split after the other."""

    name_of_set: str
    splits: tuple[Examples, ...]  # data sources of TFDS with encoded images

    def __len__(self) -> int:
        """The number of examples."""
        return sum(map(len, self.splits))

    def read(self, row: int) -> bytes:
        """The encoded image of an example.

        Raises:
            OSError: if it cannot be read.
        """
        try:
            return self.example(row)["image"]
        # On a damaged record array_record and TFDS raise several kinds of errors.
        except Exception as error:
            raise OSError(f"{self.name(row)}: {error}") from error

    def name(self, row: int) -> str:
        """The number of an example."""
        return f"image {row} of {self.name_of_set}"

    def example(self, row: int) -> dict[str, Any]:
        """All features of an example."""
        for split in self.splits:
            if row < len(split):
                return split[row]
            row -= len(split)
        raise IndexError(row)


@dataclass(frozen=True, kw_only=True, eq=False)
class LazyImages:
    """Images [n h w 3] uint8; a read decodes, scales and centre crops them.

    ``images[index]`` selects images without a read; ``numpy.asarray(images)`` reads them.
    """

    records: Records
    rows: np.ndarray  # [n] int64
    size: image_files.Size
    share: float = 1.0  # of the images' sides that a crop keeps (images.fit)
    levels: Levels = DEFAULT

    dtype = np.dtype(np.uint8)
    ndim = 4

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """The shape of the array."""
        return len(self.rows), *self.size, 3

    def __len__(self) -> int:
        """The number of images."""
        return len(self.rows)

    def __getitem__(self, index: slice | np.ndarray | Sequence[int]) -> "LazyImages":
        """Select images by a slice, positions or a mask, as NumPy does."""
        return replace(self, rows=self.rows[index])

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> np.ndarray:
        """Read all images.

        Raises:
            InputError: naming the images that are unreadable.
        """
        found, state = self.read(np.arange(len(self)))
        if (missing := state != READ).any():
            listed = left_out(self.records, self.rows[missing].tolist(), self.levels)
            raise InputError(f"Not readable as images ({listed}).")
        return found if dtype is None else found.astype(dtype)

    def read(self, positions: np.ndarray, replace: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """Read the images at ``positions`` [b]: [b h w 3] uint8, and the state [b] uint8 of each.

        With ``replace`` the next readable image replaces an unreadable one, as in training;
        otherwise an unreadable image is black. Threads decode the images, because Pillow and
        libjpeg release the interpreter's lock.
        """
        found = np.zeros((len(positions), *self.size, 3), np.uint8)
        state = np.full(len(positions), MISSING, np.uint8)

        def read(place: int) -> None:
            for tried in range(SUBSTITUTES if replace else 1):
                row = int(self.rows[(positions[place] + tried) % len(self)])
                try:
                    content = self.records.read(row)
                    found[place] = image_files.read(content, self.size, self.share, self.levels)
                except (OSError, InputError):
                    continue
                state[place] = REPLACED if tried else READ
                return

        with ThreadPoolExecutor() as pool:
            for _ in pool.map(read, range(len(positions))):
                pass
        return found, state

    def names(self, which: np.ndarray) -> list[str]:
        """The names, for messages, of the images that an index or mask selects."""
        return [self.records.name(int(row)) for row in self.rows[which]]


def left_out(records: Records, rows: Iterable[int], levels: Levels) -> str:
    """The first names of unreadable rows, by the reason; it reads them again."""

    def reason(row: int) -> str:
        try:
            image_files.decode(records.read(row), levels)
        except Unreadable as error:
            return error.reason
        except OSError as error:
            return image_files.cannot_open(error)
        return "not readable before"

    return by_reason(grouped((reason(row), records.name(row)) for row in rows))


Images = np.ndarray | LazyImages  # [n h w 3] uint8


def pixels(images: Images, row: int) -> np.ndarray:
    """One image, [h w 3] uint8."""
    if isinstance(images, LazyImages):
        return images.read(np.array([row]))[0][0]
    return np.asarray(images[row])
