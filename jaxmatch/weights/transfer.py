"""Starts a run from the encoder of another run or of a file of weights.

The encoder is the trunk, and the heads that ``init_heads`` names. A file is
``init_from=FILE.safetensors`` or ``FILE.npz``, or the index of several safetensors files. If it
holds several networks, ``FILE#PREFIX`` names one, such as ``FILE.safetensors#ema.``.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmatch.errors import InputError
from jaxmatch.models.heads import KEPT, hidden_layers
from jaxmatch.models.lora import without_factors
from jaxmatch.runtime import paths
from jaxmatch.runtime.mesh import put
from jaxmatch.types import Algorithm, PyTree, TrainState
from jaxmatch.weights.files import INDEX, PICKLES, SUFFIXES, read_weights
from jaxmatch.weights.torch_names import find_network, from_torch
from jaxmatch.weights.vit_formats import holds_vit
from jaxmatch.weights.vit_init import Loaded, fit_positions, read_vit
from jaxmatch.weights.vit_names import is_vit, timm_shapes

STAGE = "stage:"  # prefix of an init_from that names a stage of the same run
_SUFFIX = "|".join(re.escape(suffix) for suffix in (*SUFFIXES, *PICKLES, INDEX))
_FILE = re.compile(rf"(?P<path>.+({_SUFFIX}))(#(?P<prefix>[^#]*))?", re.IGNORECASE)


def encoder(
    variables: Mapping[str, PyTree], algorithm: Algorithm, heads: Iterable[str] = ()
) -> dict[str, PyTree]:
    """The variables of a network without its classifier and without heads other than ``heads``.

    They are without factors of LoRA, too: :func:`jaxmatch.models.lora.merged` adds these to the
    kernels of a trained network, and a new run starts its own.
    """
    left_out = {"classifier", *algorithm.heads} - set(heads)
    return {
        kind: without_factors({name: tree[name] for name in tree if name not in left_out})
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
    if found is None or paths.path(found["path"]).is_dir():
        return False
    # A folder's name may end in the same way, as in "a.npz#/run".
    return "/" not in (found["prefix"] or "") or not paths.path(init_from).is_dir()


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
    path, prefix, weights = _read_file(init_from)
    if holds_vit(weights):
        raise InputError(
            f"init_from={init_from} is a Vision Transformer, which this network is not; set "
            "--config.model.name=vit or the name of a Vision Transformer."
        )
    if prefix is not None:
        prefix = _as_in_file(prefix, weights, init_from)
    try:
        naming = None
        if prefix is None:
            prefix, naming = find_network(weights, ours)
        return from_torch(weights, ours, prefix=prefix, naming=naming, spare_heads=True)
    except InputError as error:
        raise InputError(
            f"init_from={init_from}: {error}; give the config.model that the weights were trained "
            f"with, and init_from={path}#PREFIX for one of several networks."
        ) from error


def _as_in_file(prefix: str, weights: Iterable[str], init_from: str) -> str:
    """The prefix that a user gave, with its dot and without ``module.``, as names are read.

    Raises:
        InputError: if no name begins with it.
    """
    names = [name.removeprefix("module.") for name in weights]
    prefix = "" if prefix == "module" else prefix.removeprefix("module.")
    for whole in (f"{prefix}.", prefix):
        if any(name.startswith(whole) for name in names):
            return whole
    raise InputError(
        f"init_from={init_from}: it holds no tensor whose name begins with {prefix!r}."
    )


def read_vit_file(
    init_from: str,
    params: Mapping[str, PyTree],
    *,
    image: tuple[int, int],
    classifier: bool,
    rules: str,
) -> Loaded:
    """The variables that a new run of a Vision Transformer takes from a file, and a report.

    Args:
        init_from: one for which :func:`names_weights` is true.
        params: of the encoder and the classifier, or their shapes.
        image: (height, width) of the run's images.
        classifier: take the file's classifier if it has as many classes as the run's.
        rules: of :func:`~jaxmatch.weights.vit_init.read_vit`.

    Raises:
        InputError: if the file cannot be read, or holds another network or several.
    """
    _, prefix, weights = _read_file(init_from)
    options: Any = {"image": image, "classifier": classifier, "prefix": prefix, "rules": rules}
    try:
        return read_vit(weights, params, **options)
    except InputError as error:
        raise InputError(f"init_from={init_from}: {error}.") from error


def with_fitting_positions(
    trunk: Mapping[str, PyTree],
    ours: Mapping[str, PyTree],
    *,
    images: tuple[tuple[int, int], tuple[int, int]],
    rule: str,
) -> tuple[dict[str, PyTree], list[str]]:
    """A run's Vision Transformer ``trunk`` for images of another size, and a report.

    What is no Vision Transformer, or of another patch or width, stays as it is.

    Args:
        trunk: the result of :func:`source_encoder`.
        ours: the result of :func:`target_encoder`.
        images: (height, width) of the trained run's images, and of the new run's.
        rule: "timm" or "usb".

    Raises:
        InputError: if the rule does not resize it.
    """
    theirs, params = trunk["params"], ours["params"]
    if not (is_vit(theirs) and is_vit(params)):
        return dict(trunk), []
    shapes, there = timm_shapes(params), timm_shapes(theirs)
    kernel = "patch_embed.proj.weight"
    if shapes[kernel] != there[kernel]:
        return dict(trunk), []
    old, new = (
        (height // shapes[kernel][2], width // shapes[kernel][3]) for height, width in images
    )
    prefixes = [
        each["pos_embed"][1] - rows * columns
        for each, (rows, columns) in ((there, old), (shapes, new))
    ]
    if prefixes[0] != prefixes[1] or old == new:
        return dict(trunk), []
    positions = np.asarray(theirs["pos_embed"])
    try:
        resized, report = fit_positions(positions, shapes, new, rule, old)
    except InputError as error:
        raise InputError(f"{error}.") from error
    return {**trunk, "params": {**theirs, "pos_embed": resized}}, report


def _read_file(init_from: str) -> tuple[str, str | None, dict[str, np.ndarray]]:
    """The path, the prefix and the tensors of a file of weights."""
    found = _FILE.fullmatch(init_from)
    if found is None:
        raise InputError(f"init_from={init_from} names no weights file.")
    return found["path"], found["prefix"], read_weights(found["path"])


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

    The trunk includes BatchNorm statistics (SelfMatch's second stage). What it lacks stays new, as
    do optimizer and memory. Leaves keep the dtypes and shardings of ``state``.
    """

    def replaced(kind: str, tree: Mapping[str, Any]) -> dict[str, Any]:
        return _replaced(trunk[kind], tree)

    return state.replace(
        params=replaced("params", state.params),
        stats=replaced("batch_stats", state.stats),
        teacher={kind: replaced(kind, tree) for kind, tree in state.teacher.items()},
    )


def _replaced(new: Mapping[str, Any], old: Mapping[str, Any]) -> dict[str, Any]:
    """``old`` with the leaves of ``new`` at their places.

    Every leaf is a copy: student and teacher must not share buffers, since the step donates both.
    """

    def leaf(value: Any, before: Any) -> Any:
        return put(jnp.array(value, before.dtype, copy=True), before.sharding)

    return {
        **old,
        **{
            name: _replaced(part, old[name]) if isinstance(part, Mapping) else leaf(part, old[name])
            for name, part in new.items()
        },
    }
