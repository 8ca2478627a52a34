"""The image operations of RandAugment and CTAugment (Cubuk et al. 2019, Berthelot et al. 2020).

In a batch where every image has an op of its own, all geometric ops are one affine gather, and all
others one blend of two images: the image itself, and what its op makes of it or departs from.
"""

import functools
from collections.abc import Callable

import jax.numpy as jnp
from jax import lax

from jaxmatch.augment import geometry, tone
from jaxmatch.errors import InputError, suggest
from jaxmatch.types import Array

# What the value of each op means. Geometric values are those of PIL's inverse map: a positive
# translation moves the content left or up.
OPS = {
    "autocontrast": "weight: 0 is the image, 1 the result",
    "blur": "weight: 0 is the image, 1 the result",
    "brightness": "factor: 0 is black, 1 the image",
    "color": "factor: 0 is grey, 1 the image",
    "contrast": "factor: 0 is the mean grey, 1 the image",
    "equalize": "weight: 0 is the image, 1 the result",
    "identity": "none",
    "invert": "weight: 0 is the image, 1 the result",
    "posterize": "bits to keep, 1..8",
    "rotate": "degrees, counter-clockwise about the centre",
    "sharpness": "factor: 0 is smoothed, 1 the image",
    "shear_x": "ratio, from the top row",
    "shear_y": "ratio, from the left column",
    "smooth": "weight: 0 is the image, 1 the result",
    "solarize": "threshold: levels from here up are inverted",
    "solarize_add": "levels added to those below 128",
    "translate_x": "pixels, to the nearest whole one",
    "translate_y": "pixels, to the nearest whole one",
}
WARPS = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")


def apply_one(images: Array, name: str, value: Array | float = 1.0) -> Array:
    """Apply one op to all images.

    Args:
        images: levels 0..255 of any dtype [b h w 3]; rounded, and clipped to 0..255.
        name: one of :data:`OPS`.
        value: the op's value (see :data:`OPS`), one for all images or one each [b].

    Returns:
        int32 levels [b h w 3].

    Raises:
        InputError: no op has this name.
    """
    if name not in OPS:
        raise InputError(f"unknown image operation {name!r}; {suggest(name, OPS)}")
    value = jnp.asarray(value)
    value = value.astype(jnp.promote_types(value.dtype, jnp.float32))
    batch = images.shape[:1]
    op, value = jnp.zeros(batch, jnp.int32), jnp.broadcast_to(value, batch)
    return jnp.moveaxis(apply_chosen(tone.planes(images), op, value, (name,)), 0, -1)


def apply_chosen(levels: Array, op: Array, value: Array, names: tuple[str, ...]) -> Array:
    """Apply to each image the op that was chosen for it.

    Args:
        levels: int32 levels 0..255 as planes [3 b h w].
        op: [b] integers, the position of each image's op in ``names``.
        value: [b] at least float32, the value of each image's op (see :data:`OPS`).
        names: the ops to choose from; nothing is computed for others.

    Returns:
        The new levels, planes again; black where a geometric op found nothing.
    """
    _, b, height, width = levels.shape
    index, inside = _source(op, value, names, (height, width))

    def gather(plane: Array) -> tuple[Array, Array, Array]:
        moved = jnp.where(inside, _take(plane, index), 0)
        below = tone.count_below(plane)
        return moved, below, _take(below, plane)

    # A loop over the channels, because XLA would fuse the gathers with the arithmetic below,
    # which a CPU can then no longer vectorize.
    moved, below, rank = lax.map(gather, levels.reshape(3, b, height * width))
    chosen = {name: (op == position)[:, None, None] for position, name in enumerate(names)}
    moved, rank = moved.reshape(levels.shape), rank.reshape(levels.shape)
    return _tone(moved, below, rank, chosen, value[:, None, None])


def move(visible: Array, op: Array, value: Array, names: tuple[str, ...]) -> Array:
    """What the same ops do to an alpha channel, bool [b h w]: False where they found nothing."""
    b, height, width = visible.shape
    index, inside = _source(op, value, names, (height, width))
    return (inside & _take(visible.reshape(b, height * width), index)).reshape(visible.shape)


def _source(
    op: Array, value: Array, names: tuple[str, ...], size: tuple[int, int]
) -> tuple[Array, Array]:
    """Where each pixel comes from, and whether from inside the image: [b h*w] each."""
    degrees, shear_x, shear_y, left, up = (
        jnp.where(op == names.index(name), value, 0) if name in names else jnp.zeros_like(value)
        for name in WARPS
    )
    matrix = geometry.affine_matrix(degrees, shear_x, shear_y, left, up, size)
    return geometry.source_index(matrix, size)


def _take(rows: Array, index: Array) -> Array:
    """``rows[b, index[b, i]]``."""
    return jnp.take_along_axis(rows, index, 1, mode="promise_in_bounds")


def _tone(
    levels: Array, below: Array, rank: Array, chosen: dict[str, Array], value: Array
) -> Array:
    """Every op that moves no pixel, as a blend of two images: planes in, planes out."""
    smooth = functools.cache(lambda: tone.smooth(levels))
    # From the degenerate image at 0 to the image at 1.
    first = _select(
        chosen,
        levels,
        {
            "brightness": lambda: jnp.zeros_like(levels),
            "color": lambda: tone.luma(levels),
            "contrast": lambda: tone.mean_grey(levels),
            "sharpness": smooth,
        },
    )
    # From the image at 0 to the result at 1.
    second = _select(
        chosen,
        levels,
        {
            "autocontrast": lambda: tone.autocontrast(levels, below),
            "blur": lambda: tone.blur(levels),
            "equalize": lambda: tone.equalize(levels, below, rank),
            "invert": lambda: 255 - levels,
            "posterize": lambda: tone.posterize(levels, value),
            "smooth": smooth,
            "solarize": lambda: tone.solarize(levels, value),
            "solarize_add": lambda: tone.solarize_add(levels, value),
        },
    )
    one = jnp.ones_like(value)
    whole = ("posterize", "solarize", "solarize_add")
    weight = _select(chosen, value, {name: lambda: one for name in whole})
    return tone.blend(first, second, weight)


def _select(
    chosen: dict[str, Array], default: Array, options: dict[str, Callable[[], Array]]
) -> Array:
    """For each image the option named as its op, or else the default."""
    for name, option in options.items():
        if name in chosen:
            default = jnp.where(chosen[name], option(), default)
    return default
