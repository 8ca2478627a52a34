"""Every kind of pixels becomes 8-bit RGB by the stated rules, computed here with NumPy alone."""

import struct

import numpy as np
import pytest
from pictures import COLOR, COLOR_ALPHA, GRAY, GRAY_ALPHA, PALETTE, noise, png, saved, tiff
from PIL import Image

from jaxmatch.data.encoded import LEVELS, Decoded, Unreadable
from jaxmatch.data.files import read_files
from jaxmatch.data.images import Fitting, examine, read_image
from jaxmatch.data.levels import Levels, to_rgb
from jaxmatch.errors import InputError

H, W = 6, 9
BACKGROUND = (10, 200, 90)
ON_WHITE = Levels()


def rgb_of(content, levels=ON_WHITE):
    return np.asarray(examine(content, levels).image)


def kind_of(content):
    return examine(content, ON_WHITE).origin.kind


def gray(values):
    return np.repeat(np.asarray(values, np.float64)[..., None], 3, axis=-1)


def over(colors, alpha, background=(255, 255, 255)):
    """Colors [h w 3] with opacity [h w] in 0..1 over a background."""
    alpha = np.asarray(alpha, np.float64)[..., None]
    return colors * alpha + np.array(background) * (1 - alpha)


def close(found, expected, tolerance=0.51):
    """Within rounding of the expected levels; and not of one level, unless this is expected."""
    assert found.dtype == np.uint8
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=tolerance, rtol=0)
    assert (found.min() < found.max()) == (expected.min() < expected.max())


def alpha_levels():
    return noise(H, W, seed=1)


OPAQUE = {
    "1": ("PNG", "TIFF", "BMP", "PPM", "GIF", "TGA", "WEBP"),
    "L": ("PNG", "TIFF", "BMP", "PPM", "GIF", "TGA", "WEBP", "JPEG2000"),
    "P": ("PNG", "TIFF", "BMP", "GIF", "TGA", "WEBP"),
    "RGB": ("PNG", "TIFF", "BMP", "PPM", "TGA", "WEBP", "JPEG2000", "ICO", "SGI", "PCX", "QOI"),
}


@pytest.mark.parametrize(
    ("mode", "kind"), [(mode, kind) for mode, kinds in OPAQUE.items() for kind in kinds]
)
def test_opaque_pixels_stay_as_they_are(mode, kind):
    levels, colors = noise(H, W), noise(H, W, 3)
    if mode == "1":
        image, expected = Image.fromarray(levels > 127), gray((levels > 127) * 255)
    elif mode == "L":
        image, expected = Image.fromarray(levels.astype(np.uint8)), gray(levels)
    elif mode == "P":
        palette = noise(256, 3, seed=2)
        image, expected = Image.fromarray(levels.astype(np.uint8), "P"), palette[levels]
        image.putpalette(palette.astype(np.uint8).tobytes())
    else:
        image, expected = Image.fromarray(colors.astype(np.uint8)), colors
    close(rgb_of(saved(image, kind, **({"lossless": True} if kind == "WEBP" else {}))), expected)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "TGA", "ICO"])
@pytest.mark.parametrize("mode", ["LA", "RGBA"])
@pytest.mark.parametrize("background", [(255, 255, 255), (0, 0, 0), BACKGROUND])
def test_transparency_is_composited(mode, kind, background):
    alpha, levels, colors = alpha_levels(), noise(H, W), noise(H, W, 3)
    if mode == "LA":
        stored, colors = np.stack([levels, alpha], -1), gray(levels)
    else:
        stored = np.concatenate([colors, alpha[..., None]], -1)
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    file = saved(Image.fromarray(stored.astype(np.uint8)), kind, **options)
    close(rgb_of(file, Levels(background=background)), over(colors, alpha / 255, background))


def test_transparent_colors_are_hidden_and_not_shown():
    """What a drawing program leaves below transparent pixels is often black."""
    stored = np.zeros((H, W, 4), np.uint8)
    stored[2:4, 3:6] = (200, 30, 40, 255)
    found = rgb_of(saved(Image.fromarray(stored), "PNG"))
    assert (found[0] == 255).all()
    assert (found[2, 3] == (200, 30, 40)).all()


