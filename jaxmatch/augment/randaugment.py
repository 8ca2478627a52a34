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
import re
from dataclasses import dataclass, replace
from typing import Annotated, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxmatch.augment.ops import OPS, Warp, apply_chosen, move, ops_of
from jaxmatch.augment.pixels import affine, geometry, tone
from jaxmatch.augment.pixels import source as pixels
from jaxmatch.errors import InputError, suggest
from jaxmatch.settings import Range, Share, Whole, section
from jaxmatch.types import Array

_WARP = functools.partial(affine.warp, degrees=30)  # no table rotates by more

Level = Annotated[int, Range(least=0, most=255)]
Fill = Level | tuple[Level, Level, Level]


@dataclass(frozen=True, kw_only=True)
class Table:
    """A RandAugment policy; :data:`~jaxmatch.augment.ops.OPS` has its ops and their values.

    Attributes:
        name: the policy's name in :data:`~jaxmatch.augment.ops.OPS`.
        chosen: the names of the ops; empty for those of the policy.
        number: the number of ops that are drawn for each image, each equally likely.
        probability: the probability of each drawn op to be applied.
        strength: scales the values of the ops towards those that change nothing.
        continuous: draw the value uniformly from a range; otherwise draw a level 1..9, and a sign
            for warps.
        shares: the values of translations are shares of the side; otherwise they are pixels.
        outside: the level of pixels that a warp uncovers, unless a later op turns them black; None
            for ``fill``.
        fill: the level of pixels that a warp uncovers, or one a channel; later ops change it.
        padding: what warps uncover: "fill", or the image that goes on ("edge", "reflect").
        cutout: the side of the square in pixels; 0 for ``cutout_share``.
        cutout_share: the side as a share of the shorter side of the image, or, where the policy
            draws it, its largest value as a share of the width; 0 for no cutout.
        colour: the cutout's level, or one a channel.
    """

    name: str
    chosen: tuple[str, ...] = ()
    number: int = 2
    probability: float = 1.0
    strength: float = 1.0
    continuous: bool = False
    shares: bool = False
    outside: float | None = None
    fill: Fill = 0
    padding: Literal["fill", "edge", "reflect"] = "fill"
    cutout: int = 0
    cutout_share: float = 0.0
    colour: float | tuple[int, int, int] = 0

    @property
    def choices(self) -> tuple[str, ...]:
        """The names of the ops to draw from."""
        return self.chosen or ops_of(self.name)

    @property
    def names(self) -> tuple[str, ...]:
        """The choices, and "identity" for ops that are not applied; draws are positions in it."""
        rest = self.probability < 1 and "identity" not in self.choices
        return (*self.choices, "identity") if rest else self.choices

    @property
    def cuts(self) -> bool:
        """Whether views end with a cutout."""
        return self.cutout > 0 or self.cutout_share > 0

    def range(self, name: str, size: tuple[int, int]) -> tuple[float, float]:
        """Least and largest value of an op of a continuous table, for images of ``size``."""
        op = OPS[name]
        low, high = (op.strength.weaken(bound, self.strength) for bound in op.strength.torchssl)
        return low * op.unit(size), high * op.unit(size)

    def value(self, name: str, level: int, size: tuple[int, int]) -> float:
        """The value of an op at a level, without its random sign, for images of ``size``."""
        op = OPS[name]
        value = float(op.strength.weaken(op.strength.levels[self.name](level), self.strength))
        if op.side is not None and self.shares:
            return float(math.trunc(value * size[op.side]))
        return value


TABLES = {
    table.name: table
    for table in (
        Table(
            name="torchssl",
            number=3,
            continuous=True,
            shares=True,
            cutout_share=0.5,
            colour=(125, 123, 114),
        ),
        Table(name="google", probability=0.5, outside=127.5, cutout=16, colour=127.5),
        Table(name="simmatch", probability=0.5, cutout=16, colour=127),
        Table(name="eman", shares=True),
    )
}


class Draws(NamedTuple):
    """All randomness of ``n`` ops and the cutout for ``b`` images."""

    op: Array  # [b n] int32 position in Table.names
    value: Array  # [b n] float32 value of the op (ops.Strength)
    box: Array  # [b 4] int32 cutout: top, left, bottom, right; the last two are excluded


