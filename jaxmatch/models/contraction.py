"""The convolution as primitives of JAX, which oneDNN computes on a CPU.

Let T be the sum of x k y over all pixels and channels in which images x, kernel k and results y of
a convolution meet. The convolution and its two gradients are derivatives of T by two of the three.
So each is a transpose of the others, and one primitive with three variants has derivatives of every
order and kind. A second primitive also adds a bias, which saves reading the results again; its
derivatives are calls of the first.

The lowering to a platform decides how they are computed: by oneDNN (:mod:`jaxmatch.models.onednn`),
if it is there, for float32 and bfloat16 on one CPU device, otherwise by XLA.

The dtype of kernel and bias may be wider than the images'. They are rounded to the images' dtype
before use, but their gradients keep the wider dtype. So devices sum gradients in float32 under
bfloat16.
"""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import ShapedArray
from jax.custom_batching import custom_vmap
from jax.experimental.custom_partitioning import custom_partitioning
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jax.sharding import NamedSharding, PartitionSpec

from jaxmatch.models import onednn
from jaxmatch.models.channels import spread
from jaxmatch.models.primitives import bind, define, join_batch, join_entries, lowering
from jaxmatch.types import Array

# The roles of the three arrays, as in onednn/contraction.cc.
IMAGES, KERNEL, RESULTS = ROLES = range(3)
Padding = tuple[tuple[int, int], tuple[int, int]]

contract_p = Primitive("contract")
affine_p = Primitive("convolve_and_add")


def convolve(
    images: Array,
    kernel: Array,
    stride: int,
    padding: str | Padding,
    bias: Array | None = None,
) -> Array:
    """A convolution as ``lax.conv_general_dilated`` computes it.

    ``jax.default_matmul_precision``, as it is here, sets the precision of its products and those of
    its derivatives on platforms that have a choice.

    Args:
        images: [b h w c].
        kernel: [k l c d], of the same dtype or a wider one; its gradient has its dtype.
        stride: in both directions.
        padding: "SAME", "VALID", or pixels before and after in both directions.
        bias: [d], added to the results; of the same dtype or a wider one, likewise.

    Returns:
        [b h' w' d], of the dtype of the images.

    Raises:
        TypeError: if channels differ, or the images' dtype is the wider one.
    """
    fits = jnp.promote_types(images.dtype, kernel.dtype) == kernel.dtype
    if images.shape[-1] != kernel.shape[2] or not fits:
        raise TypeError(
            f"images {images.dtype}{list(images.shape)} do not fit a kernel "
            f"{kernel.dtype}{list(kernel.shape)}; their last axis must be the kernel's third, and "
            "the kernel's dtype theirs or a wider one."
        )
    strides = (stride, stride)
    around: Any = padding
    if isinstance(padding, str):
        around = lax.padtype_to_pads(images.shape[1:3], kernel.shape[:2], strides, padding)
    around = tuple((int(before), int(after)) for before, after in around)
    precision = jax.config.jax_default_matmul_precision  # pyright: ignore[reportAttributeAccessIssue]
    static = {"strides": strides, "padding": around, "precision": precision}
    if bias is None:
        static = {**static, "wanted": RESULTS, "spatial": (), "dtype": images.dtype}
        return bind(contract_p, images[None], kernel[None], **static)[0]
    return bind(affine_p, images[None], kernel[None], bias[None], **static)[0]


# The rules that JAX asks of a primitive. Arrays are images [v b h w c], kernel [v k l c d], bias
# [v d] and results [v b h' w' d]; entries of v are independent. Two of images, kernel and results
# are the operands of "contract", in this order; the third is the ``wanted`` one, which gets
# ``dtype``. ``spatial`` is the height and width of wanted images or of a wanted kernel. Only the
# kernel's dtype may be wider than that of the other two.


