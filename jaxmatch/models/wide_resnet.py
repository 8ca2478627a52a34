"""Wide residual networks with pre-activation and leaky ReLU, as semi-supervised learning uses them.

Zagoruyko & Komodakis, "Wide Residual Networks", BMVC 2016; the layout is that of MixMatch and
FixMatch (Berthelot et al. 2019, Sohn et al. 2020).
"""

from collections.abc import Callable
from functools import partial
from typing import Annotated, Literal

import jax.numpy as jnp
from flax import linen as nn

from jaxmatch.errors import InputError
from jaxmatch.models.batch_norm import BatchNorm
from jaxmatch.models.convolution import Conv
from jaxmatch.models.model import Model, block_paths
from jaxmatch.settings import Count, Positive, Range, Share
from jaxmatch.types import Array, Outputs

HE_FAN_OUT = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
GLOROT_NORMAL = nn.initializers.variance_scaling(1.0, "fan_avg", "normal")
STEM_CHANNELS = 16
SLOPE = 0.1  # of the leaky ReLU after every BatchNorm


class Block(nn.Module):
    """Two 3x3 convolutions with a shortcut; see :class:`WideResNet` for the options."""

    features: int
    stride: int
    activate_before_residual: bool
    legacy_transition: bool
    conv: Callable[..., Conv]
    norm: Callable[..., BatchNorm]

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Map ``x`` [b h w c] to [b h/stride w/stride features]."""
        changes = x.shape[-1] != self.features or self.stride != 1
        activated = self.norm(name="norm1")(x, train)
        transition = changes and not self.activate_before_residual
        # The legacy networks take the activated input where channels or size change alone.
        activates = self.activate_before_residual and (changes or not self.legacy_transition)
        residual = activated if activates else x
        inner = x if transition and self.legacy_transition else activated
        inner = self.conv(self.features, 3, self.stride, name="conv1")(inner, centered=train)
        inner = self.norm(name="norm2")(inner, train)
        # The sum goes to norms, and over shortcuts to sums that go to norms, which remove its mean.
        # With a legacy transition a padded convolution reads it, and the bias shows at the borders.
        centered = train and not self.legacy_transition
        inner = self.conv(self.features, 3, 1, name="conv2")(inner, centered)
        if changes:
            residual = self.conv(self.features, 1, self.stride, name="shortcut")(residual, centered)
        return residual + inner


class Group(nn.Module):
    """Blocks of one resolution; the first one changes width and stride."""

    blocks: int
    features: int
    stride: int
    activate_before_residual: bool
    block: Callable[..., Block]

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Map ``x`` [b h w c] to [b h/stride w/stride features]."""
        for index in range(self.blocks):
            x = self.block(
                self.features,
                stride=self.stride if index == 0 else 1,
                activate_before_residual=self.activate_before_residual and index == 0,
                name=f"block{index + 1}",
            )(x, train)
        return x


class WideResNet(Model):
    """WRN-``depth``-``width``: stem of 16 channels, ``groups`` groups of (depth - 4) / 6 blocks.

    Attributes:
        depth: number of layers with three groups, 6n + 4; 28 gives four blocks in each group (the
            "37-2" of STL-10 is depth 28 with four groups).
        width: group g has int(16 * width) * 2^g channels.
        groups: number of groups, each halving the resolution after the first.
        first_stride: stride of the first group; 1 on CIFAR, 2 on STL-10 and MNIST-5k.
        legacy_transition: in the first block of every group but the first, conv1 reads the raw
            input and not norm1's result, as in TorchSSL's and USB's networks (their weights need
            it).
        padding: "same" pads strided convolutions as TensorFlow does, (0, 1) on even sizes;
            "torch" pads symmetrically.
        conv_bias: which convolutions have a bias: "all", "stem" or "none".
        bn_decay: running averages of BatchNorm keep this share at each update.
        bn_eps: epsilon of BatchNorm in the blocks.
        bn_eps_final: epsilon of the last BatchNorm.
    """

    depth: Annotated[int, Range(least=1, most=1000)] = 28
    width: Annotated[float, Range(least=1 / 16, most=1024)] = 2.0
    groups: Count = 3
    first_stride: Count = 1
    legacy_transition: bool = False
    padding: Literal["same", "torch"] = "same"
    conv_bias: Literal["all", "stem", "none"] = "all"
    bn_decay: Share = 0.999
    bn_eps: Positive = 1e-3
    bn_eps_final: Positive = 1e-3
    bn_groups: Count = 1

    def __post_init__(self) -> None:
        """Refuse a depth that is not 6n + 4."""
        if self.depth < 4 or (self.depth - 4) % 6:
            raise InputError(f"model.depth={self.depth} is not 6n + 4; give 4, 10, 16, 22, 28, ...")
        super().__post_init__()

    @property
    def layers(self) -> tuple[tuple[str, ...], ...]:
        """Paths of the modules from input to output, a block each (for layer-wise rates)."""
        blocks = ((self.depth - 4) // 6,) * self.groups
        return (("stem",), *block_paths(blocks), ("norm", "classifier"))

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Outputs:
        """Map images ``x`` [b h w c] to logits [b C], features [b d] and the heads' outputs."""
        trains = train and not self.frozen_trunk
        conv = partial(
            Conv,
            padding=self.padding,
            kernel_init=HE_FAN_OUT,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
        )
        norm = partial(
            BatchNorm,
            decay=self.bn_decay,
            slope=SLOPE,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
        )
        block = partial(
            nn.remat(Block, static_argnums=(2,)) if self.remat else Block,
            legacy_transition=self.legacy_transition,
            conv=partial(conv, use_bias=self.conv_bias == "all"),
            norm=partial(norm, epsilon=self.bn_eps),
        )
        stem = conv(STEM_CHANNELS, 3, 1, use_bias=self.conv_bias != "none", name="stem")
        x = stem(x, centered=trains and not self.legacy_transition)
        for group in range(self.groups):
            x = Group(
                blocks=(self.depth - 4) // 6,
                features=int(STEM_CHANNELS * self.width) * 2**group,
                stride=self.first_stride if group == 0 else 2,
                activate_before_residual=group == 0,
                block=block,
                name=f"group{group + 1}",
            )(x, trains)
        x = norm(epsilon=self.bn_eps_final, name="norm")(x, trains)
        features = jnp.mean(x.astype(jnp.promote_types(x.dtype, jnp.float32)), (1, 2))
        return self.read_out(features, train, GLOROT_NORMAL)
