"""The image operations of RandAugment and CTAugment (Cubuk et al. 2019, Berthelot et al. 2020).

In a batch where every image has an op of its own, all geometric ops are one affine map, all that
treat every pixel of a level alike one table of levels, and all others one blend of two images: the
image itself, and what its op makes of it or departs from.
"""

import functools
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from jaxmatch.augment.pixels import affine, geometry, tone
from jaxmatch.augment.pixels import source as pixels
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
# What these make of a level depends on the image as a whole, but not on other pixels.
_TABLES = (
    *("autocontrast", "brightness", "contrast", "equalize", "invert"),
    *("posterize", "solarize", "solarize_add"),
)
_WHOLE = ("posterize", "solarize", "solarize_add")  # their value is no weight


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
    far = max(images.shape[1:3]) > pixels.SMALL  # where not any value can be warped as well
    warp = affine.warp_far if far else affine.warp
    return jnp.moveaxis(apply_chosen(tone.planes(images), op, value, (name,), warp), 0, -1)


def apply_chosen(
    levels: Array,
    op: Array,
    value: Array,
    names: tuple[str, ...],
    warp: Callable[[Array, Array], Array] = affine.warp,
) -> Array:
    """Apply to each image the op that was chosen for it.

    Args:
        levels: int32 levels 0..255 as planes [3 b h w].
        op: [b] integers, the position of each image's op in ``names``.
        value: [b] at least float32, the value of each image's op (see :data:`OPS`).
        names: the ops to choose from; nothing is computed for others.
        warp: how pixels are moved; :func:`jaxmatch.augment.pixels.affine.warp` has limits.

    Returns:
        The new levels, planes again; black where a geometric op found nothing.
    """
    chosen = {name: op == position for position, name in enumerate(names)}
    changed = levels
    if any(name in WARPS for name in names):
        changed = warp(changed, _matrix(op, value, names, levels.shape[2:]))
    if any(name in _TABLES for name in names):
        changed = pixels.look_up(_table(levels, chosen, value[:, None]), changed)
    return _mixed(changed, chosen, value[:, None, None])


def move(
    visible: Array,
    op: Array,
    value: Array,
    names: tuple[str, ...],
    warp: Callable[[Array, Array], Array] = affine.warp,
) -> Array:
    """What the same ops do to an alpha channel, bool [b h w]: False where they found nothing."""
    matrix = _matrix(op, value, names, visible.shape[1:])
    return warp(visible[None].astype(jnp.int32), matrix)[0] > 0


def _matrix(op: Array, value: Array, names: tuple[str, ...], size: tuple[int, ...]) -> Array:
    """From where each image's op fetches its pixels: [b 6]."""
    height, width = size
    degrees, shear_x, shear_y, left, up = (
        jnp.where(op == names.index(name), value, 0) if name in names else jnp.zeros_like(value)
        for name in WARPS
    )
    return geometry.affine_matrix(degrees, shear_x, shear_y, left, up, (height, width))


def _table(levels: Array, chosen: dict[str, Array], value: Array) -> Array:
    """What each level becomes where that depends on nothing else: int32 [3 b 256].

    ``value`` is [b 1]. The table of any other op is the identity.
    """
    every = jnp.broadcast_to(np.arange(256, dtype=np.int32), (*levels.shape[:2], 256))
    below = functools.cache(lambda: tone.count_below(levels))
    return _blend(
        chosen,
        value,
        every,
        first={
            "brightness": lambda: jnp.zeros_like(every),
            "contrast": lambda: tone.mean_grey(levels)[..., 0],
        },
        second={
            "autocontrast": lambda: tone.autocontrast(every, below()),
            "equalize": lambda: tone.equalize(below()),
            "invert": lambda: 255 - every,
            "posterize": lambda: tone.posterize(every, value),
            "solarize": lambda: tone.solarize(every, value),
            "solarize_add": lambda: tone.solarize_add(every, value),
        },
    )


def _mixed(levels: Array, chosen: dict[str, Array], value: Array) -> Array:
    """The ops that mix pixels or channels: planes in, planes out; ``value`` is [b 1 1]."""
    smooth = functools.cache(lambda: tone.smooth(levels))
    return _blend(
        chosen,
        value,
        levels,
        first={"color": lambda: tone.luma(levels), "sharpness": smooth},
        second={"blur": lambda: tone.blur(levels), "smooth": smooth},
    )


def _blend(
    chosen: dict[str, Array],
    value: Array,
    levels: Array,
    first: dict[str, Callable[[], Array]],
    second: dict[str, Callable[[], Array]],
) -> Array:
    """From the first image at weight 0 to the second at 1, each ``levels`` where no op names it."""
    shape = (-1, *(1,) * (value.ndim - 1))
    chosen = {name: own.reshape(shape) for name, own in chosen.items()}
    one = jnp.ones_like(value)
    weight = _select(chosen, value, {name: lambda: one for name in _WHOLE})
    return tone.blend(_select(chosen, levels, first), _select(chosen, levels, second), weight)


def _select(
    chosen: dict[str, Array], default: Array, options: dict[str, Callable[[], Array]]
) -> Array:
    """For each image the option named as its op, or else the default."""
    for name, option in options.items():
        if name in chosen:
            default = jnp.where(chosen[name], option(), default)
    return default
