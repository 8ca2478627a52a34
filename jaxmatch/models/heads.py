"""Extra heads on the pooled features, declared by the algorithm that needs them."""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from jaxmatch.types import Array


class Linear(nn.Module):
    """One dense layer, such as ReMixMatch's rotation head."""

    features: int
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Map pooled features ``x`` [b d] to [b features]."""
        return nn.Dense(
            self.features,
            kernel_init=nn.initializers.variance_scaling(1.0, "fan_avg", "normal"),
            param_dtype=self.param_dtype,
            name="dense",
        )(x)
