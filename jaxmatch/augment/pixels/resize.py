"""Crops and resizes one box of each image, by two small weight matrices for each image.

``resize`` equals Pillow's: always antialiased, weights in 22-bit fixed point, levels rounded after
each axis. ``resize_smooth`` equals PyTorch's ``interpolate``. Filters: Keys, "Cubic
convolution interpolation for digital image processing", 1981; Turkowski, "Filters for common
resampling tasks", 1990.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxmatch.augment.pixels import source as pixels
from jaxmatch.errors import InputError, suggest
from jaxmatch.types import Array

_HALF = 11  # bits of half a weight's fraction; halves times levels sum exactly in float32
_MOST_INPUTS = 512  # pixels a side, of which digits of 8 bits times levels sum exactly


def _bilinear(distance: Array, width: Array | float) -> Array:
    return jnp.maximum(width - jnp.abs(distance), 0)  # in units of 1/width, so exact


def _keys(distance: Array, width: Array | float, a: float) -> Array:
    distance = jnp.abs(distance)  # factored, and in units of 1/width^3: nothing cancels
    near = (width - distance) * (width * (width + distance) - (a + 2) * distance * distance)
    far = a * (distance - width) * (2 * width - distance) ** 2
    return jnp.where(distance < width, near, jnp.where(distance < 2 * width, far, 0))


def _bicubic(distance: Array, width: Array) -> Array:
    return _keys(distance, width, -0.5)


def _lanczos(distance: Array, width: Array) -> Array:
    x = distance / width
    return jnp.where(jnp.abs(x) < 3, jnp.sinc(x) * jnp.sinc(x / 3), 0)


def _hamming(distance: Array, width: Array) -> Array:
    x = distance / width
    return jnp.where(jnp.abs(x) < 1, jnp.sinc(x) * (0.54 + 0.46 * jnp.cos(jnp.pi * x)), 0)


def _nearest(extent: np.ndarray, outputs: int) -> tuple[np.ndarray, np.ndarray]:
    """Pillow adds up the steps, and so their errors."""
    steps = np.repeat(extent / outputs, outputs, axis=1)
    steps[:, 0] /= 2
    place = np.cumsum(steps, axis=1).astype(np.int32)
    return place, place


def _box(extent: np.ndarray, outputs: int) -> tuple[np.ndarray, np.ndarray]:
    """The pixels whose centres are less than half a step away, or half a step to the right."""
    step = extent / outputs
    centre, scale = (np.arange(outputs) + 0.5) * step, np.maximum(step, 1)
    first = np.maximum(centre - scale / 2 + 0.5, 0).astype(np.int32)
    last = np.minimum(centre + scale / 2 + 0.5, extent).astype(np.int32) - 1
    first += (first - centre + 0.5) * (1 / scale) <= -0.5
    last -= (last - centre + 0.5) * (1 / scale) > 0.5
    return first, last


# Methods whose pixels have equal weights. Ties between pixels fall as the errors of float64 in
# Pillow's own order of operations.
_PICKS = {"box": _box, "nearest": _nearest}
_FILTERS: dict[str, Callable[[Array, Array], Array]] = {
    "bilinear": _bilinear,
    "bicubic": _bicubic,
    "lanczos": _lanczos,
    "hamming": _hamming,
}
METHODS = (*_FILTERS, *_PICKS)


def _filtered(start: Array, extent: Array, inputs: int, outputs: int, method: str) -> Array:
    """Antialiased weights [b outputs inputs] of an interval of pixels, not yet normalized."""
    start, extent = start[:, None, None], extent[:, None, None]
    position = jnp.arange(inputs, dtype=jnp.int32) - start  # [b 1 inputs] inside the crop
    output = jnp.arange(outputs, dtype=jnp.int32)[:, None]
    # Distance of pixel centres in units of 1/(2 outputs) pixel: whole, so exact.
    distance = (2 * position + 1) * outputs - (2 * output + 1) * extent
    width = 2 * jnp.maximum(extent, outputs)
    weights = _FILTERS[method](distance.astype(jnp.float32), width.astype(jnp.float32))
    return jnp.where((position >= 0) & (position < extent), weights, 0)


def _picked(start: Array, extent: Array, inputs: int, outputs: int, method: str) -> Array:
    """Weights [b outputs inputs] 0 and 1 of an interval of pixels."""
    extents = np.arange(inputs + 1)[:, None]
    table = jnp.asarray(np.stack(_PICKS[method](extents, outputs), axis=-1))
    bounds = start[:, None, None] + pixels.select_rows(table, extent)  # [b outputs 2]
    position = jnp.arange(inputs, dtype=jnp.int32)
    inside = (position >= bounds[..., :1]) & (position <= bounds[..., 1:])
    return inside.astype(jnp.float32)


def _pillow(start: Array, extent: Array, inputs: int, outputs: int, method: str) -> Array:
    """Pillow's weights [b outputs inputs], not yet normalized."""
    weights = _picked if method in _PICKS else _filtered
    return weights(start, extent, inputs, outputs, method)


