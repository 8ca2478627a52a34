"""A layer that convolves images."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen.dtypes import promote_dtype
from jax.typing import DTypeLike

from jaxmatch.models.contraction import convolve
from jaxmatch.types import Array


class Conv(nn.Module):
    """``flax.linen.Conv`` with square kernels: the same parameters, values and derivatives.

    Attributes:
        features: channels of the result.
        side: height and width of the kernel.
        stride: in both directions.
        padding: "same" pads as TensorFlow does, "torch" by half a kernel on every side.
        use_bias: whether to add a learned bias.
        kernel_init: initial kernel.
        dtype: compute dtype; None follows inputs and parameters. Wider parameters are rounded to
            it, but their gradients are not.
        param_dtype: dtype of the parameters.
    """

    features: int
    side: int
    stride: int = 1
    padding: str = "torch"
    use_bias: bool = False
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, centered: bool = False) -> Array:
        """Map ``x`` [b h w c] to [b h/stride w/stride features].

        Args:
            x: images.
            centered: whether all uses of the result subtract each channel's mean over the batch.
                That removes the bias, so its gradient is exactly 0 and is not computed: it would
                take a pass over all pixels to sum rounding errors.
        """
        shape = (self.side, self.side, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, self.param_dtype)
        bias = None
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,), self.param_dtype)
            bias = jax.lax.stop_gradient(bias) if centered else bias
        (x,) = promote_dtype(x, dtype=self.dtype)
        if self.dtype is None or jnp.promote_types(x.dtype, kernel.dtype) != kernel.dtype:
            x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)
        half = self.side // 2
        around = "SAME" if self.padding == "same" else ((half, half), (half, half))
        return convolve(x, kernel, self.stride, around, bias)