@pytest.mark.parametrize("mode", ["RGBa", "La", "PA", "HSV", "RGBX"])
def test_modes_without_a_format_of_their_own(mode):
    alpha, colors, levels = alpha_levels(), noise(H, W, 3), noise(H, W)
    if mode == "RGBa":
        image = Image.fromarray(np.concatenate([colors, alpha[..., None]], -1).astype(np.uint8))
        image, expected, tolerance = image.convert("RGBa"), over(colors, alpha / 255), 1.6
    elif mode == "La":
        image = Image.fromarray(np.stack([levels, alpha], -1).astype(np.uint8)).convert("La")
        expected, tolerance = over(gray(levels), alpha / 255), 1.6
    elif mode == "PA":
        palette = noise(256, 3, seed=2)
        stored = Image.fromarray(levels.astype(np.uint8), "P")
        stored.putpalette(palette.astype(np.uint8).tobytes())
        image = stored.convert("PA")
        image.putalpha(Image.fromarray(alpha.astype(np.uint8)))
        expected, tolerance = over(palette[levels], alpha / 255), 0.51
    elif mode == "RGBX":
        stored = np.concatenate([colors, alpha[..., None]], -1).astype(np.uint8)
        image, expected, tolerance = Image.fromarray(stored, "RGBX"), colors, 0
    else:
        image, expected, tolerance = Image.fromarray(colors.astype(np.uint8), "HSV"), hsv(colors), 2
    close(np.asarray(to_rgb(Decoded(image, ""), ON_WHITE).image), expected, tolerance)


def hsv(values):
    """Hue, saturation and value [... 3], each 0..255, to RGB."""
    hue, saturation, value = np.moveaxis(values / 255, -1, 0)
    place = (np.array([5, 3, 1]) + 6 * hue[..., None]) % 6
    share = np.clip(np.minimum(place, 4 - place), 0, 1)
    return 255 * value[..., None] * (1 - saturation[..., None] * share)


PNG_KINDS = [
    *[(GRAY, depth) for depth in (1, 2, 4, 8, 16)],
    *[(COLOR, depth) for depth in (8, 16)],
    *[(PALETTE, depth) for depth in (1, 2, 4, 8)],
    *[(GRAY_ALPHA, depth) for depth in (8, 16)],
    *[(COLOR_ALPHA, depth) for depth in (8, 16)],
]


def png_case(color, depth, transparent):
    """A PNG of raw values, and its colors [h w 3] in 0..255 and opacity [h w] by NumPy."""
    most = 2**depth - 1
    channels = {GRAY: 1, COLOR: 3, PALETTE: 1, GRAY_ALPHA: 2, COLOR_ALPHA: 4}[color]
    values = noise(H, W, channels, most=most)
    if color == PALETTE:
        palette = noise(most + 1, 3, seed=2)
        opacity = noise(most + 1, seed=3) if transparent else np.full(most + 1, 255)
        content = opacity.astype(np.uint8).tobytes() if transparent else b""
        file = png(values, depth, color, palette=palette, transparency=content)
        return file, palette[values[..., 0]], opacity[values[..., 0]] / 255
    colors = values[..., :1].repeat(3, -1) if channels < 3 else values[..., :3]
    colors = colors * (255 / most)
    if channels in (2, 4):
        return png(values, depth, color), colors, values[..., -1] / most
    key = values[3, 4]
    content = struct.pack(f">{channels}H", *key) if transparent else b""
    opacity = (values != key).any(-1) if transparent else np.ones((H, W))
    return png(values, depth, color, transparency=content), colors, opacity


@pytest.mark.parametrize("transparent", [False, True])
@pytest.mark.parametrize(("color", "depth"), PNG_KINDS)
def test_every_kind_of_png(color, depth, transparent):
    file, colors, opacity = png_case(color, depth, transparent)
    # Of 16 bits the upper byte is taken, which may be a level less, of colors and of transparency.
    tolerance = 2.51 if depth == 16 else 0.51
    close(rgb_of(file), over(colors, opacity), tolerance)
    close(rgb_of(file, Levels(background=BACKGROUND)), over(colors, opacity, BACKGROUND), tolerance)


@pytest.mark.parametrize(
    ("color", "depth", "transparent", "kind"),
    [
        (GRAY, 1, False, "black and white"),
        (GRAY, 8, False, "gray"),
        (GRAY, 8, True, "gray with transparency"),
        (GRAY, 16, False, "16-bit gray"),
        (COLOR, 8, False, "RGB"),
        (COLOR, 16, False, "16-bit RGB"),
        (PALETTE, 8, False, "palette"),
        (PALETTE, 8, True, "palette with transparency"),
        (GRAY_ALPHA, 8, False, "gray with transparency"),
        (GRAY_ALPHA, 16, False, "16-bit gray with transparency"),
        (COLOR_ALPHA, 8, False, "RGB with transparency"),
    ],
)
def test_the_kind_of_pixels_is_told(color, depth, transparent, kind):
    assert kind_of(png_case(color, depth, transparent)[0]) == kind


