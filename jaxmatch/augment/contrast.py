"""The views of contrastive learning: resized crop, colour jitter, grey, blur, solarize, flip.

SimCLR (Chen et al. 2020), MoCo v2, BYOL, CoMatch and SimMatch build their views as a
:class:`~jaxmatch.augment.chain.Chain` of these parts, with torchvision's distributions. Each part
is a :class:`~jaxmatch.types.Transform` of RGB images [b h w 3]; an image is changed with the
part's ``probability``.
"""

import math
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxmatch.augment.chain import Chain
from jaxmatch.augment.pixels import blur, color, resize, tone
from jaxmatch.augment.pixels import source as pixels
from jaxmatch.errors import InputError
from jaxmatch.settings import Count, NonNegative, Range, Share, section
from jaxmatch.types import Array, PyTree, Transform

_TRIES = 10  # proposals of a crop; if none fits, the crop is the centre


@dataclass(frozen=True, kw_only=True)
class RandomResizedCrop:
    """Crop a random part and resize it as PIL does, the columns first.

    Attributes:
        size: side of the output in pixels; None keeps the images' height and width.
        area: least and largest share of the image's area.
        aspect: least and largest ratio of width to height, log-uniform.
        method: see :func:`jaxmatch.augment.pixels.resize.resize`.
    """

    size: int | None = None
    area: tuple[float, float] = (0.2, 1.0)
    aspect: tuple[float, float] = (3 / 4, 4 / 3)
    method: str = "bilinear"

    def __post_init__(self) -> None:
        """Check the method, the area and the aspect."""
        resize.check_method(self.method)
        if not 0 < self.area[0] <= self.area[1] <= 1 or not 0 < self.aspect[0] <= self.aspect[1]:
            raise InputError(
                "a crop needs a least and a largest area in 0..1 and aspect above 0, not "
                f"{tuple(self.area)} and {tuple(self.aspect)}."
            )

    def draw(self, key: Array, shape: tuple[int, ...]) -> Array:
        """Boxes (top, left, height, width), int32 [b 4], for images of ``shape`` [b h w c].

        Ten pairs of area and aspect are proposed. The first box that fits the image is used, or
        else the largest central box of an allowed aspect.
        """
        b, height, width = shape[:3]
        to_area, to_aspect, to_place = jax.random.split(key, 3)
        pixels = height * width * jax.random.uniform(to_area, (b, _TRIES), jnp.float32, *self.area)
        aspect = jnp.exp(
            jax.random.uniform(
                to_aspect, (b, _TRIES), jnp.float32, *(math.log(side) for side in self.aspect)
            )
        )
        sides = jnp.stack([jnp.sqrt(pixels / aspect), jnp.sqrt(pixels * aspect)], -1)
        sides = jnp.rint(sides).astype(jnp.int32)  # [b tries 2]
        whole = jnp.array([height, width], jnp.int32)
        fits = ((sides > 0) & (sides <= whole)).all(-1)
        first = fits & (jnp.cumsum(fits, 1) == 1)
        sides = jnp.where(first[..., None], sides, 0).sum(1, dtype=jnp.int32)
        place = jax.random.uniform(to_place, (b, 2), jnp.float32)
        corner = jnp.minimum(
            jnp.floor(place * (whole - sides + 1)).astype(jnp.int32), whole - sides
        )
        central = jnp.array(self._central(height, width), jnp.int32)
        found = fits.any(1)[:, None]
        return jnp.where(found, jnp.concatenate([corner, sides], 1), central)

    def apply(self, images: Array, draws: Array) -> Array:
        """Levels 0..255 [b h w c] of any dtype in, float32 levels [b size size c] out."""
        height, width = images.shape[1:3]
        size = (self.size or height, self.size or width)
        return resize.resize_columns_first(images, draws, size, self.method)

    def _central(self, height: int, width: int) -> tuple[int, int, int, int]:
        least, largest = self.aspect
        tall = min(height, round(width / least))
        wide = min(width, round(height * largest))
        return (height - tall) // 2, (width - wide) // 2, tall, wide


class JitterDraws(NamedTuple):
    """All randomness of a colour jitter."""

    chosen: Array  # [b] bool
    order: Array  # [b 4] int32, a permutation of color.BRIGHTNESS .. color.HUE
    factors: Array  # [b 4] float32, brightness, contrast, saturation, hue


