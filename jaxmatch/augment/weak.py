"""The weak view: a random horizontal flip and a random crop of the reflect-padded image."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxmatch.augment.pixels import source as pixels
from jaxmatch.errors import InputError, suggest
from jaxmatch.settings import Whole, section
from jaxmatch.types import Array

ORDERS = ("flip_crop", "crop_flip")


class Draws(NamedTuple):
    """All randomness of a crop and a flip."""

    offset: Array  # [b 2] int32 top and left of the crop in the padded image, 0..2 pad
    flip: Array  # [b] bool


@section("views.weak")
class Weak:
    """A :class:`~jaxmatch.types.Transform` of images [b h w c].

    Attributes:
        pad: the largest move of the crop in each direction, in pixels; None is an eighth of the
            shorter side. The image is padded by reflection, without repeating its edge.
        flip: flip half of the images; use False if left and right differ in meaning (digits).
        order: "flip_crop" (FixMatch, TorchSSL) or "crop_flip" (USB). The distribution is the same,
            but one draw gives different images.
    """

    pad: Whole | None = None
    flip: bool = True
    order: str = "flip_crop"

    def __post_init__(self) -> None:
        """Check the order."""
        if self.order not in ORDERS:
            raise InputError(
                f"unknown order {self.order!r} of the weak view; {suggest(self.order, ORDERS)}"
            )

    def draw(self, key: Array, shape: tuple[int, ...]) -> Draws:
        """Choose offsets and flips for images of ``shape`` [b h w c]."""
        to_offset, to_flip = jax.random.split(key)
        b, pad = shape[0], self._pad(shape)
        offset = jax.random.randint(to_offset, (b, 2), 0, 2 * pad + 1, jnp.int32)
        if not self.flip:
            return Draws(offset, jnp.zeros(b, bool))
        return Draws(offset, jax.random.bernoulli(to_flip, 0.5, (b,)))

    def apply(self, images: Array, draws: Draws) -> Array:
        """Levels 0..255 [b h w c] of any dtype in, float32 levels out."""
        h, w = images.shape[1:3]
        pad = self._pad(images.shape)
        row = _reflect(draws.offset[:, 0, None] + jnp.arange(h, dtype=jnp.int32) - pad, h)
        column = jnp.arange(w, dtype=jnp.int32)
        left, flip = draws.offset[:, 1, None], draws.flip[:, None]
        if self.order == "crop_flip":
            column = left + jnp.where(flip, w - 1 - column, column)
        else:
            column = jnp.where(flip, w + 2 * pad - 1 - (left + column), left + column)
        return pixels.take_grid(images, row, _reflect(column - pad, w))

    def _pad(self, shape: tuple[int, ...]) -> int:
        side = min(shape[1:3])
        pad = side // 8 if self.pad is None else self.pad
        if pad >= side:
            raise InputError(
                f"the weak view's pad of {pad} is too large for images of side {side}: "
                f"use at most {side - 1}."
            )
        return pad


def _reflect(position: Array, size: int) -> Array:
    """Mirror positions outside of 0..size-1 back inside, at most once."""
    return size - 1 - jnp.abs(size - 1 - jnp.abs(position))
