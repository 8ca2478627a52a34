"""Brightness, contrast, saturation and hue as torchvision applies them to PIL images.

The results equal torchvision's to the bit: levels are whole numbers after each step, and hue turns
in Pillow's 8-bit HSV. The recipe is SimCLR's (Chen et al. 2020, appendix A). Levels are planes,
int32 0..255 [3 b h w]; factors are at least float32 [b].
"""

import jax.numpy as jnp
from jax import lax

from jaxmatch.augment.pixels import source as pixels
from jaxmatch.augment.pixels import tone
from jaxmatch.types import Array

Channels = tuple[Array, Array, Array]  # red, green and blue, float32 [b h w] each
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)


def brightness(levels: Array, factor: Array) -> Array:
    """Black at ``factor`` 0, the image at 1."""
    return tone.blend(jnp.zeros_like(levels), levels, _wide(factor))


def contrast(levels: Array, factor: Array) -> Array:
    """The image's mean grey level at ``factor`` 0, the image at 1."""
    return tone.blend(tone.mean_grey(levels), levels, _wide(factor))


def saturation(levels: Array, factor: Array) -> Array:
    """Grey at ``factor`` 0, the image at 1."""
    return tone.blend(tone.luma(levels), levels, _wide(factor))


def grayscale(levels: Array) -> Array:
    """The grey level (ITU-R 601-2) in all three channels."""
    return jnp.broadcast_to(tone.luma(levels), levels.shape)


def hue(levels: Array, shift: Array) -> Array:
    """Turn the hue by ``shift`` of a full circle, -0.5..0.5: ``int(255 shift)`` of 255 steps."""
    red, green, blue = levels.astype(jnp.float32)
    angle, purity, largest = (part.astype(jnp.int32) for part in _to_hsv((red, green, blue)))
    angle = (angle + _wide((255 * shift).astype(jnp.int32))) % 256
    # A channel is below the largest level by 0, by the whole purity, or by a share of it.
    offset = 255 * jnp.array([5, 3, 1], jnp.int32)[:, None, None, None]
    place = (6 * angle + offset) % (6 * 255)
    fall = jnp.clip(jnp.minimum(place, 4 * 255 - place), 0, 255)
    scaled = (largest * (255 * 255 - purity * fall)).astype(jnp.float32)
    return jnp.floor(scaled / (255 * 255) + 0.5).astype(jnp.int32)


def jitter(levels: Array, order: Array, factors: Array, with_hue: bool = True) -> Array:
    """Change brightness, contrast, saturation and hue; each image has its own order of the four.

    Brightness, contrast and saturation are one blend each. Hue costs more, so it runs once: three
    steps of blends run before it and three after it. In a step that an image does not use, its
    blend is the identity. A TPU has a form of its own, because a pass over large images costs it
    more than arithmetic.

    Args:
        levels: planes, int32 0..255 [3 b h w].
        order: int32 [b 4], a permutation of (BRIGHTNESS, CONTRAST, SATURATION, HUE).
        factors: at least float32 [b 4], the factor of each change, indexed by these constants.
        with_hue: False does not change the hue, for any factor.

    Returns:
        Planes, int32 [3 b h w].
    """
    is_hue = order == HUE
    before_hue = jnp.argmax(is_hue, axis=1) if with_hue else jnp.full(len(order), 3)
    blends = _along(order, jnp.argsort(is_hue, axis=1, stable=True))
    amounts = _along(factors, blends)
    first = jnp.arange(4) < before_hue[:, None]  # [b 4] the blends that precede the hue
    turns = (first, ~first) if with_hue else (first,)
    steps = [(blends.T[:3], jnp.where(own, amounts, 1).T[:3]) for own in turns]
    turn = factors[:, HUE]
    return pixels.by_platform(_jitter_by_channels, _jitter_by_planes, levels, steps, turn)


def _jitter_by_planes(levels: Array, steps: list[tuple[Array, Array]], turn: Array) -> Array:
    """Blend by the kinds and factors [3 b] of each of ``steps``, and turn the hue between them."""
    for position, blends in enumerate(steps):
        if position:
            levels = hue(levels, turn)
        # Without the loop XLA computes each step again for every use of the next.
        levels, _ = lax.scan(lambda levels, step: (_enhance(levels, *step), None), levels, blends)
    return levels


def _jitter_by_channels(levels: Array, steps: list[tuple[Array, Array]], turn: Array) -> Array:
    """Do the same in float32, which holds all numbers exactly, in few passes over the images.

    Only contrast needs the whole image. So one pass leads to each contrast, and the blends after
    it are fused with the next pass. Each pass computes all channels of a pixel together.
    """
    red, green, blue = levels.astype(jnp.float32)
    channels = red, green, blue
    for position, (kinds, factors) in enumerate(steps):
        if position:
            channels = _hue_by_channels(channels, turn)
        at = jnp.argmax(kinds == CONTRAST, axis=0)
        own = jnp.where(kinds == CONTRAST, factors, 1).prod(0)
        for step in (0, 1):
            channels = _blend_pixels(channels, kinds[step], jnp.where(at > step, factors[step], 1))
        channels = _contrast_by_channels(_kept(channels), own)
        for step in (1, 2):
            channels = _blend_pixels(channels, kinds[step], jnp.where(at < step, factors[step], 1))
    return jnp.stack(_kept(channels)).astype(jnp.int32)


