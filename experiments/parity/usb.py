"""Reads recorded runs of USB: its optimizer, schedule, EMA and network."""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from experiments.parity.algorithms import REPLAYS
from experiments.parity.compare import Names
from experiments.parity.networks import build_model, model_shapes
from experiments.parity.networks_vit import build_vit, is_vit, whole_patches
from experiments.parity.rows import Case, Comparison, UnknownCaseError
from experiments.parity.tensors import find_naming
from experiments.parity.trajectory import Setup, run
from jaxmatch.optim.ema import Ema
from jaxmatch.optim.optimizer import Optim, Parameters, scale_layers
from jaxmatch.types import PyTree, Spec

# Our names by the names in the cases.
OPTIMIZERS: Mapping[str, Literal["sgd", "adamw"]] = {"SGD": "sgd", "AdamW": "adamw"}
# Which parameters decay, by how the cases say which do not.
DECAYS: Mapping[str, Parameters] = {
    r"the \w+ wrapper does not forward": "not_vectors",
    "^every parameter with ndim<=1": "kernels",
    "^every 1-dimensional parameter, pos_embed, cls_token": "kernels",
}
TOKENS = ("pos_embed", "cls_token", "reg_token")


def replay(case: Case, tolerance: float) -> Comparison:
    """Replay a case of kind "train_trajectory"; raises UnknownCaseError where it cannot."""
    setup = read(case)
    comparison = run(case, setup, tolerance)
    compare_rates(comparison, case, setup)
    return comparison


def read(case: Case) -> Setup:
    """The case in the library's terms."""
    meta, given = case.meta, case.meta["hyperparameters"]
    entry = REPLAYS.get(meta["algorithm"])
    if entry is None:
        raise UnknownCaseError(f"algorithm {meta['algorithm']} is not in the library")
    if given.get("amp"):
        raise UnknownCaseError("mixed precision is not replayed")
    heads = entry.build(case).heads
    network, classes, dtype = meta["network"], meta["num_classes"], meta["dtype"]
    return Setup(
        entry=entry,
        model=build_vit(network, classes, dtype, heads)
        if is_vit(meta)
        else build_model(network, case.names("init/"), classes, dtype, heads),
        optim=read_optim(meta),
        ema=read_ema(meta),
        decays=[meta["ema"]["decay"]] * meta["steps"],
        spec=Spec(
            classes=classes,
            steps=given["num_train_iter"],
            unlabeled=given.get("ulb_dest_len", 0),
            labeled_batch=given["batch_size"],
            unlabeled_batch=given["batch_size"] * given["uratio"],
        ),
        steps=meta["schedule"]["num_train_iter"],
        forward="joint" if given["use_cat"] else "separate",
        start=meta["it0"],
    )


def read_optim(meta: Mapping[str, Any]) -> Optim:
    """The optimizer and schedule of a case."""
    given, optimiser, schedule = meta["hyperparameters"], meta["optimiser"], meta["schedule"]
    name = OPTIMIZERS.get(optimiser["name"])
    if name is None or schedule["kind"] != "cosine 7/16" or optimiser.get("dampening", 0) != 0:
        raise UnknownCaseError(f"optimiser {optimiser} with schedule {schedule} is not known")
    return Optim(
        name=name,
        learning_rate=optimiser["lr"],
        warmup_steps=schedule["num_warmup_iter"],
        momentum=optimiser.get("momentum", Optim.momentum),
        nesterov=optimiser.get("nesterov", Optim.nesterov),
        weight_decay=optimiser["weight_decay"],
        decay=read_decay(meta),
        layer_decay=given["layer_decay"],
        clip_norm=given["clip_grad"] or 0.0,
    )


def read_decay(meta: Mapping[str, Any]) -> Parameters:
    """Which parameters of a case decay, by the recorded decays, or else by its words."""
    if known := meta.get("decay_of_param"):
        tokens = [value for name, value in known.items() if name.endswith(TOKENS)]
        return "not_vectors" if any(tokens) else "kernels"
    excluded = meta["optimiser"]["weight_decay_excluded"]
    decays: list[Parameters] = [kind for text, kind in DECAYS.items() if re.search(text, excluded)]
    if not decays:
        raise UnknownCaseError(f"weight decay that excludes {excluded!r} is not known")
    return decays[0]


def read_ema(meta: Mapping[str, Any]) -> Ema:
    """The teacher's average of a case."""
    if not meta["ema"]["buffers"].startswith(("copied", "none in this net")):
        raise UnknownCaseError(f"EMA buffers {meta['ema']['buffers']!r} are not known")
    return Ema(decay=meta["ema"]["decay"], statistics="copied")


def compare_rates(comparison: Comparison, case: Case, setup: Setup) -> None:
    """Hold the layer rule's factors, and their products with the decay, against the recorded."""
    if "lr_scale_of_param" not in case.meta:
        return
    theirs, layers, optim = case.meta["lr_scale_of_param"], setup.model.layers, setup.optim
    images = whole_patches(jnp.asarray(case["batch/0/x_lb"].transpose(0, 2, 3, 1)), case.meta)
    shapes = model_shapes(setup.model, images)
    names = Names(find_naming(theirs, shapes), "")
    params = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), shapes["params"])
    scaling = scale_layers(optim.layer_decay, layers)
    scales, _ = jax.jit(scaling.update)(params, scaling.init(params))
    comparison.add_each("lr_scale_of_param", scalars(names, scales), theirs)

    # What the optimizer does to parameters of 1 at a gradient of 0 is their decay alone.
    changes = {"learning_rate": 1.0, "warmup_steps": 0, "momentum": 0.0, "nesterov": False}
    plain = replace(optim, **changes).build(1, layers)
    zeros = jax.tree.map(jnp.zeros_like, params)
    change, _ = jax.jit(plain.update)(zeros, plain.init(params), params)
    decays = {name: theirs[name] * decay for name, decay in case.meta["decay_of_param"].items()}
    ours = {name: -value for name, value in scalars(names, change).items()}
    comparison.add_each("lr_scale_of_param * decay_of_param", ours, decays)


def scalars(names: Names, tree: PyTree) -> dict[str, np.ndarray]:
    """The first value of each parameter."""
    return {name: value.flat[0] for name, value in names.of(params=tree).items()}
