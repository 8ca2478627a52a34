"""Which files can be decoded, why others cannot, and that metadata never loses a picture."""

import struct
import zlib

import numpy as np
import pytest
from pictures import COLOR, GRAY, chunk, formats_of, noise, png, saved, tiff
from PIL import Image

from jaxmatch.data import encoded, images
from jaxmatch.data.discovery import no_decoder
from jaxmatch.data.encoded import Unreadable, load
from jaxmatch.data.levels import Levels
from jaxmatch.errors import InputError

H, W = 40, 50
COLORS = noise(H, W, 3).astype(np.uint8)
PICTURE = Image.fromarray(COLORS)
FORMATS = formats_of(
    PICTURE,
    (
        *("AVIF", "BMP", "DDS", "DIB", "GIF", "ICO", "JPEG", "JPEG2000", "PCX", "PNG"),
        *("PPM", "QOI", "SGI", "TGA", "TIFF", "WEBP"),
    ),
)


def reason_of(content):
    with pytest.raises(Unreadable) as caught:
        images.examine(content, Levels())
    return caught.value.reason


def pixels_of(content):
    return np.asarray(images.examine(content, Levels()).image)


def test_the_usual_formats_are_there():
    assert {"BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP"} <= set(FORMATS)


@pytest.mark.parametrize("share", [0.02, 0.1, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.filterwarnings("ignore:Truncated File Read")
def test_truncated_files(kind, share):
    content = saved(PICTURE, kind)
    length = max(int(len(content) * share), 26)  # fewer bytes are no head of a file
    assert reason_of(content[:length]) == encoded.TRUNCATED


@pytest.mark.parametrize("mode", ["L", "P", "CMYK"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"compression": "tiff_lzw"}])
@pytest.mark.parametrize("share", [0.5, 0.9])
@pytest.mark.filterwarnings("ignore:Truncated File Read")
def test_truncated_variants(mode, options, share):
    kind = "TIFF" if "compression" in options else "JPEG" if mode != "P" else "PNG"
    content = saved(PICTURE.convert(mode), kind, **options)
    assert reason_of(content[: int(len(content) * share)]) == encoded.TRUNCATED


def test_a_png_without_its_last_chunk_is_intact():
    np.testing.assert_array_equal(pixels_of(saved(PICTURE, "PNG")[:-12]), COLORS)


def test_damaged_pixels():
    content = bytearray(saved(PICTURE, "PNG"))
    middle = len(content) // 2
    content[middle : middle + 40] = bytes(40)
    assert reason_of(bytes(content)) == encoded.DAMAGED


@pytest.mark.parametrize(
    "content",
    [
        b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
        b'<?xml version="1.0"?><rss></rss>',
        b"path,label\na.png,cat\n",
        b"PK\x03\x04" + bytes(60),
        b"\x1f\x8b\x08" + bytes(60),
        b"version https://git-lfs.github.com/spec/v1\n",
        b"\x89PNG but not an image",
        b"x",
        bytes(100),
        bytes(range(256)) * 4,
    ],
)
def test_content_that_is_no_image(content):
    assert reason_of(content) == encoded.NOT_IMAGE


def test_an_empty_file():
    assert reason_of(b"") == encoded.EMPTY


def brand(major, *others):
    listed = b"".join((major, bytes(4), *others))
    return struct.pack(">I", 8 + len(listed)) + b"ftyp" + listed + bytes(200)


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (brand(b"heic", b"mif1", b"heic"), "HEIC"),
        (brand(b"mif1", b"mif1", b"heic"), "HEIC"),
        (brand(b"heix"), "HEIC"),
        (brand(b"msf1", b"hevc"), "HEIC"),
        (brand(b"crx "), "camera raw files"),
        (brand(b"isom", b"mp41"), "videos"),
        (brand(b"qt  "), "videos"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"></svg>', "SVG"),
        (b'\xef\xbb\xbf<?xml version="1.0"?>\n<!-- drawn -->\n<svg></svg>', "SVG"),
        (b"II*\0\x10\0\0\0CR\x02\0" + bytes(200), "camera raw files"),
        (b"FUJIFILMCCD-RAW 0201" + bytes(200), "camera raw files"),
        (b"\xff\x0a" + bytes(50), "JPEG XL"),
        (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(50), "JPEG XL"),
        (b"%PDF-1.7\n", "PDF"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "PostScript"),
        (bytes(128) + b"DICM" + bytes(50), "DICOM"),
        (b"v/1\x01" + bytes(50), "OpenEXR"),
        (b"\x93NUMPY\x01\0", "NumPy arrays"),
        (b"\x1aE\xdf\xa3" + bytes(50), "videos"),
    ],
)
@pytest.mark.filterwarnings("ignore")  # Pillow's, about the damaged TIFF
def test_formats_without_a_decoder_are_named(content, name):
    assert reason_of(content) == no_decoder(name)


