"""Residual networks of version 2, which normalise and activate before each convolution.

He et al., "Identity Mappings in Deep Residual Networks", ECCV 2016,
https://arxiv.org/abs/1603.05027; borders, strides and initial values are those of S4L
(https://github.com/google-research/s4l, models/resnet.py).
"""

from collections.abc import Callable
from functools import partial
from typing import Literal

import jax.numpy as jnp
from flax import linen as nn

from jaxmatch.models.batch_norm import BatchNorm
from jaxmatch.models.convolution import Conv
from jaxmatch.models.model import Model, block_paths
from jaxmatch.models.resnet import BORDER, EXPANSIONS, ResidualGroup
from jaxmatch.settings import Count, Positive, Share
from jaxmatch.types import Array, Outputs

GLOROT_UNIFORM = nn.initializers.xavier_uniform()


class PreactivationBlock(nn.Module):
    """Convolutions after a norm each, beside a shortcut: two 3x3, or a 3x3 between two 1x1.

    Attributes:
        features: channels inside; the result has ``EXPANSIONS[kind]`` times as many.
        stride: of one 3x3 convolution, the last of "basic" blocks, and of the shortcut.
        kind: "basic" or "bottleneck".
        conv, norm: make the layers.
    """

    features: int
    stride: int
    kind: str
    conv: Callable[..., Conv]
    norm: Callable[..., BatchNorm]

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Map ``x`` [b h w c] to [b h/stride w/stride features * expansion]."""
        width = self.features * EXPANSIONS[self.kind]
        layers = (
            ((self.features, 3, 1), (width, 3, self.stride))
            if self.kind == "basic"
            else ((self.features, 1, 1), (self.features, 3, self.stride), (width, 1, 1))
        )
        y = self.norm(name="norm1")(x, train)
        if x.shape[-1] != width or self.stride != 1:
            x = self.conv(width, 1, self.stride, name="shortcut")(y)
        for number, layer in enumerate(layers, start=1):
            if number > 1:
                y = self.norm(name=f"norm{number}")(y, train)
            y = self.conv(*layer, name=f"conv{number}")(y)
        return x + y


class ResNetV2(Model):
    """A residual network of version 2 with ``len(blocks)`` groups; the defaults are ResNet-50 v2.

    Attributes:
        blocks: blocks of each group; every group but the first halves the resolution.
        block: "bottleneck" or "basic".
        width: channels of the stem, a 7x7 convolution of stride 2 before a max-pooling of stride
            2, and inside the blocks of the first group; each further group doubles them.
            Bottleneck blocks have four times as many in their results.
        bn_decay: running averages of BatchNorm keep this share at each update.
        bn_eps: epsilon of BatchNorm.
    """

    blocks: tuple[int, ...] = (3, 4, 6, 3)
    block: Literal["bottleneck", "basic"] = "bottleneck"
    width: Count = 64
    bn_decay: Share = 0.99
    bn_eps: Positive = 1e-3
    bn_groups: Count = 1

    @property
    def layers(self) -> tuple[tuple[str, ...], ...]:
        """Paths of the modules from input to output, a block each (for layer-wise rates)."""
        return (("stem",), *block_paths(self.blocks), ("norm", "classifier"))

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Outputs:
        """Map images ``x`` [b h w c] to logits [b C], features [b d] and the heads' outputs."""
        trains = train and not self.frozen_trunk
        options = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        conv = partial(Conv, kernel_init=GLOROT_UNIFORM, **options)
        norm = partial(BatchNorm, decay=self.bn_decay, epsilon=self.bn_eps, slope=0.0, **options)
        block = partial(
            nn.remat(PreactivationBlock, static_argnums=(2,)) if self.remat else PreactivationBlock,
            kind=self.block,
            conv=conv,
            norm=norm,
        )
        x = conv(self.width, 7, 2, name="stem")(x)
        # The border counts as zeros, which may be the largest: nothing is activated yet.
        x = jnp.pad(x, ((0, 0), *BORDER, (0, 0)))
        x = nn.max_pool(x, window_shape=(3, 3), strides=(2, 2))
        for group, count in enumerate(self.blocks):
            x = ResidualGroup(
                blocks=count,
                features=self.width * 2**group,
                stride=1 if group == 0 else 2,
                block=block,
                name=f"group{group + 1}",
            )(x, trains)
        x = norm(name="norm")(x, trains)
        features = jnp.mean(x.astype(jnp.promote_types(x.dtype, jnp.float32)), (1, 2))
        return self.read_out(features, train, GLOROT_UNIFORM)