@dataclass(frozen=True, kw_only=True)
class ColorJitter:
    """Change brightness, contrast, saturation (factors 1 ± value) and hue (± value of a circle).

    The order of the four changes is random. The defaults are MoCo v2's.
    """

    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1
    probability: float = 0.8

    def __post_init__(self) -> None:
        """Check the strengths, and that the hue turns by at most half a circle."""
        if min(self.brightness, self.contrast, self.saturation) < 0 or not 0 <= self.hue <= 0.5:
            raise InputError(
                "colour jitter needs brightness, contrast and saturation of 0 or more and a hue in "
                f"0..0.5, not {self.brightness}, {self.contrast}, {self.saturation}, {self.hue}."
            )

    def draw(self, key: Array, shape: tuple[int, ...]) -> JitterDraws:
        """Choose images, orders and factors for images of ``shape`` [b h w c]."""
        to_chosen, to_order, to_factor = jax.random.split(key, 3)
        b = shape[0]
        order = jnp.tile(jnp.arange(4, dtype=jnp.int32), (b, 1))
        strengths = jnp.array([self.brightness, self.contrast, self.saturation], jnp.float32)
        low = jnp.append(jnp.maximum(1 - strengths, 0), -self.hue)
        high = jnp.append(1 + strengths, self.hue)
        return JitterDraws(
            jax.random.bernoulli(to_chosen, self.probability, (b,)),
            jax.random.permutation(to_order, order, axis=1, independent=True),
            jax.random.uniform(to_factor, (b, 4), jnp.float32, low, high),
        )

    def apply(self, images: Array, draws: JitterDraws) -> Array:
        """Levels 0..255 [b h w 3] of any dtype in, float32 levels out."""
        levels = tone.planes(images)
        changed = color.jitter(levels, draws.order, draws.factors, with_hue=self.hue > 0)
        return _choose(draws.chosen, changed, levels)


@dataclass(frozen=True, kw_only=True)
class Grayscale:
    """Replace each colour by its grey level."""

    probability: float = 0.2

    def draw(self, key: Array, shape: tuple[int, ...]) -> Array:
        """Which images turn grey, bool [b]."""
        return jax.random.bernoulli(key, self.probability, shape[:1])

    def apply(self, images: Array, draws: Array) -> Array:
        """Levels 0..255 [b h w 3] of any dtype in, float32 levels out."""
        levels = tone.planes(images)
        return _choose(draws, color.grayscale(levels), levels)


class BlurDraws(NamedTuple):
    """All randomness of a blur."""

    chosen: Array  # [b] bool
    sigma: Array  # [b] float32, pixels


@dataclass(frozen=True, kw_only=True)
class GaussianBlur:
    """Blur as PIL does, with a uniform random sigma in pixels."""

    sigma: tuple[float, float] = (0.1, 2.0)
    probability: float = 0.5

    def __post_init__(self) -> None:
        """Check the range of sigma."""
        if not 0 <= self.sigma[0] <= self.sigma[1]:
            raise InputError(
                f"a blur needs a least and a largest sigma of 0 or more, not {tuple(self.sigma)}."
            )

    def draw(self, key: Array, shape: tuple[int, ...]) -> BlurDraws:
        """Choose images and sigmas for images of ``shape`` [b h w c]."""
        to_chosen, to_sigma = jax.random.split(key)
        return BlurDraws(
            jax.random.bernoulli(to_chosen, self.probability, shape[:1]),
            jax.random.uniform(to_sigma, shape[:1], jnp.float32, *self.sigma),
        )

    def apply(self, images: Array, draws: BlurDraws) -> Array:
        """Levels 0..255 [b h w c] of any dtype in, float32 levels out."""
        levels = tone.planes(images)
        changed = blur.gaussian_blur(levels, draws.sigma, largest=self.sigma[1])
        return _choose(draws.chosen, changed, levels)


@dataclass(frozen=True, kw_only=True)
class Solarize:
    """Invert the levels from ``threshold`` upwards."""

    threshold: float = 128
    probability: float = 0.2

    def draw(self, key: Array, shape: tuple[int, ...]) -> Array:
        """Which images are solarized, bool [b]."""
        return jax.random.bernoulli(key, self.probability, shape[:1])

    def apply(self, images: Array, draws: Array) -> Array:
        """Levels 0..255 [b h w c] of any dtype in, float32 levels out."""
        levels = tone.planes(images)
        return _choose(draws, tone.solarize(levels, jnp.float32(self.threshold)), levels)