def test_camera_raw_files_are_not_read_as_their_small_preview():
    preview = noise(4, 6).astype(np.uint8)
    for tags in (
        [(50706, 1, 4, b"\1\4\0\0")],  # DNGVersion
        [(254, 4, 1, b"\1\0\0\0"), (330, 4, 1, b"\x08\0\0\0")],  # a reduced image and sub-images
    ):
        assert reason_of(tiff(preview, tags=tags)) == no_decoder("camera raw files")
    pixels_of(tiff(preview))


@pytest.mark.parametrize("values", [np.zeros((4, 4)), noise(4, 4, 7).astype(np.uint8)])
def test_kinds_of_tiff_that_pillow_does_not_decode(values):
    extra = (0,) * 4 if values.ndim == 3 else ()
    photometric = 2 if values.ndim == 3 else 1
    assert reason_of(tiff(values, photometric=photometric, extra=extra)) == no_decoder(
        "this kind of TIFF"
    )


@pytest.mark.parametrize(
    ("values", "photometric"),
    [
        (noise(4, 6, 3, most=65535).astype(np.uint16), 2),
        (noise(4, 6, 4, most=65535).astype(np.uint16), 5),
        (noise(4, 6, most=32767).astype(np.int16), 1),
        (noise(4, 6, most=2**31 - 1).astype(np.uint32), 1),
        (noise(4, 6).astype(np.uint8), 0),  # white is zero
    ],
)
def test_uncompressed_planes_that_pillow_takes_for_others_are_refused(values, photometric):
    content = tiff(values, photometric=photometric, planes=True)
    assert reason_of(content) == no_decoder("this kind of TIFF with separate planes")
    whole, planes = (
        pixels_of(tiff(values, photometric=photometric, planes=apart, deflate=True))
        for apart in (False, True)
    )
    np.testing.assert_array_equal(planes, whole)


@pytest.mark.parametrize("deflate", [False, True])
def test_planes_of_a_tiff(deflate):
    levels = np.linspace(0, 1, 24, dtype=np.float32).reshape(4, 6)
    cmyk = noise(4, 6, 4).astype(np.uint8)
    for values, photometric in ((COLORS, 2), (cmyk, 5), (cmyk[..., 0], 1), (levels, 1)):
        whole, planes = (
            pixels_of(tiff(values, photometric=photometric, planes=apart, deflate=deflate))
            for apart in (False, True)
        )
        np.testing.assert_array_equal(planes, whole)
    lab = tiff(cmyk[..., :3], photometric=8, planes=True, deflate=deflate)
    assert reason_of(lab) == no_decoder("this kind of TIFF with separate planes")


def test_uncompressed_planes_of_floating_point_in_another_order_are_refused():
    levels = np.linspace(0, 1, 24, dtype=np.float32).reshape(4, 6)
    assert reason_of(tiff(levels, planes=True, big=True)) == no_decoder(
        "this kind of TIFF with separate planes"
    )


