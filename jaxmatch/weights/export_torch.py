"""Exports the weights of a network under the tensor names of a PyTorch code base."""

from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from jaxmatch.errors import InputError
from jaxmatch.types import PyTree
from jaxmatch.weights.files import write_weights
from jaxmatch.weights.torch_names import nameable, to_torch
from jaxmatch.weights.trained import Trained
from jaxmatch.weights.transfer import encoder
from jaxmatch.weights.vit_names import NAMING, is_vit, parameters, to_timm

NAMINGS_OF_VITS = (NAMING, "usb")  # USB's networks have timm's names


def export_torch(path: Path, trained: Trained) -> str:
    """Write the tensors that the code base has names for, in PyTorch's layout.

    The classifier of a method without labels is left out, since nothing trained it.
    """
    variables, heads = trained.variables, tuple(trained.algorithm.heads)
    if not trained.algorithm.labeled:
        variables = encoder(variables, trained.algorithm, heads)
    if is_vit(variables["params"]):
        tensors, naming = _vit_tensors(variables["params"], heads, trained.naming)
        left_out = [head for head in heads if head in variables["params"]]
    else:
        kept, naming = nameable(variables, heads, trained.naming)
        tensors = to_torch(jax.device_get(kept), naming=naming)
        left_out = [head for head in heads if head not in kept["params"]]
    write_weights(path, tensors)
    without = f", without the head {' and '.join(left_out)}" if left_out else ""
    return f"{naming} names{without}"


def _vit_tensors(
    params: PyTree, heads: Sequence[str], naming: str | None
) -> tuple[dict[str, np.ndarray], str]:
    """A Vision Transformer's tensors without those of ``heads``, and the naming."""
    if naming not in (None, *NAMINGS_OF_VITS):
        raise InputError(
            f"a Vision Transformer has no names in {naming}; leave out --naming, or give "
            f"{' or '.join(NAMINGS_OF_VITS)}."
        )
    nameless = {keys[0] for keys, name, _ in parameters(params) if name is None} - {*heads}
    if nameless:
        raise InputError(
            f"timm's networks have no {min(nameless)}; export the network as .stablehlo or .onnx."
        )
    return to_timm(jax.device_get(params)), naming or NAMING
