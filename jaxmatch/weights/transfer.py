"""Starts a run from the encoder of another run or of a file of PyTorch weights.

The encoder is the trunk, and the heads that ``init_heads`` names. A file is
``init_from=FILE.safetensors`` or ``FILE.npz``. If it holds several networks, ``FILE#PREFIX`` names
one, such as ``FILE.safetensors#ema.``.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxmatch.errors import InputError
from jaxmatch.models.heads import KEPT, hidden_layers
from jaxmatch.runtime import paths
from jaxmatch.runtime.mesh import put
from jaxmatch.types import Algorithm, PyTree, TrainState
from jaxmatch.weights.files import PICKLES, SUFFIXES, read_weights
from jaxmatch.weights.torch_names import find_network, from_torch

STAGE = "stage:"  # prefix of an init_from that names a stage of the same run
_SUFFIX = "|".join(re.escape(suffix) for suffix in SUFFIXES + PICKLES)
_FILE = re.compile(rf"(?P<path>.+({_SUFFIX}))(#(?P<prefix>[^/#]*))?")


def encoder(
    variables: Mapping[str, PyTree], algorithm: Algorithm, heads: Iterable[str] = ()
) -> dict[str, PyTree]:
    """The variables of a network without its classifier and without heads other than ``heads``."""
    left_out = {"classifier", *algorithm.heads} - set(heads)
    return {
        kind: {name: value for name, value in tree.items() if name not in left_out}
        for kind, tree in variables.items()
    }


def source_encoder(
    variables: Mapping[str, PyTree],
    algorithm: Algorithm,
    config: Mapping[str, Any],
) -> dict[str, PyTree]:
    """The variables that a trained network gives to a new run of ``config``.

    They are its encoder, the heads that ``config.init_heads`` names, and the first
    ``config.model.head_layers`` layers of its projection head (SimCLR v2's fine-tuning "from the
    middle of the head"; Chen et al., NeurIPS 2020, section 2, https://arxiv.org/abs/2006.10029).

    Args:
        variables: of the trained network.
        algorithm: of the trained run.
        config: of the new run.

    Raises:
        InputError: if the network lacks one of these heads or layers.
    """
    name, heads, layers = config["init_from"], config["init_heads"], config["model"]["head_layers"]
    check_heads(heads, algorithm, f"init_from={name}")
    trunk = encoder(variables, algorithm, heads)
    if not layers or KEPT in trunk["params"]:
        return trunk
    names = hidden_layers(layers)
    projection = {kind: tree.get("projection", {}) for kind, tree in variables.items()}
    if missing := [layer for layer in names if layer not in projection["params"]]:
        raise InputError(
            f"init_from={name} has no layer {missing[0]!r} in its projection head, but "
            f"model.head_layers={layers} keeps it; lower model.head_layers."
        )
    for kind, tree in projection.items():
        if kept := {layer: tree[layer] for layer in tree if layer in names}:
            trunk[kind] = {**trunk[kind], KEPT: kept}
    return trunk


def target_encoder(
    variables: Mapping[str, PyTree], algorithm: Algorithm, config: Mapping[str, Any]
) -> dict[str, PyTree]:
    """The variables that a new run of ``config`` takes from a trained network.

    Args:
        variables: of the new run.
        algorithm: of the new run.
        config: of the new run.

    Raises:
        InputError: if the algorithm lacks a head that ``config.init_heads`` names.
    """
    check_heads(config["init_heads"], algorithm, f"algorithm {config['algorithm']['name']}")
    return encoder(variables, algorithm, config["init_heads"])


def check_heads(heads: Iterable[str], algorithm: Algorithm, where: str) -> None:
    """Check that ``algorithm`` has all of ``heads``.

    Raises:
        InputError: if not.
    """
    for head in heads:
        if head not in algorithm.heads:
            has = ", ".join(algorithm.heads) or "none"
            raise InputError(
                f"init_heads names {head!r}, but {where} has another set of heads: {has}."
            )


def source_folder(init_from: str, folder: Path) -> Path:
    """The folder of the run that ``init_from``, a setting of the run in ``folder``, names."""
    if init_from.startswith(STAGE):
        return folder.parent / init_from.removeprefix(STAGE)
    return paths.path(init_from)


def names_weights(init_from: str) -> bool:
    """Whether ``init_from`` names a file of weights rather than a run."""
    found = _FILE.fullmatch(init_from)
    return found is not None and not paths.path(found["path"]).is_dir()


def read_encoder(init_from: str, ours: Mapping[str, PyTree]) -> dict[str, PyTree]:
    """The variables that a new run takes from a file of PyTorch weights.

    Other heads, a classifier and other networks in the file are ignored.

    Args:
        init_from: one for which :func:`names_weights` is true.
        ours: the result of :func:`target_encoder`, or its shapes.

    Raises:
        InputError: if the file cannot be read, if its encoder lacks a tensor, has an additional one
            or one of another shape, or if it holds several such networks and no prefix is given.
    """
    found = _FILE.fullmatch(init_from)
    if found is None:
        raise InputError(f"init_from={init_from} names no weights file.")
    weights = read_weights(found["path"])
    try:
        prefix, naming = found["prefix"], None
        if prefix is None:
            prefix, naming = find_network(weights, ours)
        return from_torch(weights, ours, prefix=prefix, naming=naming, spare_heads=True)
    except InputError as error:
        raise InputError(
            f"init_from={init_from}: {error}; give the config.model that the weights were trained "
            f"with, and init_from={found['path']}#PREFIX for one of several networks."
        ) from error


def check_encoder(theirs: PyTree, ours: PyTree, init_from: str) -> None:
    """Check that two encoders have equal shapes.

    Raises:
        InputError: if not; it names the first tensors that differ.
    """
    there, here = (
        {
            jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        }
        for tree in (theirs, ours)
    )
    wrong = [
        f"{name} is {there.get(name, 'missing')} there and {here.get(name, 'missing')} here"
        for name in sorted(there.keys() | here.keys())
        if there.get(name) != here.get(name)
    ]
    if wrong:
        raise InputError(
            f"init_from={init_from} has another encoder ({'; '.join(wrong[:3])}"
            f"{f'; and {len(wrong) - 3} more' if len(wrong) > 3 else ''}); give both runs the same "
            "config.model."
        )


def transfer(state: TrainState, trunk: Mapping[str, PyTree]) -> TrainState:
    """Let student and teacher of a ``state`` before its first step start from ``trunk``.

    The trunk includes BatchNorm statistics (SelfMatch's second stage). Classifier, heads, optimizer
    and memory stay new. Leaves keep the dtypes and shardings of ``state``.
    """

    def replaced(kind: str, tree: Mapping[str, Any]) -> dict[str, Any]:
        # Student and teacher must not share buffers, since the step donates both.
        return {
            **tree,
            **jax.tree.map(
                lambda new, old: put(jnp.array(new, old.dtype, copy=True), old.sharding),
                dict(trunk[kind]),
                {name: tree[name] for name in trunk[kind]},
            ),
        }

    return state.replace(
        params=replaced("params", state.params),
        stats=replaced("batch_stats", state.stats),
        teacher={kind: replaced(kind, tree) for kind, tree in state.teacher.items()},
    )
