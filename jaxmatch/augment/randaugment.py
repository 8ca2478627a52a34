"""RandAugment (Cubuk et al. 2019, arXiv:1909.13719): a few ops at random strengths, then cutout.

The four :data:`TABLES` differ in everything else. ``torchssl`` is that of TorchSSL and USB, by
which nearly all recent tables were made; its values are continuous. The others draw levels 1..9:
``google`` as FixMatch's own code at CIFAR scale, ``simmatch`` as SimMatch's at CIFAR scale (its
posterize, solarize and geometric levels are taken to be google's), and ``eman`` as the ImageNet
code of EMAN (Cai et al. 2021, arXiv:2101.08482), whose posterize keeps 4..7 bits and whose moves
are whole pixels, cut towards 0. Only its ``solarize_add`` is that of AutoAugment and of FixMatch on
ImageNet: EMAN's own shifts all levels up or down by as much, then inverts those from 128 up.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxmatch.augment.ops import WARPS, apply_chosen, move
from jaxmatch.augment.pixels import affine, geometry, tone
from jaxmatch.augment.pixels import source as pixels
from jaxmatch.errors import InputError, suggest
from jaxmatch.settings import section
from jaxmatch.types import Array

# The range of each op's value in the torchssl table; translations as a share of the side.
TORCHSSL = {
    "autocontrast": (1.0, 1.0),
    "brightness": (0.05, 0.95),
    "color": (0.05, 0.95),
    "contrast": (0.05, 0.95),
    "equalize": (1.0, 1.0),
    "identity": (0.0, 0.0),
    "posterize": (4.0, 8.0),
    "rotate": (-30.0, 30.0),
    "sharpness": (0.05, 0.95),
    "shear_x": (-0.3, 0.3),
    "shear_y": (-0.3, 0.3),
    "solarize": (0.0, 256.0),
    "translate_x": (-0.3, 0.3),
    "translate_y": (-0.3, 0.3),
}
NAMES = tuple(TORCHSSL)
# These convert the image to opaque RGB, so that what a geometric op left outside turns black.
_OPAQUE = ("autocontrast", "equalize", "posterize", "solarize")
_WARP = functools.partial(affine.warp, degrees=30)  # in every table


def google_value(name: str, level: int) -> float:
    """The value of an op at an integer level 1..9, without its random sign."""
    values = {
        "brightness": 0.1 + level * 1.8 / 10,
        "color": 0.1 + level * 1.8 / 10,
        "contrast": 0.1 + level * 1.8 / 10,
        "posterize": 4 - level * 4 // 10,
        "rotate": level * 30 // 10,
        "sharpness": 0.1 + level * 1.8 / 10,
        "shear_x": level * 0.3 / 10,
        "shear_y": level * 0.3 / 10,
        "solarize": 256 - level * 256 // 10,
        "translate_x": level,
        "translate_y": level,
    }
    return float(values.get(name, 1.0))


def _simmatch_value(name: str, level: int) -> float:
    enhances = name in ("brightness", "color", "contrast", "sharpness")
    return 0.05 + level * 0.9 / 10 if enhances else google_value(name, level)


def _eman_value(name: str, level: int) -> float:
    values = {
        "posterize": 4 + level * 4 // 10,
        "solarize_add": level * 110 // 10,
        "translate_x": level * 0.45 / 10,
        "translate_y": level * 0.45 / 10,
    }
    return float(values.get(name, google_value(name, level)))


@dataclass(frozen=True, kw_only=True)
class Table:
    """What one published RandAugment draws from.

    Attributes:
        names: the ops, all equally likely.
        ops: how many are drawn for each image.
        probability: with which each of them is applied.
        value: from an op's name and its level 1..9 to its value, to which geometric ops draw a
            sign; None where :data:`TORCHSSL` has the ranges.
        shares: the values of translations are shares of the side, otherwise pixels.
        outside: level of what a move uncovers, unless a later op turns it black; None for black.
        cutout: side of the square in pixels, where it is not drawn.
        colour: the cutout's level, or one a channel; None for no cutout.
    """

    names: tuple[str, ...] = NAMES
    ops: int = 2
    probability: float = 1.0
    value: Callable[[str, int], float] | None = None
    shares: bool = False
    outside: float | None = None
    cutout: int = 16
    colour: float | tuple[int, int, int] | None = None


TABLES = {
    "torchssl": Table(ops=3, colour=(125, 123, 114)),
    "google": Table(probability=0.5, value=google_value, outside=127.5, colour=127.5),
    "simmatch": Table(probability=0.5, value=_simmatch_value, colour=127),
    "eman": Table(names=(*NAMES, "invert", "solarize_add"), value=_eman_value, shares=True),
}


class Draws(NamedTuple):
    """All randomness of ``n`` ops and the cutout for ``b`` images."""

    op: Array  # [b n] int32 position in the table's names
    value: Array  # [b n] float32 value of the op (see ops.OPS)
    box: Array  # [b 4] int32 cutout: top, left, bottom, right, the last two excluded


@section("views.strong")
class RandAugment:
    """The strong view: a :class:`~jaxmatch.types.Transform` of RGB images [b h w 3].

    Attributes:
        table: "torchssl": 3 ops, black outside of the image, then a cutout square of up to half
            the side, colour (125, 123, 114). "google": 2 ops, each applied or not, mid-grey
            outside of the image unless a later op turns it black, then 16 pixels of mid-grey.
            "simmatch": 2 ops, each applied or not, never brighter or sharper, black outside of
            the image, then 16 pixels of grey 127. "eman": 2 of 16 ops, black outside of the
            image, no cutout.
    """

    table: str = "torchssl"

    def __post_init__(self) -> None:
        """Refuse unknown tables."""
        if self.table not in TABLES:
            raise InputError(
                f"unknown RandAugment table {self.table!r}; {suggest(self.table, TABLES)}"
            )

    def draw(self, key: Array, shape: tuple[int, ...]) -> Draws:
        """Choose ops, values and the cutout's place for images of ``shape`` [b h w 3]."""
        table = TABLES[self.table]
        if table.value is None:
            return _draw_torchssl(table.ops, key, shape)
        return _draw_levels(table, table.value, key, shape)

    def apply(self, images: Array, draws: Draws) -> Array:
        """Levels 0..255 [b h w 3] of any dtype in (rounded), float32 levels out."""
        table = TABLES[self.table]
        opaque = [position for position, name in enumerate(table.names) if name in _OPAQUE]

        def layer(
            carry: tuple[Array, Array | None], one: tuple[Array, Array]
        ) -> tuple[tuple[Array, Array | None], None]:
            levels, visible = carry
            op, value = one
            if visible is not None:
                visible = visible | _any_of(op, opaque)[:, None, None]
                visible = move(visible, op, value, table.names, _WARP)
            return (apply_chosen(levels, op, value, table.names, _WARP), visible), None

        levels = tone.planes(images)
        visible = None if table.outside is None else jnp.ones(images.shape[:3], bool)
        (levels, visible), _ = lax.scan(layer, (levels, visible), (draws.op.T, draws.value.T))
        out = jnp.moveaxis(levels, 0, -1)
        if visible is not None and table.outside is not None:
            out = out.astype(jnp.float32)
            out = jnp.where(visible[..., None], out, table.outside)
        if table.colour is not None:
            out = geometry.fill_box(out, draws.box, jnp.asarray(table.colour, out.dtype))
        return out.astype(jnp.float32)


