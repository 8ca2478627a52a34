"""The weak view: random flips, and a random crop of the image padded at its edges."""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxmatch.augment.pixels import source as pixels
from jaxmatch.errors import InputError
from jaxmatch.random import stream
from jaxmatch.settings import Whole, section
from jaxmatch.types import Array


class Draws(NamedTuple):
    """All randomness of a crop, flips and a turn; None for what is off."""

    offset: Array  # [b 2] int32 top and left of the crop in the padded image, 0..2 pad
    flip: Array  # [b] bool, left and right
    vertical_flip: Array | None = None  # [b] bool, top and bottom
    turns: Array | None = None  # [b] int32 quarter turns counter-clockwise, 0..3


@section("views.weak")
class Weak:
    """A :class:`~jaxmatch.types.Transform` of images [b h w c].

    Attributes:
        pad: the largest move of the crop in each direction, in pixels; None is an eighth of the
            shorter side.
        padding: what lies beyond the edges: "reflect" mirrors the image without repeating its edge,
            "edge" repeats the outermost pixels, "zero" is black.
        flip: mirror half of the images left and right; use False if left and right differ in
            meaning (digits).
        vertical_flip: mirror half of the images top and bottom, if the images have no upright.
        rotate90: turn by 0, 90, 180 or 270 degrees, each equally likely; images that are not square
            by 0 or 180.
        order: "flip_crop" (FixMatch, TorchSSL) or "crop_flip" (USB). The distribution is the same,
            but one draw gives different images.
    """

    pad: Whole | None = None
    padding: Literal["reflect", "edge", "zero"] = "reflect"
    flip: bool = True
    vertical_flip: bool = False
    rotate90: bool = False
    order: Literal["flip_crop", "crop_flip"] = "flip_crop"

    def draw(self, key: Array, shape: tuple[int, ...]) -> Draws:
        """Choose offsets and flips for images of ``shape`` [b h w c]."""
        to_offset, to_flip = jax.random.split(key)
        b, pad = shape[0], self._pad(shape)
        offset = jax.random.randint(to_offset, (b, 2), 0, 2 * pad + 1, jnp.int32)
        flip = jax.random.bernoulli(to_flip, 0.5, (b,)) if self.flip else jnp.zeros(b, bool)
        vertical_flip = turns = None
        if self.vertical_flip:
            vertical_flip = jax.random.bernoulli(stream(key, "vertical flip"), 0.5, (b,))
        if self.rotate90:
            turns = jax.random.randint(stream(key, "turns"), (b,), 0, 4, jnp.int32)
        return Draws(offset, flip, vertical_flip, turns)

    def apply(self, images: Array, draws: Draws) -> Array:
        """Levels 0..255 [b h w c] of any dtype in, float32 levels out."""
        h, w = images.shape[1:3]
        if draws.turns is not None:
            images = pixels.turn(images, draws.turns)
        pad = self._pad(images.shape)
        row = self._position(draws.offset, 0, draws.vertical_flip, h, pad)
        near_row = self._nearest(row, h)
        column = self._position(draws.offset, 1, draws.flip, w, pad)
        near_column = self._nearest(column, w)
        taken = pixels.take_grid(images, near_row, near_column)
        if self.padding != "zero":
            return taken
        inside = (row == near_row)[:, :, None] & (column == near_column)[:, None, :]
        return jnp.where(inside[..., None], taken, 0)

    def _position(self, offset: Array, axis: int, flip: Array | None, size: int, pad: int) -> Array:
        """The source [b size] along an axis (0 rows, 1 columns); outside of the image if padded."""
        if flip is None:
            return offset[:, axis, None] + jnp.arange(size, dtype=jnp.int32) - pad
        place = jnp.arange(size, dtype=jnp.int32)
        first, flip = offset[:, axis, None], flip[:, None]
        if self.order == "crop_flip":
            return first + jnp.where(flip, size - 1 - place, place) - pad
        return jnp.where(flip, size + 2 * pad - 1 - (first + place), first + place) - pad

    def _nearest(self, position: Array, size: int) -> Array:
        """The positions brought inside of the image."""
        if self.padding == "reflect":  # mirrored, at most once
            return size - 1 - jnp.abs(size - 1 - jnp.abs(position))
        return jnp.clip(position, 0, size - 1)

    def _pad(self, shape: tuple[int, ...]) -> int:
        side = min(shape[1:3])
        pad = side // 8 if self.pad is None else self.pad
        if pad >= side:
            raise InputError(
                f"the weak view's pad of {pad} is too large for images of side {side}: "
                f"use at most {side - 1}."
            )
        return pad