def _kept(channels: Channels) -> Channels:
    """The same channels, written to memory once as two bytes a level, not computed by each user."""
    kept = lax.optimization_barrier(tuple(one.astype(jnp.bfloat16) for one in channels))
    red, green, blue = (one.astype(jnp.float32) for one in kept)
    return red, green, blue


def _along(values: Array, index: Array) -> Array:
    """``values[b, index[b, i]]`` for a few values in each row, without a gather."""
    each = jnp.arange(values.shape[1], dtype=index.dtype)
    return jnp.where(index[..., None] == each, values[:, None], 0).sum(-1, dtype=values.dtype)


def _wide(factor: Array) -> Array:
    return factor[:, None, None]


def _enhance(levels: Array, kind: Array, factor: Array) -> Array:
    """Change brightness, contrast or saturation; ``kind`` [b] says which for each image."""
    colored = jnp.where(_wide(kind) == CONTRAST, tone.mean_grey(levels), tone.luma(levels))
    degenerate = jnp.where(_wide(kind) == BRIGHTNESS, 0, colored)
    return tone.blend(degenerate, levels, _wide(factor))


def _contrast_by_channels(channels: Channels, factor: Array) -> Channels:
    """Do what :func:`contrast` does."""
    grey = tone.luma_by_channels(channels).astype(jnp.int32)
    return _mix(tone.mean_of_grey(grey).astype(jnp.float32), channels, factor)


def _blend_pixels(channels: Channels, kind: Array, factor: Array) -> Channels:
    """Change brightness or saturation; ``kind`` [b] says which for each image."""
    grey = tone.luma_by_channels(channels)
    return _mix(jnp.where(_wide(kind) == BRIGHTNESS, 0.0, grey), channels, factor)


def _mix(degenerate: Array, channels: Channels, factor: Array) -> Channels:
    """Blend from the degenerate image at ``factor`` 0 to ``channels`` at 1 (:func:`tone.blend`)."""
    weight = _wide(factor.astype(jnp.float32))
    red, green, blue = (
        jnp.floor(tone.mix(degenerate, one - degenerate, weight)) for one in channels
    )
    return red, green, blue


def _hue_by_channels(channels: Channels, shift: Array) -> Channels:
    """Do what :func:`hue` does."""
    angle, purity, largest = _to_hsv(channels)
    angle = angle + _wide(jnp.trunc(255 * shift).astype(jnp.float32))
    angle = _wrap(jnp.where(angle < 0, angle + 256, angle), 256)

    def turned(offset: int) -> Array:
        place = _wrap(6 * angle + 255 * offset, 6 * 255)
        fall = jnp.clip(jnp.minimum(place, 4 * 255 - place), 0, 255)
        return jnp.floor(largest * (255 * 255 - purity * fall) / (255 * 255) + 0.5)

    return turned(5), turned(3), turned(1)


def _wrap(value: Array, period: int) -> Array:
    """The remainder of whole numbers below twice the period."""
    return jnp.where(value >= period, value - period, value)


def _to_hsv(channels: Channels) -> Channels:
    """Hue, saturation and value in 0..255, whole numbers in float32 [b h w]."""
    red, green, blue = channels
    largest = jnp.maximum(jnp.maximum(red, green), blue)
    chroma = largest - jnp.minimum(jnp.minimum(red, green), blue)
    is_red = red == largest
    is_green = ~is_red & (green == largest)
    centre = jnp.where(is_red, 0.0, jnp.where(is_green, 2.0, 4.0))
    up = largest - jnp.where(is_red, blue, jnp.where(is_green, red, green))
    down = largest - jnp.where(is_red, green, jnp.where(is_green, blue, red))
    # centre + up / chroma - down / chroma, where one quotient is 1: rounded as in PIL, once.
    part = jnp.minimum(up, down) / jnp.maximum(chroma, 1)
    sector = jnp.where(up >= down, centre + 1 - part, centre - 1 + part)
    # XLA turns division by a constant into a product, which rounds differently; this divisor is
    # no constant.
    turn = sector / jnp.where(chroma > 0, 6.0, 1.0)
    turn = jnp.where(chroma > 0, jnp.where(turn < 0, turn + 1, turn), 0)
    purity = chroma / jnp.maximum(largest, 1)
    return _truncate(turn), _truncate(purity), largest


def _truncate(share: Array) -> Array:
    """``floor(255 share)`` of float32 0..1 without rounding the product: 255 is 256 - 1."""
    scaled = 256 * share
    whole = jnp.floor(scaled)
    return whole - (scaled - whole < share)
