"""Sums over a batch for each channel, and a scale, shift and leaky ReLU, as primitives of JAX.

The backward pass of a normalisation takes two sums over the batch for each channel: of the incoming
gradient, and of the gradient times the centred input. XLA would read the batch once for each sum,
and compute their inputs twice. So the pair of sums is one primitive. Its transpose, the scaling, is
another; together they have derivatives of every order and kind. In a program for one CPU device
oneDNN's threads compute the sums (:mod:`jaxmatch.models.onednn`), elsewhere XLA.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import ad
from jax.typing import DTypeLike

from jaxmatch.models import onednn
from jaxmatch.models.primitives import bind, define, lowering
from jaxmatch.types import Array

ROWS = 16  # pixels in a first sum; XLA does not rewrite sums of at most 32 terms

scale_p = Primitive("channel_scale")
sums_p = Primitive("channel_sums")
sums_p.multiple_results = True
spread_p = Primitive("channel_spread")


def channel_sums(x: Array) -> Array:
    """The sum over all axes but the last: x [b ... c] -> [c], in at least float32."""
    zero = jnp.zeros((1, x.shape[-1]), _wide(x))
    static = {"slope": 1.0, "centred": False}
    return sums_p.bind(x[None], lax.stop_gradient(x)[None], zero, zero, zero, **static)[0][0]


def spread(values: Array, shape: tuple[int, ...], dtype: DTypeLike | None = None) -> Array:
    """``values`` [c] for every pixel of ``shape`` [b ... c]; the gradient is channel_sums.

    The result has ``dtype``, by default that of ``values``. The gradient has that of ``values``.
    """
    dtype = jnp.dtype(dtype or values.dtype)
    return spread_p.bind(values[None], shape=tuple(shape), dtype=dtype)[0]


def moments(x: Array, origin: Array) -> tuple[Array, Array]:
    """The sums of d and of d^2 over a batch, d = ``x`` [b ... c] - ``origin`` [c]: twice [c].

    ``origin`` is a constant; the nearer it is to the mean, the smaller is the cancellation. Results
    are at least float32.
    """
    rows = (lax.stop_gradient(origin)[None],) * 3
    first, second = sums_p.bind(x[None], x[None], *rows, slope=1.0, centred=True)
    return first[0], second[0]


def scale_and_activate(
    x: Array,
    origin: Array,
    factor: Array,
    shift: Array,
    slope: float = 1.0,
    dtype: DTypeLike | None = None,
) -> Array:
    """Leaky ReLU of (``x`` - ``origin``) ``factor`` + ``shift``, computed in at least float32.

    Args:
        x: [b ... c].
        origin: [c], a constant.
        factor: [c].
        shift: [c].
        slope: of negative values, and the derivative at 0; 0 is ReLU, 1 is no activation.
        dtype: of the result [b ... c]; None keeps that of ``x``.
    """
    rows = (lax.stop_gradient(origin), factor, shift, factor, shift)
    static = {"slope": slope, "dtype": jnp.dtype(dtype or x.dtype)}
    return bind(scale_p, x[None], *(row[None] for row in rows), **static)[0]


# The rules that JAX asks of a primitive. Operands have a leading axis v of independent entries: x
# and g are [v b ... c], all others are rows of channels [v c]. With d = x - origin, and m = 1 where
# d factor + shift > 0, else the slope:
#   channel_scale(x, origin, factor, shift, u, w) = m (d u + w), linear in (u, w);
#   channel_sums(g, x, origin, factor, shift) = sums of m g and m g d over a batch, linear in g;
#       with ``centred``, g - origin takes the place of g.


def _scale_by_xla(
    x: Array, origin: Array, factor: Array, shift: Array, u: Array, w: Array, *, slope, dtype
) -> Array:
    centred = x.astype(_wide(x)) - _rows(origin, x.shape)
    y = centred * _rows(u, x.shape) + _rows(w, x.shape)
    return (_mask(centred, factor, shift, slope) * y).astype(dtype)


def _sums_by_xla(
    g: Array, x: Array, origin: Array, factor: Array, shift: Array, *, slope, centred, staged=False
) -> tuple[Array, Array]:
    wide = jnp.promote_types(_wide(g), _wide(x))
    d = x.astype(wide) - _rows(origin, x.shape)
    g = g.astype(wide) - (_rows(origin, x.shape) if centred else 0)
    g = _mask(d, factor, shift, slope) * g
    total = _in_stages if staged else partial(jnp.sum, axis=tuple(range(1, x.ndim - 1)))
    return total(g), total(g * d)


def _mask(centred: Array, factor: Array, shift: Array, slope: float) -> Any:
    if slope == 1:
        return 1
    sign = centred * _rows(factor, centred.shape) + _rows(shift, centred.shape)
    return jnp.where(sign > 0, jnp.ones((), centred.dtype), jnp.asarray(slope, centred.dtype))


def _rows(values: Array, shape: tuple[int, ...]) -> Array:
    return lax.broadcast_in_dim(values, shape, (0, len(shape) - 1))


def _in_stages(x: Array) -> Array:
    """The sum of x [v b ... c] -> [v c] in a form that is fast on XLA:CPU.

    XLA rewrites a long sum as a tree of windows and computes each window by itself, which is up to
    seven times slower than reading the values once. It does not rewrite a sum over a few rows
    followed by a sum over the rest, and that is as exact.
    """
    pixels = int(np.prod(x.shape[2:-1]))
    rows = next(rows for rows in range(ROWS, 0, -1) if pixels % rows == 0)
    # Without the barrier XLA would join the two sums again.
    parts = lax.optimization_barrier(
        jnp.sum(x.reshape(*x.shape[:2], pixels // rows, rows, x.shape[-1]), 3)
    )
    return jnp.sum(parts, (1, 2))


def _wide(x: Any) -> Any:
    return jnp.promote_types(x.dtype, jnp.float32)


def _scale_jvp(primals: Any, tangents: Any, **static: Any) -> tuple[Array, Array]:
    x, origin, factor, shift, u, _ = primals
    dx, _, _, _, du, dw = tangents
    out = scale_p.bind(*primals, **static)
    tangent = jnp.zeros_like(out)
    if type(du) is not ad.Zero or type(dw) is not ad.Zero:
        du, dw = map(ad.instantiate_zeros, (du, dw))
        tangent = scale_p.bind(x, origin, factor, shift, du, dw, **static)
    if type(dx) is not ad.Zero:
        zero = jnp.zeros_like(origin)
        slope = scale_p.bind(x, origin, factor, shift, zero, u, **{**static, "dtype": _wide(x)})
        tangent += (slope * dx).astype(out.dtype)
    return out, tangent


def _scale_transpose(
    cotangent: Any, x: Array, origin: Array, factor: Array, shift: Array, u: Any, w: Any, **static
) -> tuple[Any, ...]:
    slope = static["slope"]
    first, second = sums_p.bind(cotangent, x, origin, factor, shift, slope=slope, centred=False)
    return (
        *(None,) * 4,
        second.astype(u.aval.dtype) if ad.is_undefined_primal(u) else None,
        first.astype(w.aval.dtype) if ad.is_undefined_primal(w) else None,
    )


def _sums_jvp(primals: Any, tangents: Any, *, slope, centred) -> tuple[Any, Any]:
    g, x, origin, factor, shift = primals
    dg, dx, *_ = tangents
    rows, static = (origin, factor, shift), {"slope": slope, "centred": False}
    out = sums_p.bind(*primals, slope=slope, centred=centred)
    first, second = map(jnp.zeros_like, out)
    if type(dg) is not ad.Zero:
        first, second = sums_p.bind(dg, x, *rows, **static)
    if type(dx) is not ad.Zero:
        wide = g.astype(out[0].dtype) - (_rows(origin, g.shape) if centred else 0)
        second += sums_p.bind(wide * dx, x, *rows, **static)[0]
    return out, [first, second]


def _sums_transpose(
    cotangents: Any, g: Any, x: Array, origin: Array, factor: Array, shift: Array, *, slope, **_
) -> tuple[Any, ...]:
    # JAX transposes only linear calls, which are not ``centred``.
    second, first = map(ad.instantiate_zeros, reversed(cotangents))
    dtype = g.aval.dtype
    back = scale_p.bind(x, origin, factor, shift, second, first, slope=slope, dtype=dtype)
    return (back, *(None,) * 4)


def _sums_on_cpu(ctx: Any, *operands: Any, slope: float, centred: bool) -> Any:
    """Lower to a library call where one device computes in float32, else to XLA, in stages."""
    narrow = any(row.dtype != jnp.float32 for row in ctx.avals_in[2:])
    if narrow or not onednn.suits(ctx):
        staged = partial(_sums_by_xla, staged=ctx.avals_in[0].ndim == 5)
        return lowering(sums_p, staged)(ctx, *operands, slope=slope, centred=centred)
    attributes = {"slope": np.float32(slope), "centred": np.int64(centred)}
    return onednn.call(ctx, "jaxmatch_sums", *operands, **attributes)


def _scale_shape(x: Any, *_: Any, dtype: Any, **__: Any) -> ShapedArray:
    return ShapedArray(x.shape, dtype)


def _sums_shapes(g: Any, x: Any, *_: Any, **__: Any) -> list[ShapedArray]:
    row = ShapedArray((x.shape[0], x.shape[-1]), jnp.promote_types(_wide(g), _wide(x)))
    return [row, row]


def _spread_shape(values: Any, *, shape: tuple[int, ...], dtype: Any) -> ShapedArray:
    return ShapedArray((values.shape[0], *shape), dtype)


def _spread_by_xla(values: Array, *, shape: tuple[int, ...], dtype: Any) -> Array:
    return _rows(values.astype(dtype), (values.shape[0], *shape))


def _spread_transpose(cotangent: Array, values: Any, **_: Any) -> list[Array]:
    return [jax.vmap(channel_sums)(cotangent).astype(values.aval.dtype)]


define(scale_p, _scale_shape, _scale_by_xla)
define(sums_p, _sums_shapes, _sums_by_xla, _sums_on_cpu)
define(spread_p, _spread_shape, _spread_by_xla)
ad.primitive_jvps[scale_p] = _scale_jvp
ad.primitive_transposes[scale_p] = _scale_transpose
ad.primitive_jvps[sums_p] = _sums_jvp
ad.primitive_transposes[sums_p] = _sums_transpose
ad.deflinear2(spread_p, _spread_transpose)
