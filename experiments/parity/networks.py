"""Replays network cases: weights by formula, outputs, statistics and gradients of one batch."""

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.parity import networks_vit
from experiments.parity.networks_formula import formula_weights, noise
from experiments.parity.networks_official import build_official_model
from experiments.parity.rows import Case, Comparison, UnknownCaseError
from experiments.parity.tensors import find_naming, from_torch, to_torch
from jaxmatch.functional.losses import cross_entropy
from jaxmatch.functional.similarity import normalize
from jaxmatch.models.wide_resnet import STEM_CHANNELS, WideResNet
from jaxmatch.types import Array, Outputs, PyTree

# The network cases do not record these constants of USB's networks, the trajectories do.
USB_CONSTANTS = {
    "drop_rate": 0.0,
    "leaky_relu_negative_slope": 0.1,
    "bn_momentum_torch": 0.001,
    "bn_eps_blocks": 1e-5,
    "bn_eps_final": 1e-3,
}
MOST_CHANNELS = 2**14
FIRST_STRIDES = {"semilearn/nets/wrn/wrn.py": 1, "semilearn/nets/wrn/wrn_var.py": 2}


def replay(case: Case, tolerance: float) -> Comparison:
    """Replay a case of kind "network"; raises UnknownCaseError if the library has no such one."""
    meta = case.meta
    if networks_vit.is_vit(meta):
        return networks_vit.replay(case, tolerance)
    names = [name for name in case.names("check/") if not name.endswith("num_batches_tracked")]
    model = _model_of(case, names)
    images = jnp.asarray(case["in/x"].transpose(0, 2, 3, 1), meta["dtype"])
    shapes = model_shapes(model, images)
    naming = find_naming(names, shapes)
    tensors = {
        name: formula_weights(name, leaf.shape, meta["salt"])
        for name, leaf in _torch_shapes(shapes, naming).items()
    }
    variables = jax.tree.map(jnp.asarray, from_torch(tensors, shapes, naming=naming))
    comparison = Comparison(case, tolerance)
    filled = to_torch(variables, naming=naming)
    comparison.add_each("check", {k: _summary(v) for k, v in filled.items()}, case.under("check/"))
    count = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    comparison.add("n_params", "", count, meta["n_params"])

    evaluate = jax.jit(lambda variables: model.apply(variables, images, train=False))
    label = jnp.asarray(case["in/y"])

    def objective(params: PyTree) -> tuple[Any, Any]:
        outputs, updated = model.apply(
            {"params": params, "batch_stats": variables["batch_stats"]},
            images,
            train=True,
            mutable=["batch_stats"],
        )
        loss = cross_entropy(outputs.logits, label).mean()
        if outputs.heads:  # the reference's loss also weighs the projections, by the formula
            projection = _projection(outputs)
            weights = noise("projw", projection.size, meta["salt"]).reshape(projection.shape)
            loss = loss + (projection * weights).sum()
        return loss, (outputs, updated["batch_stats"])

    (loss, (outputs, stats)), gradient = jax.jit(jax.value_and_grad(objective, has_aux=True))(
        variables["params"]
    )
    after = {"params": variables["params"], "batch_stats": stats}
    results = {
        "eval": evaluate(variables),
        "train": outputs,
        "eval_after_train_forward": evaluate(after),
    }
    for stage, result in results.items():
        quantities = {"logits": result.logits, "feat": result.features}
        if result.heads:
            quantities["proj"] = _projection(result)
        for name, ours in quantities.items():
            key = f"out/{stage}_{name}"
            if key in case:
                comparison.add(key, "", ours, case[key])
    comparison.add("out/loss", "", loss, case["out/loss"])
    _compare_statistics(comparison, case, to_torch({"batch_stats": stats}, naming=naming))
    _compare_gradients(comparison, case, to_torch({"params": gradient}, naming=naming))
    return comparison