@pytest.mark.parametrize("kind", [name for name in FORMATS if name != "ICO"])  # saves small ones
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_too_many_pixels(kind, monkeypatch):
    content = saved(PICTURE, kind)
    for most in (H * W - 1, H * W // 3):  # Pillow warns of the first and refuses the second
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", most)
        with pytest.raises(Unreadable, match=r"2,?000") as caught:
            load(content)
        assert caught.value.reason == encoded.TOO_LARGE
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", H * W)
    load(content)


def test_a_bomb_in_few_bytes():
    """A PNG of a thousand million pixels, which would need 3 GB."""
    header = struct.pack(">IIBBBBB", 40000, 25000, 8, 2, 0, 0, 0)
    data = chunk(b"IDAT", zlib.compress(bytes(1000)))
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + data + chunk(b"IEND", b"")
    with pytest.raises(Unreadable, match=r"1,?000,?000,?000"):
        load(content)


def test_memory_that_is_not_there(monkeypatch):
    def full(self):
        raise MemoryError

    content = saved(PICTURE, "BMP")
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", full)
    assert reason_of(content) == encoded.TOO_LARGE


@pytest.mark.parametrize("kind", [name for name in FORMATS if name != "TGA"])
def test_the_name_of_a_file_does_not_matter(tmp_path, kind):
    content = saved(PICTURE, kind)
    for name in ("a.jpg", "b.png", "c.gif", "d.tif"):
        (tmp_path / name).write_bytes(content)
        np.testing.assert_array_equal(images.read_image(tmp_path / name), pixels_of(content))


def test_files_that_cannot_be_opened(tmp_path, monkeypatch):
    with pytest.raises(Unreadable, match=r"cannot be opened \(no such file or directory\)"):
        images.read_image(tmp_path / "none.png")
    with pytest.raises(InputError, match=r"cannot be opened \(is a directory\)"):
        images.read_image(tmp_path)
    with pytest.raises(InputError, match=r"cannot be opened \(embedded null byte\)"):
        images.read_image("a\0b.png")
    PICTURE.save(tmp_path / "a.png")

    def closed(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("jaxmatch.runtime.paths.read_whole", closed)
    with pytest.raises(Unreadable, match=r"a\.png") as caught:
        images.read_image(tmp_path / "a.png")
    assert caught.value.reason == "cannot be opened (permission denied)"


def test_the_message_names_file_and_reason(tmp_path):
    (tmp_path / "page.jpg").write_bytes(b"<html></html>")
    with pytest.raises(InputError, match=r"Cannot read .*page\.jpg as an image: not an image\."):
        images.read_image(tmp_path / "page.jpg")


# Metadata


def directory(entries, more=b"", order="<"):
    """EXIF data: tags as (tag, type, count, value)."""
    head = b"II*\0" if order == "<" else b"MM\0*"
    table = b"".join(
        struct.pack(order + "HHI", tag, kind, count)
        + (value if isinstance(value, bytes) else struct.pack(order + "H", value)).ljust(4, b"\0")
        for tag, kind, count, value in entries
    )
    return head + struct.pack(order + "IH", 8, len(entries)) + table + bytes(4) + more


TURNED = (274, 3, 1, 6)  # orientation: turn by 90 degrees to the right
RIGHT = directory([TURNED])
# EXIF data that are odd, but whose orientation can be read.
ODD = {
    "intact": RIGHT,
    "big_endian": directory([TURNED], order=">"),
    "long": directory([(274, 4, 1, 6)]),
    "resolution_is_text": directory([TURNED, (282, 2, 4, b"abc\0"), (296, 2, 4, b"abc\0")]),
    "maker_is_a_number": directory([(271, 3, 1, 5), TURNED, (305, 5, 1, 5)]),
    "text_beyond_the_end": directory([TURNED, (305, 2, 1000, 60000)]),
    "text_beyond_the_end_first": directory([(270, 2, 1000, 60000), TURNED]),
    "circle": directory([TURNED, (34665, 4, 1, 8)]),
    "sub_directory_is_text": directory([TURNED, (34665, 2, 4, b"abc\0")]),
    "two_values": directory([(274, 3, 2, b"\6\0\1\0")]),
    "garbage_after": RIGHT + b"\xff" * 99,
}
# EXIF data whose orientation is lost: the picture stays as it is stored.
LOST = {
    "text": directory([(274, 2, 2, b"6\0")]),
    "unknown_type": directory([(274, 99, 1, 6)]),
    "value_9": directory([(274, 3, 1, 9)]),
    "value_0": directory([(274, 3, 1, 0)]),
    "no_values": directory([(274, 3, 0, 6)]),
    "division_by_0": directory([(274, 5, 1, 26)], struct.pack("<II", 6, 0)),
    "cut_in_the_table": RIGHT[:18],
    "cut_before_the_table": RIGHT[:8],
    "cut_in_the_head": RIGHT[:4],
    "empty": b"",
    "garbage": b"\xff" * 50,
}


def with_exif(kind, exif):
    """A file with EXIF data exactly as they are."""
    if kind == "PNG":
        return png(COLORS, 8, COLOR, more=chunk(b"eXIf", exif))
    if kind == "PNG after the pixels":
        return png(COLORS, 8, COLOR, late=chunk(b"eXIf", exif))
    if kind == "JPEG":
        content = saved(PICTURE, "JPEG")
        segment = b"Exif\0\0" + exif
        return (
            content[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + content[2:]
        )
    return saved(PICTURE, kind, exif=exif, lossless=True)


EXIF_FORMATS = ["JPEG", "PNG", "PNG after the pixels", "WEBP"]


@pytest.mark.parametrize("exif", ODD.values(), ids=ODD)
@pytest.mark.parametrize("kind", EXIF_FORMATS)
@pytest.mark.filterwarnings("ignore")
def test_odd_exif_data_lose_neither_picture_nor_orientation(kind, exif):
    found = pixels_of(with_exif(kind, exif))
    assert found.shape == (W, H, 3)
    if kind != "JPEG":
        np.testing.assert_array_equal(found, np.rot90(COLORS, -1))


@pytest.mark.parametrize("exif", LOST.values(), ids=LOST)
@pytest.mark.parametrize("kind", EXIF_FORMATS)
@pytest.mark.filterwarnings("ignore")
def test_damaged_exif_data_do_not_lose_the_picture(kind, exif):
    found = pixels_of(with_exif(kind, exif))
    assert found.shape == (H, W, 3)
    if kind != "JPEG":
        np.testing.assert_array_equal(found, COLORS)


@pytest.mark.parametrize("exif", [*ODD.values(), *LOST.values()], ids=[*ODD, *LOST])
@pytest.mark.parametrize("kind", EXIF_FORMATS)
def test_exif_data_do_not_lose_the_picture_where_warnings_are_errors(kind, exif):
    assert pixels_of(with_exif(kind, exif)).shape[2] == 3


UPRIGHT = {  # by orientation: how the stored picture becomes upright
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: stored[::-1, ::-1].swapaxes(0, 1),
    8: lambda stored: np.rot90(stored, 1),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "JPEG", "AVIF"])
def test_every_orientation(kind, orientation):
    exif = Image.Exif()
    exif[274] = orientation
    if kind not in formats_of(PICTURE, [kind]):
        pytest.skip(f"this Pillow has no {kind}")
    slow = np.add.outer(np.arange(H) * 3, np.arange(W) * 2).astype(np.uint8)
    stored = Image.fromarray(np.stack([slow, slow[::-1], slow], -1))
    found = pixels_of(saved(stored, kind, exif=exif, lossless=True, quality=100))
    expected = UPRIGHT[orientation](np.asarray(stored))
    tolerance = 12 if kind in ("JPEG", "AVIF") else 0
    np.testing.assert_allclose(found.astype(int), expected, atol=tolerance)


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "I;16"])
def test_every_mode_is_turned(mode):
    exif = Image.Exif()
    exif[274] = 6
    levels = (noise(H, W) // 128 * 255).astype(np.uint8)
    if mode == "I;16":
        image = Image.fromarray(levels.astype(np.uint16) * 257)
    else:
        image = Image.fromarray(levels).convert(mode)
    found = pixels_of(saved(image, "PNG", exif=exif))
    np.testing.assert_array_equal(found[..., 0], np.rot90(levels, -1))


@pytest.mark.parametrize("value", [(2, 2, b"6\0\0\0"), (4, 1, b"\6\0\0\0"), (99, 1, b"\6\0\0\0")])
@pytest.mark.filterwarnings("ignore")
def test_odd_tags_of_a_tiff(value):
    levels = noise(H, W).astype(np.uint8)
    odd = [(271, 3, 1, b"\5\0\0\0"), (274, *value), (282, 2, 4, b"abc\0"), (306, 5, 1, b"\xff" * 4)]
    found = pixels_of(tiff(levels, tags=odd))[..., 0]
    np.testing.assert_array_equal(found, np.rot90(levels, -1) if value[0] == 4 else levels)


@pytest.mark.parametrize(
    "damaged",
    [
        chunk(b"tEXt", b"Comment\0text", checksum=1),
        chunk(b"zTXt", b"Comment\0\0" + b"not compressed"),
        chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(80_000_000))),
        chunk(b"iCCP", b"profile\0\0not compressed"),
        chunk(b"pHYs", b"\1"),
        chunk(b"gAMA", b""),
        chunk(b"cHRM", b"\1\2\3"),
        chunk(b"iTXt", b"Comment"),
        chunk(b"tIME", b"\xff" * 3),
    ],
    ids=lambda content: content[4:8].decode(),
)
@pytest.mark.parametrize("place", ["more", "late"])
def test_damaged_chunks_of_a_png_do_not_lose_the_picture(damaged, place):
    np.testing.assert_array_equal(pixels_of(png(COLORS, 8, COLOR, **{place: damaged})), COLORS)