@dataclass(frozen=True, kw_only=True)
class Flip:
    """Mirror left and right, or top and bottom."""

    probability: float = 0.5
    vertical: bool = False

    def draw(self, key: Array, shape: tuple[int, ...]) -> Array:
        """Which images are mirrored, bool [b]."""
        return jax.random.bernoulli(key, self.probability, shape[:1])

    def apply(self, images: Array, draws: Array) -> Array:
        """Levels 0..255 [b h w c] of any dtype in, float32 levels out."""
        flip = pixels.flip_vertically if self.vertical else pixels.flip
        return flip(images, draws).astype(jnp.float32)


@dataclass(frozen=True, kw_only=True)
class Turn:
    """Turn by 0, 90, 180 or 270 degrees; images that are not square by 0 or 180."""

    def draw(self, key: Array, shape: tuple[int, ...]) -> Array:
        """Quarter turns counter-clockwise, int32 [b] 0..3."""
        return jax.random.randint(key, shape[:1], 0, 4, jnp.int32)

    def apply(self, images: Array, draws: Array) -> Array:
        """Levels 0..255 [b h w c] of any dtype in, float32 levels out."""
        return pixels.turn(images, draws).astype(jnp.float32)


def _choose(chosen: Array, changed: Array, levels: Array) -> Array:
    """``changed`` if ``chosen`` [b], else ``levels``: planes in, float32 [b h w 3] out."""
    planes = jnp.where(chosen[:, None, None], changed, levels)
    return jnp.moveaxis(planes, 0, -1).astype(jnp.float32)


@section("views.contrast")
class Contrast:
    """A whole view of contrastive learning: crop, flips, jitter, grey, blur, solarize, in order.

    The defaults are SimCLR's for CIFAR (Chen et al. 2020, appendix B.9): jitter of strength 0.5
    and no blur.

    Attributes:
        size: side of the view in pixels; None keeps the images' height and width.
        area: least and largest share of the image's area that the crop covers.
        method: how the crop is resized, "bilinear" or "bicubic".
        flip, jitter, grayscale, blur, solarize: the probability of each; at 0 it is left out.
        vertical_flip: the probability to mirror top and bottom; for images that have no upright.
        rotate90: turn by 0, 90, 180 or 270 degrees, each equally likely; views that are not square
            by 0 or 180.
        brightness, contrast, saturation, hue: strengths of the jitter.
        sigma: of the blur, in pixels.
    """

    size: Count | None = None
    area: tuple[Share, Share] = (0.08, 1.0)
    method: Literal["bilinear", "bicubic"] = "bilinear"
    flip: Share = 0.5
    vertical_flip: Share = 0.0
    rotate90: bool = False
    jitter: Share = 0.8
    brightness: NonNegative = 0.4
    contrast: NonNegative = 0.4
    saturation: NonNegative = 0.4
    hue: Annotated[float, Range(least=0, most=0.5)] = 0.1
    grayscale: Share = 0.2
    blur: Share = 0.0
    sigma: tuple[NonNegative, NonNegative] = (0.1, 2.0)
    solarize: Share = 0.0

    def __post_init__(self) -> None:
        """Check the settings of each part."""
        self._chain()

    def draw(self, key: Array, shape: tuple[int, ...]) -> PyTree:
        """The draws of each part for images of ``shape`` [b h w c]."""
        return self._chain().draw(key, shape)

    def apply(self, images: Array, draws: PyTree) -> Array:
        """Levels 0..255 [b h w 3] of any dtype in, float32 levels [b size size 3] out."""
        return self._chain().apply(images, draws)

    def _chain(self) -> Chain:
        crop: tuple[Transform, ...] = (
            RandomResizedCrop(size=self.size, area=self.area, method=self.method),
        )
        if self.flip:
            crop += (Flip(probability=self.flip),)
        if self.vertical_flip:
            crop += (Flip(probability=self.vertical_flip, vertical=True),)
        if self.rotate90:
            crop += (Turn(),)
        return Chain(transforms=(*crop, *self.colors().transforms))

    def colors(self) -> Chain:
        """The parts after crop, flips and turn; for streamed images the host does these."""
        parts: list[tuple[float, Transform]] = [
            (
                self.jitter,
                ColorJitter(
                    brightness=self.brightness,
                    contrast=self.contrast,
                    saturation=self.saturation,
                    hue=self.hue,
                    probability=self.jitter,
                ),
            ),
            (self.grayscale, Grayscale(probability=self.grayscale)),
            (self.blur, GaussianBlur(sigma=self.sigma, probability=self.blur)),
            (self.solarize, Solarize(probability=self.solarize)),
        ]
        return Chain(transforms=tuple(part for probability, part in parts if probability > 0))
