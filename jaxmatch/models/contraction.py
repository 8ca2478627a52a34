"""The convolution as one bilinear operation of JAX, which oneDNN computes on a CPU.

Images x, a kernel k and results y of a convolution make one sum, of x k y over all that meets; its
derivatives by two of the three are the convolution and its two gradients. So each of them is the
others' transpose, and one primitive with three variants has derivatives of every order and kind.

How it is computed is decided where a program is compiled for a platform: by oneDNN
(:mod:`jaxmatch.onednn`) for float32 and bfloat16 on one CPU device where it is there, else as XLA
does.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from jaxmatch import onednn
from jaxmatch.types import Array

# The roles of the three arrays, as in onednn/contraction.cc.
IMAGES, KERNEL, RESULTS = ROLES = range(3)
Padding = tuple[tuple[int, int], tuple[int, int]]

contract_p = Primitive("contract")


def convolve(images: Array, kernel: Array, stride: int, padding: str | Padding) -> Array:
    """``images`` [b h w c] with ``kernel`` [k l c d] as ``lax.conv_general_dilated``: [b h' w' d].

    ``padding`` is "SAME", "VALID", or pixels before and after in both directions. TypeError where
    channels or dtypes differ.
    """
    if images.shape[-1] != kernel.shape[2] or images.dtype != kernel.dtype:
        raise TypeError(
            f"images {images.dtype}{list(images.shape)} do not fit a kernel "
            f"{kernel.dtype}{list(kernel.shape)} in their last axis or their dtype."
        )
    strides = (stride, stride)
    around: Any = padding
    if isinstance(padding, str):
        around = lax.padtype_to_pads(images.shape[1:3], kernel.shape[:2], strides, padding)
    around = tuple((int(before), int(after)) for before, after in around)
    static = {"wanted": RESULTS, "strides": strides, "padding": around, "spatial": ()}
    return contract_p.bind(images[None], kernel[None], **static)[0]


# What follows is what JAX asks of a primitive. Its operands are images [v b h w c], kernel
# [v k l c d] and results [v b h' w' d], without the ``wanted`` one; entries of v are independent.
# ``spatial`` is the height and width of wanted images or of a wanted kernel.


def _by_xla(
    left: Array,
    right: Array,
    *,
    wanted: int,
    strides: tuple[int, int],
    padding: Padding,
    spatial: tuple[int, ...],
    products: bool = False,
) -> Array:
    """The primitive in operations of XLA; with ``products`` 1x1 kernels are matrix products.

    On a CPU the derivatives of products are up to four times as fast as those of convolutions.
    """

    def one(images: Array, kernel: Array) -> Array:
        if products and kernel.shape[:2] == (1, 1) and not any(sum(padding, ())):
            seen = images[:, :: strides[0], :: strides[1]]
            # As one matrix: with axes of its own XLA turns the derivative back into a convolution.
            product = jnp.matmul(seen.reshape(-1, seen.shape[-1]), kernel[0, 0])
            return product.reshape(*seen.shape[:-1], -1)
        return lax.conv_general_dilated(
            images, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    # jax.vmap over a single entry would make a grouped convolution.
    every = jax.vmap(one) if left.shape[0] != 1 else lambda x, k: one(x[0], k[0])[None]
    if wanted == RESULTS:
        return every(left, right)
    static = {"wanted": wanted, "strides": strides, "padding": padding, "spatial": spatial}
    absent = jax.ShapeDtypeStruct(_shape(left, right, **static).shape, left.dtype)
    linear = partial(every, left) if wanted == KERNEL else partial(_swapped, every, left)
    return jax.linear_transpose(linear, absent)(right)[0]


def _swapped(function: Callable[[Array, Array], Array], right: Array, left: Array) -> Array:
    return function(left, right)


def _shape(
    left: Any,
    right: Any,
    *,
    wanted: int,
    strides: tuple[int, int],
    padding: Padding,
    spatial: tuple[int, ...],
) -> ShapedArray:
    if wanted == IMAGES:
        shape = (*right.shape[:2], *spatial, left.shape[3])
    elif wanted == KERNEL:
        shape = (left.shape[0], *spatial, left.shape[4], right.shape[4])
    else:
        sides = zip(left.shape[2:4], right.shape[1:3], strides, padding, strict=True)
        spatial = tuple(
            max(0, (size + sum(around) - side) // stride + 1)
            for size, side, stride, around in sides
        )
        shape = (*left.shape[:2], *spatial, right.shape[4])
    return ShapedArray(shape, left.dtype)


def _transpose(
    position: int, cotangent: Array, left: Any, right: Any, *, wanted: int, **static: Any
) -> Array:
    """The cotangent of the operand at ``position``, an ``UndefinedPrimal``."""
    present = [role for role in ROLES if role != wanted]
    arrays = {**dict(zip(present, (left, right), strict=True)), wanted: cotangent}
    absent = present[position]
    shape = arrays.pop(absent).aval.shape
    static["spatial"] = {IMAGES: shape[2:4], KERNEL: shape[1:3], RESULTS: ()}[absent]
    first, second = (arrays[role] for role in sorted(arrays))
    return contract_p.bind(first, second, wanted=absent, **static)


def _batch(
    operands: tuple[Array, Array], axes: tuple[Any, Any], *, wanted: int, **static: Any
) -> tuple[Array, int]:
    """Mapped images join b where the kernel is one for all; anything else joins v."""
    mapped = [axis is not None for axis in axes]
    roles = [role for role in ROLES if role != wanted]
    size = next(
        operand.shape[axis]
        for operand, axis, one in zip(operands, axes, mapped, strict=True)
        if one
    )
    joins_b = wanted != KERNEL and mapped == [role != KERNEL for role in roles]
    place = 1 if joins_b else 0

    def join(operand: Array, axis: Any, is_mapped: bool) -> Array:
        if is_mapped:
            moved = jnp.moveaxis(operand, axis, place)
        elif joins_b:
            return operand
        else:
            moved = jnp.broadcast_to(operand, (size, *operand.shape))
        shape = moved.shape
        return moved.reshape(*shape[:place], -1, *shape[place + 2 :])

    joined = contract_p.bind(*map(join, operands, axes, mapped), wanted=wanted, **static)
    shape = joined.shape
    return joined.reshape(*shape[:place], size, -1, *shape[place + 1 :]), place


def _on_cpu(ctx: Any, left: Any, right: Any, **static: Any) -> Any:
    """Lower to oneDNN where it can compute this, else to operations of XLA."""
    if not (onednn.suits(ctx) and all(min(around) >= 0 for around in static["padding"])):
        by_xla = mlir.lower_fun(partial(_by_xla, products=True), multiple_results=False)
        return by_xla(ctx, left, right, **static)
    return onednn.call(
        ctx,
        "jaxmatch_contract",
        left,
        right,
        wanted=np.int64(static["wanted"]),
        strides=np.array(static["strides"], np.int64),
        padding=np.array(static["padding"], np.int64).reshape(-1),
    )


@partial(jax.jit, static_argnames=("wanted", "strides", "padding", "spatial"))
def _alone(left: Array, right: Array, **static: Any) -> Array:
    return contract_p.bind(left, right, **static)


contract_p.def_impl(_alone)
contract_p.def_abstract_eval(_shape)
ad.defbilinear(contract_p, partial(_transpose, 0), partial(_transpose, 1))
batching.primitive_batchers[contract_p] = _batch
mlir.register_lowering(contract_p, mlir.lower_fun(_by_xla, multiple_results=False))
mlir.register_lowering(contract_p, _on_cpu, platform="cpu")
