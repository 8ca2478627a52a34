"""Where a compiled program calls the library, and the operation that does."""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmatch.onednn.loading import library

DTYPES = (jnp.dtype(jnp.float32), jnp.dtype(jnp.bfloat16))


def suits(context: Any, dtypes: Iterable[Any] = DTYPES) -> bool:
    """Whether the library can take an operation of a program for a CPU.

    Args:
        context: JAX's ``LoweringRuleContext`` of the operation.
        dtypes: those of all operands and results must be among these.

    Returns:
        True for a program on one device, of non-empty arrays, where the library is there.
    """
    arrays = (*context.avals_in, *context.avals_out)
    return (
        getattr(context.module_context.axis_context, "num_devices", 0) == 1
        and all(array.dtype in set(dtypes) and array.size for array in arrays)
        and library().present
    )


def call(context: Any, name: str, *operands: Any, **attributes: Any) -> Any:
    """Lower to a call of the library's function ``name`` with NumPy ``attributes``."""
    # Devices of one process share its cores.
    devices = np.int64(jax.local_device_count("cpu"))
    return jax.ffi.ffi_lowering(name)(context, *operands, devices=devices, **attributes)
