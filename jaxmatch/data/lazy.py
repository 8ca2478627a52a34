"""Images that stay encoded, on disk, until they are read; they index like an array."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from jaxmatch.data import images as image_files
from jaxmatch.errors import InputError

SUBSTITUTES = 64  # unreadable images in a row after which the set is taken to be gone
# States of an image: read, replaced by a later one, neither.
READ, REPLACED, MISSING = range(3)


class Records(Protocol):
    """Encoded images by row; picklable, since the workers of a loader read them too."""

    def __len__(self) -> int:
        """The number of rows."""
        ...

    def read(self, row: int) -> bytes:
        """The encoded image. OSError where it cannot be read."""
        ...

    def name(self, row: int) -> str:
        """What to call it in a message."""
        ...


@dataclass(frozen=True, kw_only=True)
class Files:
    """One file an image."""

    root: Path
    paths: tuple[str, ...]  # relative to root

    def __len__(self) -> int:
        """The number of files."""
        return len(self.paths)

    def read(self, row: int) -> bytes:
        """The content of a file."""
        return (self.root / self.paths[row]).read_bytes()

    def name(self, row: int) -> str:
        """Its path."""
        return str(self.root / self.paths[row])


@dataclass(frozen=True, kw_only=True)
class TfdsRecords:
    """The images of TFDS splits, one split after the other."""

    name_of_set: str
    splits: tuple[Any, ...]  # data sources whose images are left encoded

    def __len__(self) -> int:
        """The number of examples."""
        return sum(map(len, self.splits))

    def read(self, row: int) -> bytes:
        """The encoded image of an example."""
        try:
            return self.example(row)["image"]
        # A damaged record shows as one of several errors of array_record and TFDS.
        except Exception as error:
            raise OSError(f"{self.name(row)}: {error}") from error

    def name(self, row: int) -> str:
        """Its number."""
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
    """Images [n h w 3] uint8, decoded, scaled and centre cropped as they are read.

    ``images[index]`` chooses, without reading; ``numpy.asarray(images)`` reads.
    """

    records: Records
    rows: np.ndarray  # [n] int64
    size: image_files.Size
    share: float = 1.0  # of the images' sides that is kept, see `images.fit`

    dtype = np.dtype(np.uint8)
    ndim = 4

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """As of an array."""
        return len(self.rows), *self.size, 3

    def __len__(self) -> int:
        """The number of images."""
        return len(self.rows)

    def __getitem__(self, index: Any) -> "LazyImages":
        """Those of ``index``: a slice, numbers or a mask, as of an array."""
        return replace(self, rows=self.rows[index])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """All of them, decoded. Raises InputError, with their names, where some are unreadable."""
        del copy
        found, state = self.read(np.arange(len(self)))
        if names := self.names(state != READ):
            raise InputError(f"Not readable as images: {', '.join(names)}.")
        return found if dtype is None else found.astype(dtype)

    def read(self, positions: np.ndarray, replace: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """Images [b h w 3] uint8 at ``positions`` [b] of this set, and the state [b] uint8 of each.

        With ``replace`` the next readable one of the set takes the place of an unreadable one, as
        in training; otherwise it is black. Decoded by threads: Pillow and libjpeg let go of the
        interpreter's lock.
        """
        found = np.zeros((len(positions), *self.size, 3), np.uint8)
        state = np.full(len(positions), MISSING, np.uint8)

        def read(place: int) -> None:
            for tried in range(SUBSTITUTES if replace else 1):
                row = int(self.rows[(positions[place] + tried) % len(self)])
                try:
                    found[place] = image_files.read(self.records.read(row), self.size, self.share)
                except (OSError, InputError):
                    continue
                state[place] = REPLACED if tried else READ
                return

        with ThreadPoolExecutor() as pool:
            for _ in pool.map(read, range(len(positions))):
                pass
        return found, state

    def names(self, which: np.ndarray) -> list[str]:
        """What to call the images of ``which``, an index or mask, in a message."""
        return [self.records.name(int(row)) for row in self.rows[which]]


Images = np.ndarray | LazyImages  # [n h w 3] uint8