@pytest.mark.parametrize("background", [(255, 255, 255), BACKGROUND])
def test_the_transparent_color_of_a_gif(background):
    levels, palette = noise(H, W, most=7), noise(8, 3, seed=2)
    image = Image.fromarray(levels.astype(np.uint8), "P")
    image.putpalette(palette.astype(np.uint8).tobytes())
    file = saved(image, "GIF", transparency=5)
    found = rgb_of(file, Levels(background=background))
    close(found, over(palette[levels], levels != 5, background))


def whole_range(dtype):
    """Levels from 0 to the largest of a type."""
    most = np.iinfo(dtype).max
    return np.linspace(0, most, H * W).round().astype(dtype).reshape(H, W)


@pytest.mark.parametrize(
    ("dtype", "big"),
    [
        *[
            (dtype, big)
            for dtype in (np.uint8, np.int8, np.uint16, np.int16, np.int32)
            for big in (0, 1)
        ],
        (np.uint32, 0),  # Pillow reads no other
    ],
)
def test_whole_numbers_are_scaled_from_the_range_of_their_type(dtype, big):
    values = whole_range(dtype)
    expected = gray(values.astype(np.float64) * 255 / np.iinfo(dtype).max)
    close(rgb_of(tiff(values, big=big)), expected, 1.01)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_tiff_in_which_zero_is_white(dtype):
    values = whole_range(dtype)
    most = np.iinfo(dtype).max
    close(rgb_of(tiff(values, photometric=0)), gray(255 - values * (255.0 / most)), 1.01)


def test_twelve_bits_of_a_tiff_have_a_range_of_their_own():
    values = np.linspace(0, 4095, H * 8).round().astype(np.uint16).reshape(H, 8)
    close(rgb_of(tiff(values, bits=12)), gray(values * (255 / 4095)), 1.01)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM", "IM"])
def test_sixteen_bits_in_every_format(kind):
    values = whole_range(np.uint16)
    close(rgb_of(saved(Image.fromarray(values), kind)), gray(values * (255 / 65535)), 1.01)


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("extra", [(), (0,), (1,), (2,)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_colors_of_a_tiff(dtype, extra, big):
    """A fourth channel is nothing (0), premultiplied (1) or plain transparency (2)."""
    most = np.iinfo(dtype).max
    colors, alpha = noise(H, W, 3, most=most), noise(H, W, 1, most=most, seed=1)
    expected = colors * (255 / most)
    if extra in ((1,), (2,)):
        expected = over(expected, alpha[..., 0] / most)
    stored = np.rint(colors * (alpha / most)) if extra == (1,) else colors
    stored = np.concatenate([stored, alpha], -1) if extra else stored
    file = tiff(stored.astype(dtype), photometric=2, extra=extra, big=big)
    close(rgb_of(file), expected, 2.6 if extra else 1.01)


@pytest.mark.parametrize("kind", ["TIFF", "PPM"])
def test_floating_point_from_0_to_1(kind):
    values = np.linspace(0, 1, H * W, dtype=np.float32).reshape(H, W)
    close(rgb_of(saved(Image.fromarray(values), kind)), gray(values * 255.0))


@pytest.mark.parametrize("dtype", [np.int32, np.uint32])
def test_16_bit_levels_in_32_bits(dtype):
    values = np.linspace(0, 65535, H * W).astype(dtype).reshape(H, W)
    close(rgb_of(tiff(values)), gray(values * (255 / 65535)), 1.01)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.array([[0, 255]], np.uint16), r"from 0 to 255, .* 65535 is white.*data.white_level"),
        (np.array([[0, 200]], np.int32), r"from 0 to 200, .* 65535 is white"),
        (np.array([[0, 100000]], np.int32), r"from 0 to 100000, .* 2147483647 is white"),
        (np.array([[-1, 30000]], np.int16), r"from -1 to 30000; save it with 8 bits"),
        (np.array([[-128, 127]], np.int8), r"from -128 to 127; save it with 8 bits, from 0"),
        (np.array([[-1, 255]], np.int32), r"from -1 to 255"),
        (np.array([[0, 255]], np.float32), r"from 0 to 255, above 1; .*data.white_level"),
        (np.array([[0, 1.001]], np.float32), r"from 0 to 1.001, above 1"),
        (np.array([[0, 1.000002]], np.float32), r"from 0 to 1.000002, above 1"),
        (np.array([[-0.000002, 1]], np.float32), r"from -2e-06 to 1"),
        (np.array([[-0.5, 0.5]], np.float32), r"from -0.5 to 0.5"),
        (np.array([[0, np.nan]], np.float32), r"nan"),
        (np.array([[0, np.inf]], np.float32), r"inf"),
        (np.array([[0, 0.001]], np.float32), r"from 0 to 0.001, which are all one level"),
    ],
)
def test_levels_of_unknown_range_are_refused(values, message):
    with pytest.raises(Unreadable, match=message) as caught:
        rgb_of(tiff(values))
    assert caught.value.reason == LEVELS


