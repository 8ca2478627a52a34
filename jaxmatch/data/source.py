"""A data set in host memory, and what a list may call its images."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from jaxmatch.data.lazy import Images
from jaxmatch.data.record import Listed
from jaxmatch.runtime import paths


@dataclass(frozen=True, kw_only=True)
class Names:
    """How a list may name the images of a source.

    Attributes:
        source: what the data set is called.
        rows: the row of each image in storage order, by each of its names.
        roots: the folder that names are relative to, and places where it was before; none where
            they are no paths.
    """

    source: str
    rows: Mapping[str, int]
    roots: tuple[Path, ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class Source:
    """A data set in host memory; grey images are replicated to three channels."""

    name: str  # "mnist5k", "tfds:cifar10", "npz:/p.npz", "folder:/dir"
    classes: tuple[str, ...]
    images: Images  # [n h w 3] uint8 training images
    labels: np.ndarray  # [n] int32, -1 = unknown
    rows: np.ndarray  # [n] int64 position of each training image in the source's storage order
    test_images: Images  # [m h w 3] uint8
    test_labels: np.ndarray  # [m] int32
    names: tuple[str, ...] = ()  # of the images in storage order, where they are known
    aliases: Mapping[str, int] = field(default_factory=dict)  # further names, each with its row
    location: str = ""  # the folder or file that was read, resolved
    parts: Mapping[str, str] = field(default_factory=dict)  # hashes by part, but of a folder
    listed: Listed | None = None  # of a folder

    @property
    def naming(self) -> Names:
        """What a list of labeled images may say."""
        training = set(self.rows.tolist())
        rows = {self.names[row]: row for row in sorted(training)} if self.names else {}
        aliases = {name: row for name, row in self.aliases.items() if row in training}
        roots = (paths.path(self.location),) if self.listed is not None else ()
        return Names(source=self.name, rows=aliases | rows, roots=roots)
