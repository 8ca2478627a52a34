"""A picture of an augmentation: every op, with those that a configuration uses, and whole views."""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from jaxmatch.augment.chain import Chain
from jaxmatch.augment.contrast import Contrast
from jaxmatch.augment.ctaugment import CTAugment
from jaxmatch.augment.ctaugment_views import CTAugmentOps
from jaxmatch.augment.ops import OPS, apply_chosen, ops_of
from jaxmatch.augment.pixels import tone
from jaxmatch.augment.randaugment import Draws, RandAugment, Table
from jaxmatch.augment.weak import Weak
from jaxmatch.errors import InputError
from jaxmatch.runtime.paths import check_output, write_output
from jaxmatch.types import Array, Transform

_SHOWN, _VIEWS, _VALUES = 8, 8, 5
_TILE, _GAP, _LINE, _LABEL = 96, 6, 18, 120
_USED, _UNUSED, _FADED = (0, 110, 60), (150, 150, 150), 0.45

Strong = RandAugment | CTAugmentOps
Apply = Callable[[Array, Array, Array], Array]  # images [b h w 3], ops [b] and values [b] to images


class Row(NamedTuple):
    """Tiles with a label before them and a caption below each; of a heading only the label."""

    label: str
    tiles: Sequence[np.ndarray] = ()  # [h w 3] each
    captions: Sequence[str] = ()
    colour: tuple[int, int, int] = (0, 0, 0)
    faded: bool = False


def strong_ops(views: Mapping[str, Transform]) -> Strong | None:
    """The part of the views by role that draws ops; None if no view has one."""
    parts = [part for view in views.values() for part in _parts(view)]
    return next((part for part in parts if isinstance(part, RandAugment | CTAugmentOps)), None)


def used_ops(strong: Strong | None) -> tuple[str, ...]:
    """The names of the ops that views draw from, in alphabetic order."""
    if strong is None:
        return ()
    if isinstance(strong, CTAugmentOps):
        return tuple(sorted(ops_of("ctaugment")))
    return tuple(sorted(strong.policy().choices))


def summarize(views: Mapping[str, Transform]) -> list[str]:
    """A sentence on each view, by role, and the names of the ops that are used and not used."""
    used = used_ops(strong_ops(views))
    left_out = sorted(set(OPS) - set(used))
    return [
        *(
            f"A {role} view is {', then '.join(map(_in_words, _parts(view)))}."
            for role, view in views.items()
        ),
        f"Ops used: {', '.join(used) or 'none'}.",
        f"Ops not used: {', '.join(left_out) or 'none'}.",
    ]


def contact_sheet(
    images: np.ndarray, views: Mapping[str, Transform], key: Array, title: str = ""
) -> Image.Image:
    """Draw the sheet: a row for each op on the left, rows of whole views on the right.

    Ops that the views use come first, at values that the views draw; the others follow faded, at
    values that explain them.

    Args:
        images: uint8 [n h w 3]. The ops take one image each, in turn; the views are drawn of the
            first eight.
        views: the transforms of whole views by role.
        key: typed key; equal keys give equal sheets.
        title: a line at the top, before :func:`summarize`.

    Returns:
        An RGB picture. The value of a translation is a share of the image's side.
    """
    shown, strong = images[:_SHOWN], strong_ops(views)
    drawn = {
        role: _views(view, shown, jax.random.fold_in(key, number))
        for number, (role, view) in enumerate(views.items())
    }
    whole = [
        Row(f"{role} views", [image, *rendered[number]], ["image", *[""] * _VIEWS])
        for number, image in enumerate(shown)
        for role, rendered in drawn.items()
    ]
    used = _used_rows(images, strong, key)
    unused = _unused_rows(images, tuple(sorted(set(OPS) - set(used_ops(strong)))))
    ops = [Row("USED by this configuration", colour=_USED), *used] if used else []
    ops += [Row("NOT USED by this configuration", colour=_UNUSED), *unused] if unused else []
    whole.insert(0, Row("WHOLE VIEWS, as the network sees them"))
    return _page([title] * bool(title) + summarize(views), _block(ops), _block(whole))


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


def _parts(view: Transform) -> tuple[Transform, ...]:
    return view.transforms if isinstance(view, Chain) else (view,)