def test_transparency_survives_damaged_chunks():
    levels = noise(H, W, 1).astype(np.uint8)
    content = png(
        levels,
        8,
        GRAY,
        transparency=struct.pack(">H", int(levels[0, 0, 0])),
        more=chunk(b"pHYs", b"\1"),
    )
    assert (pixels_of(content)[0, 0] == 255).all()


@pytest.mark.parametrize(
    "segment",
    [
        b"\xff\xe0\x00\x07JFIF\0",
        b"\xff\xee\x00\x08Adobe\0",
        b"\xff\xe2\x00\x10ICC_PROFILE\0\1\1",
        b"\xff\xe2\x00\x08MPF\0\1\2",
        b"\xff\xe2\x00\x16MPF\0II*\0\xff\xff\0\0" + bytes(8),
        b"\xff\xed\x00\x18Photoshop 3.0\x008BIM\4\4\xff\xff",
        b"\xff\xe1\x00\x22http://ns.adobe.com/xap/1.0/\0<x:\xff",
    ],
    ids=lambda content: content[4:9].decode(errors="replace").strip("\0"),
)
def test_damaged_segments_of_a_jpeg_do_not_lose_the_picture(segment):
    content = saved(PICTURE, "JPEG", quality=95)
    expected = pixels_of(content)
    np.testing.assert_array_equal(pixels_of(content[:2] + segment + content[2:]), expected)


