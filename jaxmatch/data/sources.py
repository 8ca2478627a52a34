"""One string of the configuration names a data source; the table :data:`SOURCES` loads it.

A new kind of source is a file with its loader and one line of the table.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

import numpy as np

from jaxmatch.data import builtin, fashion_mnist, folder, npz
from jaxmatch.data import images as image_files
from jaxmatch.data.images import Fitting, Native, Size
from jaxmatch.data.record import Record, check_parts
from jaxmatch.data.source import UNLABELED_PART, VALIDATION_PARTS, Reading, Source, Survey
from jaxmatch.data.strangers import with_strangers
from jaxmatch.errors import InputError, some, suggest

Load = Callable[[str, Reading], Source]
Sizes = Callable[[str, Reading], list[tuple[int, int]]]
# Arguments: the record of the run, then the place, the settings, the rows whose images must be
# unchanged (None for all), and a phrase for a row.
LoadRecorded = Callable[
    [Record, str, Reading, Collection[int] | None, Callable[[int], str]], Source
]


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """A kind of source. A source's name is "scheme", or "scheme:place" for a scheme with places.

    Attributes:
        load: the loader; it takes the place and the settings.
        load_recorded: loads the images of a run again; None is the loader.
        sizes: gives (height, width) of some images without reading them all; None if the package
            has the images, whose settings are known.
        examples: names for messages; they contain a colon if the scheme has places.
        is_path: the place is the path of a file or folder.
        in_directory: the files are in the folder ``config.data.directory``.
        streams: the images can stay on disk until they are read.
        native: how the source makes its images from smaller ones, if it does.
    """

    load: Load
    load_recorded: LoadRecorded | None = None
    sizes: Sizes | None = None
    examples: tuple[str, ...]
    is_path: bool = False
    in_directory: bool = False
    streams: bool = False
    native: Native | None = None


def _load_tfds(place: str, reading: Reading) -> Source:
    from jaxmatch.data import tfds  # takes half a second to import

    return tfds.load(place, reading)


def _load_recorded_tfds(
    record: Record,
    place: str,
    reading: Reading,
    needed: Collection[int] | None,
    kind: Callable[[int], str],
) -> Source:
    from jaxmatch.data import tfds

    return tfds.load_recorded(record, place, reading)


def _tfds_sizes(place: str, reading: Reading) -> list[tuple[int, int]]:
    from jaxmatch.data import tfds

    return tfds.sizes(place, reading)


SOURCES = {
    "mnist5k": Scheme(load=builtin.mnist5k, examples=("mnist5k",), native=builtin.MNIST5K),
    "digits": Scheme(load=builtin.digits, examples=("digits",), native=builtin.DIGITS),
    "fashion_mnist": Scheme(
        load=fashion_mnist.load,
        sizes=fashion_mnist.sizes,
        examples=("fashion_mnist",),
        in_directory=True,
    ),
    "npz": Scheme(load=npz.load, sizes=npz.sizes, examples=("npz:FILE",), is_path=True),
    "folder": Scheme(
        load=folder.load,
        load_recorded=folder.load_recorded,
        sizes=folder.sizes,
        examples=("folder:DIRECTORY",),
        is_path=True,
        streams=True,
    ),
    "tfds": Scheme(
        load=_load_tfds,
        load_recorded=_load_recorded_tfds,
        sizes=_tfds_sizes,
        in_directory=True,
        examples=("tfds:cifar10", "tfds:cifar100", "tfds:svhn_cropped", "tfds:stl10"),
        streams=True,
    ),
}


def scheme_of(name: str) -> Scheme:
    """The kind of the source ``name``.

    Raises:
        InputError: if there is no such source.
    """
    kind, _, place = name.partition(":")
    scheme = SOURCES.get(kind)
    if scheme is None or (not place if ":" in scheme.examples[0] else name != kind):
        known = [example for each in SOURCES.values() for example in each.examples]
        raise InputError(f"There is no data set {name!r}: {suggest(name, known)}")
    return scheme


def names_path(name: str) -> bool:
    """Whether the source ``name`` is the path of a file or folder after a colon."""
    scheme = SOURCES.get(name.partition(":")[0])
    return scheme is not None and scheme.is_path


def sizes(name: str, reading: Reading) -> list[tuple[int, int]]:
    """(height, width) of some images of the source that ``config.data.name`` names.

    Raises:
        InputError: if there is no such source, or no readable image.
    """
    scheme = scheme_of(name)
    if scheme.sizes is None:
        shape = load(name, reading).images.shape
        return [(shape[1], shape[2])]
    return scheme.sizes(name.partition(":")[2], reading)


def load(name: str, reading: Reading) -> Source:
    """Load the source that ``config.data.name`` names.

    Raises:
        InputError: if there is no such source, or its content does not fit.
    """
    scheme = scheme_of(name)
    if reading.stream and not scheme.streams:
        known = " and ".join(f"{kind}:" for kind, each in SOURCES.items() if each.streams)
        raise InputError(
            f"data.stream=True needs a source of {known}; set data.stream=False for {name}."
        )
    source = _chosen(scheme.load(name.partition(":")[2], reading), reading)
    if len(source.classes) < 2 and not reading.label_free:
        raise InputError(
            f"{name} has labeled training images of fewer than two classes, and a classifier needs "
            f"at least two.{_told(source.survey)}"
        )
    return source if scheme.streams else _resized(source, reading)


def _chosen(source: Source, reading: Reading) -> Source:
    """The source with the classes that ``reading`` asks for."""
    known = reading.known_classes
    return with_strangers(source, known, reading.strangers) if known else source


def _told(survey: Survey) -> str:
    """Notes and the names that were left out, for the end of a message."""
    out = (f"{some(names, 3)} ({reason})" for reason, names in survey.left_out.items())
    left_out = ["Left out: " + ", ".join(out) + "."] if survey.left_out else []
    return " ".join(("", *survey.notes, *left_out))


def load_recorded(
    record: Record,
    name: str,
    reading: Reading,
    needed: Collection[int] | None,
    kind: Callable[[int], str],
) -> Source:
    """Load exactly the images of a run again.

    Args:
        record: what the data of the run was.
        name: as ``config.data.name``, with the place where the data is now.
        reading: the settings of the run.
        needed: the rows of a folder's images that must be unchanged; None for all. Other images
            are not read.
        kind: what a row is to the run, such as "a test image of the run".

    Raises:
        InputError: naming the first part or image that is missing or has changed.
    """
    scheme = scheme_of(name)
    reading = replace(reading, label_free=True)
    if scheme.load_recorded is None:
        source = load(name, reading)
    else:
        place = name.partition(":")[2]
        source = _chosen(scheme.load_recorded(record, place, reading, needed, kind), reading)
    if source.classes != record.classes:
        raise InputError(
            f"{name} has the classes {', '.join(source.classes)} now, but the run was trained on "
            f"{', '.join(record.classes)}; put the old data back."
        )
    parts = dict(source.parts)
    if parts and not VALIDATION_PARTS & record.parts.keys():  # the run knows of no validation set
        source = replace(
            source,
            validation_images=source.validation_images[:0],
            validation_labels=source.validation_labels[:0],
        )
        parts = {key: value for key, value in parts.items() if key not in VALIDATION_PARTS}
    if needed is not None:  # the unlabeled images are not needed, so they may have changed
        parts.pop(UNLABELED_PART, None)
    check_parts(record, parts, source.location or name)
    return source


def fitting(name: str, size: Size, share: float) -> Fitting:
    """How a user's picture becomes an image like those of a source.

    Args:
        name: of the source.
        size: height and width of the images.
        share: the share of the sides that a centre crop keeps.
    """
    return Fitting(size=size, share=share, native=scheme_of(name).native)


def _resized(source: Source, reading: Reading) -> Source:
    """A source of arrays with images of the size that ``reading`` asks for."""
    images, test_images, side = source.images, source.test_images, reading.image_size
    validation_images = source.validation_images
    assert isinstance(images, np.ndarray)
    assert isinstance(test_images, np.ndarray)
    assert isinstance(validation_images, np.ndarray)
    size = (side, side) if side else (images.shape[1], images.shape[2])
    return replace(
        source,
        images=image_files.resize(images, size, reading.share),
        test_images=image_files.resize(test_images, size, reading.share),
        validation_images=image_files.resize(validation_images, size, reading.share),
    )