def build_model(
    options: Mapping[str, Any],
    names: list[str],
    classes: int,
    dtype: str,
    heads: Mapping[str, Any] = MappingProxyType({}),
) -> WideResNet:
    """USB's WideResNet or WideResNetVar as ``options`` (a case's meta.network) describes it.

    ``names`` are the PyTorch names of its tensors, which tell the convolutions with a bias.
    """
    if options["drop_rate"] != 0 or options["leaky_relu_negative_slope"] != 0.1:
        raise UnknownCaseError("the library has no dropout, and leaky ReLU of slope 0.1 only")
    first, *channels = options["channels"]
    width = options["widen_factor"]
    if [first, *channels] != [
        STEM_CHANNELS,
        *(int(STEM_CHANNELS * width) * 2**group for group in range(len(channels))),
    ]:
        raise UnknownCaseError(f"the library has no WideResNet of channels {options['channels']}")
    with_bias = {
        name.removeprefix("backbone.") for name in names if re.search(r"conv\w+\.bias$", name)
    }
    return WideResNet(
        classes=classes,
        depth=options["depth"],
        width=width,
        groups=len(channels),
        first_stride=options["first_stride"],
        legacy_transition=True,
        padding="torch",
        conv_bias="none" if not with_bias else "stem" if with_bias == {"conv1.bias"} else "all",
        bn_decay=1 - options["bn_momentum_torch"],
        bn_eps=options["bn_eps_blocks"],
        bn_eps_final=options["bn_eps_final"],
        extra_heads=heads,
        param_dtype=jnp.dtype(dtype),
    )


def model_shapes(model: Any, images: jax.Array) -> PyTree:
    """The variables of ``model`` for such images, as shapes only."""
    return jax.eval_shape(lambda: model.init(jax.random.key(0), images[:1], train=False))


def _model_of(case: Case, names: list[str]) -> Any:
    """The network of a case, from the names of its tensors and the shapes of its outputs."""
    meta, file = case.meta, case.meta["source"]["file"]
    if file in FIRST_STRIDES:
        options = meta.get("network") or _options(case, names)
        return build_model(options, names, meta["num_classes"], meta["dtype"])
    stem = "backbone.bn1" if "backbone.bn1.weight" in names else "backbone.layer1.0.bn1"
    return build_official_model(
        names,
        channels=(_channels(case, stem), _channels(case, "backbone.layer1.0.bn2")),
        classes=meta["num_classes"],
        projection=case["out/eval_proj"].shape[1] if "out/eval_proj" in case else 0,
        dtype=meta["dtype"],
    )


def _channels(case: Case, norm: str) -> int:
    """The length of a norm's weight, of which the file has the sum and the formula the values."""
    name = f"{norm}.weight"
    key = f"check/{name}"
    if key not in case:
        raise UnknownCaseError(f"the network of {case.meta['source']['file']} is not known")
    sums = np.cumsum(formula_weights(name, (MOST_CHANNELS,), case.meta["salt"]))
    return int(np.abs(sums - case[key][0]).argmin()) + 1


def _options(case: Case, names: list[str]) -> dict[str, Any]:
    """The architecture of USB's, from the names of the tensors and the width of the features."""
    file = case.meta["source"]["file"]
    groups = len({name.split(".")[0] for name in names if name.startswith("block")})
    blocks = len({name.split(".")[2] for name in names if name.startswith("block1.")})
    channels = case["out/eval_feat"].shape[1] // 2 ** (groups - 1)
    return {
        **USB_CONSTANTS,
        "depth": 6 * blocks + 4,
        "widen_factor": channels / STEM_CHANNELS,
        "first_stride": FIRST_STRIDES[file],
        "channels": [STEM_CHANNELS, *(channels * 2**group for group in range(groups))],
    }


def _projection(outputs: Outputs) -> Array:
    """The normalised embedding that the reference gives."""
    return normalize(outputs.heads["projection"])


def _torch_shapes(shapes: PyTree, naming: str) -> dict[str, np.ndarray]:
    """Tensors of the model by PyTorch name and layout, of which only the shapes count."""
    zeros = jax.tree.map(lambda leaf: np.broadcast_to(np.int8(0), leaf.shape), shapes)
    return to_torch(zeros, naming=naming)


def _summary(value: np.ndarray) -> np.ndarray:
    return np.array([value.sum(), np.square(value).sum(), value.flat[0], value.flat[-1]])


def _compare_statistics(comparison: Comparison, case: Case, ours: dict[str, np.ndarray]) -> None:
    sums = {name: _summary(value)[:2] for name, value in ours.items()}
    prefix = "out/after_train_forward"
    comparison.add_each(prefix, ours, case.under(prefix + "/"))
    comparison.add_each(prefix + "_check", sums, case.under(prefix + "_check/"))


def _compare_gradients(comparison: Comparison, case: Case, ours: dict[str, np.ndarray]) -> None:
    norms = {name: np.array([np.linalg.norm(v), v.sum()]) for name, v in ours.items()}
    comparison.add_each("gradnorm", norms, case.under("gradnorm/"))
    comparison.add_each("grad", ours, case.under("grad/"))
    unused = case.meta["params_without_gradient"]
    comparison.add_each(
        "params_without_gradient", ours, {name: np.zeros_like(ours[name]) for name in unused}
    )
