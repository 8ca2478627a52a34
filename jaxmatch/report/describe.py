"""The cost of a configuration, by abstract evaluation: nothing is compiled or computed."""

from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxmatch.config.stages import stage_folders
from jaxmatch.program import Program
from jaxmatch.record import run_data
from jaxmatch.runtime.compilation import operations
from jaxmatch.runtime.mesh import device_bytes, tree_bytes


def describe(config: ConfigDict) -> dict[str, Any]:
    """Shapes, parameter count, bytes on a device and arithmetic of one step.

    ``operations_per_step`` counts floating-point operations as XLA does before optimization. It
    assumes that a frozen network has the architecture of the trained one.

    Returns:
        A JSON object; of a configuration with stages one for each stage, by its folder's name.

    Raises:
        InputError: if the configuration cannot work.
    """
    if "order" in config:
        return {folder: describe(stage) for folder, stage in stage_folders(config).items()}
    program = Program.build(config, run_data.load_new(config).facts()).with_stand_ins()
    state = program.state
    return {
        "parameters": sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(state.params)),
        "shapes": {
            jax.tree_util.keystr(path, simple=True, separator="/"): list(leaf.shape)
            for path, leaf in jax.tree_util.tree_leaves_with_path(state.params)
        },
        "bytes": {
            **{
                name: device_bytes(getattr(state, name), program.mesh, config.memory_placement)
                for name in ("params", "stats", "teacher", "optimizer", "memory", "policy")
            },
            "images": tree_bytes(program.data._replace(frozen=None)),
        },
        "operations_per_step": operations(program.trace(1)),
        "batch": {"labeled": program.spec.labeled_batch, "unlabeled": program.spec.unlabeled_batch},
        "devices": program.mesh.size,
    }
