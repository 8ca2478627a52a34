"""The networks of the official SimMatch, SimMatchV2, EMAN and CoMatch code, in the library."""

import re
from collections.abc import Iterable
from typing import Any

import jax.numpy as jnp

from experiments.parity.rows import UnknownCaseError
from jaxmatch.models.heads import Projection
from jaxmatch.models.resnet import ResNet
from jaxmatch.models.wide_resnet import STEM_CHANNELS, WideResNet


def build_official_model(
    names: Iterable[str], *, channels: tuple[int, int], classes: int, projection: int, dtype: str
) -> WideResNet | ResNet:
    """The network that has such tensors.

    Args:
        names: PyTorch's, without the "main." of the student.
        channels: of the stem, and inside the first block (what its bn2 normalises).
        classes: number of classes.
        projection: width of ``heads["projection"]``, where ``names`` have such a head.
        dtype: of the parameters.

    Raises:
        UnknownCaseError: if the library has no such network.
    """
    names, (stem, inside) = set(names), channels
    blocks = _blocks(names)
    options: dict[str, Any] = {"classes": classes, "param_dtype": jnp.dtype(dtype)}
    if "backbone.bn_last.weight" in names:
        if stem != STEM_CHANNELS or len(set(blocks)) != 1:
            raise UnknownCaseError(f"the library has no WideResNet of {blocks} blocks from {stem}")
        return WideResNet(
            depth=6 * blocks[0] + 4,
            width=inside / STEM_CHANNELS,
            groups=len(blocks),
            padding="torch",
            conv_bias="none",
            bn_eps=1e-5,
            bn_eps_final=1e-5,
            extra_heads=_heads(
                Projection(projection, activation="leaky_relu"), "fc1.weight" in names
            ),
            **options,
        )
    if not blocks or stem != inside:
        raise UnknownCaseError(f"the library has no ResNet of {blocks} blocks from {stem}")
    return ResNet(
        blocks=blocks,
        block="bottleneck" if "backbone.layer1.0.conv3.weight" in names else "basic",
        width=stem,
        feature_norm="layer" if "norm.weight" in names else "",
        extra_heads=_heads(Projection(projection), "head.0.weight" in names),
        **options,
    )


def _blocks(names: set[str]) -> tuple[int, ...]:
    """The number of blocks in each group."""
    found = (re.match(r"backbone\.layer(\d+)\.(\d+)\.", name) for name in names)
    pairs = {(int(match[1]), int(match[2])) for match in found if match}
    groups = sorted({group for group, _ in pairs})
    return tuple(sum(group == other for other, _ in pairs) for group in groups)


def _heads(projection: Projection, present: bool) -> dict[str, Any]:
    return {"projection": projection} if present else {}
