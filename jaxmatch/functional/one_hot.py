"""Look up columns of a matrix by number, or sum them by number, fast on every platform.

A TPU moves one row at a time in a gather or scatter, and multiplies matrices at full speed; on CPUs
and GPUs moving rows is faster. So both operations have two forms, and the platform that a program
is lowered for picks one. A product with zeros and ones is exact although a TPU rounds its factors
to bfloat16: a float32 is the sum of three numbers of 8 significant bits, and none is rounded.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import BFloat16, Float, Int

from jaxmatch.functional.alike import split_by_use
from jaxmatch.types import Array

_BITS = 8  # significant bits of bfloat16
_PARTS = 3  # a float32 has 24 significant bits


@jax.custom_vjp
def look_up(table: Float[Array, "b c"], number: Int[Array, "n"]) -> Float[Array, "b n"]:
    """Columns of a matrix: ``out[i, j] = table[i, number[j]]``, the same values on any platform.

    >>> print(look_up(jnp.array([[5.0, 7.0]]), jnp.array([1, 0, 1])))
    [[7. 5. 7.]]

    Args:
        table: finite; a TPU drops parts of a value that are below 2^-126.
        number: in 0..c-1.
    """
    return _by_platform(_look_up_by_product, _look_up_by_gather, table, number)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def sum_by(values: Float[Array, "b n"], number: Int[Array, "n"], count: int) -> Float[Array, "b c"]:
    """Sums of columns: ``out[i, k]`` is the sum of ``values[i, j]`` over j with ``number[j] == k``.

    The order of the sums depends on the platform.

    >>> print(sum_by(jnp.array([[1.0, 2.0, 4.0]]), jnp.array([1, 0, 1]), 3))
    [[2. 5. 0.]]

    Args:
        values: finite.
        number: in 0..count-1.
        count: c.
    """
    return _by_platform(
        partial(_sum_by_product, count), partial(_sum_by_scatter, count), values, number
    )


def _look_up_forward(table: Array, number: Array) -> tuple[Array, tuple[Array, int]]:
    return look_up(table, number), (number, table.shape[1])


def _look_up_backward(saved: tuple[Array, int], change: Array) -> tuple[Array, None]:
    number, count = saved
    return sum_by(change, number, count), None


def _sum_by_forward(values: Array, number: Array, count: int) -> tuple[Array, Array]:
    return sum_by(values, number, count), number


def _sum_by_backward(_: int, number: Array, change: Array) -> tuple[Array, None]:
    return look_up(change, number), None


look_up.defvjp(_look_up_forward, _look_up_backward)
sum_by.defvjp(_sum_by_forward, _sum_by_backward)


def _by_platform(
    product: Callable[..., Array], moves: Callable[..., Array], values: Array, number: Array
) -> Array:
    if values.dtype == jnp.float64:  # which no TPU has
        return moves(values, number)
    return lax.platform_dependent(values, number, tpu=product, default=moves)


def _look_up_by_gather(table: Array, number: Array) -> Array:
    return table[:, number]


def _look_up_by_product(table: Array, number: Array) -> Array:
    chosen = jnp.arange(table.shape[1])[:, None] == number  # [c n]
    # Otherwise the zeros and ones would move where the numbers are spread over the devices.
    return _product("pbc,cn->pbn", split_by_use(table), chosen)


def _sum_by_scatter(count: int, values: Array, number: Array) -> Array:
    return jax.ops.segment_sum(values.T, number, count).T


def _sum_by_product(count: int, values: Array, number: Array) -> Array:
    return _product("pbn,nc->pbc", values, number[:, None] == jnp.arange(count))


def _product(equation: str, values: Array, chosen: Array) -> Array:
    # All parts are rows of one product: a matrix unit takes as long for a few rows as for many.
    found = jnp.einsum(
        equation,
        _exact_parts(values),
        chosen.astype(jnp.bfloat16),
        preferred_element_type=jnp.float32,
    )
    return found.sum(0).astype(values.dtype)


def _exact_parts(values: Float[Array, "*shape"]) -> BFloat16[Array, "parts *shape"]:
    """Three parts whose sum is the float32 ``values``."""
    rest, parts = values.astype(jnp.float32), []
    for _ in range(_PARTS):
        parts.append(lax.reduce_precision(rest, 8, _BITS - 1))
        rest = rest - parts[-1]
    return jnp.stack(parts).astype(jnp.bfloat16)