@section("views.strong")
class RandAugment:
    """The strong view: a :class:`~jaxmatch.types.Transform` of RGB images [b h w 3].

    The table decides what the other settings leave open; their defaults leave it as published.

    Attributes:
        table: "torchssl": 3 ops, black outside of the image, then a cutout square of up to half
            the side, colour (125, 123, 114). "google": 2 ops, each applied with probability 0.5,
            mid-grey outside of the image unless a later op turns it black, then a cutout square of
            16 pixels of mid-grey. "simmatch": 2 ops, each applied with probability 0.5, never
            brighter or sharper, black outside of the image, then a cutout square of 16 pixels of
            grey 127. "eman": 2 of 16 ops, black outside of the image, no cutout.
        ops: the names of the ops to draw from, in any order; empty takes the table's. An op that
            the table does not draw has the values that its kind has there: blur, smooth and invert
            are applied in full; solarize_add adds 0 to 110 levels.
        number: how many ops are drawn for each image; None takes the table's.
        strength: scales each op's values towards those that change nothing: at 0.5 the table's
            rotation by up to 30 degrees is one by up to 15. 1 is as published, 0 changes nothing.
            Invert has no degree and stays; leave it out of ops.
        cutout: whether a square is painted over at the end: True, False, or its side as a share of
            the image's (torchssl: the largest side, of which a uniform share is drawn); None takes
            the table's. Where the table has none, True is half of the side.
        fill: the level 0..255 of the cutout and of what warps uncover, or a level for each
            channel; None takes the table's. Later ops change uncovered pixels as they change the
            image.
        padding: what warps uncover: "fill", "zero" (black), or the image that goes on at its edges,
            by repeating them ("edge") or mirrored ("reflect").
    """

    table: Literal["torchssl", "google", "simmatch", "eman"] = "torchssl"
    ops: tuple[str, ...] = ()
    number: Whole | None = None
    strength: Share = 1.0
    cutout: Share | bool | None = None
    fill: Fill | None = None
    padding: Literal["fill", "reflect", "edge", "zero"] = "fill"

    def __post_init__(self) -> None:
        """Check the names of the ops."""
        for name in self.ops:
            if name == "cutout":
                raise InputError(
                    "cutout comes after the ops and is not one of views.strong.ops; set "
                    "views.strong.cutout."
                )
            if set(name) & set(",()[]"):  # a list without quotes is one text on a command line
                listed = tuple(re.findall(r"\w+", name))
                raise InputError(f'write views.strong.ops={name} as views.strong.ops="{listed}".')
            if name not in OPS:
                raise InputError(
                    f"unknown image operation {name!r} in views.strong.ops; {suggest(name, OPS)}"
                )
            if self.ops.count(name) > 1:
                raise InputError(f"views.strong.ops names {name!r} twice; ops are equally likely.")

    def draw(self, key: Array, shape: tuple[int, ...]) -> Draws:
        """Choose ops, values and the cutout's place for images of ``shape`` [b h w 3]."""
        table = self.policy()
        draw = _draw_continuous if table.continuous else _draw_levels
        return draw(table, key, shape)

    def apply(self, images: Array, draws: Draws) -> Array:
        """Levels 0..255 [b h w 3] of any dtype in (rounded), float32 levels out."""
        table = self.policy()
        opaque = [position for position, name in enumerate(table.names) if OPS[name].opaque]
        warp = _warp(table)

        def layer(
            carry: tuple[Array, Array | None], one: tuple[Array, Array]
        ) -> tuple[tuple[Array, Array | None], None]:
            levels, visible = carry
            op, value = one
            if visible is not None:
                visible = visible | _any_of(op, opaque)[:, None, None]
                visible = move(visible, op, value, table.names, _WARP)
            return (apply_chosen(levels, op, value, table.names, warp), visible), None

        levels = tone.planes(images)
        visible = None if table.outside is None else jnp.ones(images.shape[:3], bool)
        (levels, visible), _ = lax.scan(layer, (levels, visible), (draws.op.T, draws.value.T))
        out = jnp.moveaxis(levels, 0, -1)
        if visible is not None and table.outside is not None:
            out = out.astype(jnp.float32)
            out = jnp.where(visible[..., None], out, table.outside)
        if table.cuts:
            out = out.astype(jnp.float32) if isinstance(table.colour, float) else out
            out = geometry.fill_box(out, draws.box, jnp.asarray(table.colour, out.dtype))
        return out.astype(jnp.float32)

    def policy(self) -> Table:
        """The table with what the other settings change in it."""
        table = replace(TABLES[self.table], strength=self.strength)
        if self.ops:  # in one order, so that the order of the setting does not matter
            table = replace(table, chosen=tuple(name for name in OPS if name in self.ops))
        if self.number is not None:
            table = replace(table, number=self.number)
        if self.fill is not None:
            table = replace(table, outside=None, fill=self.fill, colour=self.fill)
        if self.padding == "zero":
            table = replace(table, outside=None, fill=0)
        elif self.padding != "fill":
            table = replace(table, outside=None, padding=self.padding)
        if self.cutout is None or (self.cutout is True and table.cuts):
            return table
        share = 0.5 if self.cutout is True else float(self.cutout)
        return replace(table, cutout=0, cutout_share=share)


