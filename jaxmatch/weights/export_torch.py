"""Exports the weights of a network under the tensor names of a PyTorch code base."""

from pathlib import Path

import jax

from jaxmatch.weights.files import write_weights
from jaxmatch.weights.torch_names import nameable, to_torch
from jaxmatch.weights.trained import Trained
from jaxmatch.weights.transfer import encoder


def export_torch(path: Path, trained: Trained) -> str:
    """Write the tensors that the code base has names for, in PyTorch's layout.

    The classifier of a method without labels is left out, since nothing trained it.
    """
    variables, heads = trained.variables, tuple(trained.algorithm.heads)
    if not trained.algorithm.labeled:
        variables = encoder(variables, trained.algorithm, heads)
    kept, naming = nameable(variables, heads, trained.naming)
    write_weights(path, to_torch(jax.device_get(kept), naming=naming))
    left_out = [head for head in heads if head not in kept["params"]]
    without = f", without the head {' and '.join(left_out)}" if left_out else ""
    return f"{naming} names{without}"
