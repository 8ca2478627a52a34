"""Columns of a matrix, looked up by number or summed by number: exact products with zeros and ones.

A TPU moves one row at a time in a gather or scatter, and multiplies matrices at full speed; CPUs
and GPUs do the opposite. So both operations have two forms, and the platform that a program is
lowered for picks one. A product is exact although a TPU rounds its factors to bfloat16: a float32
is the sum of three numbers of 8 significant bits, which a factor of 1 leaves as they are.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from jaxmatch.functional.alike import split_by_use
from jaxmatch.types import Array

_BITS = 8  # significant ones of bfloat16
_PARTS = 3  # a float32 has 24


@jax.custom_vjp
def look_up(table: Array, number: Array) -> Array:
    """Columns of a matrix: ``out[i, j] = table[i, number[j]]``, the same values on any platform.

    Args:
        table: [b c], floating point and finite; a TPU drops what is left of a value below 2^-126.
        number: [n] integers in 0..c-1.

    Returns:
        [b n].
    """
    return _by_platform(_look_up_by_product, _look_up_by_gather, table, number)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def sum_by(values: Array, number: Array, count: int) -> Array:
    """Sums of columns: ``out[i, k]`` of all ``values[i, j]`` with ``number[j] == k``.

    Args:
        values: [b n], floating point and finite.
        number: [n] integers in 0..count-1.
        count: c.

    Returns:
        [b c]; the order of the sums depends on the platform.
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


def _sum_by_backward(count: int, number: Array, change: Array) -> tuple[Array, None]:
    del count
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
    # Where the numbers are spread over the devices, the zeros and ones would else move.
    return _product("pbc,cn->pbn", split_by_use(table), chosen)


def _sum_by_scatter(count: int, values: Array, number: Array) -> Array:
    return jax.ops.segment_sum(values.T, number, count).T


def _sum_by_product(count: int, values: Array, number: Array) -> Array:
    return _product("pbn,nc->pbc", values, number[:, None] == jnp.arange(count))


def _product(equation: str, values: Array, chosen: Array) -> Array:
    # All parts are rows of one product: a few rows take as long as a matrix unit has of them.
    found = jnp.einsum(
        equation,
        _exact_parts(values),
        chosen.astype(jnp.bfloat16),
        preferred_element_type=jnp.float32,
    )
    return found.sum(0).astype(values.dtype)


def _exact_parts(values: Array) -> Array:
    """bfloat16 [3 ...], with the float32 ``values`` as their sum."""
    rest, parts = values.astype(jnp.float32), []
    for _ in range(_PARTS):
        parts.append(lax.reduce_precision(rest, 8, _BITS - 1))
        rest = rest - parts[-1]
    return jnp.stack(parts).astype(jnp.bfloat16)
