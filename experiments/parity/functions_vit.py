"""Replays the functions of Vision Transformers: drop path, resized position embeddings, LoRA."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.parity.entries import QUICK_COMPILATION
from experiments.parity.networks_vit import (
    build_vit,
    compare_outputs,
    formula_variables,
    whole_patches,
)
from experiments.parity.rows import Case, Comparison
from experiments.parity.tensors import VIT, to_torch
from jaxmatch.models.lora import LoRADense, lora_scale, merge
from jaxmatch.models.transformer import drop_path, drop_rates
from jaxmatch.types import Array, Outputs, PyTree
from jaxmatch.weights.positions import resize_positions

# Of numbers that passed through float32; PyTorch rounds the places that it reads, too.
SINGLE = 1e-5


def replay_drop_path(case: Case, comparison: Comparison) -> None:
    """The function on recorded masks, the rates of the blocks, and a whole network in training."""
    for tag in case.meta["tags"]:
        _compare_drop_path(case, comparison, tag)
    linear = {name.split("/")[0] for name in case.names("in/linear/")}
    for tag in sorted(linear):
        rate, depth = (case[f"in/linear/{tag}/{name}"].item() for name in ("rate", "depth"))
        for dtype in ("float64", "float32"):
            ours = np.asarray(drop_rates(rate, int(depth), dtype))
            comparison.add(f"out/linear/{dtype}", tag, ours, case[f"out/linear/{tag}/{dtype}"])
    _compare_network(case, comparison)


def _compare_drop_path(case: Case, comparison: Comparison, tag: str) -> None:
    x, cotangent, mask = (
        jnp.asarray(case[f"in/{tag}/{name}"]) for name in ("x", "cotangent", "mask")
    )
    rate = case[f"in/{tag}/rate"].item()

    def objective(x: Array) -> tuple[Array, Array]:
        y = drop_path(x, mask.reshape(-1) != 0, rate)
        return jnp.sum(y * cotangent), y

    (_, y), slope = jax.value_and_grad(objective, has_aux=True)(x)
    comparison.add("out/y", tag, y, case[f"out/{tag}/y"])
    comparison.add("grad/x", tag, slope, case[f"grad/{tag}/x"])


def _compare_network(case: Case, comparison: Comparison) -> None:
    """USB's network, where the branches that each example keeps are the recorded ones."""
    meta = case.meta
    model = build_vit(meta["network"], meta["num_classes"], meta["dtype"], drops=True)
    images = whole_patches(jnp.asarray(case["in/net/x"].transpose(0, 2, 3, 1)), meta)
    cotangent = jnp.asarray(case["in/net/cotangent"])
    kept = np.ones((len(images), model.depth, 2), bool)
    for name, mask in case.under("in/net/mask/").items():
        block, branch = map(int, name.split("/"))
        kept[:, block, branch - 1] = mask.reshape(-1) != 0
    rates = drop_rates(model.drop_path, model.depth, meta["dtype"])
    comparison.add("in/net/rates", "", rates, case["in/net/rates"])
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), images[:1], train=False))
    params = formula_variables(meta, shapes)["params"]

    def objective(params: PyTree) -> tuple[Array, Outputs]:
        outputs: Any = model.apply({"params": params}, images, train=True, draws=jnp.asarray(kept))
        return jnp.sum(outputs.logits * cotangent), outputs

    quick = partial(jax.jit, compiler_options=QUICK_COMPILATION)
    evaluated = quick(partial(model.apply, train=False))({"params": params}, images)
    (loss, trained), slope = quick(jax.value_and_grad(objective, has_aux=True))(params)
    compare_outputs(comparison, case, "out/net/eval_", evaluated)
    compare_outputs(comparison, case, "out/net/train_", trained)
    comparison.add("out/net/loss", "", loss, case["out/net/loss"])
    ours = to_torch({"params": slope}, naming=VIT)
    comparison.add_each("grad/net", ours, case.under("grad/net/"))


def replay_lora(case: Case, comparison: Comparison) -> None:
    """A dense layer with LoRA: its value, gradients of factors and input, and merged kernel."""
    for tag in case.meta["tags"]:
        given = case.under(f"in/{tag}/")
        rank, alpha = int(given["r"]), given["alpha"].item()
        scale = lora_scale(rank, alpha, bool(given["rslora"]))
        comparison.add("out/scaling", tag, scale, case[f"out/{tag}/scaling"])
        frozen = {"kernel": jnp.asarray(given["weight"].T)}
        if "bias" in given:
            frozen["bias"] = jnp.asarray(given["bias"])
        layer = LoRADense(
            len(given["weight"]),
            use_bias="bias" in given,
            param_dtype=given["weight"].dtype,
            rank=rank,
            scale=scale,
        )
        factors = {name.lower(): jnp.asarray(given[name].T) for name in ("lora_A", "lora_B")}

        def objective(
            factors: PyTree,
            x: Array,
            layer: LoRADense = layer,
            frozen: PyTree = frozen,
            cotangent: Any = given["cotangent"],
        ) -> tuple[Array, Any]:
            y = layer.apply({"params": {**frozen, **factors}}, x)
            return jnp.sum(y * cotangent), y

        x = jnp.asarray(given["x"])
        slopes, y = jax.grad(objective, argnums=(0, 1), has_aux=True)(factors, x)
        comparison.add("out/y", tag, y, case[f"out/{tag}/y"])
        base = layer.apply({"params": frozen}, x)
        comparison.add("out/base_y", tag, base, case[f"out/{tag}/base_y"])
        for name in ("lora_A", "lora_B"):
            ours = slopes[0][name.lower()].T
            comparison.add(f"grad/{name}", tag, ours, case[f"grad/{tag}/{name}"])
        comparison.add("grad/x", tag, slopes[1], case[f"grad/{tag}/x"])
        kernel = merge({**frozen, **factors}, scale)["kernel"]
        comparison.add("out/merged_weight", tag, kernel.T, case[f"out/{tag}/merged_weight"])


def replay_positions(case: Case, comparison: Comparison) -> None:
    """Position embeddings for another grid by USB's and timm's rules."""
    for tag, given in case.meta["tags"].items():
        positions = case[f"in/{tag}/posemb"]
        for name in case.names(f"out/{tag}/"):
            rule = "usb" if name == "usb" else "timm"
            ours = resize_positions(
                positions,
                tuple(given["new"]),
                prefix=given["num_prefix_tokens"],
                rule=rule,
                old=tuple(given["old"]),
            )
            single = name == "timm" or given["dtype"] == "float32"
            comparison.add(
                f"out/{name}{'' if given['dtype'] == 'float64' else ', ' + given['dtype']}",
                tag,
                ours,
                case[f"out/{tag}/{name}"],
                at_least=SINGLE if single else 0.0,
            )
