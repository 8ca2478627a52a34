"""Replays recorded training steps through the library's own train step and loss.

Optimizer, schedule, EMA, network and loss are the library's. Only the augmentation is replaced, by
the recorded views.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.parity.algorithms import (
    COMMON_QUANTITIES,
    REPLAYS,
    Argument,
    Meta,
    Quantities,
    Replay,
)
from experiments.parity.networks import build_model, model_shapes
from experiments.parity.recording import (
    PASSES,
    RecordedViews,
    RecordingAlgorithm,
    RecordingModel,
    keep_gradient,
)
from experiments.parity.rows import Case, Comparison, UnknownCaseError
from jaxmatch.models.network import make_network
from jaxmatch.models.torch_weights import from_torch, to_torch
from jaxmatch.models.wide_resnet import WideResNet
from jaxmatch.optim import Ema, Optim, scale_layers
from jaxmatch.step import make_train_step
from jaxmatch.types import Array, Batch, Examples, PyTree, Ratio, Spec, TrainState

# The networks are tiny: XLA's optimization would take most of the time.
QUICK_COMPILATION = {"xla_backend_optimization_level": 0}


def replay(case: Case, tolerance: float) -> Comparison:
    """Replay a case of kind "train_trajectory"; raises UnknownCaseError where it cannot."""
    meta = case.meta
    entry = REPLAYS.get(meta["algorithm"])
    if entry is None:
        raise UnknownCaseError(f"algorithm {meta['algorithm']} is not in the library")
    if meta["hyperparameters"].get("amp"):
        raise UnknownCaseError("mixed precision is not replayed")
    quantities = {**COMMON_QUANTITIES, **entry.quantities(meta)}
    init = case.under("init/")
    batches = [read_batch(case, step, entry.views) for step in range(meta["steps"])]
    model = build_model(meta["network"], list(init), meta["num_classes"], meta["dtype"])
    optim = read_optim(meta)
    state, step = build(meta, entry, quantities, model, optim, init, batches[0])

    comparison = Comparison(case, tolerance)
    compare_rates(comparison, meta, optim, model, state.params)
    for number, batch in enumerate(batches):
        state, metrics = step(state, batch)
        if number == 0:
            compare_gradient(comparison, case, state.optimizer[0], entry.source)
        compare_step(comparison, case, number, metrics, quantities, entry.source)
    compare_variables(comparison, case, "final", state.student(), init, entry.source)
    compare_variables(comparison, case, "ema", state.teacher, init, entry.source)
    return comparison


def build(
    meta: Meta,
    entry: Replay,
    quantities: Quantities,
    model: WideResNet,
    optim: Optim,
    init: Mapping[str, np.ndarray],
    batch: Batch,
) -> tuple[TrainState, Callable]:
    """The state before the first step, at the recorded iteration, and the compiled step."""
    given, steps = meta["hyperparameters"], meta["schedule"]["num_train_iter"]
    assert batch.labeled is not None
    shapes = model_shapes(model, batch.labeled.views[0])
    variables = jax.tree.map(jnp.asarray, from_torch(init, shapes))
    variables["batch_stats"][PASSES] = jnp.zeros((), jnp.int32)
    spec = Spec(
        classes=meta["num_classes"],
        steps=given["num_train_iter"],
        unlabeled=given.get("ulb_dest_len", 0),
        labeled_batch=given["batch_size"],
        unlabeled_batch=given["batch_size"] * given["uratio"],
    )
    logits: list[Array] = []
    wanted = {key: value for key, value in quantities.items() if isinstance(value, Argument)}
    algorithm: Any = RecordingAlgorithm(entry.build(meta), logits, wanted)
    forward = "joint" if given["use_cat"] else "separate"
    network = make_network(RecordingModel(model, logits), forward=forward)
    optimizer = keep_gradient(optim.build(steps, model.layers))
    step = make_train_step(
        algorithm, network, RecordedViews(), optimizer, optim.rate(steps), read_ema(meta), spec
    )
    # Only the schedule goes on from an earlier step: momentum and Adam's moments start anew.
    optimizer_state: Any = optimizer.init(variables["params"])
    *moments, schedule = optimizer_state
    schedule = schedule._replace(count=jnp.asarray(meta["it0"], jnp.int32))
    state = TrainState(
        step=jnp.asarray(meta["it0"], jnp.int32),
        key=jax.random.key(0),
        params=variables["params"],
        stats=variables["batch_stats"],
        teacher=variables,
        optimizer=(*moments, schedule),
        memory=algorithm.init(jax.random.key(0), spec),
        policy=(),
    )
    return state, jax.jit(step, compiler_options=QUICK_COMPILATION)


def read_batch(case: Case, step: int, views: tuple[str, ...]) -> Batch:
    """The recorded inputs of one step, NCHW to NHWC."""

    def images(name: str) -> Array:
        values = case[f"batch/{step}/{name}"].transpose(0, 2, 3, 1)
        return jnp.asarray(values, case.meta["dtype"])

    def integers(name: str) -> Array | None:
        key = f"batch/{step}/{name}"
        return jnp.asarray(case[key], jnp.int32) if key in case else None

    labeled = Examples((images("x_lb"),), integers("y_lb"), integers("idx_lb"))
    if not views:
        return Batch(labeled, None)
    return Batch(labeled, Examples(tuple(map(images, views)), None, integers("idx_ulb")))


def read_optim(meta: Meta) -> Optim:
    """The optimizer and schedule of a case."""
    given, optimiser, schedule = meta["hyperparameters"], meta["optimiser"], meta["schedule"]
    excluded = optimiser["weight_decay_excluded"]
    name = {"SGD": "sgd", "AdamW": "adamw"}.get(optimiser["name"])
    if name is None or schedule["kind"] != "cosine 7/16" or optimiser["dampening"] != 0:
        raise UnknownCaseError(f"optimiser {optimiser} with schedule {schedule} is not known")
    if not excluded.startswith("every parameter with ndim<=1"):
        raise UnknownCaseError(f"weight decay that excludes {excluded!r} is not known")
    return Optim(
        name=name,
        learning_rate=optimiser["lr"],
        warmup_steps=schedule["num_warmup_iter"],
        momentum=optimiser["momentum"],
        nesterov=optimiser["nesterov"],
        weight_decay=optimiser["weight_decay"],
        decay="kernels",
        layer_decay=given["layer_decay"],
        clip_norm=given["clip_grad"] or 0.0,
    )


def read_ema(meta: Meta) -> Ema:
    """The teacher's average of a case."""
    if not meta["ema"]["buffers"].startswith("copied"):
        raise UnknownCaseError(f"EMA buffers {meta['ema']['buffers']!r} are not known")
    return Ema(decay=meta["ema"]["decay"], statistics="copied")


