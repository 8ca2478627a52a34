"""A data set in host memory, how it is read, and the names of its images."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from jaxmatch.data.lazy import Images
from jaxmatch.data.levels import DEFAULT, Levels
from jaxmatch.data.record import Listed, Record
from jaxmatch.errors import InputError
from jaxmatch.runtime import paths

# Keys in Source.parts of images without labels, and of a validation set.
UNLABELED_PART = "x_unlabeled"
VALIDATION_PARTS = frozenset(("x_validation", "y_validation"))


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How a source is read. A source ignores the settings that it has no use for.

    Attributes:
        seed: draws the test set of a folder that has none.
        image_size: side of the square images; None is the source's own size, or 32 for sources
            of mixed sizes.
        strict: an unreadable file of a folder is an error.
        directory: the folder of the prepared TFDS sets; None is TFDS's own place.
        extra: add SVHN's extra images.
        label_free: allow fewer than two classes.
        stream: leave the images of a folder or a TFDS set on disk.
        share: the share of an image's sides that a centre crop keeps
            (:func:`jaxmatch.data.images.fit`).
        levels: how the pixels of files become 8-bit RGB.
        split: a file of labeled images, which a folder's drawn test set leaves out.
        test_of: an earlier run on the same folder; its drawn test set is used again.
        known_classes: the classes of the run, where images of others are strangers; () is all.
        strangers: keep training images of other classes, as unlabeled ones.
    """

    seed: int = 0
    image_size: int | None = None
    strict: bool = False
    directory: str | None = None
    extra: bool = False
    label_free: bool = False
    stream: bool = False
    share: float = 1.0
    levels: Levels = DEFAULT
    split: str = ""
    test_of: Record | None = None
    known_classes: tuple[str, ...] = ()
    strangers: bool = True

    def __post_init__(self) -> None:
        """Check the share."""
        if not 0 < self.share <= 1:
            raise InputError(f"data.center_crop={self.share} must be above 0 and at most 1.")


@dataclass(frozen=True, kw_only=True)
class Names:
    """The names by which a list can refer to the images of a source.

    Attributes:
        source: the source's name.
        rows: the row of each image in storage order, by each of its names.
        roots: the folder that names are relative to, then earlier places of this folder; empty if
            the names are no paths.
    """

    source: str
    rows: Mapping[str, int]
    roots: tuple[Path, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What was found where the images are, for people who check that nothing went wrong.

    Attributes:
        left_out: the names of files or images that are not used, by the reason.
        notes: sentences about anything that a user may not expect.
        sizes: how many images have each (height, width), before they are resized.
        modes: how many images have each kind of pixels, such as "RGB" or "16-bit gray".
    """

    left_out: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    sizes: Mapping[tuple[int, int], int] = field(default_factory=dict)
    modes: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, eq=False)
class Source:
    """A data set in host memory. Grey images are repeated to three channels."""

    name: str  # "mnist5k", "tfds:cifar10", "npz:/p.npz", "folder:/dir"
    classes: tuple[str, ...]
    images: Images  # [n h w 3] uint8 training images
    labels: np.ndarray  # [n] int32, -1 = unknown, STRANGER = of none of the classes
    rows: np.ndarray  # [n] int64 position of each training image in the source's storage order
    test_images: Images  # [m h w 3] uint8
    test_labels: np.ndarray  # [m] int32
    # A validation set that the source itself has: [v h w 3] uint8, [v] int32; else none.
    validation_images: Images = field(default_factory=lambda: np.zeros((0, 0, 0, 3), np.uint8))
    validation_labels: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))
    names: tuple[str, ...] = ()  # of all images in storage order; empty if they have none
    aliases: Mapping[str, int] = field(default_factory=dict)  # the row of each further name
    location: str = ""  # absolute path of the folder or file; empty for data inside a package
    parts: Mapping[str, str] = field(default_factory=dict)  # hashes by part; empty for a folder
    listed: Listed | None = None  # the files of a folder
    survey: Survey = field(default_factory=Survey)

    @property
    def naming(self) -> Names:
        """The names of the training images."""
        training = set(self.rows.tolist())
        rows = {self.names[row]: row for row in sorted(training)} if self.names else {}
        aliases = {name: row for name, row in self.aliases.items() if row in training}
        roots = (paths.path(self.location),) if self.listed is not None else ()
        return Names(source=self.name, rows=aliases | rows, roots=roots)
