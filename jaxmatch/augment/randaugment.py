"""RandAugment (Cubuk et al. 2019, arXiv:1909.13719): a few ops at random strengths, then cutout.

The published code differs in all else, so there are four :data:`TABLES`. "torchssl" is that of
TorchSSL and USB, which nearly all recent published tables use; it draws continuous values. The
others draw levels 1..9: "google" is FixMatch's own code at CIFAR scale. "simmatch" is SimMatch's
code at CIFAR scale; its posterize, solarize and warps are assumed to have google's levels. "eman"
is the ImageNet code of EMAN (Cai et al. 2021, arXiv:2101.08482): its posterize keeps 4..7 bits, and
its translations are whole pixels, cut towards 0. One op of "eman" differs from that code: our
``solarize_add`` is that of AutoAugment and of FixMatch on ImageNet; EMAN's shifts all levels up or
down by the same amount, then inverts those from 128 up.
"""

import functools
import math
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxmatch.augment.ops import OPS, apply_chosen, move, ops_of
from jaxmatch.augment.pixels import affine, geometry, tone
from jaxmatch.augment.pixels import source as pixels
from jaxmatch.errors import InputError, suggest
from jaxmatch.settings import section
from jaxmatch.types import Array

_WARP = functools.partial(affine.warp, degrees=30)  # no table rotates by more


@dataclass(frozen=True, kw_only=True)
class Table:
    """One published RandAugment; :data:`~jaxmatch.augment.ops.OPS` has its ops and their values.

    Attributes:
        name: the policy's name in :data:`~jaxmatch.augment.ops.OPS`.
        ops: the number of ops that are drawn for each image, each equally likely.
        probability: the probability of each drawn op to be applied.
        continuous: draw the value uniformly from a range; otherwise draw a level 1..9, and a sign
            for warps.
        shares: the values of translations are shares of the side; otherwise they are pixels.
        outside: the level of pixels that a warp uncovers, unless a later op turns them black; None
            for black.
        cutout: the side of the square in pixels, unless it is drawn.
        colour: the cutout's level, or one a channel; None for no cutout.
    """

    name: str
    ops: int = 2
    probability: float = 1.0
    continuous: bool = False
    shares: bool = False
    outside: float | None = None
    cutout: int = 16
    colour: float | tuple[int, int, int] | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the ops; draws count positions in them."""
        return ops_of(self.name)


TABLES = {
    table.name: table
    for table in (
        Table(name="torchssl", ops=3, continuous=True, shares=True, colour=(125, 123, 114)),
        Table(name="google", probability=0.5, outside=127.5, colour=127.5),
        Table(name="simmatch", probability=0.5, colour=127),
        Table(name="eman", shares=True),
    )
}


class Draws(NamedTuple):
    """All randomness of ``n`` ops and the cutout for ``b`` images."""

    op: Array  # [b n] int32 position in the table's names
    value: Array  # [b n] float32 value of the op (ops.Strength)
    box: Array  # [b 4] int32 cutout: top, left, bottom, right; the last two are excluded


@section("views.strong")
class RandAugment:
    """The strong view: a :class:`~jaxmatch.types.Transform` of RGB images [b h w 3].

    Attributes:
        table: "torchssl": 3 ops, black outside of the image, then a cutout square of up to half
            the side, colour (125, 123, 114). "google": 2 ops, each applied with probability 0.5,
            mid-grey outside of the image unless a later op turns it black, then a cutout square of
            16 pixels of mid-grey. "simmatch": 2 ops, each applied with probability 0.5, never
            brighter or sharper, black outside of the image, then a cutout square of 16 pixels of
            grey 127. "eman": 2 of 16 ops, black outside of the image, no cutout.
    """

    table: str = "torchssl"

    def __post_init__(self) -> None:
        """Check the table's name."""
        if self.table not in TABLES:
            raise InputError(
                f"unknown RandAugment table {self.table!r}; {suggest(self.table, TABLES)}"
            )

    def draw(self, key: Array, shape: tuple[int, ...]) -> Draws:
        """Choose ops, values and the cutout's place for images of ``shape`` [b h w 3]."""
        table = TABLES[self.table]
        draw = _draw_continuous if table.continuous else _draw_levels
        return draw(table, key, shape)

    def apply(self, images: Array, draws: Draws) -> Array:
        """Levels 0..255 [b h w 3] of any dtype in (rounded), float32 levels out."""
        table = TABLES[self.table]
        opaque = [position for position, name in enumerate(table.names) if OPS[name].opaque]

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
    """Whether each op is one of ``positions``: bool of the shape of ``op``."""
    return (op[..., None] == jnp.asarray(positions, op.dtype)).any(-1)


