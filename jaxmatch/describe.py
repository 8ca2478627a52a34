"""What a configuration will cost, by abstract evaluation: nothing is compiled or computed."""

from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxmatch import build, run_data
from jaxmatch.compilation import operations
from jaxmatch.config import stage_folders
from jaxmatch.data import streaming
from jaxmatch.data.resident import resident
from jaxmatch.dispatch import make_call
from jaxmatch.parallel import device_bytes, tree_bytes


def describe(config: ConfigDict) -> dict[str, Any]:
    """Shapes, parameter count, bytes a device holds, and arithmetic of one step; by stage if any.

    ``operations_per_step`` counts floating-point operations as XLA does before optimization, a
    frozen network's as if it were like the one that is trained.
    """
    if "order" in config:
        return {folder: describe(stage) for folder, stage in stage_folders(config).items()}
    data = run_data.load_new(config)
    parts = build.with_stand_ins(build.build_parts(config, data.facts()))
    optimizer = parts.optim.build(config.steps, parts.model.layers)
    state = jax.eval_shape(lambda: build.build_state(config, parts, optimizer))
    images = resident(data.source, data.split, config.data.include_labeled)
    examples: Any = images
    if config.data.stream:
        examples = streaming.shapes(build.build_plan(config, parts, images), parts.mesh)
    call = make_call(build.build_step(config, parts, optimizer), build.examples_of(parts), 1)
    traced = jax.jit(call).trace(state, examples._replace(frozen=build.stand_ins(parts, state)))
    return {
        "parameters": sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(state.params)),
        "shapes": {
            jax.tree_util.keystr(path, simple=True, separator="/"): list(leaf.shape)
            for path, leaf in jax.tree_util.tree_leaves_with_path(state.params)
        },
        "bytes": {
            **{
                name: device_bytes(getattr(state, name), parts.mesh, config.memory_placement)
                for name in ("params", "stats", "teacher", "optimizer", "memory", "policy")
            },
            "images": tree_bytes(examples),
        },
        "operations_per_step": operations(traced),
        "batch": {"labeled": parts.spec.labeled_batch, "unlabeled": parts.spec.unlabeled_batch},
        "devices": parts.mesh.size,
    }