def _taps(start: Array, extent: Array, inputs: int, outputs: int, method: str) -> Array:
    """Weights [b outputs inputs] of the nearest pixels only, at any scale."""
    start, extent = start[:, None], extent[:, None]
    output = jnp.arange(outputs, dtype=jnp.int32)
    place = (2 * output + 1) * extent - outputs  # [b outputs] in 1/(2 outputs) pixel
    whole = place // (2 * outputs)
    part = (place - whole * 2 * outputs).astype(jnp.float32) / (2 * outputs)
    reach = 1 if method == "bilinear" else 2
    weights = jnp.zeros((*place.shape, inputs), jnp.float32)
    for offset in range(1 - reach, 1 + reach):
        weight = _bilinear(part - offset, 1) if reach == 1 else _keys(part - offset, 1, -0.75)
        index = start + jnp.clip(whole + offset, 0, extent - 1)  # the edge repeats
        weights += weight[..., None] * jax.nn.one_hot(index, inputs, dtype=jnp.float32)
    return weights


def _levels(weights: Array, images: Array, equation: str) -> Array:
    """Weighted means of levels 0..255 in fixed point, rounded half up and clipped to levels."""
    unit = 2.0**_HALF
    total = weights.sum(-1, keepdims=True)
    high = jnp.floor(weights * unit / total)
    low = jnp.round((weights * unit - high * total) * unit / total)  # long division
    by_digits, by_halves = (
        functools.partial(form, equation=equation) for form in (_means_by_digits, _means_by_halves)
    )
    if weights.shape[-1] > _MOST_INPUTS:
        return by_halves(high, low, images)
    return pixels.by_platform(by_digits, by_halves, high, low, images)


def _means_by_halves(high: Array, low: Array, images: Array, *, equation: str) -> Array:
    """The means by two products in float32."""
    equation = "n" + equation.replace("->", "->n")
    halves = jnp.stack([high, low])  # [2 b outputs inputs]
    high, low = jnp.einsum(equation, halves, images, precision="highest").astype(jnp.int32)
    mean = ((high << _HALF) + low + (1 << (2 * _HALF - 1))) >> (2 * _HALF)
    return jnp.clip(mean, 0, 255).astype(jnp.float32)


def _means_by_digits(high: Array, low: Array, images: Array, *, equation: str) -> Array:
    """The means by three products in bfloat16, which holds levels and digits of 8 bits exactly.

    The sums and carries are whole numbers below 2^24, so they are exact in float32.
    """
    rest = (high.astype(jnp.int32) << _HALF) + low.astype(jnp.int32)
    images, carried = images.astype(jnp.bfloat16), jnp.zeros((), jnp.float32)
    for _ in range(2):
        digit = ((rest + 128) & 255) - 128
        total = jnp.einsum(
            equation, digit.astype(jnp.bfloat16), images, preferred_element_type=jnp.float32
        )
        carried = jnp.floor((total + carried) / 256)
        rest = (rest - digit) >> 8
    total = jnp.einsum(
        equation, rest.astype(jnp.bfloat16), images, preferred_element_type=jnp.float32
    )
    unit = 2.0 ** (2 * _HALF - 16)
    return jnp.clip(jnp.floor((total + carried + unit / 2) / unit), 0, 255)


def check_method(method: str, known: tuple[str, ...] = METHODS) -> None:
    """Check the name of a resize method.

    Raises:
        InputError: if ``method`` is not in ``known``.
    """
    if method not in known:
        raise InputError(f"unknown resize method {method!r}; {suggest(method, known)}")


