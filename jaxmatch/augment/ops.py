"""The image operations of RandAugment and CTAugment (Cubuk et al. 2019, Berthelot et al. 2020).

:data:`OPS` is the table of all ops. A new op is its function and one line of the table.

Each image of a batch has an op of its own, so all ops of a kind are applied together: all warps are
one affine map, all ops on levels are one table of 256 entries, all ops on pixels are one blend.
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxmatch.augment.pixels import affine, geometry, tone
from jaxmatch.augment.pixels import source as pixels
from jaxmatch.types import Array

Kind = Literal["warp", "levels", "pixels"]
Warp = Callable[[Array, Array], Array]  # planes [c b h w] and matrices [b 6] to planes


@dataclass(frozen=True)
class Images:
    """A batch of images; what several ops need of it is computed once."""

    levels: Array  # planes, int32 0..255 [3 b h w]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.levels.shape[2], self.levels.shape[3]

    @functools.cached_property
    def every(self) -> Array:
        """The levels 0..255 of each plane, unchanged: int32 [3 b 256]."""
        levels = np.arange(256, dtype=np.int32)
        return jnp.broadcast_to(levels, (*self.levels.shape[:2], 256))

    @functools.cached_property
    def below(self) -> Array:
        """The number of pixels below each level: int32 [3 b 257]."""
        return tone.count_below(self.levels)

    @functools.cached_property
    def smooth(self) -> Array:
        """The smoothed images, as planes."""
        return tone.smooth(self.levels)


@dataclass(frozen=True, kw_only=True)
class Strength:
    """The meaning of an op's value, and the values that each published policy gives it.

    Attributes:
        meaning: what the value is, with its unit.
        blend: "to" goes from the image at value 0 to the function's result at value 1. "from" goes
            from the result at 0 to the image at 1. None takes the result; the function reads the
            value.
        shown: the values of a contact sheet.
        unchanged: the value at which the op changes nothing; None if the op has no degree.
        torchssl: least and largest value of RandAugment's table "torchssl".
        levels: from a level 1..9 to the value, for each other table of RandAugment.
        ctaugment: from a level 0..1 to the value.
        bins: the number of bins of this level, by its name in CTAugment's policy; empty where the
            level has no effect.
    """

    meaning: str
    blend: Literal["to", "from"] | None = None
    shown: tuple[float, float, float, float, float]
    unchanged: float | None = None
    torchssl: tuple[float, float]
    levels: Mapping[str, Callable[[int], float]]
    ctaugment: Callable[[Array], Array] = lambda level: level
    bins: Mapping[str, int] = field(default_factory=dict)

    def weaken(self, value: float, strength: float) -> float:
        """Move a value towards the one that changes nothing; strength 0 reaches it, 1 stays."""
        if strength == 1 or self.unchanged is None:
            return value
        return self.unchanged + strength * (value - self.unchanged)


def _levels(
    google: Callable[[int], float],
    simmatch: Callable[[int], float] | None = None,
    eman: Callable[[int], float] | None = None,
) -> dict[str, Callable[[int], float]]:
    """The values of three tables, of which "simmatch" and "eman" are those of "google" by default.

    That SimMatch's posterize, solarize and warps have the levels of "google" is an assumption.
    """
    return {"google": google, "simmatch": simmatch or google, "eman": eman or google}


NO_VALUE = Strength(
    meaning="none",
    shown=(0.0, 0.25, 0.5, 0.75, 1.0),
    torchssl=(0.0, 0.0),
    levels=_levels(lambda level: 1.0),
)
WEIGHT = Strength(
    meaning="weight: 0 is the image, 1 the result",
    blend="to",
    shown=(0.0, 0.25, 0.5, 0.75, 1.0),
    unchanged=0.0,
    torchssl=(1.0, 1.0),
    levels=_levels(lambda level: 1.0),
    bins={"weight": 17},
)
FACTOR = Strength(
    meaning="factor: 0 is without what the op is named after, 1 is the image",
    blend="from",
    shown=(0.05, 0.35, 0.65, 0.95, 1.9),
    unchanged=1.0,
    torchssl=(0.05, 0.95),
    levels=_levels(lambda level: 0.1 + level * 1.8 / 10, lambda level: 0.05 + level * 0.9 / 10),
    ctaugment=lambda level: 0.1 + 1.9 * level,
    bins={"factor": 17},
)
BITS = Strength(
    meaning="bits to keep, 1..8",
    shown=(8.0, 6.0, 4.0, 2.0, 1.0),
    unchanged=8.0,
    torchssl=(4.0, 8.0),
    levels=_levels(lambda level: 4 - level * 4 // 10, eman=lambda level: 4 + level * 4 // 10),
    ctaugment=lambda level: 1 + jnp.floor(7.999 * level),
    bins={"bits": 8},
)
DEGREES = Strength(
    meaning="degrees, counter-clockwise about the centre",
    shown=(-30.0, -15.0, 5.0, 15.0, 30.0),
    unchanged=0.0,
    torchssl=(-30.0, 30.0),
    levels=_levels(lambda level: level * 30 // 10),
    ctaugment=lambda level: jnp.rint(45 * (2 * level - 1)),
    bins={"degrees": 17},
)
RATIO = Strength(
    meaning="ratio, from the top row or the left column",
    shown=(-0.3, -0.1, 0.05, 0.15, 0.3),
    unchanged=0.0,
    torchssl=(-0.3, 0.3),
    levels=_levels(lambda level: level * 0.3 / 10),
    ctaugment=lambda level: 0.3 * (2 * level - 1),
    bins={"ratio": 17},
)
THRESHOLD = Strength(
    meaning="threshold: levels from here up are inverted",
    shown=(256.0, 200.0, 128.0, 64.0, 0.0),
    unchanged=256.0,
    torchssl=(0.0, 256.0),
    levels=_levels(lambda level: 256 - level * 256 // 10),
    ctaugment=lambda level: jnp.floor(255.999 * level),
    bins={"threshold": 17},
)
SHIFT = Strength(
    meaning="pixels, to the nearest whole one; left or up where positive",
    shown=(-0.3, -0.1, 0.05, 0.15, 0.3),  # of the side
    unchanged=0.0,
    torchssl=(-0.3, 0.3),  # of the side
    levels=_levels(lambda level: level, eman=lambda level: level * 0.45 / 10),  # eman: of the side
    ctaugment=lambda level: 0.3 * (2 * level - 1),
    bins={"shift": 17},
)
ADDED = Strength(
    meaning="levels added to those below 128",
    shown=(0.0, 28.0, 55.0, 83.0, 110.0),
    unchanged=0.0,
    torchssl=(0.0, 110.0),  # only "eman" draws the op unless the user names it
    levels=_levels(lambda level: level * 110 // 10),
)
# Half of an inversion is a plane of grey, so the op has no degree.
INVERSION = replace(WEIGHT, unchanged=None)


class Op(NamedTuple):
    """One image operation.

    Attributes:
        kind: what the function returns: a "warp" matrices [b 6], an op on "levels" a new level for
            each of 0..255, which broadcasts against [3 b 256], and an op on "pixels" new planes,
            which broadcast against [3 b h w].
        function: of the images and of their values [b], [b 1] or [b 1 1] in this order of kinds.
        strength: what the value means.
        policies: which published policies draw the op.
        opaque: the reference converts the image to opaque RGB, which turns black what an earlier
            warp uncovered.
        side: the value is drawn as a share of this side of the image: 0 the height, 1 the width.
    """

    kind: Kind
    function: Callable[[Images, Array], Array]
    strength: Strength
    policies: tuple[str, ...]
    opaque: bool = False
    side: Literal[0, 1] | None = None

    def unit(self, size: tuple[int, int]) -> int:
        """The pixels of a value of 1 in images of ``size``; 1 if the value is no share."""
        return 1 if self.side is None else size[self.side]


_CTA = ("ctaugment",)
_ALL = ("torchssl", "google", "simmatch", "eman", *_CTA)  # the tables of RandAugment, and CTAugment

# A draw is a position in this order, so the order of a table's ops must not change.
OPS: dict[str, Op] = {
    "autocontrast": Op(
        "levels", lambda x, _: tone.autocontrast(x.every, x.below), WEIGHT, _ALL, opaque=True
    ),
    "brightness": Op("levels", lambda x, _: jnp.zeros_like(x.every), FACTOR, _ALL),
    "color": Op("pixels", lambda x, _: tone.luma(x.levels), FACTOR, _ALL),
    "contrast": Op("levels", lambda x, _: tone.mean_grey(x.levels)[..., 0], FACTOR, _ALL),
    "equalize": Op("levels", lambda x, _: tone.equalize(x.below), WEIGHT, _ALL, opaque=True),
    "identity": Op("levels", lambda x, _: x.every, NO_VALUE, _ALL),
    "posterize": Op(
        "levels", lambda x, bits: tone.posterize(x.every, bits), BITS, _ALL, opaque=True
    ),
    "rotate": Op("warp", lambda x, degrees: geometry.rotation(degrees, x.size), DEGREES, _ALL),
    "sharpness": Op("pixels", lambda x, _: x.smooth, FACTOR, _ALL),
    "shear_x": Op("warp", lambda _, ratio: geometry.shear_x(ratio), RATIO, _ALL),
    "shear_y": Op("warp", lambda _, ratio: geometry.shear_y(ratio), RATIO, _ALL),
    "solarize": Op(
        "levels", lambda x, level: tone.solarize(x.every, level), THRESHOLD, _ALL, opaque=True
    ),
    "translate_x": Op("warp", lambda _, left: geometry.translation_x(left), SHIFT, _ALL, side=1),
    "translate_y": Op("warp", lambda _, up: geometry.translation_y(up), SHIFT, _ALL, side=0),
    "invert": Op("levels", lambda x, _: 255 - x.every, INVERSION, ("eman", *_CTA)),
    "solarize_add": Op(
        "levels", lambda x, more: tone.solarize_add(x.every, more), ADDED, ("eman",)
    ),
    "blur": Op("pixels", lambda x, _: tone.blur(x.levels), WEIGHT, _CTA),
    "smooth": Op("pixels", lambda x, _: x.smooth, WEIGHT, _CTA),
}


def ops_of(policy: str) -> tuple[str, ...]:
    """The names of the ops that a published policy draws, in the order of :data:`OPS`."""
    return tuple(name for name, op in OPS.items() if policy in op.policies)


def apply_chosen(
    levels: Array, op: Array, value: Array, names: tuple[str, ...], warp: Warp = affine.warp
) -> Array:
    """Apply to each image the op that was chosen for it.

    Args:
        levels: int32 levels 0..255 as planes [3 b h w].
        op: [b] integers, the position of each image's op in ``names``.
        value: [b] at least float32, the value of each image's op (:class:`Strength`).
        names: the ops to choose from; nothing is computed for other ops. A name that :data:`OPS`
            lacks leaves its images unchanged.
        warp: moves the pixels; :func:`jaxmatch.augment.pixels.affine.warp` has limits.

    Returns:
        The new levels, as planes; black where a warp found no pixel.
    """
    images, chosen = Images(levels), _chosen(op, names)
    kinds = {OPS[name].kind for name in chosen}
    if "warp" in kinds:
        levels = warp(levels, _matrix(images, chosen, value))
    if "levels" in kinds:
        table = _blend("levels", images, images.every, chosen, value[:, None])
        levels = pixels.look_up(table, levels)
    if "pixels" in kinds:
        levels = _blend("pixels", Images(levels), levels, chosen, value[:, None, None])
    return levels


def move(
    visible: Array, op: Array, value: Array, names: tuple[str, ...], warp: Warp = affine.warp
) -> Array:
    """Apply the same ops to an alpha channel, bool [b h w]: False where a warp found no pixel."""
    alpha = visible[None].astype(jnp.int32)
    return warp(alpha, _matrix(Images(alpha), _chosen(op, names), value))[0] > 0


def _chosen(op: Array, names: tuple[str, ...]) -> dict[str, Array]:
    """Which images have each op of :data:`OPS`: bool [b] by name."""
    return {name: op == position for position, name in enumerate(names) if name in OPS}


def _matrix(images: Images, chosen: dict[str, Array], value: Array) -> Array:
    """The matrix of each image's warp, or that of the identity: [b 6]."""
    matrix = geometry.translation_x(jnp.zeros_like(value))
    for name, own in chosen.items():
        if OPS[name].kind == "warp":
            matrix = jnp.where(own[:, None], OPS[name].function(images, value), matrix)
    return matrix


def _blend(
    kind: Kind, images: Images, unchanged: Array, chosen: dict[str, Array], value: Array
) -> Array:
    """Apply the ops of one kind to ``unchanged``, [3 b 256] or [3 b h w]; ``value`` broadcasts.

    An op sets the image at weight 0, or the one at weight 1.
    """
    first = second = unchanged
    weight = value
    for name, own in chosen.items():
        op = OPS[name]
        if op.kind != kind:
            continue
        own, result = own.reshape(value.shape), op.function(images, value)
        if op.strength.blend == "from":
            first = jnp.where(own, result, first)
        else:
            second = jnp.where(own, result, second)
        if op.strength.blend is None:
            weight = jnp.where(own, 1, weight)
    return tone.blend(first, second, weight)
