"""Stages: each starts from the encoder of the one before (SelfMatch)."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxmatch.config.own import with_usual_input
from jaxmatch.config.stages import stages_of
from jaxmatch.data.facts import Facts
from jaxmatch.program import Program
from jaxmatch.weights.transfer import (
    check_encoder,
    source_encoder,
    target_encoder,
    with_fitting_positions,
)


def check(config: ConfigDict, facts: Sequence[Facts]) -> None:
    """Check every stage before the first one trains.

    Args:
        config: of a run in stages.
        facts: of each stage's data.

    Raises:
        InputError: if a stage cannot work, or its network does not fit that of the stage before.
    """
    before, image_before = None, (0, 0)
    for stage, facts_of_stage in zip(stages_of(config).values(), facts, strict=True):
        program = Program.build(with_usual_input(stage), facts_of_stage)
        network, image = jax.tree.map(_zeros, program.state.student()), program.image_shape[:2]
        if before is not None:
            expected = target_encoder(network, program.algorithm, stage)
            trunk, _ = with_fitting_positions(
                source_encoder(*before, stage),
                expected,
                images=(image_before, image),
                rule=stage.init_rules,
            )
            check_encoder(trunk, expected, stage.init_from)
        before, image_before = (network, program.algorithm), image


def summarise(summaries: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The last stage's summary with the costs of all stages together, and each stage's summary."""
    stages = list(summaries.values())
    seen = {
        kind: sum(stage["images_seen"][kind] for stage in stages)
        for kind in ("labeled", "unlabeled")
    }
    totals = {key: sum(stage[key] for stage in stages) for key in ("forward_images", "seconds")}
    return {**stages[-1], **totals, "images_seen": seen, "stages": summaries}


def _zeros(leaf: jax.ShapeDtypeStruct) -> np.ndarray:
    """Zeros that take no memory."""
    return np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape)
