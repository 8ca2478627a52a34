"""Brightness, contrast, saturation and hue as torchvision applies them to PIL images.

Levels are whole numbers between the steps, and hue turns in the Python Imaging Library's 8-bit HSV,
so that results agree to the bit. The recipe is SimCLR's (Chen et al. 2020, appendix A). Levels
are planes, int32 0..255 [3 b h w]; factors at least float32 [b].
"""

import jax.numpy as jnp
from jax import lax

from jaxmatch.augment import tone
from jaxmatch.types import Array

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
    angle, purity, largest = _to_hsv(levels.astype(jnp.float32))
    angle = (angle + _wide((255 * shift).astype(jnp.int32))) % 256
    # A channel falls from the largest level by 0, by the whole purity, or along the ramp between.
    offset = 255 * jnp.array([5, 3, 1], jnp.int32)[:, None, None, None]
    place = (6 * angle + offset) % (6 * 255)
    fall = jnp.clip(jnp.minimum(place, 4 * 255 - place), 0, 255)
    scaled = (largest * (255 * 255 - purity * fall)).astype(jnp.float32)
    return jnp.floor(scaled / (255 * 255) + 0.5).astype(jnp.int32)


def jitter(levels: Array, order: Array, factors: Array, with_hue: bool = True) -> Array:
    """Change brightness, contrast, saturation and hue, in an order of each image's own.

    The first three are one blend each, with an image picked by the step's kind. Hue costs more, so
    it runs once: the blends that come before it run in three steps, those after it in three more,
    and in the steps that are not an image's own its blend is the identity.

    Args:
        levels: planes, int32 0..255 [3 b h w].
        order: int32 [b 4], a permutation of (BRIGHTNESS, CONTRAST, SATURATION, HUE) each.
        factors: at least float32 [b 4], the argument of each, in the order of these constants.
        with_hue: False leaves the hue alone, whatever its factor.

    Returns:
        Planes, int32 [3 b h w].
    """
    is_hue = order == HUE
    before_hue = jnp.argmax(is_hue, axis=1) if with_hue else jnp.full(len(order), 3)
    blends = _along(order, jnp.argsort(is_hue, axis=1, stable=True))
    amounts = _along(factors, blends)
    first = jnp.arange(4) < before_hue[:, None]  # [b 4] the blends that precede the hue

    def blend(levels: Array, turns: Array) -> Array:
        steps = blends.T[:3], jnp.where(turns, amounts, 1).T[:3]
        # A loop, because XLA would otherwise compute each step anew for every use of the next.
        return lax.scan(lambda levels, step: (_enhance(levels, *step), None), levels, steps)[0]

    levels = blend(levels, first)
    return blend(hue(levels, factors[:, HUE]), ~first) if with_hue else levels


def _along(values: Array, index: Array) -> Array:
    """``values[b, index[b, i]]`` of a few values each, without a gather."""
    each = jnp.arange(values.shape[1], dtype=index.dtype)
    return jnp.where(index[..., None] == each, values[:, None], 0).sum(-1, dtype=values.dtype)


def _wide(factor: Array) -> Array:
    return factor[:, None, None]


def _enhance(levels: Array, kind: Array, factor: Array) -> Array:
    """Change brightness, contrast or saturation, by each image's own ``kind`` [b]."""
    colored = jnp.where(_wide(kind) == CONTRAST, tone.mean_grey(levels), tone.luma(levels))
    degenerate = jnp.where(_wide(kind) == BRIGHTNESS, 0, colored)
    return tone.blend(degenerate, levels, _wide(factor))


def _to_hsv(levels: Array) -> tuple[Array, Array, Array]:
    """Hue, saturation and value in 0..255, int32 [b h w] each; ``levels`` are float32."""
    red, green, blue = levels
    largest = levels.max(0)
    chroma = largest - levels.min(0)
    is_red = red == largest
    is_green = ~is_red & (green == largest)
    centre = jnp.where(is_red, 0.0, jnp.where(is_green, 2.0, 4.0))
    up = largest - jnp.where(is_red, blue, jnp.where(is_green, red, green))
    down = largest - jnp.where(is_red, green, jnp.where(is_green, blue, red))
    # centre + up / chroma - down / chroma, where one quotient is 1: rounded as in PIL, once.
    part = jnp.minimum(up, down) / jnp.maximum(chroma, 1)
    sector = jnp.where(up >= down, centre + 1 - part, centre - 1 + part)
    # XLA divides by a constant with a product, which rounds otherwise: so this is none.
    turn = sector / jnp.where(chroma > 0, 6.0, 1.0)
    turn = jnp.where(chroma > 0, jnp.where(turn < 0, turn + 1, turn), 0)
    purity = chroma / jnp.maximum(largest, 1)
    return _truncate(turn), _truncate(purity), largest.astype(jnp.int32)


def _truncate(share: Array) -> Array:
    """``floor(255 share)`` of float32 0..1 as if the product were not rounded: 256 - 1 times."""
    scaled = 256 * share
    whole = jnp.floor(scaled)
    return (whole - (scaled - whole < share)).astype(jnp.int32)