def _warp(table: Table) -> Warp:
    """The function that moves pixels; what it uncovers is as the table says."""
    if table.padding != "fill":
        return functools.partial(affine.warp_continued, padding=table.padding, degrees=30)
    fill = np.broadcast_to(np.asarray(table.fill, np.int32), 3)[:, None, None, None]
    if not fill.any():
        return _WARP

    # A warp uncovers zeros. So a level is moved as its difference, bit by bit, from the fill.
    def warp(planes: Array, matrix: Array) -> Array:
        return _WARP(planes ^ fill, matrix) ^ fill

    return warp


def _any_of(op: Array, positions: list[int]) -> Array:
    """Whether each op is one of ``positions``: bool of the shape of ``op``."""
    return (op[..., None] == jnp.asarray(positions, op.dtype)).any(-1)


def _draw_continuous(table: Table, key: Array, shape: tuple[int, ...]) -> Draws:
    b, height, width = shape[:3]
    names, drawn = table.choices, (b, table.number)
    to_op, to_value, to_side, to_centre = jax.random.split(key, 4)
    op = jax.random.randint(to_op, drawn, 0, len(names), jnp.int32)
    ranges = np.array([table.range(name, (height, width)) for name in names])  # [ops 2]
    low, high = jnp.moveaxis(pixels.select_rows(jnp.asarray(ranges, jnp.float32), op), -1, 0)
    value = low + (high - low) * jax.random.uniform(to_value, drawn, jnp.float32)
    if not table.cuts:
        return Draws(op, value, jnp.zeros((b, 4), jnp.int32))
    side = table.cutout_share * width * jax.random.uniform(to_side, (b,), jnp.float32)
    # The reference draws the centre from uniform(side, 1), which never gives 0.
    sides = jnp.array([height, width], jnp.float32)
    centre = sides + (1 - sides) * jax.random.uniform(to_centre, (b, 2), jnp.float32)
    return Draws(op, value, geometry.shifted_box(centre, side, height, width))


def _draw_levels(table: Table, key: Array, shape: tuple[int, ...]) -> Draws:
    b, height, width = shape[:3]
    names, drawn = table.names, (b, table.number)
    to_op, to_applied, to_level, to_sign, to_row, to_column = jax.random.split(key, 6)
    op = jax.random.randint(to_op, drawn, 0, len(table.choices), jnp.int32)
    if table.probability < 1:
        applied = jax.random.bernoulli(to_applied, table.probability, drawn)
        op = jnp.where(applied, op, names.index("identity"))
    level = jax.random.randint(to_level, drawn, 1, 10, jnp.int32)
    values = [table.value(name, level, (height, width)) for name in names for level in range(10)]
    value = pixels.select_rows(jnp.asarray(values, jnp.float32), 10 * op + level)
    signed = [position for position, name in enumerate(names) if OPS[name].kind == "warp"]
    negative = _any_of(op, signed) & jax.random.bernoulli(to_sign, 0.5, drawn)
    if not table.cuts:
        box = jnp.zeros((b, 4), jnp.int32)
    else:
        row = jax.random.randint(to_row, (b,), 0, height, jnp.int32)
        column = jax.random.randint(to_column, (b,), 0, width, jnp.int32)
        centre = jnp.stack([row, column], -1)
        side = table.cutout or round(table.cutout_share * min(height, width))
        box = geometry.clipped_box(centre, side // 2, height, width)
    return Draws(op, jnp.where(negative, -value, value), box)
