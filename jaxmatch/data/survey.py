"""Sizes and pixel types of images, from the headers of their files."""

from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from jaxmatch.data.images import Size
from jaxmatch.runtime import paths

MOST = 1_000  # files that are opened
MOST_IN_BUCKET = 100  # each of them is a request or more
ROTATED = (5, 6, 7, 8)  # EXIF orientations that exchange height and width
ORIENTATION = 0x0112
KINDS = {
    "1": "black and white",
    "L": "gray",
    "LA": "gray with transparency",
    "P": "palette",
    "PA": "palette with transparency",
    "RGBA": "RGB with transparency",
    "I": "32-bit gray",
    "F": "float gray",
}


def headers(
    root: Path, names: Sequence[str], most: int = MOST
) -> tuple[Mapping[Size, int], Mapping[str, int]]:
    """Count (height, width) as seen upright, and kinds of pixels such as "RGB" or "16-bit gray".

    At most ``most`` files are opened, evenly spread, fewer in a bucket; unreadable ones are left
    out.
    """
    if paths.in_bucket(root):
        most = min(most, MOST_IN_BUCKET)
    places = np.linspace(0, len(names) - 1, min(most, len(names))).astype(int)
    with ThreadPoolExecutor() as pool:
        read = pool.map(_header, [root / names[int(place)] for place in places])
    found = [each for each in read if each]
    sizes = Counter(size for size, _ in found)
    kinds = Counter(kind for _, kind in found)
    return dict(sizes.most_common()), dict(kinds.most_common())


def _header(file: Path) -> tuple[Size, str] | None:
    try:
        with file.open("rb") as stream, Image.open(stream) as opened:
            width, height = opened.size
            kind = "16-bit gray" if opened.mode.startswith("I;16") else opened.mode
            try:
                turned = opened.getexif().get(ORIENTATION) in ROTATED
            except Exception:  # damaged metadata of an intact picture
                turned = False
    # Pillow raises more errors on damaged files than it documents.
    except Exception:
        return None
    return (width, height) if turned else (height, width), KINDS.get(kind, kind)