def test_the_white_level_is_not_for_8_bits_with_a_sign():
    file = tiff(np.array([[0, 1, 63, 127]], np.int8))
    found = rgb_of(file, Levels(white=4095))
    np.testing.assert_array_equal(found, rgb_of(file))
    np.testing.assert_array_equal(found[0, :, 0], [0, 2, 126, 255])
    assert kind_of(file) == "signed 8-bit gray"


@pytest.mark.parametrize("white", [None, 200])
def test_floating_point_may_be_outside_by_rounding(white):
    values = np.array([[-1e-7, 0.6, 1.0000001]], np.float32) * (white or 1)
    found = rgb_of(tiff(values), Levels(white=white))
    np.testing.assert_array_equal(found[0, :, 0], [0, 153, 255])
    span = examine(tiff(values), Levels(white=white)).origin.span
    assert (span.low, span.high) == (0, white or 1)


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
def test_an_image_of_one_level_is_no_error(dtype):
    assert (rgb_of(tiff(np.zeros((H, W), dtype))) == 0).all()


@pytest.mark.parametrize(
    ("values", "white"),
    [
        (np.array([[0, 1000, 4095]], np.uint16), 4095),
        (np.array([[0, 17, 255]], np.uint16), 255),
        (np.array([[0, 17, 255]], np.int32), 255),
        (np.array([[0, 100000, 150000]], np.int32), 200000),
        (np.array([[0, 17.5, 255]], np.float32), 255),
        (np.array([[0, 3]], np.uint16), 4095),  # a dark image is black where white is known
        (np.array([[0, 200]], np.uint16), 65535),
    ],
)
def test_the_white_level_may_be_given(values, white):
    found = rgb_of(tiff(values), Levels(white=white))
    np.testing.assert_allclose(found, gray(values * (255 / white)), atol=0.51, rtol=0)


def test_levels_above_the_given_white_are_refused():
    with pytest.raises(Unreadable, match=r"from 0 to 5000, above 4095"):
        rgb_of(tiff(np.array([[0, 5000]], np.uint16)), Levels(white=4095))


def test_16_bit_colors_have_no_white_level():
    file = png(noise(H, W, 3, most=4095), 16, COLOR)
    with pytest.raises(Unreadable, match=r"not for 16-bit colors"):
        rgb_of(file, Levels(white=4095))


@pytest.mark.parametrize(
    ("color", "channels", "transparency"),
    [(GRAY, 1, b"\0\1"), (GRAY_ALPHA, 2, b""), (COLOR, 3, b"")],
)
def test_the_white_level_is_recommended_where_it_is_taken(tmp_path, color, channels, transparency):
    values = noise(H, W, channels, most=4095)
    file = tmp_path / "a.png"
    file.write_bytes(png(values, 16, color, transparency=transparency))
    fitting = Fitting(size=(H, W))
    (note,) = read_files([file], fitting).notes
    again = read_files([file], fitting, Levels(white=4095))
    assert "levels of 12 bits" in note
    assert ("set data.white_level=4095" in note) == bool(len(again.images))
    assert ("save them with 8 bits" in note) == bool(again.left_out)


def test_16_bit_colors_that_would_be_black_are_refused():
    with pytest.raises(Unreadable, match=r"all below 256, which is black"):
        rgb_of(png(noise(H, W, 3, most=255), 16, COLOR))


def cmyk(values):
    """Cyan, magenta, yellow and black [... 4] in 0..255 to RGB."""
    return (255 - values[..., :3]) * (255 - values[..., 3:]) / 255


def test_cmyk():
    values = noise(H, W, 4)
    image = Image.fromarray(values.astype(np.uint8), "CMYK")
    close(rgb_of(saved(image, "TIFF")), cmyk(values), 1.01)


