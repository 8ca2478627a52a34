"""Images that stay encoded, on disk, until they are read; they index like an array."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from jaxmatch.data import images as image_files


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
        return self.example(row)["image"]

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
        """All of them, decoded by threads: Pillow and libjpeg let go of the interpreter's lock.

        Raises InputError where one is not readable.
        """
        del copy
        found = np.empty(self.shape, np.uint8)

        def read(number: int) -> None:
            row = int(self.rows[number])
            found[number] = image_files.read(self.records.read(row), self.size, self.share)

        with ThreadPoolExecutor() as pool:
            for _ in pool.map(read, range(len(self))):
                pass
        return found if dtype is None else found.astype(dtype)


Images = np.ndarray | LazyImages  # [n h w 3] uint8