def _contract_by_xla(
    left: Array,
    right: Array,
    *,
    wanted: int,
    strides: tuple[int, int],
    padding: Padding,
    spatial: tuple[int, ...],
    precision: str | None,
    dtype: Any,
    products: bool = False,
    wide: bool = False,
) -> Array:
    """The primitive in operations of XLA.

    Args:
        left: the first operand.
        right: the second operand.
        wanted: role of the result.
        strides: of the window.
        padding: pixels around the images.
        spatial: height and width of a wanted kernel or of wanted images.
        precision: of products.
        dtype: of the result.
        products: compute 1x1 kernels as matrix products. On a CPU their derivatives are up to four
            times as fast as those of convolutions.
        wide: sum the gradient of a wider kernel in the kernel's dtype, also over devices. Otherwise
            each device rounds its gradient to the images' dtype before the sum over devices.
    """
    narrow = jnp.promote_types(left.dtype, right.dtype) if wanted == KERNEL else None
    if wanted != KERNEL:
        left, right = left.astype(dtype), right.astype(dtype)

    def one(images: Array, kernel: Array) -> Array:
        if products and kernel.shape[:2] == (1, 1) and not any(sum(padding, ())):
            seen = images[:, :: strides[0], :: strides[1]]
            # One matrix, since XLA turns the derivative of a product with more axes back into a
            # convolution.
            product = jnp.matmul(seen.reshape(-1, seen.shape[-1]), kernel[0, 0])
            return product.reshape(*seen.shape[:-1], -1)
        return lax.conv_general_dilated(
            images,
            kernel,
            strides,
            padding,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision=precision,
        )

    def slope(images: Array, results: Array) -> Array:
        """The gradient of a kernel: a convolution whose batch are the channels."""
        sides = zip(spatial, images.shape[1:3], results.shape[1:3], strides, padding, strict=True)
        around = [
            (before, side + (steps - 1) * stride - size - before)
            for side, size, steps, stride, (before, _) in sides
        ]
        return lax.conv_general_dilated(
            images,
            results,
            (1, 1),
            around,
            rhs_dilation=strides,
            dimension_numbers=("CHWN", "IHWO", "HWNC"),
            precision=precision,
            preferred_element_type=dtype,
        )

    def every(function: Any, *operands: Array) -> Array:
        # jax.vmap over a single entry would make a grouped convolution.
        if operands[0].shape[0] != 1:
            return jax.vmap(function)(*operands)
        return function(*(operand[0] for operand in operands))[None]

    if wanted == RESULTS:
        return every(one, left, right)
    if wide and narrow is not None and narrow != dtype:
        return every(slope, left, right)
    static = {"wanted": wanted, "strides": strides, "padding": padding, "spatial": spatial}
    static |= {"precision": precision, "dtype": narrow or dtype}
    absent = _contract_shape(left, right, **static)
    absent = jax.ShapeDtypeStruct(absent.shape, absent.dtype)
    linear = partial(every, one, left)
    if wanted == IMAGES:
        linear = lambda images: every(one, images, left)  # noqa: E731
    return jax.linear_transpose(linear, absent)(right)[0].astype(dtype)


@lru_cache
def _gradient_apart(static: tuple[tuple[str, Any], ...]) -> Callable[[Array, Array], Array]:
    """The gradient of a kernel whose dtype is wider than that of images and results.

    On a GPU it is rounded to the dtype of the images; otherwise XLA would widen both operands in
    memory before it calls cuDNN. Each device widens its own gradient before the sum over devices;
    by default XLA would widen only the sum.
    """
    whole = partial(contract_p.bind, **dict(static))

    def share(mesh: Any, operands: Any, _: Any) -> tuple[Any, Any, Any, Any]:
        axes = operands[0].sharding.spec[1]

        def own(images: Array, results: Array) -> Array:
            gradient = whole(images, results)
            return gradient if axes is None else lax.psum(gradient, axes)

        split = NamedSharding(mesh, PartitionSpec(None, axes))
        return mesh, own, NamedSharding(mesh, PartitionSpec()), (split, split)

    shared = custom_partitioning(whole)
    shared.def_partition(
        share,
        sharding_rule="v b h w c, v b y x d -> v k l c d",
        reduction_factors=("b",),
        need_replication_factors=("v", "h", "w", "c", "y", "x", "d", "k", "l"),
    )
    apart = custom_vmap(shared)

    @apart.def_vmap
    def _(size: int, mapped: list[bool], *operands: Array) -> tuple[Array, bool]:
        joined = (
            (operand if own else jnp.broadcast_to(operand, (size, *operand.shape)))
            for operand, own in zip(operands, mapped, strict=True)
        )
        out = apart(*(operand.reshape(-1, *operand.shape[2:]) for operand in joined))
        return out.reshape(size, -1, *out.shape[1:]), True

    @jax.custom_jvp
    def gradient(images: Array, results: Array) -> Array:
        return lax.platform_dependent(images, results, cuda=apart, rocm=apart, default=whole)

    @gradient.defjvp
    def _(primals: Any, tangents: Any) -> tuple[Array, Array]:
        (images, results), (of_images, of_results) = primals, tangents
        return gradient(*primals), whole(of_images, results) + whole(images, of_results)

    return gradient


