"""A picture of an augmentation: every op at several strengths, and whole views."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from jaxmatch.augment.ops import OPS, apply_chosen
from jaxmatch.augment.pixels import tone
from jaxmatch.errors import InputError
from jaxmatch.runtime.paths import check_output, write_output
from jaxmatch.types import Array, Transform

_SHOWN, _VIEWS = 8, 10
_TILE, _GAP, _LINE, _LABEL = 72, 6, 14, 104

Row = tuple[str, Sequence[np.ndarray], Sequence[str]]


def contact_sheet(images: np.ndarray, views: Mapping[str, Transform], key: Array) -> Image.Image:
    """Draw the sheet: a row for each op on the left, rows of whole views on the right.

    Args:
        images: uint8 [n h w 3]. The ops take one image each, in turn; the views are drawn of the
            first eight.
        views: the transforms of whole views by role.
        key: typed key; equal keys give equal sheets.

    Returns:
        An RGB picture. The strength of a translation is a fraction of the image's side.
    """
    shown = images[:_SHOWN]
    drawn = {
        f"{role} views": _views(view, shown, jax.random.fold_in(key, number))
        for number, (role, view) in enumerate(views.items())
    }
    captions = ["image", *[""] * _VIEWS]
    rows = [
        (title, [image, *rendered[number]], captions)
        for number, image in enumerate(shown)
        for title, rendered in drawn.items()
    ]
    return _beside(_block(_op_rows(images)), _block(rows))


def check_name(path: Path) -> None:
    """Check, before the work starts, that a picture can be written to ``path``.

    Raises:
        InputError: if it cannot.
    """
    if path.suffix.lower() not in Image.registered_extensions():
        raise InputError(f"{path} does not end like a picture file; end the name with .png.")
    check_output(path)


def write_sheet(sheet: Image.Image, path: Path) -> None:
    """Write the picture in the format of the suffix, completely or not at all.

    Raises:
        DiskError: if it cannot be written.
    """
    content = io.BytesIO()
    sheet.save(content, Image.registered_extensions()[path.suffix.lower()])
    write_output(path, content.getvalue())


def _op_rows(images: np.ndarray) -> list[Row]:
    """Each op at each of its strengths, on the next of the images."""
    names = tuple(sorted(OPS))
    ops = [OPS[name] for name in names]
    strengths = np.array([op.strength.shown for op in ops])  # [ops strengths]
    shown = images[np.arange(len(names)) % len(images)]  # [ops h w 3]
    sides = [1 if op.side is None else images.shape[1 + op.side] for op in ops]
    value = (strengths * np.array(sides)[:, None]).astype(np.float32)
    count = strengths.shape[1]

    @jax.jit
    def apply(images: Array, op: Array, value: Array) -> Array:
        return apply_chosen(tone.planes(images), op, value, names)

    op = np.repeat(np.arange(len(names)), count)
    levels = np.moveaxis(apply(np.repeat(shown, count, 0), op, value.ravel()), 0, -1)
    tiles = levels.reshape(len(names), count, *images.shape[1:])
    return [
        (name, [image, *row], ["image", *(f"{strength:g}" for strength in values)])
        for name, image, row, values in zip(names, shown, tiles, strengths, strict=True)
    ]


def _views(transform: Transform, images: np.ndarray, key: Array) -> np.ndarray:
    """Independent views of each image: levels [n views h w 3]."""

    @jax.jit
    def view(images: Array) -> Array:
        return transform.apply(images, transform.draw(key, images.shape))

    levels = np.asarray(view(np.repeat(images, _VIEWS, 0)))
    return levels.reshape(len(images), _VIEWS, *levels.shape[1:])


def _block(rows: Sequence[Row]) -> Image.Image:
    """A grid of tiles with a label before each row and a caption below each tile."""
    columns = max(len(tiles) for _, tiles, _ in rows)
    width = _LABEL + columns * (_TILE + _GAP)
    height = len(rows) * (_TILE + _LINE + _GAP)
    block = Image.new("RGB", (width, height), "white")
    draw, font = ImageDraw.Draw(block), ImageFont.load_default(12)
    for r, (label, tiles, captions) in enumerate(rows):
        y = r * (_TILE + _LINE + _GAP)
        draw.text((0, y + _TILE / 2), label, fill="black", font=font, anchor="lm")
        for c, (tile, caption) in enumerate(zip(tiles, captions, strict=True)):
            x = _LABEL + c * (_TILE + _GAP)
            block.paste(_tile(tile), (x, y))
            draw.text((x, y + _TILE), caption, fill="black", font=font)
    return block


def _tile(levels: np.ndarray) -> Image.Image:
    """Levels of any dtype [h w 3] as a square picture; pixels of a small image stay visible."""
    image = Image.fromarray(np.clip(np.rint(levels), 0, 255).astype(np.uint8))
    enlarged = max(image.size) <= _TILE
    return image.resize((_TILE, _TILE), Image.Resampling.NEAREST if enlarged else None)


def _beside(left: Image.Image, right: Image.Image) -> Image.Image:
    """Two pictures side by side, with a margin."""
    margin = 2 * _GAP
    width = left.width + right.width + 4 * margin
    height = max(left.height, right.height) + 2 * margin
    sheet = Image.new("RGB", (width, height), "white")
    sheet.paste(left, (margin, margin))
    sheet.paste(right, (left.width + 3 * margin, margin))
    return sheet
