"""First values of a Vision Transformer from a file, with a report of what was taken and what not.

A file's network must be the run's. Three things may differ, as in timm
(https://github.com/huggingface/pytorch-image-models, ``checkpoint_filter_fn``): the size of the
images, whose position embedding is resized; the number of classes, where the classifier stays new;
and the number of channels, where a kernel of color images serves gray ones. ``rules="usb"`` loads
as USB (https://github.com/microsoft/Semi-supervised-learning, ``load_checkpoint``): it resizes by
its own rule, and classifier and ``fc_norm`` are always new.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxmatch.errors import InputError
from jaxmatch.models.vit import PRESETS, ViT
from jaxmatch.types import PyTree
from jaxmatch.weights.files import check_no_integers
from jaxmatch.weights.positions import Grid, grids, listed, resize_positions, square
from jaxmatch.weights.vit_formats import VitFile, find_vit
from jaxmatch.weights.vit_names import our_layout, parameters, timm_shapes

HEAD = ("head.weight", "head.bias")
FC_NORM = ("fc_norm.weight", "fc_norm.bias")
NORM = ("norm.weight", "norm.bias")
KERNEL = "patch_embed.proj.weight"
NO_SETTING = "; no setting of this library fits"
USUAL_HEAD = 64  # channels of an attention head in nearly all published networks
RULE_NAMES = {"timm": "timm's rule", "usb": "USB's rule", "bilinear": "timm's rule for .npz files"}

Shapes = Mapping[str, tuple[int, ...]]


class Loaded(NamedTuple):
    """The values that a run takes from a file.

    Attributes:
        variables: {"params", "batch_stats"}; modules that stay new are absent.
        report: sentences on what was loaded, changed and left out.
    """

    variables: dict[str, PyTree]
    report: tuple[str, ...]


def read_vit(
    weights: Mapping[str, np.ndarray],
    params: Mapping[str, PyTree],
    *,
    image: tuple[int, int],
    classifier: bool = False,
    prefix: str | None = None,
    rules: str = "timm",
) -> Loaded:
    """The values of a Vision Transformer in a file of tensors.

    Args:
        weights: the file's tensors by name.
        params: of the run's network, or their shapes and dtypes.
        image: (height, width) of its images.
        classifier: take the file's classifier if it has as many classes as the run's.
        prefix: of the network's names in the file; by default the file must hold one network.
        rules: "timm" or "usb".

    Raises:
        InputError: if the file has no such network; it names the first tensor that differs and the
            settings of ``config.model`` that the file needs.
    """
    ours = timm_shapes(params)
    if foreign := [name for name, part in params.items() if not timm_shapes({name: part})]:
        raise InputError(
            f"files of Vision Transformers have no {foreign[0]}; leave out init_heads and "
            "model.head_layers"
        )
    file = find_vit(weights, prefix)
    tensors, report = dict(file.tensors), []
    grid = (image[0] // ours[KERNEL][2], image[1] // ours[KERNEL][3])
    fresh = _new_norm(tensors, ours, rules, report)
    fresh |= _new_classifier(tensors, ours, classifier and rules != "usb", report)
    _adapt_channels(tensors, ours, report)
    needed = {name: shape for name, shape in ours.items() if name not in fresh}
    _check(tensors, needed, grid)
    rule = "usb" if rules == "usb" else file.rule
    tensors["pos_embed"], change = fit_positions(tensors["pos_embed"], ours, grid, rule)
    report += change
    numbers = sum(math.prod(shape) for shape in needed.values())
    opening = f"loaded {len(needed)} tensors ({numbers / 1e6:.3g} million numbers) by the names of "
    return Loaded(
        {"params": _placed(tensors, params, fresh), "batch_stats": {}},
        (opening + file.format, *report, *_left_out(file)),
    )


def fit_positions(
    positions: np.ndarray, ours: Shapes, grid: Grid, rule: str, old: Grid | None = None
) -> tuple[np.ndarray, list[str]]:
    """A position embedding for the run's grid of patches, and a sentence if it was resized.

    Args:
        positions: [1 prefix+n d].
        ours: shapes of the run's network by timm's names.
        grid: the run's.
        rule: a key of :data:`~jaxmatch.weights.positions.RULES`.
        old: the grid of ``positions``; by default the run's if the size is equal, else a square.
    """
    prefix = ours["pos_embed"][1] - math.prod(grid)
    if old is None:
        same = positions.shape[1] == ours["pos_embed"][1]
        old = grid if same else square(positions.shape[1] - prefix)
    resized = resize_positions(positions, grid, prefix=prefix, rule=rule, old=old)
    if old is None or old == grid:
        return resized, []
    before, after = (f"{rows} x {columns}" for rows, columns in (old, grid))
    change = f"resized the position embedding from {before} to {after} patches by "
    return resized, [change + RULE_NAMES[rule]]


def _new_norm(
    tensors: dict[str, np.ndarray], ours: Shapes, rules: str, report: list[str]
) -> set[str]:
    """The names of ``fc_norm`` if it stays new; the file's unused norm is taken out of it."""
    if FC_NORM[0] not in ours:
        return set()
    new = rules == "usb" or FC_NORM[0] not in tensors
    if new:
        why = "USB's rules" if rules == "usb" else "the file has none"
        report.append(f"fc_norm, the norm of the average, is new: {why}")
    for name in (*NORM, *(FC_NORM if new else ())):
        if tensors.pop(name, None) is not None and name == NORM[0]:
            report.append("left out the file's norm before the pooling, which this network lacks")
    return set(FC_NORM) if new else set()


