"""Hints how the compiler splits arrays over the devices, for code that knows no devices.

JAX had ``split_alike`` as ``jax.experimental.shard_alike`` and dropped it in version 0.11.
"""

import itertools
from typing import Any

import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.extend.mlir.dialects import sdy
from jax.interpreters import ad, batching, mlir

from jaxmatch.types import Array

_groups = itertools.count()


def split_alike(x: Array, y: Array) -> tuple[Array, Array]:
    """The same two arrays; the compiler splits both, and both their gradients, in one way.

    >>> x, y = split_alike(jnp.ones(2), jnp.zeros(2))
    >>> print(x, y)
    [1. 1.] [0. 0.]

    Raises:
        ValueError: if the shapes differ.
    """
    if x.shape != y.shape:
        raise ValueError(
            f"arrays of shapes {x.shape} and {y.shape} cannot be split alike; give equal shapes."
        )
    x, y = _alike.bind(x, y)
    return x, y


def split_by_use(x: Array) -> Array:
    """The same array, split over the devices as its use asks, not as its inputs are.

    Mark a factor that is small beside the product: where another factor is spread over the
    devices, the marked one moves.

    >>> print(split_by_use(jnp.ones(2)))
    [1. 1.]
    """
    return _by_use.bind(x)


def _transpose(cotangents: Any, *_: Any) -> Any:
    if any(isinstance(cotangent, ad.Zero) for cotangent in cotangents):
        return list(cotangents)
    return list(split_alike(*cotangents))


def _batch(operands: Any, axes: Any) -> tuple[Any, Any]:
    size = next(o.shape[axis] for o, axis in zip(operands, axes, strict=True) if axis is not None)
    pair = [
        jnp.broadcast_to(operand, (size, *operand.shape))
        if axis is None
        else jnp.moveaxis(operand, axis, 0)
        for operand, axis in zip(operands, axes, strict=True)
    ]
    return _alike.bind(*pair), (0, 0)


def _lower(_: Any, x: Any, y: Any) -> list[Any]:
    group = next(_groups)
    for value in (x, y):
        sdy.sharding_group(value, group)  # pyright: ignore[reportAttributeAccessIssue]
    return [x, y]


_alike = Primitive("split_alike")
_alike.multiple_results = True
_alike.def_impl(lambda x, y: [x, y])  # outside of jax.jit arrays are where they are
_alike.def_abstract_eval(lambda x, y: [x, y])
ad.deflinear(_alike, _transpose)
batching.primitive_batchers[_alike] = _batch
mlir.register_lowering(_alike, _lower)


def _lower_by_use(_: Any, x: Any) -> list[Any]:
    result: Any = sdy.propagation_barrier(x, sdy.PropagationDirection.NONE)  # pyright: ignore[reportAttributeAccessIssue]
    return [result]


_by_use = Primitive("split_by_use")
_by_use.def_impl(lambda x: x)
_by_use.def_abstract_eval(lambda x: x)
ad.deflinear(_by_use, lambda cotangent: [split_by_use(cotangent)])
batching.defvectorized(_by_use)
mlir.register_lowering(_by_use, _lower_by_use)