def _contract_shape(
    left: Any,
    right: Any,
    *,
    wanted: int,
    strides: tuple[int, int],
    padding: Padding,
    spatial: tuple[int, ...],
    dtype: Any,
    **_: Any,
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
    return ShapedArray(shape, dtype)


def _contract_transpose(
    position: int, cotangent: Array, left: Any, right: Any, *, wanted: int, **static: Any
) -> Array:
    """The cotangent of the operand at ``position``, an ``UndefinedPrimal``."""
    present = [role for role in ROLES if role != wanted]
    arrays = {**dict(zip(present, (left, right), strict=True)), wanted: cotangent}
    absent = present[position]
    aval = arrays.pop(absent).aval
    shape, static["dtype"] = aval.shape, aval.dtype
    static["spatial"] = {IMAGES: shape[2:4], KERNEL: shape[1:3], RESULTS: ()}[absent]
    first, second = (arrays[role] for role in sorted(arrays))
    if absent == KERNEL and jnp.promote_types(first.dtype, second.dtype) != aval.dtype:
        return _gradient_apart(tuple({**static, "wanted": KERNEL}.items()))(first, second)
    return contract_p.bind(first, second, wanted=absent, **static)


def _contract_batch(operands: Any, axes: Any, *, wanted: int, **static: Any) -> tuple[Any, Any]:
    if wanted == KERNEL:
        return join_entries(contract_p, operands, axes, wanted=wanted, **static)
    batched = 0 if wanted == RESULTS else 1  # the operand that is not a kernel
    return join_batch(contract_p, batched, operands, axes, wanted=wanted, **static)


def _affine_by_xla(images: Array, kernel: Array, bias: Array, **static: Any) -> Array:
    static |= {"wanted": RESULTS, "spatial": (), "dtype": images.dtype}
    return bind(contract_p, images, kernel, **static) + _over_pixels(bias, images)


def _over_pixels(bias: Array, images: Array) -> Array:
    return bias.astype(images.dtype)[:, None, None, None]


def _affine_shape(images: Any, kernel: Any, _: Any, **static: Any) -> ShapedArray:
    static |= {"wanted": RESULTS, "spatial": (), "dtype": images.dtype}
    return _contract_shape(images, kernel, **static)


def _affine_jvp(primals: Any, tangents: Any, **static: Any) -> tuple[Array, Array]:
    images, kernel, _ = primals
    of_images, of_kernel, of_bias = tangents
    out = affine_p.bind(*primals, **static)
    static |= {"wanted": RESULTS, "spatial": (), "dtype": images.dtype}
    whole = partial(contract_p.bind, **static)
    terms = []
    if type(of_images) is not ad.Zero:
        terms.append(whole(of_images, kernel))
    if type(of_kernel) is not ad.Zero:
        terms.append(whole(images, of_kernel))
    if type(of_bias) is not ad.Zero:
        terms.append(jax.vmap(partial(spread, shape=out.shape[1:], dtype=out.dtype))(of_bias))
    return out, sum(terms[1:], terms[0])


def _on_cpu(primitive: Primitive, name: str, by_xla: Any, ctx: Any, *given: Any, **static: Any):
    """Lower to oneDNN's function ``name`` if it can compute this, else to operations of XLA.

    oneDNN computes in one dtype, so a wider kernel or bias is rounded before.
    """
    dtypes = {array.dtype for array in (*ctx.avals_in, *ctx.avals_out)}
    if len(dtypes) > 1:
        return lowering(primitive, partial(_in_one_dtype, primitive))(ctx, *given, **static)
    if not (onednn.suits(ctx) and all(min(around) >= 0 for around in static["padding"])):
        return lowering(primitive, by_xla)(ctx, *given, **static)
    attributes = {
        "strides": np.array(static["strides"], np.int64),
        "padding": np.array(static["padding"], np.int64).reshape(-1),
    }
    if primitive is contract_p:
        attributes["wanted"] = np.int64(static["wanted"])
    return onednn.call(ctx, name, *given, **attributes)


def _in_one_dtype(primitive: Primitive, *operands: Array, **static: Any) -> Array:
    """``primitive`` in the narrowest dtype of operands and result, which is the images'."""
    wanted = static.get("dtype", operands[0].dtype)
    dtypes = sorted({*(operand.dtype for operand in operands), wanted}, key=lambda d: d.itemsize)
    if "dtype" in static:
        static["dtype"] = dtypes[0]
    out = primitive.bind(*(operand.astype(dtypes[0]) for operand in operands), **static)
    return out.astype(wanted)


_products = partial(_contract_by_xla, products=True)
_contract_on_cpu = partial(_on_cpu, contract_p, "jaxmatch_contract", _products)
_affine_on_cpu = partial(_on_cpu, affine_p, "jaxmatch_convolve", _affine_by_xla)
define(contract_p, _contract_shape, _contract_by_xla, _contract_on_cpu)
define(affine_p, _affine_shape, _affine_by_xla, _affine_on_cpu)
_contract_wide = lowering(contract_p, partial(_contract_by_xla, wide=True))
mlir.register_lowering(contract_p, _contract_wide, platform="tpu")
ad.defbilinear(contract_p, partial(_contract_transpose, 0), partial(_contract_transpose, 1))
batching.primitive_batchers[contract_p] = _contract_batch
ad.primitive_jvps[affine_p] = _affine_jvp
batching.primitive_batchers[affine_p] = partial(join_batch, affine_p, 0)
