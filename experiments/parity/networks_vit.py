"""Replays the cases of Vision Transformers: outputs, tokens and gradients of one batch."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from experiments.parity.entries import QUICK_COMPILATION
from experiments.parity.networks_formula import formula_weights
from experiments.parity.rows import Case, Comparison, UnknownCaseError
from experiments.parity.tensors import VIT, from_torch, to_torch
from jaxmatch.models.transformer import Block
from jaxmatch.models.vit import ViT
from jaxmatch.optim.optimizer import Optim
from jaxmatch.types import Array, Outputs, PyTree

USB = "VisionTransformer (USB)"
TYPES = (USB, "VisionTransformer (timm)")
POOLS: Mapping[str, Literal["token", "average"]] = {"token": "token", "avg": "average"}
ACTIVATIONS: Mapping[str, Literal["gelu", "quick_gelu"]] = {
    "gelu (exact, erf)": "gelu",
    "gelu (exact)": "gelu",
    "quick_gelu: x*sigmoid(1.702*x)": "quick_gelu",
}
# What a description of a network may hold: its own settings, and those that must be so.
SETTINGS = (
    *("patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio", "global_pool", "fc_norm"),
    *("reg_tokens", "no_embed_class", "init_values", "pre_norm", "norm_eps", "activation"),
    *("drop_path_rate", "qkv_bias"),
)
DEMANDS = {"class_token": True, "drop_rate": 0.0, "attn_drop_rate": 0.0}
SAID_ELSEWHERE = ("type", "entry_point", "kwargs", "img_size", "input_hw", "patch_embed_bias")


def is_vit(meta: Mapping[str, Any]) -> bool:
    """Whether the network of a case is a Vision Transformer."""
    network = meta.get("network")
    return isinstance(network, Mapping) and network.get("type") in TYPES


def build_vit(
    options: Mapping[str, Any],
    classes: int,
    dtype: str,
    heads: Mapping[str, Any] = MappingProxyType({}),
    *,
    drops: bool = False,
) -> ViT:
    """The network that ``options`` (a case's meta.network) describe.

    ``drops`` says that the case records the branches that a drop path keeps.
    """
    unknown = options.keys() - {*SETTINGS, *DEMANDS, *SAID_ELSEWHERE}
    wrong = [key for key, value in DEMANDS.items() if options.get(key, value) != value]
    prefix = "pool_include_prefix"  # told among the arguments of the constructor alone
    wrong += [prefix] if (options.get("kwargs") or {}).get(prefix) else []
    pool, activation = options["global_pool"], options["activation"]
    pre_norm = options.get("pre_norm", False)
    average = pool == "avg"
    fc_norm = options.get("fc_norm", average)
    if options.get("patch_embed_bias", not pre_norm) == pre_norm:
        wrong.append("patch_embed_bias")
    wrong += ["global_pool"] if pool not in POOLS else []
    wrong += ["activation"] if activation not in ACTIVATIONS else []
    wrong += ["fc_norm"] if fc_norm and not average else []
    wrong += ["drop_path_rate"] if options.get("drop_path_rate", 0.0) and not drops else []
    if unknown or wrong:
        raise UnknownCaseError(
            f"a Vision Transformer with other {', '.join(sorted({*unknown, *wrong}))} is not known"
        )
    return ViT(
        classes=classes,
        patch=options["patch_size"],
        width=options["embed_dim"],
        depth=options["depth"],
        heads=options["num_heads"],
        mlp_ratio=options["mlp_ratio"],
        pool=POOLS[pool],
        fc_norm=fc_norm or not average,
        registers=options.get("reg_tokens", 0),
        class_position=not options.get("no_embed_class", False),
        layer_scale=options.get("init_values") or 0.0,
        pre_norm=pre_norm,
        norm_eps=options["norm_eps"],
        activation=ACTIVATIONS[activation],
        drop_path=options.get("drop_path_rate", 0.0),
        qkv_bias=options.get("qkv_bias", True),
        extra_heads=heads,
        param_dtype=jnp.dtype(dtype),
    )


def whole_patches(images: Array, meta: Mapping[str, Any]) -> Array:
    """Images [b h w c] as USB's transformers see them: without rows and columns beyond a patch."""
    if not is_vit(meta) or meta["network"]["type"] != USB:
        return images
    patch, (height, width) = meta["network"]["patch_size"], images.shape[1:3]
    return images[:, : height // patch * patch, : width // patch * patch]


def replay(case: Case, tolerance: float) -> Comparison:
    """Replay a case of kind "network"."""
    meta = case.meta
    model = build_vit(meta["network"], meta["num_classes"], meta["dtype"])
    images = jnp.asarray(case["in/x"].transpose(0, 2, 3, 1), meta["dtype"])
    size, images = images.shape, whole_patches(images, meta)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), images[:1], train=False))
    variables = formula_variables(meta, shapes)
    comparison = Comparison(case, tolerance)
    filled = to_torch(variables, naming=VIT)
    sums = {name: _summary(value) for name, value in filled.items()}
    comparison.add_each("check", sums, case.under("check/"))
    comparison.add("n_params", "", sum(v.size for v in filled.values()), meta["n_params"])
    _compare_groups(comparison, meta, model, variables["params"])

    which = "feat" if not meta["num_classes"] else "logits"
    cotangent = case["in/cotangent_feat" if which == "feat" else "in/cotangent"]

    def objective(params: PyTree, images: Array) -> tuple[Array, Outputs]:
        outputs: Any = model.apply({"params": params}, images, train=True)
        chosen = outputs.features if which == "feat" else outputs.logits
        return jnp.sum(chosen * cotangent), outputs

    @partial(jax.jit, compiler_options=QUICK_COMPILATION)
    def run(params: PyTree) -> tuple[Any, Any, Any]:
        evaluated = model.apply({"params": params}, images, train=False)
        differentiate = jax.value_and_grad(objective, (0, 1), has_aux=True)
        return evaluated, tokens_of(model, params, images), differentiate(params, images)

    evaluated, tokens, ((loss, trained), (gradient, slope)) = run(variables["params"])
    for stage, outputs in {"eval": evaluated, "train": trained}.items():
        compare_outputs(comparison, case, f"out/{stage}_", outputs)
    comparison.add_each("out/tokens", tokens, case.under("out/tokens/"))
    comparison.add("out/loss", "", loss, case["out/loss"])
    ours = to_torch({"params": gradient}, naming=VIT)
    comparison.add_each("grad", ours, case.under("grad/"))
    unseen = [(0, whole - seen) for whole, seen in zip(size, slope.shape, strict=True)]
    slope = jnp.pad(slope, unseen).transpose(0, 3, 1, 2)
    comparison.add("grad_in/x", "", slope, case["grad_in/x"])
    unused = {name: np.zeros_like(ours[name]) for name in meta["params_without_gradient"]}
    comparison.add_each("params_without_gradient", ours, unused)
    return comparison


