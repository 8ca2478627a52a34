"""From every kind of pixels that a file may hold to 8-bit RGB, by stated rules.

========================  =======================================================================
transparency              composited over ``background``, whether it is a channel, a palette's or
                          one color that counts as transparent
1 bit, 8 bits, palettes   as they are
CMYK, YCbCr, HSV, LAB     Pillow's conversion; profiles (ICC) inside of files are not applied
12 or 16 bits             the upper 8 bits, so the whole range of the type becomes 0..255
signed numbers            the same of the levels from 0 on; negative levels are refused
32 bits                   up to 65535 as 16 bits, otherwise the upper 8 bits
floating point            0..1 becomes 0..255; other levels, beyond rounding, are refused
========================  =======================================================================

``white`` replaces the range of gray levels of more than 8 bits: 0..white becomes 0..255, and levels
outside of it are refused. Without it an image is also refused if its levels differ, but would all
become one level, such as black.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
from PIL import Image, ImageCms

from jaxmatch.data import encoded
from jaxmatch.data.encoded import Decoded, Unreadable
from jaxmatch.errors import InputError

Color = tuple[int, int, int]
WHITE_IS_ZERO = 0  # the value of a TIFF's tag PHOTOMETRIC
SAMPLE_FORMAT, SIGNED = 339, 2  # a TIFF's tag, and a value of it
SIXTEEN_BITS = 2**16 - 1
ROUNDING = 1e-6  # how far floating point may be outside of 0..1


@dataclass(frozen=True, kw_only=True)
class Levels:
    """How levels become 0..255.

    Attributes:
        background: the color behind transparent pixels; None ignores transparency.
        white: the level of gray images of more than 8 bits that becomes 255; None is the largest of
            the type.
    """

    background: Color | None = (255, 255, 255)
    white: float | None = None

    @classmethod
    def of(cls, background: Sequence[int], white: float | None = None) -> Self:
        """From the values of ``data.background`` and ``data.white_level``.

        Args:
            background: one level, or one for each channel; none ignores transparency.
            white: as the attribute.

        Raises:
            InputError: if these are no levels.
        """
        parts = tuple(background)
        if len(parts) not in (0, 1, 3) or not all(part in range(256) for part in parts):
            raise InputError(
                f"data.background={parts} must have one or three levels from 0 to 255, or none, "
                "which ignores transparency."
            )
        if white is not None and not white > 0:
            raise InputError(f"data.white_level={white} must be above 0.")
        parts = tuple(map(int, parts))  # 254.0 is a level, too
        red, green, blue = parts * 3 if len(parts) == 1 else parts or (0, 0, 0)
        return cls(background=(red, green, blue) if parts else None, white=white)


DEFAULT = Levels()


class Span(NamedTuple):
    """The range of levels in an image that are no unsigned ones of 8 bits.

    Attributes:
        low: the lowest level.
        high: the highest level.
        white: the level that became 255.
        settable: whether ``data.white_level`` can name another level as white.
    """

    low: float
    high: float
    white: float
    settable: bool


class Rgb(NamedTuple):
    """An image in 8-bit RGB, and what it was.

    Attributes:
        image: of the mode RGB.
        kind: the kind of its pixels in words, such as "16-bit gray".
        span: the range of its levels; None for unsigned levels of 8 bits.
    """

    image: Image.Image
    kind: str
    span: Span | None = None


# The kind of the pixels of a mode of Pillow, without its transparency; other modes have their name.
KINDS = {
    "1": "black and white",
    **dict.fromkeys(("L", "LA", "La"), "gray"),
    **dict.fromkeys(("P", "PA"), "palette"),
    **dict.fromkeys(("RGBA", "RGBa", "RGBX"), "RGB"),
}
KEY_BITS = {"L;2": 2, "L;4": 4}  # bits of a level in the file; Pillow spreads levels over 0..255
# Kinds of levels by their bits, without a sign.
FLOAT, SIGNED_8, SIGNED_16, SIGNED_32 = 0, 7, 15, 31
BITS_IN_WORDS = {FLOAT: "32-bit float"} | {
    bits: f"signed {bits + 1}-bit" for bits in (SIGNED_8, SIGNED_16, SIGNED_32)
}


def to_rgb(decoded: Decoded, levels: Levels) -> Rgb:
    """Convert an image to 8-bit RGB by the rules of this module.

    Raises:
        Unreadable: if it is not known which level is white.
    """
    image = decoded.image
    many = image.mode in ("I", "F") or image.mode.startswith("I;16") or _is_signed_8(image)
    rgb, alpha = _from_many_levels(decoded, levels) if many else _from_colors(decoded, levels)
    if alpha is not None:
        shown = rgb.image
        if levels.background is not None and alpha.getextrema() != (255, 255):
            behind = Image.new("RGB", shown.size, levels.background)
            shown = Image.composite(shown, behind, alpha)
        rgb = rgb._replace(image=shown, kind=f"{rgb.kind} with transparency")
    return rgb


def _is_signed_8(image: Image.Image) -> bool:
    """Whether an image has signed levels of 8 bits, which Pillow holds as unsigned ones."""
    return image.mode == "L" and SIGNED in getattr(image, "tag_v2", {}).get(SAMPLE_FORMAT, ())


def _from_many_levels(decoded: Decoded, levels: Levels) -> tuple[Rgb, Image.Image | None]:
    """Gray levels with a sign or more than 8 bits: the image and its transparency, if any."""
    image = decoded.image
    values = np.asarray(image)  # [h w]
    bits = _bits(decoded)
    if bits == 32:
        values = values.view(np.uint32)
    elif bits == SIGNED_8:
        values = values.view(np.int8)
    gray, span = _scaled(values, bits, levels.white)
    tags = getattr(image, "tag_v2", {})
    if tags.get(encoded.PHOTOMETRIC) == WHITE_IS_ZERO:  # which Pillow heeds for 8 bits only
        gray = 255 - gray
    key = image.info.get("transparency")
    alpha = _mask(values != key) if isinstance(key, int) else None
    kind = f"{BITS_IN_WORDS.get(bits, f'{bits}-bit')} gray"
    return Rgb(Image.fromarray(gray).convert("RGB"), kind, span), alpha


def _bits(decoded: Decoded) -> int:
    """The bits of a level, without its sign; :data:`FLOAT` for floating point."""
    image, storage = decoded
    if image.mode == "F":
        return FLOAT
    if image.mode == "L":
        return SIGNED_8
    if storage == "I;12":
        return 12
    if image.mode.startswith("I;16") or image.format == "PPM":
        return 16
    signed = storage.endswith("S")
    if ";16" in storage:
        return SIGNED_16 if signed else 16
    return 32 if storage.startswith("I;32") and not signed else SIGNED_32


def _scaled(values: np.ndarray, bits: int, white: float | None) -> tuple[np.ndarray, Span]:
    """Gray levels [h w] as uint8, and their range."""
    if bits == SIGNED_8:  # whose white is known, as that of other 8 bits
        white = 2**bits - 1
    elif bits == FLOAT:
        values = _without_rounding(values, white or 1)
    low, high = values.min().item(), values.max().item()
    found = f"its levels run from {low:.7g} to {high:.7g}"
    remedy = "save it with 8 bits, or set data.white_level to the level that is white"
    if not low >= 0 or high == math.inf:  # NaN is not at least 0
        raise Unreadable(encoded.LEVELS, f"{found}; save it with 8 bits, from 0 to 255")
    if bits == FLOAT or white is not None:
        most = white or 1
        if high > most:
            raise Unreadable(encoded.LEVELS, f"{found}, above {most:.10g}; {remedy}")
        gray = np.rint(values.astype(np.float64) * (255 / most)).astype(np.uint8)
    else:
        if bits > 16 and high <= SIXTEEN_BITS:
            bits = 16
        most = 2**bits - 1
        gray = (values >> (bits - 8)).astype(np.uint8)
    if white is None and low < high and gray.min() == gray.max():
        alike = f"all one level where {most:.10g} is white"
        raise Unreadable(encoded.LEVELS, f"{found}, which are {alike}; {remedy}")
    return gray, Span(low, high, most, settable=bits != SIGNED_8)


def _without_rounding(values: np.ndarray, white: float) -> np.ndarray:
    """Floating point with 0 or ``white`` for levels that are outside by rounding only."""
    slack = ROUNDING * white
    near = (values >= -slack) & (values <= white + slack)
    return np.where(near, values.clip(0, white), values)


def _from_colors(decoded: Decoded, levels: Levels) -> tuple[Rgb, Image.Image | None]:
    """Pixels that Pillow holds with 8 bits: the image and its transparency, if it has some."""
    image, storage = decoded
    kind, span = KINDS.get(image.mode, image.mode), None
    key = image.info.pop("transparency", None)
    if image.mode == "P" and isinstance(key, int | bytes):
        image.info["transparency"] = key
    if image.has_transparency_data:
        # Pillow converts a gray image with premultiplied transparency in two steps only.
        rgba = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        shown, alpha = rgba.convert("RGB"), rgba.getchannel("A")
    else:
        shown, alpha = _opaque(image), None if key is None else _key_alpha(decoded, key)
    if ";16" in storage:
        kind = f"16-bit {'gray' if storage.startswith('L') else kind}"
        span = _span_of_upper_bytes(shown, levels.white)
    return Rgb(shown, kind, span), alpha


def _span_of_upper_bytes(image: Image.Image, white: float | None) -> Span:
    """The range of 16-bit levels of which Pillow reads the upper bytes."""
    ranges = np.array(image.getextrema())  # [bands 2]
    low, high = int(ranges.min()) * 256, int(ranges.max()) * 256 + 255
    if white is not None:
        why = "data.white_level is not for 16-bit colors, of which the upper bytes are read"
        raise Unreadable(encoded.LEVELS, f"{why}; save it with 8 bits")
    if high == 255:
        why = "its 16-bit levels are all below 256, which is black"
        raise Unreadable(encoded.LEVELS, f"{why}; save it with 8 bits")
    return Span(low, high, SIXTEEN_BITS, settable=False)


def _opaque(image: Image.Image) -> Image.Image:
    """An image without transparency as RGB."""
    if image.mode == "LAB":
        profiles = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        return ImageCms.buildTransform(*profiles, "LAB", "RGB").apply(image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _key_alpha(decoded: Decoded, key: object) -> Image.Image | None:
    """The transparency of a PNG in which one level or color is transparent."""
    image, storage = decoded
    values = np.asarray(image)
    if image.mode == "1" and isinstance(key, int):
        return _mask(values != bool(key))
    if image.mode == "L" and isinstance(key, int):
        most = 2 ** KEY_BITS.get(storage, 8) - 1
        return _mask(values != (key & most) * (255 // most))
    if image.mode == "RGB" and isinstance(key, tuple):
        shift = 8 if ";16" in storage else 0
        return _mask((values != [(part >> shift) & 255 for part in key]).any(-1))
    return None


def _mask(opaque: np.ndarray) -> Image.Image:
    """Transparency 0 or 255 of a mask [h w] bool."""
    return Image.fromarray(opaque.astype(np.uint8) * 255)