def _new_classifier(
    tensors: dict[str, np.ndarray], ours: Shapes, keep: bool, report: list[str]
) -> set[str]:
    """The classifier's names if it stays new; then it is taken out of the file."""
    theirs = tensors.get(HEAD[0])
    if keep and theirs is not None and theirs.shape == ours.get(HEAD[0]):
        tensors.setdefault(HEAD[1], np.zeros(theirs.shape[0], theirs.dtype))
        report.append(f"the classifier is the file's, of {len(theirs)} classes")
        return set()
    if HEAD[0] in ours:
        why = "the file has none" if theirs is None else f"the file's has shape {theirs.shape}"
        report.append(f"the classifier is new: {why if keep else 'as the configuration says'}")
    for name in HEAD:
        tensors.pop(name, None)
    return set(HEAD)


def _adapt_channels(tensors: dict[str, np.ndarray], ours: Shapes, report: list[str]) -> None:
    """A kernel of gray images is the sum of that of color images over the channels, as in timm."""
    kernel = tensors[KERNEL]
    if kernel.ndim == 4 and kernel.shape[1] == 3 and ours[KERNEL][1] == 1:
        tensors[KERNEL] = kernel.sum(1, keepdims=True)
        report.append("summed the patches' kernel over the channels, for gray images")


def _check(tensors: Mapping[str, np.ndarray], ours: Shapes, grid: Grid) -> None:
    """Refuse a file of another network than ``ours``."""
    theirs = {name: value.shape for name, value in tensors.items()}
    here, there = _described(ours, grid), _described(theirs, grid, here=ours)
    differing = {key: value for key, value in there.items() if value != here[key]}
    if NORM[0] not in ours:  # an average without a norm of its own takes the file's, or a new one
        differing.pop("pool", None)
    wrong = [
        name
        for name in sorted({**ours, **theirs}, key=_as_in_timm)
        if not _fits(name, theirs.get(name), ours.get(name))
    ]
    if not wrong and "class_position" not in differing:
        return
    closest = _closest(theirs, there)
    foreign = [
        name
        for name in {**closest, **theirs}
        if name not in (HEAD if NORM[0] in ours else (*HEAD, *NORM, *FC_NORM))
        and not _fits(name, theirs.get(name), closest.get(name))
    ]
    first = "its position embedding has other rows"
    if named := [name for name in wrong if name in foreign] or wrong:
        sizes = f"{theirs.get(named[0], 'missing')} there and {ours.get(named[0], 'missing')} here"
        first = f"tensor {named[0]!r} is {sizes}"
    remedy = NO_SETTING if foreign else _remedy(there, differing, theirs["pos_embed"][1])
    raise InputError(f"it holds another network: {first}{remedy}")


def _closest(theirs: Shapes, there: Mapping[str, Any]) -> Shapes:
    """The shapes of this library's network of the settings ``there``, without a classifier.

    What differs in ``theirs`` is of an architecture that the library lacks.
    """
    settings = {**there, "depth": 1, "mlp_ratio": there["mlp_ratio"] or 1.0}
    model = ViT(classes=1, heads=1, **settings)
    images = np.zeros((1, model.patch, model.patch, theirs[KERNEL][1]), np.float32)
    found = jax.eval_shape(lambda: model.init(jax.random.key(0), images, False))["params"]
    shapes = {name: shape for name, shape in timm_shapes(found).items() if name not in HEAD}
    blocks = {
        name.replace(".0.", f".{number}.", 1): shape
        for name, shape in shapes.items()
        if name.startswith("blocks.")
        for number in range(max(1, there["depth"]))
    }
    return shapes | blocks


def _fits(name: str, theirs: tuple[int, ...] | None, ours: tuple[int, ...] | None) -> bool:
    if name == "pos_embed" and theirs is not None and ours is not None:
        return len(theirs) == 3 and theirs[0] == 1 and theirs[-1] == ours[-1]
    return theirs == ours


