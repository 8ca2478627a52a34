"""The PyTorch names of all networks that the cases know, those of Vision Transformers too."""

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np

from experiments.parity.rows import UnknownCaseError
from jaxmatch.types import PyTree
from jaxmatch.weights import torch_names
from jaxmatch.weights.vit_names import is_vit, our_layout, timm_name

# USB's methods with heads hold the network as their backbone.
VIT, VIT_WITH_HEADS = "vit", "vit_with_heads"
HEADS = {"hidden": "mlp_proj.0", "output": "mlp_proj.2", "dense": "rot_classifier"}
LEAVES = {"kernel": "weight", "bias": "bias"}
# HWIO -> OIHW, (in, out) -> (out, in); others stay.
TO_TORCH = {4: (3, 2, 0, 1), 3: (0, 1, 2), 2: (1, 0)}


def find_naming(names: Iterable[str], variables: PyTree) -> str:
    """The naming under which ``variables`` have the tensors ``names``."""
    if not is_vit(variables["params"]):
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
        value = our_layout(np.asarray(left.pop(name)))
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
        _vit_name(path, naming): np.asarray(leaf).transpose(TO_TORCH.get(leaf.ndim))
        for path, leaf in leaves
    }


def _vit_name(path: Any, naming: str) -> str:
    """timm's name of a parameter, which is USB's, too; that of a head is USB's."""
    keys = [str(part.key) for part in path]
    if len(keys) == 3 and keys[1] in HEADS:
        return f"{HEADS[keys[1]]}.{LEAVES[keys[2]]}"
    name = timm_name("/".join(keys))
    if name is None:
        raise UnknownCaseError(f"timm has no name for the parameter {'/'.join(keys)!r}")
    return f"backbone.{name}" if naming == VIT_WITH_HEADS else name