def formula_variables(meta: Mapping[str, Any], shapes: PyTree) -> PyTree:
    """Variables of such shapes with the values of the weight formula."""
    named = to_torch(
        jax.tree.map(lambda leaf: np.broadcast_to(np.int8(0), leaf.shape), shapes), naming=VIT
    )
    listed = {name: tuple(shape) for name, shape in meta["param_shapes"].items()}
    if listed != {name: value.shape for name, value in named.items()}:
        raise UnknownCaseError("the network has other tensors than meta.param_shapes")
    filled = {name: formula_weights(name, shape, meta["salt"]) for name, shape in listed.items()}
    return jax.tree.map(jnp.asarray, from_torch(filled, shapes, naming=VIT))


def compare_outputs(comparison: Comparison, case: Case, prefix: str, outputs: Outputs) -> None:
    """Hold logits and features against those that the case has under ``prefix``."""
    for name, ours in {"logits": outputs.logits, "feat": outputs.features}.items():
        if prefix + name in case:
            comparison.add(prefix + name, "", ours, case[prefix + name])


def tokens_of(model: ViT, params: PyTree, images: Array) -> dict[str, Array]:
    """The tokens before the first block, after each block, and after a last norm of all tokens."""
    seen: dict[str, Array] = {}

    def keep(function: Any, arguments: Any, options: Any, context: nn.module.InterceptorContext):
        result = function(*arguments, **options)
        if context.method_name == "__call__" and isinstance(context.module, Block):
            number = int(str(context.module.name).removeprefix("block")) - 1
            seen.setdefault("embed", arguments[0])
            seen[str(number)] = seen["final"] = result
        if context.method_name == "__call__" and context.module.path == ("norm",):
            seen["final"] = result
        return result

    # The class token's norm is one of all tokens, of which the library computes only that row.
    same = model.clone(fc_norm=False, pool="average") if model.pool == "token" else model
    with nn.intercept_methods(keep):
        same.apply({"params": params}, images, train=False)
    return seen


def _compare_groups(
    comparison: Comparison, meta: Mapping[str, Any], model: ViT, params: PyTree
) -> None:
    """Hold the layer of each parameter, and whether it decays, against the recorded."""
    decay = 0.5
    optim = Optim(name="adamw", learning_rate=1.0, schedule="constant", weight_decay=decay)
    ones, zeros = (jax.tree.map(f, params) for f in (jnp.ones_like, jnp.zeros_like))

    def rates(optim: Optim, gradient: PyTree) -> dict[str, float]:
        optimizer = optim.build(1, model.layers)
        change, _ = optimizer.update(gradient, optimizer.init(ones), ones)
        named = to_torch({"params": change}, naming=VIT)
        return {name: -float(value.flat[0]) for name, value in named.items()}

    plain = replace(optim, weight_decay=0.0)
    full, scaled = rates(plain, ones), rates(replace(plain, layer_decay=decay), ones)
    ids = {name: len(model.layers) - 1 + np.log2(scaled[name] / full[name]) for name in scaled}
    comparison.add_each("layer_id_of_param", ids, meta["layer_id_of_param"])
    decayed = {name: value != 0 for name, value in rates(optim, zeros).items()}
    exempt = meta["no_weight_decay"]
    theirs = {
        name: len(shape) > 1 and name not in exempt for name, shape in meta["param_shapes"].items()
    }
    comparison.add_each("weight decay", decayed, theirs)


def _summary(value: np.ndarray) -> np.ndarray:
    return np.array([value.sum(), np.square(value).sum(), value.flat[0], value.flat[-1]])