def _described(shapes: Shapes, grid: Grid, here: Shapes | None = None) -> dict[str, Any]:
    """The settings of ``config.model`` that shapes tell, as far as they tell them."""
    kernel = shapes.get(KERNEL, ())
    if len(kernel) != 4 or 0 in kernel:
        raise InputError(f"it has no patch kernel of four dimensions, {KERNEL!r}")
    hidden = _size(shapes, "blocks.0.mlp.fc1.weight", 0)
    ratio = hidden / kernel[0]
    if int(kernel[0] * ratio) < hidden:  # by rounding
        ratio = math.nextafter(ratio, math.inf)
    blocks = {name.split(".")[1] for name in shapes if name.startswith("blocks.")}
    registers = _size(shapes, "reg_token", 1)
    return {
        "patch": kernel[2],
        "width": kernel[0],
        "depth": len(blocks),
        "mlp_ratio": ratio,
        "registers": registers,
        "class_position": _class_position(shapes, registers, grid, here),
        "layer_scale": 1e-5 if "blocks.0.ls1.gamma" in shapes else 0.0,
        "pre_norm": "norm_pre.weight" in shapes,
        "qkv_bias": "blocks.0.attn.qkv.bias" in shapes,
        "pool": "average" if FC_NORM[0] in shapes else "token",
    }


def _size(shapes: Shapes, name: str, axis: int) -> int:
    """The size of an axis of a tensor; 0 if there is no such axis."""
    return dict(enumerate(shapes.get(name, ()))).get(axis, 0)


def _class_position(shapes: Shapes, registers: int, grid: Grid, here: Shapes | None) -> bool:
    """Whether class token and registers have rows of the position embedding."""
    if "pos_embed" not in shapes:
        return True
    rows = _size(shapes, "pos_embed", 1)
    if here is None:
        return rows != math.prod(grid)
    prefix = here["pos_embed"][1] - math.prod(grid)
    if rows == here["pos_embed"][1] or square(rows - prefix):  # as here, if that is possible
        return prefix > 0
    without, beside = square(rows), square(rows - 1 - registers)
    return prefix > 0 if (without is None) == (beside is None) else without is None


def _remedy(there: Mapping[str, Any], differing: Mapping[str, Any], rows: int) -> str:
    """The settings that a file needs whose position embedding has so many ``rows``."""
    usual = {each.name: each.default for each in fields(ViT)}
    names = [
        name
        for name, settings in PRESETS.items()
        if all({**usual, **settings}[key] == value for key, value in there.items())
    ]
    if names and differing:
        # Names of equal shapes differ in the usual size of the images, and in the activation.
        size = f"_{math.isqrt(rows) * there['patch']}"
        best = min(names, key=lambda name: ("quickgelu" in name, not name.endswith(size)))
        # A run of this name has another value by a setting of its own.
        others = " or ".join(f"model.{key}" for key in differing)
        return f"; set --config.model.name={best} and no other {others}"
    settings, guess = dict(differing), ""
    if "width" in settings:
        settings["heads"] = max(1, there["width"] // USUAL_HEAD)
        guess = f" (no file tells the heads: {USUAL_HEAD} channels for each are a guess)"
    if settings.get("pool") == "average":
        settings["fc_norm"] = True
    if not settings:
        return NO_SETTING
    words = " ".join(f"--config.model.{key}={value}" for key, value in settings.items())
    tokens = 1 + there["registers"]
    fitting = grids(rows - tokens) if settings.get("class_position") is False else []
    if not fitting:
        return f"; set {words}{guess}"
    # A square number of rows may also be class token, registers and an oblong grid.
    return (
        f"; set {words}{guess}, or give images of the same grid if its {rows} rows are {tokens} "
        f"tokens and {listed(fitting)} patches"
    )


def _placed(
    tensors: Mapping[str, np.ndarray], params: Mapping[str, PyTree], fresh: set[str]
) -> dict[str, Any]:
    """The tensors at their places in our tree, in its layout and dtypes."""
    placed: dict[str, Any] = {}
    for keys, name, leaf in parameters(params):
        if name is None or name in fresh:
            continue
        at = placed
        for key in keys[:-1]:
            at = at.setdefault(key, {})
        check_no_integers(name, tensors[name])
        at[keys[-1]] = our_layout(tensors[name]).astype(leaf.dtype)
    return placed


def _left_out(file: VitFile) -> list[str]:
    if not file.left_out:
        return []
    begun = sorted({re.split(r"[./]", name)[0] for name in file.left_out})
    names = ", ".join(begun[:5]) + (", ..." if len(begun) > 5 else "")
    return [f"left out {len(file.left_out)} other tensors of the file ({names})"]


def _as_in_timm(name: str) -> tuple[Any, ...]:
    """Sorts tensors as timm does, about: what precedes the blocks first, then them by number."""
    parts = name.split(".")
    stage = 1 if parts[0] == "blocks" else 2 if parts[0] in ("norm", "fc_norm", "head") else 0
    number = int(parts[1]) if stage == 1 and "".join(parts[1:2]).isdigit() else 0
    return stage, number, parts[0] != "patch_embed", name.replace("weight", "a"), name
