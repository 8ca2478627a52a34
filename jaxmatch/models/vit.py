"""Vision Transformers: an image is a row of patches, and every token attends to all others.

Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021, https://arxiv.org/abs/2010.11929;
with the options of USB's networks, DINOv2 (LayerScale, registers) and CLIP (a norm before the
blocks, quick GELU). Names and values of the settings follow timm
(https://github.com/huggingface/pytorch-image-models), whose weights fit.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.linen.dtypes import promote_dtype
from jax.typing import DTypeLike

from jaxmatch.errors import InputError
from jaxmatch.models.heads import UNIFORM_FAN_IN
from jaxmatch.models.model import Model
from jaxmatch.settings import Count, NonNegative, Positive, Range, Share, Whole
from jaxmatch.types import Array, Outputs

# timm cuts this normal distribution at +-2, a hundred deviations, so nothing is cut.
NORMAL = nn.initializers.normal(0.02)
TINY_NORMAL = nn.initializers.normal(1e-6)
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": partial(nn.gelu, approximate=False),
    "quick_gelu": lambda x: x * nn.sigmoid(1.702 * x),
}
BRANCHES = 2  # of a block: attention, then the perceptron


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
    step = kind(rate) / kind(depth - 1)
    ends = (
        step * kind(block) if block < depth // 2 else kind(rate) - step * kind(depth - 1 - block)
        for block in range(depth)
    )
    return tuple(map(float, ends))


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


class ViT(Model):
    """A Vision Transformer; the defaults are ViT-S/16.

    Attributes:
        patch: side of a patch in pixels; it divides the sides of the images.
        width: channels of a token.
        depth: number of blocks.
        heads: attention heads; they divide the width.
        mlp_ratio: hidden width of a block's perceptron as a multiple of the width.
        pool: features are the class "token", or the "average" of the patches' tokens.
        fc_norm: of the "average": the last norm follows the average; otherwise it precedes it, as
            it precedes the choice of the class token.
        registers: number of further tokens that nothing reads out (Darcet et al., "Vision
            Transformers Need Registers", ICLR 2024).
        class_position: class token and registers have a position embedding, too.
        layer_scale: initial factor of each channel of a branch; 0 for no such factors.
        pre_norm: put a norm before the first block, and leave out the bias of the patches'
            embedding (CLIP).
        norm_eps: epsilon of the norms.
        activation: "gelu", exact, or "quick_gelu", x sigmoid(1.702 x), of OpenAI's CLIP.
        drop_path: probability that an example skips a branch of the last block in training; it
            grows linearly from 0 at the first block.
        qkv_bias: whether queries, keys and values have a bias.
    """

    patch: Count = 16
    width: Count = 384
    depth: Annotated[int, Range(least=1, most=1000)] = 12
    heads: Count = 6
    mlp_ratio: Positive = 4.0
    pool: Literal["token", "average"] = "token"
    fc_norm: bool = True
    registers: Whole = 0
    class_position: bool = True
    layer_scale: NonNegative = 0.0
    pre_norm: bool = False
    norm_eps: Positive = 1e-6
    activation: Literal["gelu", "quick_gelu"] = "gelu"
    drop_path: Share = 0.0
    qkv_bias: bool = True

    def __post_init__(self) -> None:
        """Refuse heads that do not divide the width."""
        if self.width % self.heads:
            raise InputError(
                f"model.heads={self.heads} does not divide model.width={self.width}; change one of "
                "them."
            )
        super().__post_init__()

    @property
    def layers(self) -> tuple[tuple[str, ...], ...]:
        """Paths of the modules from input to output, a block each (for layer-wise rates).

        As in timm, the last norm before the pooling belongs to the last block, and one after it to
        the classifier.
        """
        stem = ["cls_token", "pos_embed", "patch_embed"]
        stem += ["reg_token"] if self.registers else []
        stem += ["norm_pre"] if self.pre_norm else []
        blocks = [[f"block{number}"] for number in range(1, self.depth + 1)]
        blocks[-1] += [] if self._pools_first else ["norm"]
        last = ["fc_norm", "classifier"] if self._pools_first else ["classifier"]
        return tuple(map(tuple, (stem, *blocks, last)))

    @property
    def random(self) -> bool:
        """Whether a pass in train mode takes draws."""
        return any(self._rates)

    @nn.nowrap
    def draw(self, key: Array, count: int) -> Array:
        """The randomness of a train pass over ``count`` images: who keeps a branch.

        Each entry is drawn by itself, with the probability 1 - the block's rate.

        Returns:
            [count depth 2] bool; of each block attention first, then perceptron.
        """
        kept = 1 - np.asarray(self._rates)[:, None]
        return jax.random.bernoulli(key, kept, (count, self.depth, BRANCHES))

    @nn.compact
    def __call__(self, x: Array, train: bool, draws: Array | None = None) -> Outputs:
        """Map images ``x`` [b h w c] to logits [b C], features [b d] and the heads' outputs.

        Args:
            x: the images.
            train: whether branches are dropped and the heads' BatchNorm normalises by the batch.
            draws: as of :meth:`draw`; in train mode a network that drops branches needs them.

        Raises:
            InputError: if the patches do not divide the images, or the position embedding is that
                of images of another size that are not square.
        """
        if train and self.random and draws is None and not self.is_initializing():
            raise InputError(
                f"model.drop_path={self.drop_path:g} needs draws in train mode; train by "
                "make_train_step with random=True, or set model.drop_path=0."
            )
        norm = self._norm_maker(self.dtype)
        x = self._embed(x)
        if self.pre_norm:
            x = norm(name="norm_pre")(x)
        block = nn.remat(Block) if self.remat else Block
        for number, rate in enumerate(self._rates):
            keep = draws[:, number] if train and draws is not None and rate else None
            x = block(rate=rate, name=f"block{number + 1}", **self._parts(norm))(x, keep)
        return self.read_out(self._pool(x), train, NORMAL)

    @property
    def _pools_first(self) -> bool:
        """Whether the last norm follows the pooling."""
        return self.pool == "average" and self.fc_norm

    @property
    def _rates(self) -> tuple[float, ...]:
        """The drop path's rate of each block."""
        return drop_rates(self.drop_path, self.depth, jnp.promote_types(self.param_dtype, "f4"))

    @nn.nowrap
    def _norm_maker(self, dtype: DTypeLike | None) -> Callable[..., nn.LayerNorm]:
        # Two passes over the values, since E[x^2] - E[x]^2 cancels.
        options: Any = {"dtype": dtype, "param_dtype": self.param_dtype}
        return partial(nn.LayerNorm, epsilon=self.norm_eps, use_fast_variance=False, **options)

    @nn.nowrap
    def _parts(self, norm: Callable[..., nn.LayerNorm]) -> dict[str, Any]:
        """Makers of the parts of a block."""
        options: Any = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        dense = partial(nn.Dense, kernel_init=NORMAL, **options)
        scale = partial(LayerScale, self.layer_scale, **options) if self.layer_scale else None
        return {
            "attention": partial(Attention, self.heads, self.qkv_bias, dense),
            "perceptron": partial(
                Perceptron, int(self.width * self.mlp_ratio), self.activation, dense
            ),
            "norm": norm,
            "scale": scale,
        }

    @nn.nowrap
    def _embed(self, images: Array) -> Array:
        """Images [b h w c] as tokens [b n d] with their positions: class, registers, patches."""
        side = self.patch
        if any(length % side for length in images.shape[1:3]):
            common = math.gcd(*images.shape[1:3])
            fitting = [str(some) for some in range(1, common + 1) if common % some == 0]
            raise InputError(
                f"model.patch={side} does not divide images of {images.shape[1]} x "
                f"{images.shape[2]} pixels; give {' or '.join(fitting[-4:])}, or other images by "
                "data.image_size."
            )
        grid = (images.shape[1] // side, images.shape[2] // side)
        patches = Patches(
            side, self.width, not self.pre_norm, self.dtype, self.param_dtype, name="patch_embed"
        )
        x = patches(images)
        shape = (1, 1, self.width)
        prefix = [self.param("cls_token", TINY_NORMAL, shape, self.param_dtype)]
        if self.registers:
            shape = (1, self.registers, self.width)
            prefix.append(self.param("reg_token", TINY_NORMAL, shape, self.param_dtype))
        joined = jnp.concatenate(prefix, 1).astype(x.dtype)
        joined = jnp.broadcast_to(joined, (len(x), *joined.shape[1:]))
        positions = self._positions(grid, joined.shape[1] if self.class_position else 0)
        positions = positions.astype(x.dtype)
        if self.class_position:
            return jnp.concatenate([joined, x], 1) + positions
        return jnp.concatenate([joined, x + positions], 1)

    @nn.nowrap
    def _positions(self, grid: tuple[int, int], prefix: int) -> Array:
        """The position embedding [1 prefix+n d] of a grid of patches.

        Images of another size than those of the initialisation have a resized one.
        """
        rows = prefix + math.prod(grid)
        if not self.has_variable("params", "pos_embed"):
            shape = (1, rows, self.width)
            return self.param("pos_embed", NORMAL, shape, self.param_dtype)
        stored = self.get_variable("params", "pos_embed")
        if stored.shape[1] == rows:
            return stored
        old = math.isqrt(stored.shape[1] - prefix)
        if old * old + prefix != stored.shape[1]:
            raise InputError(
                f"the network has {stored.shape[1] - prefix} positions for patches, which are no "
                f"square; it does not take images of {grid[0]} x {grid[1]} patches."
            )
        square = stored[:, prefix:].reshape(1, old, old, self.width)
        # With antialiasing this is timm's rule, to rounding.
        resized = jax.image.resize(square, (1, *grid, self.width), "cubic", antialias=True)
        return jnp.concatenate([stored[:, :prefix], resized.reshape(1, -1, self.width)], 1)

    @nn.nowrap
    def _pool(self, x: Array) -> Array:
        """Features [b d] of tokens [b n d], at least float32."""
        norm = self._norm_maker(None)
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        if self.pool == "token":
            return norm(name="norm")(x[:, 0])
        first = 1 + self.registers
        if self.fc_norm:
            return norm(name="fc_norm")(x[:, first:].mean(1))
        return norm(name="norm")(x)[:, first:].mean(1)


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
