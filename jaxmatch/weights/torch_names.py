"""PyTorch weights of the references' networks, under the tensor names of each code base.

:data:`NAMINGS` lists the code bases. Our networks compute the same with these options:

- TorchSSL (https://github.com/TorchSSL/TorchSSL) and USB
  (https://github.com/microsoft/Semi-supervised-learning): a
  :class:`~jaxmatch.models.wide_resnet.WideResNet` with ``legacy_transition=True, padding="torch"``
  and, for TorchSSL, ``conv_bias="all", bn_eps=1e-3``, for USB, ``conv_bias="stem", bn_eps=1e-5``
  (both ``bn_eps_final=1e-3``). For STL-10 both use ``groups=4, first_stride=2``.
- CoMatch (https://github.com/salesforce/CoMatch): a WideResNet with ``padding="torch"``,
  ``conv_bias="none", bn_eps=1e-5, bn_eps_final=1e-5`` and a leaky ReLU in its projection.
- torchvision, SimMatch (https://github.com/mingkai-zheng/SimMatch), SimMatchV2, EMAN and CoMatch
  on ImageNet: a :class:`~jaxmatch.models.resnet.ResNet`, for SimMatchV2 with
  ``feature_norm="layer"`` where its weights have a ``norm``.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from jaxmatch.errors import InputError, suggest
from jaxmatch.types import PyTree
from jaxmatch.weights.files import check_no_integers, check_read


@dataclass(frozen=True, kw_only=True)
class Naming:
    """The PyTorch names of one code base.

    Attributes:
        modules: their names by ours; "hidden", "output" and "dense" are the layers of any head.
        block: the prefix of a block's tensors, with the numbers of the group (from 1) and of the
            block (from 0).
        shortcut: the names of a block's shortcut convolution and its norm.
    """

    modules: Mapping[str, str]
    block: str
    shortcut: tuple[str, str]


_PYRAMID = {"stem": "conv1", "stem_norm": "bn1", "classifier": "fc"}
_WIDE = {"stem": "conv1", "norm": "bn1", "classifier": "classifier"}
_USB_HEADS = {"hidden": "mlp_proj.0", "output": "mlp_proj.2", "dense": "rot_classifier"}
_WIDE_BLOCK = "block{group}.layer.{block}."
_RESIDUAL_BLOCK = "layer{group}.{block}."


def _within(prefix: str, modules: Mapping[str, str]) -> dict[str, str]:
    return {ours: prefix + theirs for ours, theirs in modules.items()}


# If two namings know all modules of a network, to_torch takes the earlier one by default.
NAMINGS: Mapping[str, Naming] = {
    "usb": Naming(modules=_WIDE, block=_WIDE_BLOCK, shortcut=("convShortcut", "")),
    "usb_heads": Naming(
        modules={**_within("backbone.", _WIDE), **_USB_HEADS},
        block="backbone." + _WIDE_BLOCK,
        shortcut=("convShortcut", ""),
    ),
    "torchssl": Naming(
        modules={**_WIDE, "classifier": "fc"}, block=_WIDE_BLOCK, shortcut=("convShortcut", "")
    ),
    "comatch": Naming(
        modules={
            "stem": "backbone.conv1",
            "norm": "backbone.bn_last",
            "classifier": "classifier",
            "hidden": "fc1",
            "output": "fc2",
        },
        block="backbone." + _RESIDUAL_BLOCK,
        shortcut=("downsample", ""),
    ),
    "torchvision": Naming(
        modules=_PYRAMID, block=_RESIDUAL_BLOCK, shortcut=("downsample.0", "downsample.1")
    ),
    "simmatch": Naming(
        modules={
            **_within("backbone.", _PYRAMID),
            "classifier": "fc",
            "feature_norm": "norm",
            "hidden": "head.0",
            "output": "head.2",
        },
        block="backbone." + _RESIDUAL_BLOCK,
        shortcut=("downsample.0", "downsample.1"),
    ),
}
HEAD_LAYERS = ("hidden", "output", "dense")
TRUNK_MODULES = ("stem", "stem_norm", "norm", "feature_norm")
LEAVES = {
    "kernel": "weight",
    "bias": "bias",
    "scale": "weight",
    "mean": "running_mean",
    "var": "running_var",
}


def from_torch(
    weights: Mapping[str, np.ndarray],
    variables: PyTree,
    *,
    prefix: str = "",
    naming: str | None = None,
    spare_heads: bool = False,
) -> PyTree:
    """The variables of a network with the values of a PyTorch ``state_dict``.

    Args:
        weights: arrays by name, in PyTorch's layouts (OIHW convolutions, (out, in) dense layers).
            A leading ``module.`` and ``num_batches_tracked`` are ignored.
        variables: {"params", "batch_stats"} of the model, or their shapes and dtypes.
        prefix: read only tensors whose names begin with it. SimMatch and EMAN name the student
            "main." and the teacher "ema.".
        naming: a key of :data:`NAMINGS`; by default that of :func:`find_naming`.
        spare_heads: ignore tensors that belong neither to the encoder nor to ``variables``.

    Raises:
        InputError: if a tensor is missing, left over, of another shape or of a type that is not
            read.
    """
    stripped = {name.removeprefix("module."): value for name, value in weights.items()}
    known = {
        name.removeprefix(prefix): value
        for name, value in stripped.items()
        if name.startswith(prefix) and not name.endswith("num_batches_tracked")
    }
    scheme = _scheme(naming or find_naming(known, variables))

    def take(path: Any, leaf: Any) -> np.ndarray:
        name = _torch_name(path, scheme)
        if name not in known:
            raise InputError(f"the PyTorch weights have no tensor {name!r}, which the model needs")
        value = np.asarray(known.pop(name))
        check_read({name: value})
        check_no_integers(name, value)
        value = value.transpose(_axes_from_torch(value.ndim))
        if value.shape != leaf.shape:
            raise InputError(
                f"PyTorch tensor {name!r} has shape {value.shape} in our layout, "
                f"but the model needs {leaf.shape}"
            )
        return value.astype(leaf.dtype)

    taken = jax.tree_util.tree_map_with_path(take, dict(variables))
    if spare_heads:
        known = {name: value for name, value in known.items() if _in_trunk(name, scheme)}
    if known:
        raise InputError(f"PyTorch tensor {min(known)!r} has no place in the model")
    return taken


def to_torch(
    variables: PyTree, *, prefix: str = "", naming: str | None = None
) -> dict[str, np.ndarray]:
    """The leaves of ``variables`` under PyTorch's names, in PyTorch's layout.

    Args:
        variables: {"params", "batch_stats"}, or one of them.
        prefix: before every name.
        naming: a key of :data:`NAMINGS`; by default the first that knows all modules.

    Raises:
        InputError: if no naming knows all modules, or if two leaves get the same name.
    """
    names = _names(variables, _scheme(naming or find_naming((), variables)))
    if len(names) != len(set(names)):
        twice = Counter(names).most_common(1)[0][0]
        raise InputError(f"two tensors of the model would both be {twice!r} in PyTorch")
    return {
        prefix + name: np.asarray(leaf).transpose(np.argsort(_axes_from_torch(leaf.ndim)))
        for name, leaf in zip(names, jax.tree.leaves(dict(variables)), strict=True)
    }


def find_naming(names: Iterable[str], variables: PyTree) -> str:
    """The key of :data:`NAMINGS` under which ``variables`` have the most of the tensors ``names``.

    Raises:
        InputError: if no naming knows all modules of ``variables``.
    """
    names = set(names)
    found: dict[str, int] = {}
    failure = None
    for key, scheme in NAMINGS.items():
        try:
            found[key] = len(names & set(_names(variables, scheme)))
        except InputError as error:
            failure = error
    if not found and failure is not None:
        raise failure
    return max(found, key=lambda key: found[key])


def find_network(names: Iterable[str], variables: PyTree) -> tuple[str, str]:
    """The prefix and the naming of the network in a file of tensors ``names``.

    It is the network that has the most tensors of ``variables``.

    Raises:
        InputError: if no naming knows all modules of ``variables``, or if more than one network in
            the file has all of their tensors.
    """
    names = [name.removeprefix("module.") for name in names]
    default = find_naming(names, variables)
    # Keyed by a tensor's whole name, since several pairs of prefix and naming may read one network.
    found: dict[str, tuple[int, int, str, str]] = {}
    size = 0
    for key, scheme in NAMINGS.items():
        if not _knows(scheme, variables):
            continue
        ends = _names(variables, scheme)
        size = len(ends)
        counts = Counter(
            name.removesuffix(end) for end in ends for name in names if name.endswith(end)
        )
        for prefix, count in counts.items():
            reading = (count, -len(prefix), prefix, key)
            found[prefix + ends[0]] = max(reading, found.get(prefix + ends[0], reading))
    complete = sorted(prefix for count, _, prefix, _ in found.values() if count == size)
    if len(complete) > 1:
        raise InputError(f"the PyTorch weights hold several networks, of prefixes {complete}")
    _, _, prefix, naming = max(found.values(), default=(0, 0, "", default))
    return prefix, naming


def nameable(
    variables: PyTree, heads: Iterable[str], naming: str | None = None
) -> tuple[PyTree, str]:
    """``variables`` without the heads that the naming has no names for, and the naming.

    Args:
        variables: {"params", "batch_stats"} of a network.
        heads: names of its heads.
        naming: a key of :data:`NAMINGS`; by default the first of those that leave out the fewest
            heads.

    Raises:
        InputError: if no naming knows the rest of the modules.
    """
    heads = tuple(heads)
    trunk = _without(variables, heads)
    possible = [naming] if naming else [key for key in NAMINGS if _knows(_scheme(key), trunk)]

    def unknown(key: str) -> list[str]:
        others = {head: _without(variables, {*trunk["params"], *heads} - {head}) for head in heads}
        return [head for head, part in others.items() if not _knows(_scheme(key), part)]

    chosen = min(possible or [find_naming((), trunk)], key=lambda key: len(unknown(key)))
    return _without(variables, unknown(chosen)), chosen


def _without(variables: PyTree, modules: Iterable[str]) -> PyTree:
    return {
        kind: {name: value for name, value in tree.items() if name not in modules}
        for kind, tree in variables.items()
    }


def _names(variables: PyTree, naming: Naming) -> list[str]:
    """The PyTorch name of each leaf.

    Raises:
        InputError: if a leaf has none.
    """
    leaves = jax.tree_util.tree_leaves_with_path(dict(variables))
    return [_torch_name(path, naming) for path, _ in leaves]


def _knows(naming: Naming, variables: PyTree) -> bool:
    try:
        _names(variables, naming)
    except InputError:
        return False
    return True


def _in_trunk(name: str, naming: Naming) -> bool:
    """Whether a PyTorch tensor belongs to an encoder, of any depth and options."""
    modules = [naming.modules[key] + "." for key in TRUNK_MODULES if key in naming.modules]
    return name.startswith((naming.block.partition("{")[0], *modules))


def _scheme(naming: str) -> Naming:
    if naming not in NAMINGS:
        raise InputError(f"unknown naming {naming!r}; {suggest(naming, NAMINGS)}")
    return NAMINGS[naming]


def _torch_name(path: Any, naming: Naming) -> str:
    """The PyTorch name of the leaf at a path such as params/group1/block1/conv1/kernel."""
    _, *modules, leaf = (part.key for part in path)
    match modules:
        case [module] if module in naming.modules and module not in HEAD_LAYERS:
            name = naming.modules[module]
        # USB's name of this layer is that of the rotations' classifier.
        case [head, layer] if (
            layer in naming.modules
            and layer in HEAD_LAYERS
            and (layer != "dense" or head == "rotation")
        ):
            name = naming.modules[layer]
        # Code bases with a norm behind all blocks have blocks of two convolutions.
        case [group, block, part] if group.startswith("group") and not (
            "norm" in naming.modules and part in ("conv3", "norm3")
        ):
            number = int(block.removeprefix("block")) - 1
            name = naming.block.format(group=group.removeprefix("group"), block=number)
            name += _part_name(part, naming)
        case _:
            raise InputError(f"{'/'.join(modules)!r} has no counterpart in the PyTorch networks")
    return f"{name}.{LEAVES[leaf]}"


def _part_name(part: str, naming: Naming) -> str:
    """The PyTorch name of a module inside a block."""
    if part == "shortcut":
        return naming.shortcut[0]
    return naming.shortcut[1] if part == "shortcut_norm" else part.replace("norm", "bn")


def _axes_from_torch(dimensions: int) -> tuple[int, ...]:
    """The transposition OIHW -> HWIO, (out, in) -> (in, out), or none."""
    return {4: (2, 3, 1, 0), 2: (1, 0)}.get(dimensions, tuple(range(dimensions)))
