"""Which parameters train: the gradient is taken by these only, and the optimizer holds no others.

So parameters that do not train are constants of the step: they cost no memory of the optimizer,
no backward pass of their own, and no rounding can change them.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import jax

from jaxmatch.errors import InputError
from jaxmatch.types import CLASSIFIER, PyTree

Train = Literal["all", "head", "norms", "lora"]
NORM = "scale"  # only norms have it
FACTORS = ("lora_a", "lora_b")  # of LoRA
MISSING = {
    "head": "no classifier and no head",
    "norms": "no norm outside of its heads",
    "lora": "no LoRA, which a Vision Transformer has with model.lora_rank=8",
}


def trained_part(train: Train, params: PyTree, heads: Iterable[str] = ()) -> PyTree:
    """The parameters that train, in the tree of ``params`` without all others.

    Args:
        train: "all", or one of the following with the classifier and ``heads``: "head", nothing
            else; "norms", scale and bias of every norm; "lora", the factors of LoRA.
        params: of a network, a tree of dicts.
        heads: names of the method's heads, as in ``Algorithm.heads``.

    Raises:
        InputError: if the network has nothing of this kind.
    """
    if train == "all":
        return params
    names = {CLASSIFIER, *heads}
    ends = {name: value for name, value in params.items() if name in names}
    trunk = {name: value for name, value in params.items() if name not in names}
    chosen = {} if train == "head" else _prune(trunk, _norms if train == "norms" else _factors)
    if not (ends if train == "head" else chosen):
        raise InputError(
            f"optim.train={train}, but the network has {MISSING[train]}; set optim.train=all."
        )
    return {**chosen, **ends}


def with_part(train: Train, params: PyTree, part: PyTree) -> PyTree:
    """``params`` with the leaves of ``part``, a result of :func:`trained_part`, at their places."""
    return part if train == "all" else _replaced(params, part)


def new_statistics(train: Train, old: PyTree, new: PyTree, heads: Iterable[str] = ()) -> PyTree:
    """The BatchNorm statistics after a step; under "head" only those of ``heads`` are ``new``."""
    if train != "head":
        return new
    return {name: new[name] if name in heads else value for name, value in old.items()}


def count_values(tree: PyTree) -> int:
    """The number of values in all leaves."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def _norms(module: Mapping[str, Any]) -> Iterable[str]:
    return module if NORM in module else ()


def _factors(module: Mapping[str, Any]) -> Iterable[str]:
    return FACTORS


def _replaced(tree: PyTree, part: PyTree) -> PyTree:
    if not isinstance(part, Mapping):
        return part
    return {
        name: _replaced(value, part[name]) if name in part else value
        for name, value in tree.items()
    }


def _prune(tree: Mapping[str, Any], chosen: Callable[[Mapping], Iterable[str]]) -> dict[str, Any]:
    """The leaves whose names are among ``chosen`` of their module, without empty modules."""
    names = chosen(tree)
    kept = {
        name: _prune(value, chosen) if isinstance(value, Mapping) else value
        for name, value in tree.items()
        if isinstance(value, Mapping) or name in names
    }
    return {name: value for name, value in kept.items() if not _empty(value)}


def _empty(value: Any) -> bool:
    return isinstance(value, Mapping) and not value
