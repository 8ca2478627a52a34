"""Starting a run from the encoder of another: its trunk, and heads where both have them.

Or from a file of PyTorch weights, ``init_from=FILE.safetensors`` or ``FILE.npz``. Where a file
holds several networks, ``FILE#PREFIX`` tells which, such as ``FILE.safetensors#ema.``.
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

STAGE = "stage:"  # begins a place that is a stage of the same run
_SUFFIX = "|".join(re.escape(suffix) for suffix in SUFFIXES + PICKLES)
_FILE = re.compile(rf"(?P<path>.+({_SUFFIX}))(#(?P<prefix>[^/#]*))?")


def encoder(
    variables: Mapping[str, PyTree], algorithm: Algorithm, heads: Iterable[str] = ()
) -> dict[str, PyTree]:
    """The variables of a network without classifier, and without heads other than ``heads``."""
    left_out = {"classifier", *algorithm.heads} - set(heads)
    return {
        kind: {name: value for name, value in tree.items() if name not in left_out}
        for kind, tree in variables.items()
    }


def given(
    variables: Mapping[str, PyTree],
    algorithm: Algorithm,
    config: Mapping[str, Any],
) -> dict[str, PyTree]:
    """What a trained network gives to a new run of ``config``.

    Its encoder, the heads that ``config.init_heads`` names, and the first
    ``config.model.head_layers`` layers of its projection head (SimCLR v2's fine-tuning "from the
    middle of the head"; Chen et al., NeurIPS 2020, section 2, https://arxiv.org/abs/2006.10029).

    Args:
        variables: of the trained network.
        algorithm: of the trained run.
        config: of the new run.

    Raises:
        InputError: if the network lacks one of these.
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
            f"init_from={name} has no layer {missing[0]!r} in its projection head, of which "
            f"model.head_layers={layers} are to be kept; keep fewer."
        )
    for kind, tree in projection.items():
        if kept := {layer: tree[layer] for layer in tree if layer in names}:
            trunk[kind] = {**trunk[kind], KEPT: kept}
    return trunk


def wanted(
    variables: Mapping[str, PyTree], algorithm: Algorithm, config: Mapping[str, Any]
) -> dict[str, PyTree]:
    """What a new run of ``config`` takes from a trained network; as :func:`given`."""
    check_heads(config["init_heads"], algorithm, f"algorithm {config['algorithm']['name']}")
    return encoder(variables, algorithm, config["init_heads"])


def check_heads(heads: Iterable[str], algorithm: Algorithm, where: str) -> None:
    """InputError unless ``algorithm`` has all of ``heads``."""
    for head in heads:
        if head not in algorithm.heads:
            has = ", ".join(algorithm.heads) or "none"
            raise InputError(
                f"init_heads names {head!r}, but {where} has another set of heads: {has}."
            )


def source_folder(init_from: str, folder: Path) -> Path:
    """The run that ``init_from`` of the run in ``folder`` names."""
    if init_from.startswith(STAGE):
        return folder.parent / init_from.removeprefix(STAGE)
    return paths.path(init_from)


def names_weights(init_from: str) -> bool:
    """Whether ``init_from`` names a file of weights rather than a run."""
    found = _FILE.fullmatch(init_from)
    return found is not None and not paths.path(found["path"]).is_dir()


def read_encoder(init_from: str, ours: Mapping[str, PyTree]) -> dict[str, PyTree]:
    """What a new run takes from a file of PyTorch weights.

    Other heads, a classifier and other networks in the file stay aside.

    Args:
        init_from: for which :func:`names_weights` holds.
        ours: as :func:`wanted` gives it, or its shapes.

    Raises:
        InputError: if the file cannot be read, lacks a tensor, has one of another shape or one of
            the encoder too many, or holds several such networks and no prefix is given.
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
    """InputError naming the first tensors that differ, unless both encoders have equal shapes."""
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
    """``state`` before its first step, with student and teacher starting from ``trunk``.

    Classifier, heads, optimizer and memory stay new; BatchNorm statistics come along (SelfMatch's
    second stage). Leaves keep the dtype and sharding of ``state``'s.
    """

    def replaced(kind: str, tree: Mapping[str, Any]) -> dict[str, Any]:
        # Student and teacher must not share buffers, since the step gives both away.
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
