"""Vision Transformers: an image is a row of patches, and every token attends to all others.

Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021, https://arxiv.org/abs/2010.11929,
with the options of USB's networks, of DINOv2 (LayerScale, registers) and of CLIP (a norm before
the blocks, quick GELU). The initial values are those of timm 1.0.31
(https://github.com/huggingface/pytorch-image-models). USB's networks have none of their own, since
USB starts from pretrained weights: there position embedding and class token are 0, and all layers
have PyTorch's default.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import DTypeLike

from jaxmatch.errors import InputError
from jaxmatch.models.lora import LoRADense, lora_scale
from jaxmatch.models.model import Model
from jaxmatch.models.transformer import (
    Attention,
    Block,
    LayerScale,
    Patches,
    Perceptron,
    drop_rates,
)
from jaxmatch.settings import Count, NonNegative, Positive, Range, Share, Whole
from jaxmatch.types import Array, Outputs

# timm cuts this normal distribution at +-2, a hundred deviations, so nothing is cut.
NORMAL = nn.initializers.normal(0.02)
TINY_NORMAL = nn.initializers.normal(1e-6)
BRANCHES = 2  # of a block: attention, then perceptron

TINY = {"width": 192, "heads": 3}
SMALL = {"width": 384, "heads": 6}
BASE = {"width": 768, "heads": 12}
DINOV2 = {"patch": 14, "layer_scale": 1e-5}
REGISTERS = {**DINOV2, "registers": 4, "class_position": False}
CLIP = {**BASE, "pre_norm": True, "norm_eps": 1e-5}
# The settings of networks by timm's names, where they are not the defaults. The drop paths are
# those of USB's networks; timm's have none.
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "vit_tiny_patch2_32": {"patch": 2, **TINY, "drop_path": 0.1},
    "vit_small_patch2_32": {"patch": 2, **SMALL, "drop_path": 0.2},
    "vit_small_patch16_224": {"patch": 16, **SMALL, "drop_path": 0.2},
    "vit_base_patch16_96": {"patch": 16, **BASE, "drop_path": 0.2},
    "vit_base_patch16_224": {"patch": 16, **BASE, "drop_path": 0.2},
    "vit_small_patch14_dinov2": {**SMALL, **DINOV2},
    "vit_base_patch14_dinov2": {**BASE, **DINOV2},
    "vit_small_patch14_reg4_dinov2": {**SMALL, **REGISTERS},
    "vit_base_patch14_reg4_dinov2": {**BASE, **REGISTERS},
    "vit_base_patch32_clip_224": {"patch": 32, **CLIP},
    "vit_base_patch16_clip_224": {"patch": 16, **CLIP},
    "vit_base_patch32_clip_quickgelu_224": {"patch": 32, **CLIP, "activation": "quick_gelu"},
    "vit_base_patch16_clip_quickgelu_224": {"patch": 16, **CLIP, "activation": "quick_gelu"},
}


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
        lora_rank: rank r of LoRA on the two layers of each attention (queries, keys and values
            together, and the projection); 0 for none. ``optim.train="lora"`` trains it.
        lora_alpha: the product of LoRA's factors is multiplied by alpha / r.
        lora_rank_stabilized: by alpha / sqrt(r) instead (rsLoRA).
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
    lora_rank: Whole = 0
    lora_alpha: Positive = 8.0
    lora_rank_stabilized: bool = False

    convolves = False  # products of matrices alone

    def __post_init__(self) -> None:
        """Refuse heads that do not divide the width, and a perceptron without hidden channels."""
        if self.width % self.heads:
            raise InputError(
                f"model.heads={self.heads} does not divide model.width={self.width}; change one of "
                "them."
            )
        if self._hidden < 1:
            raise InputError(
                f"model.mlp_ratio={self.mlp_ratio:g} of model.width={self.width} leaves no hidden "
                "channel; give a larger ratio."
            )
        super().__post_init__()

    @property
    def layers(self) -> tuple[tuple[str, ...], ...]:
        """Paths of the modules from input to output, a block each (for layer-wise rates).

        As in timm, a last norm before the pooling belongs to the last block, and one after it to
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
        return any(self._rates) and not self.frozen_trunk

    @nn.nowrap
    def draw(self, key: Array, count: int) -> Array:
        """The randomness of a train pass over ``count`` images: who keeps a branch.

        Each entry is drawn by itself, with the probability 1 - the block's rate.

        Returns:
            [count depth 2] bool; of each block attention first, then perceptron.
        """
        kept = 1 - np.asarray(self._rates, np.float32)[:, None]
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
    def _hidden(self) -> int:
        """The hidden width of a perceptron."""
        return int(self.width * self.mlp_ratio)

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
        adapted = dense
        if self.lora_rank:
            factor = lora_scale(self.lora_rank, self.lora_alpha, self.lora_rank_stabilized)
            start: Any = {"kernel_init": NORMAL, **options}
            adapted = partial(LoRADense, rank=self.lora_rank, scale=factor, **start)
        scale = partial(LayerScale, self.layer_scale, **options) if self.layer_scale else None
        return {
            "attention": partial(Attention, self.heads, self.qkv_bias, adapted),
            "perceptron": partial(Perceptron, self._hidden, self.activation, dense),
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
                "data.image_size (of multi-crop, by views.small.size or views.crops)."
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
        joined = jnp.broadcast_to(joined, (x.shape[0], *joined.shape[1:]))
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
