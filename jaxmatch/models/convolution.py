"""Convolutions whose weight gradients are as fast as the rest on a CPU.

XLA:CPU takes the gradient of a kernel as one convolution whose window is the whole feature map and
whose channels are the whole batch; on small images it runs at a fifth of the speed of the forward
pass. The same gradient as a sum over parts of the batch does not.
"""

from collections.abc import Sequence
from typing import Any

import jax
from jax import lax
from jax.custom_derivatives import SymbolicZero

from jaxmatch.types import Array

# Parts of so many images (of all devices together), and at most so many of them.
PART = 16
MOST_PARTS = 16


def convolve(
    images: Array, kernel: Array, window_strides: Sequence[int], *arguments: Any, **options: Any
) -> Array:
    """``lax.conv_general_dilated``, for the ``conv_general_dilated`` of a Flax convolution.

    ``images`` [b h w c] meet a kernel [. . c d] without dilation or groups. On a CPU the derivative
    by the kernel is a sum over parts of the batch, and that of a 1x1 kernel, which is never padded,
    a matrix product; both are equal but for rounding.
    """

    def plain(images: Array, kernel: Array) -> Array:
        return lax.conv_general_dilated(images, kernel, window_strides, *arguments, **options)

    if jax.default_backend() != "cpu":
        return plain(images, kernel)
    if kernel.shape[:2] == (1, 1):
        return pointwise(images, kernel[0, 0], window_strides)
    parts = _parts(images.shape[0])
    if parts == 1:
        return plain(images, kernel)

    def by_parts(images: Array, kernel: Array) -> Array:
        # Every part takes its share of every device's images: the first axis stays split.
        split = images.reshape(-1, parts, *images.shape[1:])
        outputs = [plain(split[:, part], kernel) for part in range(parts)]
        joined = jax.numpy.stack(outputs, 1)
        return joined.reshape(-1, *joined.shape[2:])

    differentiable = jax.custom_jvp(plain)

    def tangent(primals: tuple[Array, Array], tangents: tuple[Any, Any]) -> tuple[Array, Any]:
        (images, kernel), (by_images, by_kernel) = primals, tangents
        output = plain(images, kernel)
        terms = []
        if not isinstance(by_images, SymbolicZero):
            terms.append(plain(by_images, kernel))
        if not isinstance(by_kernel, SymbolicZero):
            terms.append(by_parts(images, by_kernel))
        return output, sum(terms[1:], start=terms[0]) if terms else SymbolicZero(output.aval)

    differentiable.defjvp(tangent, symbolic_zeros=True)
    return differentiable(images, kernel)


def pointwise(images: Array, kernel: Array, strides: Sequence[int]) -> Array:
    """Every ``strides``-th pixel of ``images`` [b h w c] times ``kernel`` [c d]."""
    seen = images[:, :: strides[0], :: strides[1]]
    # As one matrix: with axes of its own XLA turns the derivative back into a convolution.
    product = jax.numpy.matmul(seen.reshape(-1, seen.shape[-1]), kernel)
    return product.reshape(*seen.shape[:-1], -1)


def _parts(batch: int) -> int:
    """How many equal parts of a multiple of PART images, or 1 where the batch has no such parts."""
    sizes = range(PART, batch + 1, PART)
    return next(
        (batch // size for size in sizes if batch <= MOST_PARTS * size and not batch % size), 1
    )
