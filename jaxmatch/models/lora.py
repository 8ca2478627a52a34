"""LoRA: a dense layer's kernel W stays as it is, and a product of two narrow matrices is added.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022,
https://arxiv.org/abs/2106.09685. The scale alpha / sqrt(r) is that of rsLoRA: Kalajdzievski, "A
Rank Stabilization Scaling Factor for Fine-Tuning with LoRA", 2023,
https://arxiv.org/abs/2312.03732. Initial values are PEFT's (https://github.com/huggingface/peft).
"""

import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from flax.linen.dtypes import promote_dtype

from jaxmatch.models.heads import UNIFORM_FAN_IN
from jaxmatch.optim.trained import FACTORS
from jaxmatch.types import Array, PyTree


def lora_scale(rank: int, alpha: float, rank_stabilized: bool = False) -> float:
    """The factor s of the product: alpha / r, or alpha / sqrt(r) where the rank is stabilized."""
    return alpha / (math.sqrt(rank) if rank_stabilized else rank)


class LoRADense(nn.Dense):
    """A dense layer y = x W + b + s (x A) B.

    A [in r] starts uniform within +-1 / sqrt(in) and B [r out] at zero, so the layer starts as the
    dense layer. Parameters without A and B, as :func:`merge` returns them, give x W + b.

    Attributes:
        rank: r.
        scale: s, of :func:`lora_scale`.
    """

    rank: int = 8
    scale: float = 1.0

    @nn.compact
    def __call__(self, inputs: Array) -> Array:
        """Map ``inputs`` [... in] to [... out]."""
        y = super().__call__(inputs)
        if not self.is_initializing() and not self.has_variable("params", FACTORS[0]):
            return y
        shapes = ((inputs.shape[-1], self.rank), (self.rank, self.features))
        starts = (UNIFORM_FAN_IN, nn.initializers.zeros)
        factors = [
            self.param(name, start, shape, self.param_dtype)
            for name, start, shape in zip(FACTORS, starts, shapes, strict=True)
        ]
        x, down, up = promote_dtype(inputs, *factors, dtype=self.dtype)
        return y + self.scale * ((x @ down) @ up)


def merge(params: Mapping[str, PyTree], scale: float) -> dict[str, Any]:
    """Parameters without LoRA whose layers give the same: each kernel is W + s A B.

    Sums are in the wider of float32 and the kernel's dtype, and have the kernel's dtype at the end.

    Args:
        params: of a network, or of a part of one; without LoRA they are returned as they are.
        scale: s, of :func:`lora_scale`.
    """
    found = {
        name: merge(value, scale) if isinstance(value, Mapping) else value
        for name, value in params.items()
        if name not in FACTORS
    }
    if FACTORS[0] in params:
        kernel = params["kernel"]
        wide = jnp.promote_types(kernel.dtype, jnp.float32)
        down, up = (jnp.asarray(params[name], wide) for name in FACTORS)
        product = jnp.matmul(down, up, precision="highest")
        found["kernel"] = (kernel.astype(wide) + scale * product).astype(kernel.dtype)
    return found


def without_factors(params: Mapping[str, PyTree]) -> dict[str, Any]:
    """The parameters, or their shapes, without A and B; the kernels stay as they are."""
    return {
        name: without_factors(value) if isinstance(value, Mapping) else value
        for name, value in params.items()
        if name not in FACTORS
    }


def merged(model: Any, variables: Mapping[str, PyTree]) -> dict[str, Any]:
    """The variables of a ``model``, with :func:`merge` where it has LoRA."""
    if not getattr(model, "lora_rank", 0):
        return dict(variables)
    scale = lora_scale(model.lora_rank, model.lora_alpha, model.lora_rank_stabilized)
    return {**variables, "params": merge(variables["params"], scale)}