def compare_step(
    comparison: Comparison,
    case: Case,
    step: int,
    metrics: Mapping[str, Array | Ratio],
    quantities: Quantities,
    source: str,
) -> None:
    """Hold losses, masks, labels and logits of one step against the recorded ones."""
    for name in case.names(f"fwd/{step}/"):
        if f"fwd/{name}" in metrics:
            theirs = case[f"fwd/{step}/{name}"]
            comparison.add(f"fwd/{name}", str(step), metrics[f"fwd/{name}"], theirs, source)
    for name in case.names(f"out/{step}/"):
        known = quantities.get(name)
        key = name if isinstance(known, Argument) else known
        if key is not None and key in metrics:
            ours = metrics[key]
            ours = ours.total / ours.count if isinstance(ours, Ratio) else ours
            comparison.add(f"out/{name}", str(step), ours, case[f"out/{step}/{name}"], source)


def compare_gradient(comparison: Comparison, case: Case, gradient: PyTree, source: str) -> None:
    """Hold the first step's gradient against the recorded one, and against 0 where none is."""
    ours = to_torch({"params": gradient})
    theirs = case.under("grad/0/")
    comparison.add_each("grad/0", ours, theirs, source=source)
    unused = {name: np.zeros_like(value) for name, value in ours.items() if name not in theirs}
    if set(unused) != set(case.meta["params_without_gradient"]):
        raise UnknownCaseError("grad/0 and meta.params_without_gradient contradict each other")
    comparison.add_each("grad/0 of unused parameters", ours, unused, source=source)


def compare_variables(
    comparison: Comparison,
    case: Case,
    name: str,
    variables: Mapping[str, PyTree],
    init: Mapping[str, np.ndarray],
    source: str,
) -> None:
    """Hold parameters, statistics and the count of statistics updates against the recorded."""
    stats = dict(variables["batch_stats"])
    passes = stats.pop(PASSES)
    ours = to_torch({"params": variables["params"], "batch_stats": stats})
    for tensor, theirs in case.under(f"{name}/").items():
        if tensor.endswith("num_batches_tracked"):
            kind, value = "num_batches_tracked", init[tensor] + passes
        else:
            kind = "statistics" if ".running_" in tensor else "parameters"
            value = ours.get(tensor, np.nan)
        comparison.add(f"{name}/{kind}", tensor, value, theirs, source)


def compare_rates(
    comparison: Comparison, meta: Meta, optim: Optim, model: WideResNet, params: PyTree
) -> None:
    """Hold the layer rule's factors, and their products with the decay, against the recorded."""
    if "lr_scale_of_param" not in meta:
        return
    theirs = meta["lr_scale_of_param"]
    ones = jax.tree.map(jnp.ones_like, params)
    scaling = scale_layers(optim.layer_decay, model.layers)
    scales, _ = jax.jit(scaling.update)(ones, scaling.init(params))
    comparison.add_each("lr_scale_of_param", _scalars(scales), theirs)

    # What the optimizer does to parameters of 1 at a gradient of 0 is their decay alone.
    plain = replace(optim, learning_rate=1.0, warmup_steps=0).build(1, model.layers)
    zeros = jax.tree.map(jnp.zeros_like, params)
    change, _ = jax.jit(plain.update)(zeros, plain.init(params), ones)
    decays = {name: theirs[name] * decay for name, decay in meta["decay_of_param"].items()}
    ours = {name: -value for name, value in _scalars(change).items()}
    comparison.add_each("lr_scale_of_param * decay_of_param", ours, decays)


def _scalars(tree: PyTree) -> dict[str, np.ndarray]:
    return {name: value.flat[0] for name, value in to_torch({"params": tree}).items()}
