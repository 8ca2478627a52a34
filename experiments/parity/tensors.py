"""The PyTorch names of all networks that the cases know, those of Vision Transformers too."""

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np

from experiments.parity.rows import UnknownCaseError
from jaxmatch.types import PyTree
from jaxmatch.weights import torch_names

# USB's methods with heads hold the network as their backbone.
VIT, VIT_WITH_HEADS = "vit", "vit_with_heads"
MODULES = {"patch_embed": "patch_embed.proj", "classifier": "head"}
IN_BLOCK = {"attention": "attn", "layer_scale1": "ls1", "layer_scale2": "ls2"}
HEADS = {"hidden": "mlp_proj.0", "output": "mlp_proj.2", "dense": "rot_classifier"}
LEAVES = {"kernel": "weight", "scale": "weight"}
TO_TORCH = {4: (3, 2, 0, 1), 2: (1, 0)}  # HWIO -> OIHW, (in, out) -> (out, in)


def find_naming(names: Iterable[str], variables: PyTree) -> str:
    """The naming under which ``variables`` have the tensors ``names``."""
    if "patch_embed" not in variables["params"]:
        return torch_names.find_naming(names, variables)
    return VIT_WITH_HEADS if any(name.startswith("backbone.") for name in names) else VIT


def from_torch(tensors: Mapping[str, np.ndarray], variables: PyTree, *, naming: str) -> PyTree:
    """The variables with the values of tensors in PyTorch's layout.

    Raises:
        UnknownCaseError: if tensors of a Vision Transformer are missing, left over or of another
            shape.
    """
    if naming not in (VIT, VIT_WITH_HEADS):
        return torch_names.from_torch(tensors, variables, naming=naming)
    left = dict(tensors)

    def take(path: Any, leaf: Any) -> np.ndarray:
        name = _vit_name(path, naming)
        if name not in left:
            raise UnknownCaseError(f"the file has no tensor {name!r}, which the network needs")
        value = np.asarray(left.pop(name))
        value = value.transpose(np.argsort(_axes(value.ndim)))
        if value.shape != leaf.shape:
            raise UnknownCaseError(f"tensor {name!r} has shape {value.shape}, not {leaf.shape}")
        return value.astype(leaf.dtype)

    params = jax.tree_util.tree_map_with_path(take, variables["params"])
    if left:
        raise UnknownCaseError(f"tensor {min(left)!r} has no place in the network")
    return {"params": params, "batch_stats": {}}


def to_torch(variables: PyTree, *, naming: str) -> dict[str, np.ndarray]:
    """The leaves of ``variables`` under PyTorch's names, in PyTorch's layout."""
    if naming not in (VIT, VIT_WITH_HEADS):
        return torch_names.to_torch(variables, naming=naming)
    leaves = jax.tree_util.tree_leaves_with_path(variables.get("params", {}))
    return {
        _vit_name(path, naming): np.asarray(leaf).transpose(_axes(leaf.ndim))
        for path, leaf in leaves
    }


def _vit_name(path: Any, naming: str) -> str:
    """timm's name of a parameter, which is USB's, too; that of a head is USB's."""
    *modules, leaf = [str(part.key) for part in path]
    leaf = LEAVES.get(leaf, leaf)
    match modules:
        case [_, layer] if layer in HEADS:
            return f"{HEADS[layer]}.{leaf}"
        case [block, *inside] if block.startswith("block"):
            number = int(block.removeprefix("block")) - 1
            names = ["blocks", str(number), *(IN_BLOCK.get(name, name) for name in inside)]
        case _:
            names = [MODULES.get(name, name) for name in modules]
    prefix = ["backbone"] if naming == VIT_WITH_HEADS else []
    return ".".join([*prefix, *names, leaf])


def _axes(dimensions: int) -> tuple[int, ...]:
    return TO_TORCH.get(dimensions, tuple(range(dimensions)))
