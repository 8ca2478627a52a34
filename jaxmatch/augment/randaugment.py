"""RandAugment (Cubuk et al. 2019, arXiv:1909.13719): a few ops at random strengths, then cutout.

Two tables of ops and ranges. ``torchssl`` is that of TorchSSL and USB, by which nearly all recent
tables were made: three ops, always applied, each value continuous. ``google`` is that of FixMatch's
own code: two ops, each applied with probability 1/2, integer levels 1..9.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxmatch.augment import geometry, tone
from jaxmatch.augment.ops import WARPS, apply_chosen, move
from jaxmatch.errors import InputError, suggest
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
TABLES = ("torchssl", "google")
_IDENTITY = NAMES.index("identity")
# These convert the image to opaque RGB, so that what a geometric op left outside turns black.
_OPAQUE = ("autocontrast", "equalize", "posterize", "solarize")


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


class Draws(NamedTuple):
    """All randomness of ``n`` ops and the cutout for ``b`` images."""

    op: Array  # [b n] int32 position in NAMES
    value: Array  # [b n] float32 value of the op (see ops.OPS)
    box: Array  # [b 4] int32 cutout: top, left, bottom, right, the last two excluded


@dataclass(frozen=True, kw_only=True)
class RandAugment:
    """The strong view: a :class:`~jaxmatch.types.Transform` of RGB images [b h w 3].

    Attributes:
        table: "torchssl": 3 ops, black outside of the image, then a cutout square of up to half
            the side, colour (125, 123, 114). "google": 2 ops, each applied or not, mid-grey
            outside of the image unless a later op turns it black, then 16 pixels of mid-grey.
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
        return (_draw_torchssl if self.table == "torchssl" else _draw_google)(key, shape)

    def apply(self, images: Array, draws: Draws) -> Array:
        """Levels 0..255 [b h w 3] of any dtype in (rounded), float32 levels out."""
        return (_apply_torchssl if self.table == "torchssl" else _apply_google)(images, draws)


def _draw_torchssl(key: Array, shape: tuple[int, ...]) -> Draws:
    b, height, width = shape[:3]
    to_op, to_value, to_side, to_centre = jax.random.split(key, 4)
    op = jax.random.randint(to_op, (b, 3), 0, len(NAMES), jnp.int32)
    scale = [{"translate_x": width, "translate_y": height}.get(name, 1) for name in NAMES]
    ranges = np.asarray(list(TORCHSSL.values())) * np.asarray(scale)[:, None]
    low, high = jnp.moveaxis(jnp.asarray(ranges, jnp.float32)[op], -1, 0)
    value = low + (high - low) * jax.random.uniform(to_value, (b, 3), jnp.float32)
    side = 0.5 * width * jax.random.uniform(to_side, (b,), jnp.float32)
    # The reference draws the centre from uniform(side, 1), which never gives 0.
    sides = jnp.array([height, width], jnp.float32)
    centre = sides + (1 - sides) * jax.random.uniform(to_centre, (b, 2), jnp.float32)
    return Draws(op, value, geometry.shifted_box(centre, side, height, width))


def _draw_google(key: Array, shape: tuple[int, ...]) -> Draws:
    b, height, width = shape[:3]
    to_op, to_applied, to_level, to_sign, to_row, to_column = jax.random.split(key, 6)
    op = jax.random.randint(to_op, (b, 2), 0, len(NAMES), jnp.int32)
    op = jnp.where(jax.random.bernoulli(to_applied, 0.5, (b, 2)), op, _IDENTITY)
    level = jax.random.randint(to_level, (b, 2), 1, 10, jnp.int32)
    values = [[google_value(name, level) for level in range(10)] for name in NAMES]
    value = jnp.asarray(values, jnp.float32)[op, level]
    signed = jnp.asarray([name in WARPS for name in NAMES])[op]
    negative = signed & jax.random.bernoulli(to_sign, 0.5, (b, 2))
    row = jax.random.randint(to_row, (b,), 0, height, jnp.int32)
    column = jax.random.randint(to_column, (b,), 0, width, jnp.int32)
    box = geometry.clipped_box(jnp.stack([row, column], -1), 8, height, width)
    return Draws(op, jnp.where(negative, -value, value), box)


def _apply_torchssl(images: Array, draws: Draws) -> Array:
    def layer(levels: Array, one: tuple[Array, Array]) -> tuple[Array, None]:
        return apply_chosen(levels, *one, NAMES), None

    levels, _ = lax.scan(layer, tone.planes(images), (draws.op.T, draws.value.T))
    fill = jnp.array([125, 123, 114], jnp.int32)
    return geometry.fill_box(jnp.moveaxis(levels, 0, -1), draws.box, fill).astype(jnp.float32)


def _apply_google(images: Array, draws: Draws) -> Array:
    opaque = jnp.asarray([name in _OPAQUE for name in NAMES])

    def layer(
        carry: tuple[Array, Array], one: tuple[Array, Array]
    ) -> tuple[tuple[Array, Array], None]:
        levels, visible = carry
        op, value = one
        visible = visible | opaque[op][:, None, None]
        visible = move(visible, op, value, NAMES)
        return (apply_chosen(levels, op, value, NAMES), visible), None

    start = tone.planes(images), jnp.ones(images.shape[:3], bool)
    (levels, visible), _ = lax.scan(layer, start, (draws.op.T, draws.value.T))
    out = jnp.moveaxis(levels, 0, -1).astype(jnp.float32)
    out = jnp.where(visible[..., None], out, 127.5)
    return geometry.fill_box(out, draws.box, jnp.float32(127.5))
