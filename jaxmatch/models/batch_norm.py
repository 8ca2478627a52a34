"""Batch normalisation over the global batch, with the running statistics that PyTorch keeps.

Ioffe & Szegedy, "Batch Normalization", ICML 2015. Settings choose the modes that training over
several devices knows; the result is the same on any number of devices:

- synchronized: ``model.bn_groups=1``.
- local, one batch for each device: ``model.bn_groups=G`` stands for G devices.
- shuffled: local with ``ema.statistics="own"`` and ``algorithm.shuffle`` (MoCo v2, PCL, SimMatch,
  SimMatchV2, CoMatch). The method permutes the teacher's images; the teacher runs in train mode
  and keeps its own statistics.
- EMAN: ``ema.statistics="averaged"``; the teacher runs in eval mode.
- copied buffers: ``ema.statistics="copied"``; the teacher runs in eval mode with the student's
  running statistics.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from jaxmatch.models.channels import moments, scale_and_activate
from jaxmatch.types import Array


class BatchNorm(nn.Module):
    """Normalise over all axes but the last; under ``jax.jit`` the batch is the global one.

    :func:`jaxmatch.models.network.make_network` maps over the groups of a batch.

    Attributes:
        decay: running <- decay * running + (1 - decay) * batch; PyTorch's momentum is 1 - decay.
        epsilon: added to the variance.
        unbiased: store the running variance times n / (n - 1) as PyTorch and TensorFlow's fused
            kernel do (n = values per channel); the batch itself is normalised by the biased one.
        scale_init: initial scale; zeros let a residual block start as the identity.
        use_bias: whether to add a learned bias after scaling.
        slope: of a leaky ReLU that follows; 0 is ReLU, 1 is no activation.
        dtype: dtype of the result; None keeps the input's. Statistics are at least float32.
        param_dtype: dtype of scale, bias and running statistics.
    """

    decay: float = 0.999
    epsilon: float = 1e-3
    unbiased: bool = True
    scale_init: nn.initializers.Initializer = nn.initializers.ones
    use_bias: bool = True
    slope: float = 1.0
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Normalise ``x`` [b ... c] by the running statistics.

        With ``train``, normalise by the batch's statistics and let them enter the running ones.
        """
        channels = x.shape[-1]
        mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,), self.param_dtype)
        var = self.variable("batch_stats", "var", jnp.ones, (channels,), self.param_dtype)
        scale = self.param("scale", self.scale_init, (channels,), self.param_dtype)
        # Sums around the running mean need one pass, so devices exchange one message. Once that is
        # near the batch's mean, they do not cancel as in E[x^2] - E[x]^2.
        origin = jax.lax.stop_gradient(mean.value)
        if train:
            count = x.size // channels
            offset, squares = (total / count for total in moments(x, origin))
            batch_var = jnp.maximum(squares - jnp.square(offset), 0.0)
            if not self.is_initializing():
                correction = count / max(count - 1, 1) if self.unbiased else 1.0
                mean.value = self._running(origin, origin + offset)
                var.value = self._running(var.value, batch_var * correction)
        else:
            offset, batch_var = jnp.zeros_like(origin), var.value
        factor = scale * jax.lax.rsqrt(batch_var + self.epsilon)
        shift = -offset * factor
        if self.use_bias:
            shift += self.param("bias", nn.initializers.zeros, (channels,), self.param_dtype)
        return scale_and_activate(x, origin, factor, shift, self.slope, self.dtype)

    def _running(self, old: Array, new: Array) -> Array:
        return self.decay * old + (1 - self.decay) * jax.lax.stop_gradient(new).astype(old.dtype)
