"""Finds images that occur in two sets or classes, such as a test image among the training ones."""

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

from jaxmatch.data.lazy import Images, LazyImages
from jaxmatch.data.record import Listed

Hashes = Mapping[str, str]  # the hash of each image by its name

# Pairs of sets that should not share an image.
PAIRS = (
    ("test", "labeled"),
    ("test", "unlabeled"),
    ("test", "validation"),
    ("validation", "labeled"),
    ("validation", "unlabeled"),
    ("labeled", "unlabeled"),
)


def copies(sets: Mapping[str, Hashes]) -> list[str]:
    """A sentence for each pair of sets that share images, with the number of these images.

    The keys of ``sets`` are some of "test", "validation", "labeled" and "unlabeled". Images without
    a hash ("") are ignored.
    """
    found = []
    for one, other in PAIRS:
        names = {hash_: name for name, hash_ in sets.get(other, {}).items() if hash_}
        shared = {name: names[hash_] for name, hash_ in sets.get(one, {}).items() if hash_ in names}
        if shared:
            first, copy = next(iter(shared.items()))
            count = f"{len(shared)} {one} image{'s' if len(shared) > 1 else ''}"
            verb = "have exact copies" if len(shared) > 1 else "has an exact copy"
            found.append(f"{count} {verb} among the {other} images, such as {first} ({copy}).")
    return found


def contradictions(images: Hashes, classes: Mapping[str, str]) -> list[str]:
    """A sentence if images of several classes are the same, with the number of these images.

    Args:
        images: the hash of each image. Images without a hash ("") are ignored.
        classes: by name, the class of each image that has one.
    """
    same: dict[str, list[str]] = {}
    for name in classes:
        if hash_ := images[name]:
            same.setdefault(hash_, []).append(name)
    found = [names for names in same.values() if len({classes[name] for name in names}) > 1]
    if not found:
        return []
    one, *others = found[0]
    other = next(name for name in others if classes[name] != classes[one])
    return [
        f"{sum(map(len, found)):,} images have exact copies of another class, such as {one} "
        f"({classes[one]}) and {other} ({classes[other]}); correct their labels."
    ]


def listed_hashes(listed: Listed, rows: Sequence[int]) -> dict[str, str]:
    """The hashes of the files in some rows of a folder."""
    return {listed.names[row]: listed.hashes[row] for row in rows}


def array_hashes(images: Images, title: str) -> dict[str, str]:
    """The hashes of images in memory, [n h w 3] uint8; none for images on disk."""
    if isinstance(images, LazyImages):
        return {}
    rows = np.ascontiguousarray(images)
    return {f"{title} {row}": hashlib.sha256(image).hexdigest() for row, image in enumerate(rows)}