def smooth(channels):
    """Slow ramps, which a JPEG keeps."""
    ramp = np.linspace(20, 235, 64)
    planes = [ramp[:, None] + 0 * ramp, 0 * ramp[:, None] + ramp, 255 - ramp[:, None] + 0 * ramp]
    return np.stack([*planes, 40 + ramp[:, None] / 4 + ramp / 4][:channels], -1)


def test_an_inverted_jpeg_of_adobe():
    values = smooth(4)
    image = Image.fromarray(values.astype(np.uint8), "CMYK")
    file = saved(image, "JPEG", quality=100, subsampling=0)
    assert b"Adobe" in file  # Pillow writes such files inverted, as Photoshop does
    close(rgb_of(file), cmyk(values), 6)


def test_ycbcr():
    luma, blue, red = np.moveaxis(smooth(3), -1, 0)
    expected = np.stack(
        [
            luma + 1.402 * (red - 128),
            luma - 0.344136 * (blue - 128) - 0.714136 * (red - 128),
            luma + 1.772 * (blue - 128),
        ],
        -1,
    )
    image = Image.fromarray(np.stack([luma, blue, red], -1).astype(np.uint8), "YCbCr")
    close(rgb_of(saved(image, "JPEG", quality=100, subsampling=0)), expected.clip(0, 255), 4)


def lab(values):
    """CIE L*a*b* (D50) [... 3] as a TIFF stores it to sRGB, by the equations of CIE 15 and sRGB."""
    light = values[..., 0] * (100 / 255)
    signed = values[..., 1:].astype(np.int8).astype(np.float64)
    middle = (light + 16) / 116
    axes = np.stack([middle + signed[..., 0] / 500, middle, middle - signed[..., 1] / 200], -1)
    ratio = np.where(axes > 6 / 29, axes**3, 3 * (6 / 29) ** 2 * (axes - 4 / 29))
    xyz = ratio * (0.96422, 1.0, 0.82521)
    to_linear = np.array(  # of D50, by Bradford's adaptation
        [
            [3.1338561, -1.6168667, -0.4906146],
            [-0.9787684, 1.9161415, 0.0334540],
            [0.0719453, -0.2289914, 1.4052427],
        ]
    )
    linear = (xyz @ to_linear.T).clip(0, 1)
    curve = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return 255 * curve


def test_lab():
    values = np.zeros((16, 16, 3), np.uint8)
    values[..., 0] = np.linspace(100, 220, 16)[:, None]
    values[..., 1] = np.linspace(-20, 20, 16).astype(np.int8).view(np.uint8)
    values[..., 2] = np.linspace(15, -15, 16).astype(np.int8).view(np.uint8)[:, None]
    file = saved(Image.fromarray(values, "LAB"), "TIFF")
    close(rgb_of(file), lab(values), 2)


def test_profiles_inside_of_files_are_left_alone():
    from PIL import ImageCms

    values = noise(H, W, 3)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ")).tobytes()
    file = saved(Image.fromarray(values.astype(np.uint8)), "PNG", icc_profile=profile)
    close(rgb_of(file), values)


def test_transparency_may_be_ignored():
    """Runs that are older than ``data.background`` did so."""
    file, colors, _ = png_case(COLOR_ALPHA, 8, False)
    close(rgb_of(file, Levels(background=None)), colors)
    file, colors, _ = png_case(PALETTE, 8, True)
    close(rgb_of(file, Levels(background=None)), colors)


def test_read_image_takes_one_or_three_background_levels(tmp_path):
    file, colors, opacity = png_case(COLOR_ALPHA, 8, False)
    (tmp_path / "a.png").write_bytes(file)
    for background in (0, 130, BACKGROUND, list(BACKGROUND)):
        level = (background,) * 3 if isinstance(background, int) else background
        found = read_image(tmp_path / "a.png", background=background)
        close(found, over(colors, opacity, level))
    close(read_image(str(tmp_path / "a.png")), over(colors, opacity))
    assert read_image(tmp_path / "a.png", (4, 5)).shape == (4, 5, 3)


@pytest.mark.parametrize("background", [256, -1, 0.5, (0, 0), (0, 0, 300)])
def test_a_background_that_is_no_color_is_refused(tmp_path, background):
    Image.new("L", (2, 2)).save(tmp_path / "a.png")
    with pytest.raises(InputError, match=r"one or three levels from 0 to 255"):
        read_image(tmp_path / "a.png", background=background)


def test_a_level_may_be_written_as_a_real_number():
    assert Levels.of((254.0,)).background == (254, 254, 254)