def resize(images: Array, box: Array, size: tuple[int, int], method: str = "bilinear") -> Array:
    """Crop ``box`` from each image and resize it as Pillow 13 does.

    Pillow resizes the columns first, or the rows if the height shrinks by more than twice as many
    pixels as the width (python-pillow/Pillow#9549). The two orders differ in rounding only. This
    function computes both.

    Args:
        images: levels 0..255 [b h w c], whole numbers of any dtype.
        box: (top, left, height, width) in whole pixels [b 4], inside the image, not empty.
        size: height and width of the output.
        method: "lanczos", "bicubic", "bilinear", "box", "hamming" or "nearest".

    Returns:
        Float32 whole levels [b size c].

    Raises:
        InputError: unknown ``method``.
    """
    shrinks_by, narrows_by = box[:, 2] - size[0], box[:, 3] - size[1]
    rows_first = (shrinks_by > 0) & (shrinks_by > 2 * narrows_by)
    turned = resize_columns_first(
        images.swapaxes(1, 2), box[:, jnp.array([1, 0, 3, 2])], (size[1], size[0]), method
    )
    return jnp.where(
        rows_first[:, None, None, None],
        turned.swapaxes(1, 2),
        resize_columns_first(images, box, size, method),
    )


def resize_columns_first(
    images: Array, box: Array, size: tuple[int, int], method: str = "bilinear"
) -> Array:
    """Do what :func:`resize` does, but always the columns first, as Pillow before version 13."""
    check_method(method)
    top, left, height, width = box.astype(jnp.int32).T
    images = images.astype(jnp.float32)
    columns = _pillow(left, width, images.shape[2], size[1], method)
    images = _levels(columns, images, "bow,bhwc->bhoc")
    rows = _pillow(top, height, images.shape[1], size[0], method)
    return _levels(rows, images, "boh,bhwc->bowc")


def zoom(levels: Array, margin: Array, method: Array, names: tuple[str, ...]) -> Array:
    """Cut ``margin`` off each side and resize back as Pillow does; each image has its own method.

    Only the small weight matrices are computed for all methods. Margin 0 changes nothing.

    Args:
        levels: planes, int32 0..255 [c b h w].
        margin: int32 [b 2], pixels off the top and the bottom, and off the left and the right.
        method: [b] integers, the position of each image's method in ``names``.
        names: the methods to choose from, of :data:`METHODS`.

    Returns:
        Planes, int32 [c b h w].
    """
    height, width = levels.shape[2:]

    def chosen(start: Array, side: int) -> Array:
        weights = jnp.zeros((len(start), side, side), jnp.float32)
        for position, name in enumerate(names):
            own = (method == position)[:, None, None]
            weights = jnp.where(own, _pillow(start, side - 2 * start, side, side, name), weights)
        return weights

    means = levels.astype(jnp.float32)
    means = _levels(chosen(margin[:, 1], width), means, "bow,cbhw->cbho")
    return _levels(chosen(margin[:, 0], height), means, "boh,cbhw->cbow").astype(jnp.int32)


def resize_smooth(
    images: Array,
    box: Array,
    size: tuple[int, int],
    method: str = "bilinear",
    antialias: bool = True,
) -> Array:
    """Crop ``box`` from each image and resize it as PyTorch does with tensors: no rounding.

    With ``antialias`` the filters are Pillow's. Without it there are two taps (bilinear) or four
    (bicubic with Keys' a = -.75) at any scale, and the edge is repeated.

    Args:
        images: [b h w c] of any range; bicubic may overshoot it.
        box: (top, left, height, width) in whole pixels [b 4], inside the image, not empty.
        size: height and width of the output.
        method: "bilinear" or "bicubic".
        antialias: whether the filter widens as the image shrinks.

    Returns:
        [b size c] in the images' dtype, at least float32.

    Raises:
        InputError: unknown ``method``.
    """
    check_method(method, ("bilinear", "bicubic"))
    matrix = _filtered if antialias else _taps
    top, left, height, width = box.astype(jnp.int32).T
    images = images.astype(jnp.promote_types(images.dtype, jnp.float32))
    columns = matrix(left, width, images.shape[2], size[1], method)
    rows = matrix(top, height, images.shape[1], size[0], method)
    columns, rows = (weights / weights.sum(-1, keepdims=True) for weights in (columns, rows))
    images = jnp.einsum("bow,bhwc->bhoc", columns, images, precision="highest")
    return jnp.einsum("boh,bhwc->bowc", rows, images, precision="highest")