def _draw_continuous(table: Table, key: Array, shape: tuple[int, ...]) -> Draws:
    b, height, width = shape[:3]
    names, drawn = table.names, (b, table.ops)
    to_op, to_value, to_side, to_centre = jax.random.split(key, 4)
    op = jax.random.randint(to_op, drawn, 0, len(names), jnp.int32)
    ranges = np.array([_range(name, (height, width)) for name in names])  # [ops 2]
    low, high = jnp.moveaxis(pixels.select_rows(jnp.asarray(ranges, jnp.float32), op), -1, 0)
    value = low + (high - low) * jax.random.uniform(to_value, drawn, jnp.float32)
    side = 0.5 * width * jax.random.uniform(to_side, (b,), jnp.float32)
    # The reference draws the centre from uniform(side, 1), which never gives 0.
    sides = jnp.array([height, width], jnp.float32)
    centre = sides + (1 - sides) * jax.random.uniform(to_centre, (b, 2), jnp.float32)
    return Draws(op, value, geometry.shifted_box(centre, side, height, width))


def _range(name: str, size: tuple[int, int]) -> tuple[float, float]:
    """Least and largest value of an op in the table "torchssl", for images of ``size``."""
    op = OPS[name]
    assert op.strength.torchssl is not None
    low, high = op.strength.torchssl
    scale = 1 if op.side is None else size[op.side]
    return low * scale, high * scale


def _draw_levels(table: Table, key: Array, shape: tuple[int, ...]) -> Draws:
    b, height, width = shape[:3]
    names, drawn = table.names, (b, table.ops)
    to_op, to_applied, to_level, to_sign, to_row, to_column = jax.random.split(key, 6)
    op = jax.random.randint(to_op, drawn, 0, len(names), jnp.int32)
    if table.probability < 1:
        applied = jax.random.bernoulli(to_applied, table.probability, drawn)
        op = jnp.where(applied, op, names.index("identity"))
    level = jax.random.randint(to_level, drawn, 1, 10, jnp.int32)
    values = [_value(table, name, level, (height, width)) for name in names for level in range(10)]
    value = pixels.select_rows(jnp.asarray(values, jnp.float32), 10 * op + level)
    signed = [position for position, name in enumerate(names) if OPS[name].kind == "warp"]
    negative = _any_of(op, signed) & jax.random.bernoulli(to_sign, 0.5, drawn)
    if table.colour is None:
        box = jnp.zeros((b, 4), jnp.int32)
    else:
        row = jax.random.randint(to_row, (b,), 0, height, jnp.int32)
        column = jax.random.randint(to_column, (b,), 0, width, jnp.int32)
        centre = jnp.stack([row, column], -1)
        box = geometry.clipped_box(centre, table.cutout // 2, height, width)
    return Draws(op, jnp.where(negative, -value, value), box)


def _value(table: Table, name: str, level: int, size: tuple[int, int]) -> float:
    """The value of an op at an integer level, without its random sign, for images of ``size``."""
    op = OPS[name]
    value = float(op.strength.levels[table.name](level))
    if op.side is not None and table.shares:
        return float(math.trunc(value * size[op.side]))
    return value