def _any_of(op: Array, positions: list[int]) -> Array:
    """Whether each op is one of those at ``positions``."""
    return (op[..., None] == jnp.asarray(positions, op.dtype)).any(-1)


def _draw_torchssl(ops: int, key: Array, shape: tuple[int, ...]) -> Draws:
    b, height, width = shape[:3]
    to_op, to_value, to_side, to_centre = jax.random.split(key, 4)
    op = jax.random.randint(to_op, (b, ops), 0, len(NAMES), jnp.int32)
    scale = [{"translate_x": width, "translate_y": height}.get(name, 1) for name in NAMES]
    ranges = np.asarray(list(TORCHSSL.values())) * np.asarray(scale)[:, None]
    low, high = jnp.moveaxis(pixels.select_rows(jnp.asarray(ranges, jnp.float32), op), -1, 0)
    value = low + (high - low) * jax.random.uniform(to_value, (b, ops), jnp.float32)
    side = 0.5 * width * jax.random.uniform(to_side, (b,), jnp.float32)
    # The reference draws the centre from uniform(side, 1), which never gives 0.
    sides = jnp.array([height, width], jnp.float32)
    centre = sides + (1 - sides) * jax.random.uniform(to_centre, (b, 2), jnp.float32)
    return Draws(op, value, geometry.shifted_box(centre, side, height, width))


def _draw_levels(
    table: Table, value_at: Callable[[str, int], float], key: Array, shape: tuple[int, ...]
) -> Draws:
    b, height, width = shape[:3]
    names, drawn = table.names, (b, table.ops)
    to_op, to_applied, to_level, to_sign, to_row, to_column = jax.random.split(key, 6)
    op = jax.random.randint(to_op, drawn, 0, len(names), jnp.int32)
    if table.probability < 1:
        applied = jax.random.bernoulli(to_applied, table.probability, drawn)
        op = jnp.where(applied, op, names.index("identity"))
    level = jax.random.randint(to_level, drawn, 1, 10, jnp.int32)
    values = {name: [value_at(name, level) for level in range(10)] for name in names}
    if table.shares:
        for name, side in (("translate_x", width), ("translate_y", height)):
            values[name] = [float(math.trunc(share * side)) for share in values[name]]
    table_of_values = jnp.asarray(list(values.values()), jnp.float32).reshape(-1)
    value = pixels.select_rows(table_of_values, 10 * op + level)
    signed = _any_of(op, [position for position, name in enumerate(names) if name in WARPS])
    negative = signed & jax.random.bernoulli(to_sign, 0.5, drawn)
    if table.colour is None:
        box = jnp.zeros((b, 4), jnp.int32)
    else:
        row = jax.random.randint(to_row, (b,), 0, height, jnp.int32)
        column = jax.random.randint(to_column, (b,), 0, width, jnp.int32)
        centre = jnp.stack([row, column], -1)
        box = geometry.clipped_box(centre, table.cutout // 2, height, width)
    return Draws(op, jnp.where(negative, -value, value), box)
