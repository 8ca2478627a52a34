"""Images that occur more than once: the same content in the test set and in what is trained on."""

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

from jaxmatch.data.lazy import Images, LazyImages
from jaxmatch.data.record import Listed

Hashes = Mapping[str, str]  # of images by name

# Pairs of sets in which an image should not be at the same time.
PAIRS = (
    ("test", "labeled"),
    ("test", "unlabeled"),
    ("test", "validation"),
    ("validation", "labeled"),
    ("validation", "unlabeled"),
    ("labeled", "unlabeled"),
)


def copies(sets: Mapping[str, Hashes]) -> list[str]:
    """A sentence for each pair of sets that share content, with the number of images.

    ``sets`` are "test", "validation", "labeled" and "unlabeled", those that there are. Images
    without a hash ("") are left out.
    """
    found = []
    for one, other in PAIRS:
        of = {hash_: name for name, hash_ in sets.get(other, {}).items() if hash_}
        shared = {name: of[hash_] for name, hash_ in sets.get(one, {}).items() if hash_ in of}
        if shared:
            first, copy = next(iter(shared.items()))
            count = f"{len(shared)} {one} image{'s' if len(shared) > 1 else ''}"
            verb = "have exact copies" if len(shared) > 1 else "has an exact copy"
            found.append(f"{count} {verb} among the {other} images, such as {first} ({copy}).")
    return found


def listed_hashes(listed: Listed, rows: Sequence[int]) -> dict[str, str]:
    """Of the files in some rows of a folder."""
    return {listed.names[row]: listed.hashes[row] for row in rows}


def array_hashes(images: Images, title: str) -> dict[str, str]:
    """Of images in memory, [n h w 3] uint8; none of those on disk."""
    if isinstance(images, LazyImages):
        return {}
    rows = np.ascontiguousarray(images)
    return {f"{title} {row}": hashlib.sha256(image).hexdigest() for row, image in enumerate(rows)}
