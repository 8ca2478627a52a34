"""The layers of a transformer for images: attention, perceptron, blocks, and patches as tokens.

Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021, https://arxiv.org/abs/2010.11929.
"""

import math
from collections.abc import Callable
from fractions import Fraction
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.linen.dtypes import promote_dtype
from jax.typing import DTypeLike

from jaxmatch.models.heads import UNIFORM_FAN_IN
from jaxmatch.types import Array

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": partial(nn.gelu, approximate=False),
    "quick_gelu": lambda x: x * nn.sigmoid(1.702 * x),
}


def attention(query: Array, key: Array, value: Array) -> Array:
    """softmax(q k / sqrt(d)) v for each head: three [b n h d] -> [b n h d].

    Scores and softmax are at least float32.
    """
    if query.dtype != jnp.float64:
        return jax.nn.dot_product_attention(query, key, value)
    # That function computes the softmax in float32, whatever the arguments are.
    scores = jnp.einsum("bqhd,bkhd->bhqk", query, key) / math.sqrt(query.shape[-1])
    return jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores), value)


def drop_path(branch: Array, keep: Array, rate: float) -> Array:
    """Stochastic depth: the branch of a dropped example is 0, the others are divided by 1 - rate.

    Huang et al., "Deep Networks with Stochastic Depth", ECCV 2016.

    Args:
        branch: [b ...], added to its input afterwards.
        keep: [b], whether each example keeps the branch; of probability 1 - rate.
        rate: in [0, 1]; at 0 nothing is dropped, whatever ``keep`` is, at 1 everything.
    """
    if rate == 0:
        return branch
    scale = 0.0 if rate == 1 else 1 / (1 - rate)
    factors = jnp.where(keep, scale, 0.0).astype(branch.dtype)
    return branch * factors.reshape(-1, *(1,) * (branch.ndim - 1))


def drop_rates(rate: float, depth: int, dtype: DTypeLike = jnp.float32) -> tuple[float, ...]:
    """The rate of each block, which grows linearly from 0 to ``rate``; of one block it is 0.

    They are computed in ``dtype``, as ``torch.linspace`` does: the second half from the end.
    """
    if depth == 1:
        return (0.0,)
    kind = np.dtype(dtype).type
    end, step = kind(rate), kind(rate) / kind(depth - 1)

    def from_end(steps: int) -> float:
        # PyTorch multiplies and subtracts in one operation, which rounds once.
        return float(kind(float(Fraction(float(end)) - Fraction(float(step)) * steps)))

    half = depth // 2
    first = (float(step * kind(block)) for block in range(half))
    return (*first, *(from_end(depth - 1 - block) for block in range(half, depth)))


class Attention(nn.Module):
    """Self-attention: queries, keys and values from one layer, and a projection after it.

    Attributes:
        heads: number of heads.
        bias: whether queries, keys and values have a bias.
        dense: makes the layers.
    """

    heads: int
    bias: bool
    dense: Callable[..., nn.Dense]

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Map tokens ``x`` [b n d] to [b n d]."""
        width = x.shape[-1]
        joined = self.dense(3 * width, use_bias=self.bias, name="qkv")(x)
        split = joined.reshape(*x.shape[:2], 3, self.heads, width // self.heads)
        mixed = attention(*(split[:, :, part] for part in range(3)))
        return self.dense(width, name="proj")(mixed.reshape(x.shape))


class Perceptron(nn.Module):
    """Two dense layers with an activation between them.

    Attributes:
        hidden: width between them.
        activation: a key of :data:`ACTIVATIONS`.
        dense: makes the layers.
    """

    hidden: int
    activation: str
    dense: Callable[..., nn.Dense]

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Map tokens ``x`` [b n d] to [b n d]."""
        hidden = ACTIVATIONS[self.activation](self.dense(self.hidden, name="fc1")(x))
        return self.dense(x.shape[-1], name="fc2")(hidden)


class LayerScale(nn.Module):
    """Multiply each channel by a learned factor gamma.

    Touvron et al., "Going Deeper with Image Transformers", ICCV 2021.
    """

    start: float
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Map tokens ``x`` [b n d] to [b n d]."""
        init = nn.initializers.constant(self.start)
        gamma = self.param("gamma", init, x.shape[-1:], self.param_dtype)
        return x * gamma.astype(self.dtype or jnp.promote_types(x.dtype, gamma.dtype))


class Block(nn.Module):
    """A transformer block: x + attention(norm(x)), then x + perceptron(norm(x)).

    Attributes:
        rate: the drop path's.
        attention: makes the attention.
        perceptron: makes the perceptron.
        norm: makes the norms.
        scale: makes the layer scales; None for none.
    """

    rate: float
    attention: Callable[..., Attention]
    perceptron: Callable[..., Perceptron]
    norm: Callable[..., nn.LayerNorm]
    scale: Callable[..., LayerScale] | None

    @nn.compact
    def __call__(self, x: Array, keep: Array | None = None) -> Array:
        """Map tokens ``x`` [b n d] to [b n d].

        Args:
            x: the tokens.
            keep: [b 2] whether each example keeps the two branches; None drops nothing.
        """
        branches = (self.attention(name="attention"), self.perceptron(name="mlp"))
        for number, branch in enumerate(branches, start=1):
            y = branch(self.norm(name=f"norm{number}")(x))
            if self.scale is not None:
                y = self.scale(name=f"layer_scale{number}")(y)
            x = x + (y if keep is None else drop_path(y, keep[:, number - 1], self.rate))
        return x


class Patches(nn.Module):
    """A linear map of each patch: a convolution whose stride is its size, as a product."""

    side: int
    features: int
    use_bias: bool
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Map images ``x`` [b h w c] to tokens [b n d], row by row of the grid."""
        batch, height, width, channels = x.shape
        side, fan_in = self.side, self.side**2 * channels
        shape = (side, side, channels, self.features)
        kernel = self.param("kernel", UNIFORM_FAN_IN, shape, self.param_dtype)
        bias = None
        if self.use_bias:
            limit = fan_in**-0.5  # PyTorch's default for a convolution
            init = partial(jax.random.uniform, minval=-limit, maxval=limit)
            bias = self.param("bias", init, (self.features,), self.param_dtype)
        x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)
        x = x.reshape(batch, height // side, side, width // side, side, channels)
        x = x.swapaxes(2, 3).reshape(batch, -1, fan_in)
        y = x @ kernel.reshape(fan_in, self.features)
        return y if bias is None else y + bias
