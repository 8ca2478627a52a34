"""Decides where a compiled program calls the library, and makes the call."""

from typing import Any

import jax
import numpy as np

from jaxmatch.models.onednn.loading import library


def suits(context: Any) -> bool:
    """Whether the library can compute an operation of a program for a CPU.

    Args:
        context: JAX's ``LoweringRuleContext`` of the operation.

    Returns:
        True for a program on one device, if the library is there and computes in the dtypes of all
        operands and results, and none of them is empty.
    """
    arrays = (*context.avals_in, *context.avals_out)
    return (
        getattr(context.module_context.axis_context, "num_devices", 0) == 1
        and all(array.size for array in arrays)
        and {array.dtype.name for array in arrays} <= set(library().dtypes)
    )


def call(context: Any, name: str, *operands: Any, **attributes: Any) -> Any:
    """Lower to a call of the library's function ``name`` with NumPy ``attributes``."""
    # The devices of a process share its cores.
    devices = np.int64(jax.local_device_count("cpu"))
    return jax.ffi.ffi_lowering(name)(context, *operands, devices=devices, **attributes)
