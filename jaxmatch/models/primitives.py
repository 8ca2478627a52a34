"""What primitives of JAX have in common that a CPU computes by calls and XLA by operations."""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir

from jaxmatch.types import Array


def define(
    primitive: Primitive,
    shapes: Callable[..., Any],
    by_xla: Callable[..., Any],
    on_cpu: Callable[..., Any] | None = None,
) -> None:
    """Give ``primitive`` its shapes, values outside of ``jax.jit``, ``jax.vmap`` and lowering.

    Args:
        primitive: all operands and results of which have a leading axis of independent entries.
        shapes: from operands' abstract values, and static keywords, to those of the results.
        by_xla: from operands and static keywords to results, in operations of JAX.
        on_cpu: a lowering rule for CPUs, if it is another.
    """

    @lru_cache
    def compiled(static: tuple[tuple[str, Any], ...]) -> Any:
        return jax.jit(partial(primitive.bind, **dict(static)))

    def eager(*operands: Any, **static: Any) -> Any:
        return compiled(tuple(static.items()))(*operands)

    primitive.def_impl(eager)
    primitive.def_abstract_eval(shapes)
    batching.primitive_batchers[primitive] = partial(join_entries, primitive)
    mlir.register_lowering(primitive, lowering(primitive, by_xla))
    if on_cpu is not None:
        mlir.register_lowering(primitive, on_cpu, platform="cpu")


def lowering(primitive: Primitive, function: Callable[..., Any]) -> Callable[..., Any]:
    """The lowering rule of ``primitive`` in operations of JAX."""
    return mlir.lower_fun(function, multiple_results=primitive.multiple_results)


def join_entries(primitive: Primitive, operands: Any, axes: Any, **static: Any) -> tuple[Any, Any]:
    """The rule of ``jax.vmap``: mapped entries join the independent ones."""
    size = next(o.shape[axis] for o, axis in zip(operands, axes, strict=True) if axis is not None)

    def join(operand: Array, axis: int | None) -> Array:
        if axis is None:
            operand = jnp.broadcast_to(operand, (size, *operand.shape))
        else:
            operand = jnp.moveaxis(operand, axis, 0)
        return operand.reshape(-1, *operand.shape[2:])

    out = primitive.bind(*map(join, operands, axes), **static)
    out = jax.tree.map(lambda leaf: leaf.reshape(size, -1, *leaf.shape[1:]), out)
    return out, jax.tree.map(lambda _: 0, out)


def join_batch(
    primitive: Primitive, batched: int, operands: Any, axes: Any, **static: Any
) -> tuple[Any, Any]:
    """The same where only operand number ``batched`` is mapped: its entries join its batch.

    The batch is the axis after that of independent entries, of the result too.
    """
    if [axis is not None for axis in axes] != [at == batched for at in range(len(axes))]:
        return join_entries(primitive, operands, axes, **static)
    operands = list(operands)
    moved = jnp.moveaxis(operands[batched], axes[batched], 1)
    operands[batched] = moved.reshape(moved.shape[0], -1, *moved.shape[3:])
    out = primitive.bind(*operands, **static)
    return out.reshape(out.shape[0], moved.shape[1], -1, *out.shape[2:]), 1