def _in_words(part: Transform) -> str:
    """What a part of a view does."""
    if isinstance(part, Weak):
        pad = "an eighth of the side" if part.pad is None else f"{part.pad} pixels"
        return f"moved by up to {pad} (padding: {part.padding}), {_flips(part)}"
    if isinstance(part, Contrast):
        return _contrast_in_words(part)
    if isinstance(part, RandAugment):
        return _table_in_words(part.policy())
    assert isinstance(part, CTAugmentOps)
    return (
        f"changed by {part.ctaugment.depth} ops at learned strengths (those below, rescale and "
        f"cutout){', then by a cutout' * part.ctaugment.cutout}"
    )


def _contrast_in_words(view: Contrast) -> str:
    size = "" if view.size is None else f" resized to {view.size} pixels"
    least, most = view.area
    parts = [f"a crop of {least:.0%} to {most:.0%} of the area{size}, {_flips(view)}"]
    strengths = ("brightness", "contrast", "saturation", "hue")
    changed = [f"{name} {value:g}" for name in strengths if (value := getattr(view, name))]
    if view.jitter and changed:
        parts.append(f"jitter ({', '.join(changed)}) in {view.jitter:.0%}")
    for name in ("grayscale", "blur", "solarize"):
        if share := getattr(view, name):
            parts.append(f"{name} in {share:.0%}")
    return ", ".join(parts)


def _flips(view: Weak | Contrast) -> str:
    sides = ["left and right"] * bool(view.flip) + ["top and bottom"] * bool(view.vertical_flip)
    words = f"flipped {' and '.join(sides)}" if sides else "not flipped"
    return words + ", turned by quarters" * view.rotate90


def _table_in_words(table: Table) -> str:
    chance = "" if table.probability == 1 else f", each with probability {table.probability:g}"
    strength = "" if table.strength == 1 else f", at {table.strength:.0%} of the published strength"
    level = table.fill if table.outside is None else table.outside
    padding = table.padding if table.padding != "fill" else f"level {level}"
    side = f"{table.cutout} pixels" if table.cutout else f"{table.cutout_share:.0%} of the side"
    cutout = f"with a cutout of {'up to ' * table.continuous}{side}"
    return (
        f"changed by {table.number} of {len(table.choices)} ops{chance}{strength} (padding: "
        f"{padding}), {cutout if table.cuts else 'without a cutout'}"
    )


def _used_rows(images: np.ndarray, strong: Strong | None, key: Array) -> list[Row]:
    """Each op that views draw, at values that they draw, and the cutout."""
    names, size = used_ops(strong), (images.shape[1], images.shape[2])
    if strong is None:
        return []
    if isinstance(strong, CTAugmentOps):
        values = [_learned_values(strong.ctaugment, name, size) for name in names]
        return _op_rows(images, names, np.array(values), _apply_chosen(names))
    table = strong.policy()
    values = [_drawn_values(table, name, size) for name in names]

    def apply(images: Array, op: Array, value: Array) -> Array:
        position = jnp.asarray([table.names.index(name) for name in names])[op]
        none = jnp.zeros((len(op), 4), jnp.int32)
        return strong.apply(images, Draws(position[:, None], value[:, None], none))

    rows = _op_rows(images, names, np.array(values).reshape(-1, _VALUES), apply) if names else []
    if table.cuts:
        image = images[len(names) % len(images)]
        cut = _views(replace(strong, number=0), image[None], key)[0][:_VALUES]
        rows.append(Row("cutout", [image, *cut], ["image", *[""] * _VALUES], _USED))
    return rows


def _unused_rows(images: np.ndarray, names: tuple[str, ...]) -> list[Row]:
    """Each op at values that explain it, faded."""
    if not names:
        return []
    unit = [[OPS[name].unit((images.shape[1], images.shape[2]))] for name in names]
    values = np.array([OPS[name].strength.shown for name in names]) * unit
    rows = _op_rows(images, names, values, _apply_chosen(names))
    return [row._replace(colour=_UNUSED, faded=True) for row in rows]


def _apply_chosen(names: tuple[str, ...]) -> Apply:
    def apply(images: Array, op: Array, value: Array) -> Array:
        return jnp.moveaxis(apply_chosen(tone.planes(images), op, value, names), 0, -1)

    return apply


def _drawn_values(table: Table, name: str, size: tuple[int, int]) -> Sequence[float]:
    """Values of an op from a policy of RandAugment, from the least to the largest."""
    if table.continuous:
        return np.linspace(*table.range(name, size), _VALUES).tolist()
    values = [table.value(name, level, size) for level in (1, 3, 5, 7, 9)]
    signs = (-1, -1, 1, 1, 1) if OPS[name].kind == "warp" else (1,) * _VALUES
    order = (4, 2, 0, 2, 4) if OPS[name].kind == "warp" else range(_VALUES)
    return [sign * values[place] for sign, place in zip(signs, order, strict=True)]


