"""PyTorch weights of the wide residual networks of TorchSSL and USB, by PyTorch's tensor names.

https://github.com/TorchSSL/TorchSSL and https://github.com/microsoft/Semi-supervised-learning.
Their networks are :class:`jaxmatch.models.wide_resnet.WideResNet` with
``legacy_transition=True, padding="torch"`` and, for TorchSSL, ``conv_bias="all", bn_eps=1e-3``, for
USB, ``conv_bias="stem", bn_eps=1e-5`` (both ``bn_eps_final=1e-3``). For STL-10 both use
``groups=4, first_stride=2``.
"""

import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jaxmatch.errors import InputError
from jaxmatch.types import PyTree

MODULES = {"stem": "conv1", "norm": "bn1", "classifier": "classifier"}
INNER_MODULES = {
    "norm1": "bn1",
    "norm2": "bn2",
    "conv1": "conv1",
    "conv2": "conv2",
    "shortcut": "convShortcut",
}
LEAVES = {
    "kernel": "weight",
    "bias": "bias",
    "scale": "weight",
    "mean": "running_mean",
    "var": "running_var",
}


def from_torch(weights: Mapping[str, np.ndarray], variables: PyTree) -> PyTree:
    """The variables of a WideResNet with the values of a PyTorch ``state_dict``.

    Args:
        weights: arrays by name, in PyTorch's layouts (OIHW convolutions, (out, in) dense layers).
            A leading ``module.`` and the classifier's name ``fc`` (TorchSSL) are understood;
            ``num_batches_tracked`` is ignored.
        variables: {"params", "batch_stats"} of the model, from ``model.init`` or its
            ``jax.eval_shape``; gives the shapes and dtypes.

    Raises:
        InputError: if a tensor is missing, left over or of another shape.
    """
    known = {
        re.sub(r"^fc\.", "classifier.", name.removeprefix("module.")): value
        for name, value in weights.items()
        if not name.endswith("num_batches_tracked")
    }

    def take(path: Any, leaf: Any) -> np.ndarray:
        name = _torch_name(path)
        if name not in known:
            raise InputError(f"the PyTorch weights have no tensor {name!r}, which the model needs")
        value = np.asarray(known.pop(name))
        value = value.transpose(_axes_from_torch(value.ndim))
        if value.shape != leaf.shape:
            raise InputError(
                f"PyTorch tensor {name!r} has shape {value.shape} in our layout, "
                f"but the model needs {leaf.shape}"
            )
        return value.astype(leaf.dtype)

    taken = jax.tree_util.tree_map_with_path(take, dict(variables))
    if known:
        raise InputError(f"PyTorch tensor {min(known)!r} has no place in the model")
    return taken


def to_torch(variables: PyTree) -> dict[str, np.ndarray]:
    """The leaves of ``variables`` (or of only its "params", ...) by PyTorch name and layout."""
    leaves = jax.tree_util.tree_leaves_with_path(dict(variables))
    return {
        _torch_name(path): np.asarray(leaf).transpose(np.argsort(_axes_from_torch(leaf.ndim)))
        for path, leaf in leaves
    }


def _torch_name(path: Any) -> str:
    """The PyTorch name of the leaf at a path such as params/group1/block1/conv1/kernel."""
    _, *modules, leaf = (part.key for part in path)
    match modules:
        case [module] if module in MODULES:
            prefix = MODULES[module]
        case [group, block, module] if module in INNER_MODULES:
            number = int(block.removeprefix("block")) - 1
            prefix = f"block{group.removeprefix('group')}.layer.{number}.{INNER_MODULES[module]}"
        case _:
            raise InputError(f"{'/'.join(modules)!r} has no counterpart in the PyTorch networks")
    return f"{prefix}.{LEAVES[leaf]}"


def _axes_from_torch(dimensions: int) -> tuple[int, ...]:
    """The transposition OIHW -> HWIO, (out, in) -> (in, out), or none."""
    return {4: (2, 3, 1, 0), 2: (1, 0)}.get(dimensions, tuple(range(dimensions)))
