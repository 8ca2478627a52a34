"""Decodes the content of an image file, or says in a few words why it cannot be decoded."""

import contextlib
import io
import math
import struct
from typing import NamedTuple

from PIL import ExifTags, Image, ImageFile

from jaxmatch.data.discovery import NO_IMAGES, no_decoder
from jaxmatch.errors import InputError

EMPTY = "empty file"
TRUNCATED = "truncated"
DAMAGED = "damaged"
NOT_IMAGE = "not an image"
TOO_LARGE = "too many pixels"
LEVELS = "levels of unknown range"

# Formats that Pillow does not decode, by their first bytes: (offset, bytes, name).
UNDECODED = (
    (0, b"II*\0\x10\0\0\0CR", "camera raw files"),
    (0, b"FUJIFILMCCD-RAW", "camera raw files"),
    (0, b"IIU\0", "camera raw files"),
    (0, b"IIRO", "camera raw files"),
    (0, b"IIRS", "camera raw files"),
    (0, b"MMOR", "camera raw files"),
    (0, b"FOVb", "camera raw files"),
    (0, b"\0MRM", "camera raw files"),
    (0, b"\xff\x0a", "JPEG XL"),
    (0, b"\0\0\0\x0cJXL ", "JPEG XL"),
    (0, b"II\xbc", "JPEG XR"),
    (0, b"%PDF", "PDF"),
    (0, b"%!PS", "PostScript"),
    (0, b"\xc5\xd0\xd3\xc6", "PostScript"),
    (0, b"\xd7\xcd\xc6\x9a", "WMF"),
    (128, b"DICM", "DICOM"),
    (0, b"v/1\x01", "OpenEXR"),
    (0, b"#?RADIANCE", "Radiance HDR"),
    (0, b"\x93NUMPY", "NumPy arrays"),
    (0, b"\x89HDF\r\n\x1a\n", "HDF5"),
    (0, b"\x1aE\xdf\xa3", "videos"),
    (0, b"\0\0\x01\xba", "videos"),
    (0, b"\0\0\x01\xb3", "videos"),
    (8, b"AVI LIST", "videos"),
)
# Brands of ISO media files, whose first box is "ftyp".
BRANDS = {
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx"), "HEIC"),
    **dict.fromkeys((b"avif", b"avis"), "AVIF"),
    b"crx ": "camera raw files",
    **dict.fromkeys((b"isom", b"iso2", b"mp41", b"mp42", b"qt  ", b"M4V ", b"3gp4"), "videos"),
}
# Words in errors of Pillow about content that ends too early, and about kinds it does not decode.
OTHER_KIND = ("unknown pixel mode", "samples per pixel", "unsupported", "unknown data organization")
CUT = ("truncat", "not enough image data", "incomplete header", "reached eof", "requires a buffer")
# Markers of a JPEG's segments that decoding needs; APP14 tells the colors.
JPEG_APP0, JPEG_APP14, JPEG_APP15, JPEG_COMMENT, JPEG_SCAN = 0xE0, 0xEE, 0xEF, 0xFE, 0xDA
TIFF_SIZES = {3: 2, 4: 4, 5: 8, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8}  # bytes of a value by its type
PNG = b"\x89PNG\r\n\x1a\n"
PNG_NEEDED = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
ONE_PICTURE = ("MPO", "PSD")  # their further frames are previews and layers
TURNS: dict[object, Image.Transpose] = {  # by EXIF orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
DNG_VERSION, SUB_IMAGES, IMAGE_KIND, REDUCED = 50706, 330, 254, 1  # tags of a TIFF
BITS, PHOTOMETRIC, PLANES, SEPARATE = 258, 262, 284, 2
PLANES_OF_8_BITS, LAB = (1, 2, 3, 5), 8  # gray, RGB, palette, CMYK


class Unreadable(InputError):
    """A file is no image that can be read.

    Attributes:
        reason: why, in a few words that many files share, such as "truncated".
        detail: more about this file; empty if there is no more to say.
    """

    def __init__(self, reason: str, detail: str = "", name: object = ""):
        """Make the error; ``detail`` is about this file only, ``name`` is that of the file."""
        text = f"{reason} ({detail})" if detail else reason
        super().__init__(f"Cannot read {name} as an image: {text}." if name else text)
        self.reason, self.detail = reason, detail


class Decoded(NamedTuple):
    """An image that Pillow has decoded.

    Attributes:
        image: in the mode and orientation of the file.
        storage: Pillow's name for the pixels in the file, such as "RGB;16B"; "" if it has none.
    """

    image: ImageFile.ImageFile
    storage: str


def load(content: bytes) -> Decoded:
    """Decode the first frame of an image file; damaged metadata is left out.

    Raises:
        Unreadable: if it is no image, or one that cannot be decoded.
    """
    if not content:
        raise Unreadable(EMPTY)
    Image.init()
    # Some formats are no photographs, and Pillow would run another program to read them.
    formats = tuple(name for name in Image.ID if name not in NO_IMAGES)
    try:
        return _load(content, formats)
    except Unreadable:
        raise
    # Pillow raises more errors on damaged files than it documents.
    except Exception as error:
        if bare := without_metadata(content):
            with contextlib.suppress(Exception):
                return _load(bare, formats)
        raise _unreadable(content, error, formats) from error


def upright(image: Image.Image, stored: Image.Image) -> Image.Image:
    """Turn an image as the EXIF data of ``stored``, the image as its file has it, says.

    Damaged EXIF data turn nothing.
    """
    try:
        turn = TURNS.get(stored.getexif().get(ExifTags.Base.Orientation, 1))
    # Pillow raises more errors on damaged EXIF data than it documents.
    except Exception:
        turn = None
    return image if turn is None else image.transpose(turn)


def has_more_frames(image: Image.Image) -> bool:
    """Whether the file of an image has more frames or pages than the first."""
    if image.format in ONE_PICTURE:
        return False
    try:
        return bool(getattr(image, "is_animated", False))
    except Exception:  # the second one is damaged
        return True


def _load(content: bytes, formats: tuple[str, ...]) -> Decoded:
    try:
        image = Image.open(io.BytesIO(content), formats=formats)
        pixels = image.width * image.height
        if pixels > (Image.MAX_IMAGE_PIXELS or math.inf):
            most = f"at most {Image.MAX_IMAGE_PIXELS:,}"
            raise Unreadable(TOO_LARGE, f"{image.width} x {image.height} = {pixels:,}, {most}")
        if not pixels:
            raise Unreadable(DAMAGED, f"{image.width} x {image.height} pixels")
        if _is_camera_raw(image):
            raise Unreadable(no_decoder("camera raw files"))
        if _has_misread_planes(image):
            remedy = "save it with one plane for all channels"
            raise Unreadable(no_decoder("this kind of TIFF with separate planes"), remedy)
        storage = _storage(image)
        image.load()
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise Unreadable(TOO_LARGE, str(error)) from error
    except MemoryError as error:
        raise Unreadable(TOO_LARGE, "they do not fit into memory") from error
    return Decoded(image, storage)


def _storage(image: ImageFile.ImageFile) -> str:
    """Pillow's name for the pixels in the file of an image that is not loaded yet."""
    arguments = image.tile[0][3] if image.tile else ""
    first = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return first if isinstance(first, str) else ""


def _unreadable(content: bytes, error: Exception, formats: tuple[str, ...]) -> Unreadable:
    """The error for content that Pillow does not decode because of ``error``."""
    if name := _undecoded(content):
        return Unreadable(no_decoder(name))
    if isinstance(error, Image.UnidentifiedImageError):
        return _unidentified(content, formats)
    return Unreadable(_reason(content, error), str(error))


def _unidentified(content: bytes, formats: tuple[str, ...]) -> Unreadable:
    """The error for content that Pillow does not identify."""
    for name in formats:
        factory, accept = Image.OPEN[name]
        accepted = False
        with contextlib.suppress(IndexError, struct.error):  # fewer bytes than any head
            accepted = accept is not None and accept(content[:16])
        if isinstance(accepted, str):  # Pillow was built without the decoder
            return Unreadable(no_decoder(name), accepted)
        if accepted:
            try:
                factory(io.BytesIO(content), "")
            except Exception as error:
                other = any(word in str(error).lower() for word in OTHER_KIND)
                if other and not _is_cut(content):
                    return Unreadable(no_decoder(f"this kind of {name}"), str(error))
                return Unreadable(_reason(content, error), str(error))
    return Unreadable(NOT_IMAGE)


def _reason(content: bytes, error: Exception) -> str:
    """Whether a file that Pillow does not decode is truncated or damaged."""
    text = str(error).lower()
    return TRUNCATED if any(word in text for word in CUT) or _is_cut(content) else DAMAGED


def _is_cut(content: bytes) -> bool:
    """Whether content is shorter than it says, or lacks the end that its format has."""
    length = len(content)
    if content.startswith(b"\xff\xd8"):
        return b"\xff\xd9" not in content[2:]
    if content.startswith(PNG):
        return b"IEND" not in content
    if content.startswith(b"GIF8"):
        return not content.rstrip(b"\0").endswith(b";")
    if content.startswith(b"RIFF"):
        return length < 12 or length < struct.unpack("<I", content[4:8])[0] + 8
    if content.startswith(b"icns"):
        return length < 8 or length < struct.unpack(">I", content[4:8])[0]
    if content.startswith(b"\0\0\1\0"):
        return length < _end_of_icons(content)
    if content[4:8] in (b"ftyp", b"jP  "):
        return length < _end_of_boxes(content)
    if content.startswith((b"II*\0", b"MM\0*")):
        return length < _end_of_tiff(content)
    return False


def _end_of_icons(content: bytes) -> int:
    """The length that the folder of an icon file asks for."""
    ends = [22]
    for place in range(6, 6 + 16 * int.from_bytes(content[4:6], "little"), 16):
        entry = content[place + 8 : place + 16]
        ends.append(sum(struct.unpack("<II", entry)) if len(entry) == 8 else place + 16)
    return max(ends)


def _end_of_tiff(content: bytes) -> int:
    """The length that the first directory of a TIFF asks for."""
    order = "<" if content.startswith(b"II") else ">"
    if len(content) < 8:
        return 8
    (place,) = struct.unpack(order + "I", content[4:8])
    entries = place + 2
    if len(content) < entries:
        return entries
    (count,) = struct.unpack(order + "H", content[place:entries])
    ends = [entries + 12 * count]
    for _, kind, number, value in struct.iter_unpack(
        order + "HHII", content[entries : ends[0]][: (len(content) - entries) // 12 * 12]
    ):
        size = number * TIFF_SIZES.get(kind, 1)
        ends.append(value + size if size > 4 else 0)
    return max(ends)


def _end_of_boxes(content: bytes) -> int:
    """The length that the boxes of an ISO media file or a JPEG 2000 ask for."""
    place = 0
    while place + 8 <= len(content):
        size = int.from_bytes(content[place : place + 4], "big")
        if size == 1:
            size = int.from_bytes(content[place + 8 : place + 16], "big")
        if size < 8:  # 0 is the last box, which ends with the file
            return place + 8
        place += size
    return place + 8 if place < len(content) else place


def _undecoded(content: bytes) -> str:
    """The name of the format of ``content``, if it is known and not decoded; else ""."""
    for offset, begin, name in UNDECODED:
        if content.startswith(begin, offset):
            return name
    if content[4:8] == b"ftyp":
        end = min(int.from_bytes(content[:4], "big"), len(content), 256)
        brands = [content[place : place + 4] for place in (8, *range(16, end, 4))]
        name = next((BRANDS[brand] for brand in brands if brand in BRANDS), "")
        return "" if name in Image.OPEN else name
    text = content[:4096].lstrip(b"\xef\xbb\xbf \t\r\n")
    if text.startswith(b"<svg") or (text.startswith((b"<?xml", b"<!--")) and b"<svg" in text):
        return "SVG"
    return "compressed SVG" if content.startswith(b"\x1f\x8b") and b".svg" in content[:64] else ""


def _is_camera_raw(image: ImageFile.ImageFile) -> bool:
    """Whether a TIFF is a camera's raw file, of which Pillow reads only the small preview."""
    tags = getattr(image, "tag_v2", {})
    preview = SUB_IMAGES in tags and tags.get(IMAGE_KIND) == REDUCED
    return image.format == "TIFF" and (DNG_VERSION in tags or preview)


def _has_misread_planes(image: ImageFile.ImageFile) -> bool:
    """Whether a TIFF has planes of which Pillow reads other levels, without an error.

    Pillow takes uncompressed planes for unsigned levels of 8 bits, or for floating point in the
    order of the machine. It does not heed that the colors of LAB have a sign.
    """
    tags = getattr(image, "tag_v2", None)
    if tags is None or tags.get(PLANES) != SEPARATE:
        return False
    if not image.tile or image.tile[0].codec_name != "raw":
        return tags.get(PHOTOMETRIC) == LAB
    if image.mode == "F":
        return tags.prefix != b"II"
    return set(tags.get(BITS, ())) != {8} or tags.get(PHOTOMETRIC) not in PLANES_OF_8_BITS


def without_metadata(content: bytes) -> bytes | None:
    """A JPEG or PNG without the parts that decoding does not need; None for other formats."""
    if content.startswith(b"\xff\xd8\xff"):
        return _jpeg_without_metadata(content)
    return _png_without_metadata(content) if content.startswith(PNG) else None


def _jpeg_without_metadata(content: bytes) -> bytes:
    kept, place = [content[:2]], 2
    while place + 4 <= len(content) and content[place] == 0xFF:
        marker = content[place + 1]
        if marker == 0xFF:  # a byte that fills up
            place += 1
            continue
        if marker == JPEG_SCAN:
            break
        end = place + 2 + int.from_bytes(content[place + 2 : place + 4], "big")
        colors = marker == JPEG_APP14 and content.startswith(b"Adobe", place + 4)
        whole = colors and end - place >= 16
        if whole or not (JPEG_APP0 <= marker <= JPEG_APP15 or marker == JPEG_COMMENT):
            kept.append(content[place:end])
        place = end
    return b"".join([*kept, content[place:]])


def _png_without_metadata(content: bytes) -> bytes:
    kept, place = [PNG], len(PNG)
    while place + 8 <= len(content):
        end = place + 12 + int.from_bytes(content[place : place + 4], "big")
        if content[place + 4 : place + 8] in PNG_NEEDED:
            kept.append(content[place:end])
        place = end
    return b"".join(kept)
