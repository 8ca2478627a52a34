"""Rules for JAX primitives that a CPU may compute by library calls, and XLA by operations.

Programs for other machines (:mod:`jax.export`) are traced for batches of symbolic size, which no
library call can take. They have the operations in place of the primitive (:func:`bind`), so they
run without this library.
"""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir

from jaxmatch.types import Array

_OPERATIONS: dict[Primitive, Callable[..., Any]] = {}


def bind(primitive: Primitive, *operands: Any, **static: Any) -> Any:
    """The primitive of the operands; its operations of JAX if one of them is symbolic."""
    if any(map(symbolic, operands)):
        return _OPERATIONS[primitive](*operands, **static)
    return primitive.bind(*operands, **static)


def symbolic(array: Any) -> bool:
    """Whether a size of the array is symbolic, as while a program for other machines is traced."""
    return not all(isinstance(size, int) for size in array.shape)


def define(
    primitive: Primitive,
    shapes: Callable[..., Any],
    by_xla: Callable[..., Any],
    on_cpu: Callable[..., Any] | None = None,
) -> None:
    """Give ``primitive`` its rules: shapes, eager calls, ``jax.vmap`` and lowering.

    Args:
        primitive: its operands and results have a leading axis of independent entries.
        shapes: maps the operands' abstract values and static keywords to those of the results.
        by_xla: maps operands and static keywords to results, in operations of JAX.
        on_cpu: the lowering rule for CPUs; None lowers ``by_xla`` there too.
    """

    @lru_cache
    def compiled(static: tuple[tuple[str, Any], ...]) -> Any:
        return jax.jit(partial(primitive.bind, **dict(static)))

    def eager(*operands: Any, **static: Any) -> Any:
        return compiled(tuple(static.items()))(*operands)

    _OPERATIONS[primitive] = by_xla
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
    """The rule of ``jax.vmap``: the mapped axis joins that of independent entries."""
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
    """The same, but if only operand number ``batched`` is mapped, its mapped axis joins its batch.

    The batch is the axis after that of independent entries, in the operand and in the result.
    """
    if [axis is not None for axis in axes] != [at == batched for at in range(len(axes))]:
        return join_entries(primitive, operands, axes, **static)
    operands = list(operands)
    moved = jnp.moveaxis(operands[batched], axes[batched], 1)
    operands[batched] = moved.reshape(moved.shape[0], -1, *moved.shape[3:])
    out = primitive.bind(*operands, **static)
    return out.reshape(out.shape[0], moved.shape[1], -1, *out.shape[2:]), 1
