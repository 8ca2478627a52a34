"""Residual networks of version 1.5, whose bottleneck blocks stride in their 3x3 convolution.

He et al., "Deep Residual Learning for Image Recognition", CVPR 2016,
https://arxiv.org/abs/1512.03385; sizes, padding and initial values are torchvision's, whose weights
:mod:`jaxmatch.weights.torch_names` reads.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import jax.numpy as jnp
from flax import linen as nn

from jaxmatch.models.batch_norm import BatchNorm
from jaxmatch.models.convolution import Conv
from jaxmatch.models.heads import UNIFORM_FAN_IN
from jaxmatch.models.model import Model, block_paths
from jaxmatch.models.primitives import symbolic
from jaxmatch.models.wide_resnet import HE_FAN_OUT
from jaxmatch.settings import Count, Positive, Share
from jaxmatch.types import Array, Outputs

EXPANSIONS = {"basic": 1, "bottleneck": 4}
BORDER = ((1, 1), (1, 1))


def _max_pool(x: Array) -> Array:
    """The largest of 3x3 values, at a stride of 2 and with a border of one pixel."""
    padding: Any = BORDER  # Flax's annotation only admits names
    if symbolic(x):  # jax2onnx forgets a pooling's own padding
        x = jnp.pad(x, ((0, 0), *BORDER, (0, 0)), constant_values=-jnp.inf)
        padding = "VALID"
    return nn.max_pool(x, window_shape=(3, 3), strides=(2, 2), padding=padding)


class ResidualBlock(nn.Module):
    """Convolutions beside a shortcut: two 3x3, or ("bottleneck") a 3x3 between two 1x1.

    Attributes:
        features: channels inside; the result has ``EXPANSIONS[kind]`` times as many.
        stride: of the first 3x3 convolution and of the shortcut.
        kind: "basic" or "bottleneck".
        conv, norm: make the layers.
        last_norm: makes the norm before the sum.
    """

    features: int
    stride: int
    kind: str
    conv: Callable[..., Conv]
    norm: Callable[..., BatchNorm]
    last_norm: Callable[..., BatchNorm]

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Map ``x`` [b h w c] to [b h/stride w/stride features * expansion]."""
        width = self.features * EXPANSIONS[self.kind]
        layers = (
            ((self.features, 3, self.stride), (width, 3, 1))
            if self.kind == "basic"
            else ((self.features, 1, 1), (self.features, 3, self.stride), (width, 1, 1))
        )
        y = x
        for number, layer in enumerate(layers, start=1):
            y = self.conv(*layer, name=f"conv{number}")(y)
            if number < len(layers):
                y = self.norm(slope=0.0, name=f"norm{number}")(y, train)
        y = self.last_norm(name=f"norm{len(layers)}")(y, train)
        if x.shape[-1] != width or self.stride != 1:
            x = self.conv(width, 1, self.stride, name="shortcut")(x)
            x = self.norm(name="shortcut_norm")(x, train)
        return nn.relu(x + y)


class ResidualGroup(nn.Module):
    """Blocks of one resolution; the first one changes width and stride."""

    blocks: int
    features: int
    stride: int
    block: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Map ``x`` [b h w c] to [b h/stride w/stride features * expansion]."""
        for index in range(self.blocks):
            stride = self.stride if index == 0 else 1
            x = self.block(self.features, stride, name=f"block{index + 1}")(x, train)
        return x


class ResNet(Model):
    """A residual network with ``len(blocks)`` groups; the defaults are ResNet-50.

    Attributes:
        blocks: blocks of each group; every group but the first halves the resolution.
        block: "bottleneck" or "basic".
        width: channels of the stem, and inside the blocks of the first group; each further group
            doubles them. Bottleneck blocks have four times as many in their results.
        stem: "imagenet": 7x7 convolution of stride 2 and 3x3 max-pooling of stride 2; "cifar": 3x3
            convolution of stride 1, no pooling.
        zero_gamma: start the scale of each block's last norm at zero, so that blocks start as the
            identity (Goyal et al. 2017).
        feature_norm: "layer" puts a layer norm between the pooled features and all that reads
            them (SimMatchV2); "" puts nothing.
        bn_decay: running averages of BatchNorm keep this share at each update.
        bn_eps: epsilon of BatchNorm.
    """

    blocks: tuple[int, ...] = (3, 4, 6, 3)
    block: Literal["bottleneck", "basic"] = "bottleneck"
    width: Count = 64
    stem: Literal["imagenet", "cifar"] = "imagenet"
    zero_gamma: bool = False
    feature_norm: Literal["", "layer"] = ""
    bn_decay: Share = 0.9
    bn_eps: Positive = 1e-5
    bn_groups: Count = 1

    @property
    def layers(self) -> tuple[tuple[str, ...], ...]:
        """Paths of the modules from input to output, a block each (for layer-wise rates)."""
        return (("stem", "stem_norm"), *block_paths(self.blocks), ("feature_norm", "classifier"))

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Outputs:
        """Map images ``x`` [b h w c] to logits [b C], features [b d] and the heads' outputs.

        The features are taken after ``feature_norm``, as the classifier and the heads read them.
        """
        trains = train and not self.frozen_trunk
        options = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        conv = partial(Conv, kernel_init=HE_FAN_OUT, **options)
        norm = partial(BatchNorm, decay=self.bn_decay, epsilon=self.bn_eps, **options)
        last_scale = nn.initializers.zeros if self.zero_gamma else nn.initializers.ones
        block = partial(
            nn.remat(ResidualBlock, static_argnums=(2,)) if self.remat else ResidualBlock,
            kind=self.block,
            conv=conv,
            norm=norm,
            last_norm=partial(norm, scale_init=last_scale),
        )
        large = self.stem == "imagenet"
        x = conv(self.width, 7 if large else 3, 2 if large else 1, name="stem")(x)
        x = norm(slope=0.0, name="stem_norm")(x, trains)
        if large:
            x = _max_pool(x)
        for group, count in enumerate(self.blocks):
            x = ResidualGroup(
                blocks=count,
                features=self.width * 2**group,
                stride=1 if group == 0 else 2,
                block=block,
                name=f"group{group + 1}",
            )(x, trains)
        features = jnp.mean(x.astype(jnp.promote_types(x.dtype, jnp.float32)), (1, 2))
        if self.feature_norm:
            # Two passes over the values, since E[x^2] - E[x]^2 cancels.
            features = nn.LayerNorm(
                epsilon=1e-5,
                use_fast_variance=False,
                param_dtype=self.param_dtype,
                name="feature_norm",
            )(features)
        return self.read_out(features, train, UNIFORM_FAN_IN)
