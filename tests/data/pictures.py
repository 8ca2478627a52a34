"""Writes image files byte by byte, in the kinds of pixels that Pillow does not write."""

import io
import struct
import zlib

import numpy as np
from PIL import Image

GRAY, COLOR, PALETTE, GRAY_ALPHA, COLOR_ALPHA = 0, 2, 3, 4, 6  # color types of PNG


def chunk(kind, content, checksum=None):
    """A chunk of a PNG; a wrong ``checksum`` damages it."""
    found = zlib.crc32(kind + content) if checksum is None else checksum
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", found)


def png(values, depth, color, *, palette=None, transparency=b"", more=b"", late=b""):
    """A PNG of raw values [h w channels] of ``depth`` bits.

    ``more`` and ``late`` are chunks before and after the pixels.
    """
    height, width = values.shape[:2]
    if depth == 16:
        rows = values.astype(">u2").reshape(height, -1).view(np.uint8)
    else:
        bits = np.unpackbits(values.reshape(height, -1, 1).astype(np.uint8), axis=2)[..., -depth:]
        rows = np.packbits(bits.reshape(height, -1), axis=1)
    data = b"".join(b"\0" + row.tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    parts = [b"\x89PNG\r\n\x1a\n", chunk(b"IHDR", header), more]
    if palette is not None:
        parts.append(chunk(b"PLTE", palette.astype(np.uint8).tobytes()))
    if transparency:
        parts.append(chunk(b"tRNS", transparency))
    return b"".join([*parts, chunk(b"IDAT", zlib.compress(data)), late, chunk(b"IEND", b"")])


def tiff(
    values, *, photometric=1, extra=(), big=False, tags=(), bits=None, planes=False, deflate=False
):
    """A TIFF of values [h w] or [h w channels] in the values' own dtype, in one strip.

    ``tags`` are further (tag, type, count, value of at most four bytes). ``bits`` is 12 for values
    that are packed to 12 bits. ``planes`` puts each channel into a strip of its own.
    """
    order = ">" if big else "<"
    values = values[..., None] if values.ndim == 2 else values
    height, width, channels = values.shape
    if bits == 12:
        each = np.unpackbits(values.astype(">u2").reshape(-1, 1).view(np.uint8), axis=1)[:, 4:]
        data = np.packbits(each.reshape(height, -1), axis=1).tobytes()
    else:
        data = values.astype(values.dtype.newbyteorder(order)).tobytes()
    strips = [data]
    if planes:
        parts = np.moveaxis(values.astype(values.dtype.newbyteorder(order)), -1, 0)
        strips = [part.tobytes() for part in parts]
    if deflate:
        strips = [zlib.compress(strip) for strip in strips]
    bits = bits or values.dtype.itemsize * 8
    kind = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    shorts = {
        256: [width],
        257: [height],
        258: [bits] * channels,
        259: [8 if deflate else 1],
        262: [photometric],
        277: [channels],
        278: [height],
        284: [2 if planes else 1],
        339: [kind] * channels,
    }
    if extra:
        shorts[338] = list(extra)
    entries = {
        tag: (3, len(each), struct.pack(f"{order}{len(each)}H", *each))
        for tag, each in shorts.items()
    }
    form = f"{order}{len(strips)}I"
    lengths = [len(strip) for strip in strips]
    entries |= {tag: (4, len(strips), struct.pack(form, *lengths)) for tag in (273, 279)}
    entries |= {tag: (kind, count, value) for tag, kind, count, value in tags}
    after = 8 + 2 + 12 * len(entries) + 4
    start = after + sum(
        len(value) + len(value) % 2 for *_, value in entries.values() if len(value) > 4
    )
    places = np.cumsum([start, *lengths[:-1]]).tolist()
    entries[273] = (4, len(strips), struct.pack(form, *places))
    longer = b""
    rows = []
    for tag, (kind, count, value) in sorted(entries.items()):
        if len(value) > 4:
            place = after + len(longer)
            longer += value + b"\0" * (len(value) % 2)
            value = struct.pack(order + "I", place)
        rows.append((tag, kind, count, value))
    table = b"".join(
        struct.pack(order + "HHI", tag, kind, count) + value.ljust(4, b"\0")
        for tag, kind, count, value in rows
    )
    head = (b"MM\0*" if big else b"II*\0") + struct.pack(order + "IH", 8, len(rows))
    return head + table + b"\0" * 4 + longer + b"".join(strips)


def saved(image, kind, **options):
    """The file that Pillow writes."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def noise(*shape, most=255, seed=0):
    """Levels from 0 to ``most``, both of which occur."""
    values = np.random.default_rng(seed).integers(0, most + 1, shape)
    values.flat[:2] = 0, most
    return values


def formats_of(image, names):
    """Those formats in which Pillow can save the image on this machine."""
    Image.init()
    found = []
    for name in names:
        try:
            saved(image, name)
        except (OSError, ValueError, KeyError):
            continue
        found.append(name)
    return found
