"""Position embeddings of Vision Transformers for another grid of patches, by the references' rules.

"timm" (https://github.com/huggingface/pytorch-image-models, ``resample_abs_pos_embed``) and "usb"
(https://github.com/microsoft/Semi-supervised-learning, ``resize_pos_embed_vit``) are two bicubic
interpolations of PyTorch. "bilinear" is timm's rule for the ``.npz`` files of Google's JAX code.
"""

import math
from collections.abc import Callable

import numpy as np

from jaxmatch.errors import InputError

Grid = tuple[int, int]  # rows and columns of patches


def antialiased_cubic(old: int, new: int) -> np.ndarray:
    """The matrix [new old] of PyTorch's "bicubic" with ``antialias=True``.

    Keys' cubic convolution with a = -0.5, as wide as a new pixel where the grid becomes coarser.
    Weights outside of the grid are left out, and the others of a row sum to 1.
    """
    scale = old / new
    center = scale * (np.arange(new)[:, None] + 0.5)
    distance = np.abs(np.arange(old) + 0.5 - center) / max(scale, 1.0)
    weights = _cubic(distance, -0.5)
    return weights / weights.sum(1, keepdims=True)


def cubic(old: int, new: int) -> np.ndarray:
    """The matrix [new old] of PyTorch's "bicubic": a = -0.75, and the border repeats its edge."""

    def weights(distance: np.ndarray) -> np.ndarray:
        return _cubic(np.abs(distance), -0.75)

    return _between(old, new, range(-1, 3), weights)


def linear(old: int, new: int) -> np.ndarray:
    """The matrix [new old] of PyTorch's "bilinear", whose border repeats its edge."""
    return _between(old, new, range(2), lambda distance: 1 - np.abs(distance))


# By name: the matrix [new old] along one side of the grid.
RULES: dict[str, Callable[[int, int], np.ndarray]] = {
    "timm": antialiased_cubic,
    "usb": cubic,
    "bilinear": linear,
}


def resize_positions(
    positions: np.ndarray, new: Grid, *, prefix: int, rule: str, old: Grid | None = None
) -> np.ndarray:
    """Position embeddings of a grid of patches for another grid.

    Sums are in float64, and the result has the dtype of ``positions``. At equal size it is
    ``positions``.

    Args:
        positions: [1 prefix+n d], row by row of the grid after the rows of the prefix, which are
            copied.
        new: the other grid.
        prefix: number of rows of class token and registers.
        rule: a key of :data:`RULES`.
        old: the grid; by default a square.

    Raises:
        InputError: if the grid does not fit, or "usb" is to resize one that is not square.
    """
    old = square(positions.shape[1] - prefix) if old is None else old
    rows = positions.shape[1]
    if old is None:
        fitting = listed(grids(rows - prefix))
        remedy = f"; images of {fitting} patches fit it" if fitting else ""
        raise InputError(
            f"a position embedding of {rows} rows is none of {prefix} tokens and a square grid of "
            f"patches{remedy}"
        )
    if math.prod(old) + prefix != rows:
        raise InputError(
            f"a position embedding of {rows} rows is none of {prefix} tokens and a {old[0]} x "
            f"{old[1]} grid of patches"
        )
    if old == new:
        return positions
    if rule == "usb" and (old[0] != old[1] or new[0] != new[1]):
        raise InputError(
            f"USB resizes position embeddings of square grids only, not of {old[0]} x {old[1]} "
            f"patches to {new[0]} x {new[1]}; set init_rules=timm"
        )
    down, across = (RULES[rule](*sides) for sides in zip(old, new, strict=True))
    grid = positions[0, prefix:].reshape(*old, -1).astype(np.float64)
    resized = np.einsum("yh,xw,hwd->yxd", down, across, grid, optimize=True)
    resized = resized.reshape(1, math.prod(new), -1).astype(positions.dtype)
    return np.concatenate([positions[:, :prefix], resized], 1)


def square(count: int) -> Grid | None:
    """The square grid of ``count`` patches; None if there is none."""
    side = math.isqrt(max(count, 0))
    return (side, side) if side and side * side == count else None


def grids(count: int) -> list[Grid]:
    """The grids of ``count`` patches, those closest to a square first.

    A single row or column is one only where there is no other.
    """
    sides = [side for side in range(1, math.isqrt(max(count, 0)) + 1) if count % side == 0]
    rows = [side for side in reversed(sides) if side > 1 or sides == [1]]
    pairs = [((side, count // side), (count // side, side)) for side in rows]
    return [grid for pair in pairs for grid in dict.fromkeys(pair)]


def listed(fitting: list[Grid]) -> str:
    """Grids for people: the first four."""
    return " or ".join(f"{rows} x {columns}" for rows, columns in fitting[:4])


def _cubic(distance: np.ndarray, a: float) -> np.ndarray:
    """Keys' cubic convolution kernel at distances of at least 0."""
    near = ((a + 2) * distance - (a + 3)) * distance * distance + 1
    far = a * (((distance - 5) * distance + 8) * distance - 4)
    return np.where(distance <= 1, near, np.where(distance < 2, far, 0.0))


def _between(
    old: int, new: int, taps: range, weights: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """The matrix [new old] of ``weights`` of the distances to the nearest ``taps``.

    Taps beyond the border count for the pixel at its edge.
    """
    center = old / new * (np.arange(new) + 0.5) - 0.5
    first = np.floor(center).astype(int)
    matrix = np.zeros((new, old))
    for tap in taps:
        column = np.clip(first + tap, 0, old - 1)
        np.add.at(matrix, (np.arange(new), column), weights(center - (first + tap)))
    return matrix
