"""Two-dimensional convolutions, with what XLA is slow at on a CPU put in other words."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from flax.linen.dtypes import promote_dtype
from jax import default_backend, lax

from jaxmatch.models.channels import spread
from jaxmatch.types import Array


class Conv(nn.Module):
    """``flax.linen.Conv`` with square kernels: the same parameters, values and derivatives.

    Attributes:
        features: channels of the result.
        side: height and width of the kernel.
        stride: in both directions.
        padding: "same", as TensorFlow pads, or "torch", half a kernel on every side.
        use_bias: whether to add a learned bias.
        kernel_init: initial kernel.
        dtype: compute dtype; None follows inputs and parameters.
        param_dtype: dtype of the parameters.
    """

    features: int
    side: int
    stride: int = 1
    padding: str = "torch"
    use_bias: bool = False
    kernel_init: Any = nn.initializers.lecun_normal()
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Map ``x`` [b h w c] to [b h/stride w/stride features]."""
        shape = (self.side, self.side, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, self.param_dtype)
        bias = None
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,), self.param_dtype)
        x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)
        half = self.side // 2
        around = "SAME" if self.padding == "same" else ((half, half), (half, half))
        y = convolve(x, kernel, self.stride, around)
        return y if bias is None else y + spread(bias, y.shape)


def convolve(images: Array, kernel: Array, stride: int, padding: Any) -> Array:
    """``images`` [b h w c] with ``kernel`` [k k c d], padded as ``lax.conv_general_dilated`` does.

    On a CPU 1x1 kernels, which are never padded, are matrix products, whose derivatives are up to
    four times as fast there.
    """
    if kernel.shape[:2] == (1, 1) and default_backend() == "cpu":
        return pointwise(images, kernel[0, 0], (stride, stride))
    return lax.conv_general_dilated(
        images, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def pointwise(images: Array, kernel: Array, strides: Sequence[int]) -> Array:
    """Every ``strides``-th pixel of ``images`` [b h w c] times ``kernel`` [c d]."""
    seen = images[:, :: strides[0], :: strides[1]]
    # As one matrix: with axes of its own XLA turns the derivative back into a convolution.
    product = jnp.matmul(seen.reshape(-1, seen.shape[-1]), kernel)
    return product.reshape(*seen.shape[:-1], -1)
