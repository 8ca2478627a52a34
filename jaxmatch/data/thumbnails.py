"""Small pictures for pages."""

import io

from PIL import Image

EXACT = 64  # pixels of the longer side up to which a picture keeps all levels


def thumbnail(image: Image.Image, side: int) -> bytes:
    """An image with sides of at most ``side`` pixels: a PNG if they are few, else PNG or JPEG.

    Up to :data:`EXACT` pixels it is exact. Above, the smaller file counts.
    """
    small = image.copy()
    small.thumbnail((side, side))
    found = [_written(small, format="PNG")]
    if max(small.size) > EXACT:
        found.append(_written(small, format="JPEG", quality=80))
    return min(found, key=len)


def exact(content: bytes) -> bool:
    """Whether a thumbnail has so few pixels that a page shows each one sharply."""
    return max(Image.open(io.BytesIO(content)).size) <= EXACT


def _written(image: Image.Image, **options: object) -> bytes:
    content = io.BytesIO()
    image.save(content, **options)  # pyright: ignore[reportArgumentType]
    return content.getvalue()