def _learned_values(ctaugment: CTAugment, name: str, size: tuple[int, int]) -> Sequence[float]:
    """Values of an op over the whole range of CTAugment."""
    return np.asarray(ctaugment.value(name, jnp.linspace(0, 1, _VALUES), size)).tolist()


def _op_rows(
    images: np.ndarray, names: tuple[str, ...], values: np.ndarray, apply: Apply
) -> list[Row]:
    """Ops at ``values`` [ops values], each on the next of the images."""
    count = values.shape[1]
    shown = images[np.arange(len(names)) % len(images)]  # [ops h w 3]
    op = np.repeat(np.arange(len(names), dtype=np.int32), count)
    levels = jax.jit(apply)(np.repeat(shown, count, 0), op, values.ravel().astype(np.float32))
    tiles = np.asarray(levels).reshape(len(names), count, *images.shape[1:])
    return [
        Row(name, [image, *row], ["image", *(_caption(name, each, images) for each in own)], _USED)
        for name, image, row, own in zip(names, shown, tiles, values, strict=True)
    ]


def _caption(name: str, value: float, images: np.ndarray) -> str:
    """The value of an op with its unit."""
    if name == "color" and (images == images[..., :1]).all():
        return "gray: none"
    if OPS[name].side is not None:
        return f"{value / OPS[name].unit((images.shape[1], images.shape[2])):.0%}"
    return f"{value:.3g}" + "\N{DEGREE SIGN}" * (name == "rotate")


def _views(transform: Transform, images: np.ndarray, key: Array) -> np.ndarray:
    """Independent views of each image: levels [n views h w 3]."""

    @jax.jit
    def view(images: Array) -> Array:
        return transform.apply(images, transform.draw(key, images.shape))

    levels = np.asarray(view(np.repeat(images, _VIEWS, 0)))
    return levels.reshape(len(images), _VIEWS, *levels.shape[1:])


def _block(rows: Sequence[Row]) -> Image.Image:
    """A grid of tiles with a label before each row and a caption below each tile."""
    columns = max(len(row.tiles) for row in rows)
    heights = [_TILE + _LINE + _GAP if row.tiles else 2 * _LINE for row in rows]
    block = Image.new("RGB", (_LABEL + columns * (_TILE + _GAP), sum(heights)), "white")
    draw, font, y = ImageDraw.Draw(block), ImageFont.load_default(14), 0
    for row, height in zip(rows, heights, strict=True):
        middle = y + (_TILE if row.tiles else height) / 2
        draw.text((0, middle), row.label, fill=row.colour, font=font, anchor="lm")
        for c, (tile, caption) in enumerate(zip(row.tiles, row.captions, strict=True)):
            x = _LABEL + c * (_TILE + _GAP)
            block.paste(_tile(tile, row.faded), (x, y))
            draw.text((x, y + _TILE), caption, fill=row.colour, font=font)
        y += height
    return block


def _tile(levels: np.ndarray, faded: bool) -> Image.Image:
    """Levels of any dtype [h w 3] as a square picture; pixels of a small image stay visible."""
    image = Image.fromarray(np.clip(np.rint(levels), 0, 255).astype(np.uint8))
    scale = _TILE / max(image.size)
    smooth = Image.Resampling.NEAREST if scale >= 2 else Image.Resampling.BICUBIC
    scale = int(scale) if scale >= 2 else scale
    image = image.resize([max(1, round(side * scale)) for side in image.size], smooth)
    tile = Image.new("RGB", (_TILE, _TILE), "white")
    tile.paste(Image.blend(image, Image.new("RGB", image.size, "white"), _FADED * faded))
    return tile


def _page(lines: Sequence[str], left: Image.Image, right: Image.Image) -> Image.Image:
    """Lines of text above two pictures side by side, with a margin."""
    margin = 2 * _GAP
    top = margin + len(lines) * (_LINE + 2)
    width = left.width + right.width + 4 * margin
    sheet = Image.new("RGB", (width, max(left.height, right.height) + top + margin), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for number, line in enumerate(lines):
        draw.text((margin, margin + number * (_LINE + 2)), line, fill="black", font=font)
    sheet.paste(left, (margin, top))
    sheet.paste(right, (left.width + 3 * margin, top))
    return sheet