def test_colors_of_an_adobe_jpeg_survive_damaged_segments():
    content = saved(PICTURE.convert("CMYK"), "JPEG", quality=95)
    expected = pixels_of(content)
    damaged = content[:2] + b"\xff\xe0\x00\x07JFIF\0" + content[2:]
    np.testing.assert_array_equal(pixels_of(damaged), expected)


# Several frames


@pytest.mark.parametrize(
    ("kind", "several"), [("GIF", 1), ("TIFF", 1), ("PNG", 1), ("WEBP", 1), ("MPO", 0)]
)
def test_the_first_frame_is_used_and_others_are_told(kind, several):
    frames = [
        Image.new("RGB", (8, 6), (200 * (number == 0), 0, 50 * number)) for number in range(3)
    ]
    content = saved(frames[0], kind, save_all=True, append_images=frames[1:])
    picture = images.examine(content, Levels())
    assert picture.origin.several == bool(several)
    np.testing.assert_allclose(np.asarray(picture.image)[..., 0].astype(int), 200, atol=8)
    assert not images.examine(saved(frames[0], kind), Levels()).origin.several


def test_a_damaged_second_frame_does_not_lose_the_first():
    frames = [Image.fromarray(noise(20, 20, seed=seed).astype(np.uint8)) for seed in range(2)]
    content = saved(frames[0], "GIF", save_all=True, append_images=frames[1:])
    cut = content[: len(content) - 100]
    np.testing.assert_array_equal(pixels_of(cut), pixels_of(content))
