"""Tensors of a Vision Transformer under timm's names and in PyTorch's layout, and back.

timm is https://github.com/huggingface/pytorch-image-models (``models/vision_transformer.py``).
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from jaxmatch.types import PyTree

NAMING = "timm"
TOKENS = ("cls_token", "reg_token", "pos_embed")
_MODULES = {
    "patch_embed": "patch_embed.proj",
    "norm_pre": "norm_pre",
    "norm": "norm",
    "fc_norm": "fc_norm",
    "classifier": "head",
}
_IN_BLOCK = {
    "norm1": "norm1",
    "norm2": "norm2",
    "attention/qkv": "attn.qkv",
    "attention/proj": "attn.proj",
    "layer_scale1": "ls1",
    "layer_scale2": "ls2",
    "mlp/fc1": "mlp.fc1",
    "mlp/fc2": "mlp.fc2",
}
_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "gamma": "gamma"}
_BLOCK = re.compile(r"block(\d+)/(.+)")


def is_vit(params: Mapping[str, Any]) -> bool:
    """Whether ``params`` are those of a :class:`~jaxmatch.models.vit.ViT`."""
    return "patch_embed" in params


def timm_name(path: str) -> str | None:
    """timm's name of the parameter at a path such as "block1/mlp/fc1/kernel"; None for none."""
    if path in TOKENS:
        return path
    module, _, leaf = path.rpartition("/")
    if leaf not in _LEAVES:
        return None
    if module in _MODULES:
        return f"{_MODULES[module]}.{_LEAVES[leaf]}"
    found = _BLOCK.fullmatch(module)
    if found is None or found[2] not in _IN_BLOCK:
        return None
    return f"blocks.{int(found[1]) - 1}.{_IN_BLOCK[found[2]]}.{_LEAVES[leaf]}"


def parameters(params: PyTree) -> Iterator[tuple[tuple[str, ...], str | None, Any]]:
    """The path, timm's name and the value of each parameter."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(dict(params)):
        keys = tuple(part.key for part in path)
        yield keys, timm_name("/".join(keys)), leaf


def to_timm(params: PyTree) -> dict[str, np.ndarray]:
    """The parameters that timm has names for, in PyTorch's layout."""
    return {
        name: np.asarray(leaf).transpose(_axes_to_torch(leaf.ndim))
        for _, name, leaf in parameters(params)
        if name is not None
    }


def timm_shapes(params: PyTree) -> dict[str, tuple[int, ...]]:
    """The shapes of :func:`to_timm`, for parameters or their shapes."""
    return {
        name: tuple(leaf.shape[axis] for axis in _axes_to_torch(leaf.ndim))
        for _, name, leaf in parameters(params)
        if name is not None
    }


def our_layout(tensor: np.ndarray) -> np.ndarray:
    """A tensor of timm's in our layout: OIHW -> HWIO, (out, in) -> (in, out)."""
    return tensor.transpose(np.argsort(_axes_to_torch(tensor.ndim)))


def _axes_to_torch(dimensions: int) -> tuple[int, ...]:
    """The transposition HWIO -> OIHW, (in, out) -> (out, in), or none."""
    return {4: (3, 2, 0, 1), 2: (1, 0)}.get(dimensions, tuple(range(dimensions)))
