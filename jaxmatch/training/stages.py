"""Stages: each starts from the encoder of the one before (SelfMatch)."""

from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from jaxmatch.config.own import with_usual_input
from jaxmatch.config.stages import stages_of
from jaxmatch.data.facts import Facts
from jaxmatch.program import Program
from jaxmatch.weights.transfer import check_encoder, source_encoder, target_encoder


def check(config: ConfigDict, facts: Sequence[Facts]) -> None:
    """Check every stage before the first one trains.

    Args:
        config: of a run in stages.
        facts: of each stage's data.

    Raises:
        InputError: if a stage cannot work, or its network does not fit that of the stage before.
    """
    before = None
    for stage, facts_of_stage in zip(stages_of(config).values(), facts, strict=True):
        program = Program.build(with_usual_input(stage), facts_of_stage)
        network = program.state.student()
        if before is not None:
            expected = target_encoder(network, program.algorithm, stage)
            check_encoder(source_encoder(*before, stage), expected, stage.init_from)
        before = (network, program.algorithm)


def summarise(summaries: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The last stage's summary with the costs of all stages together, and each stage's summary."""
    stages = list(summaries.values())
    seen = {
        kind: sum(stage["images_seen"][kind] for stage in stages)
        for kind in ("labeled", "unlabeled")
    }
    totals = {key: sum(stage[key] for stage in stages) for key in ("forward_images", "seconds")}
    return {**stages[-1], **totals, "images_seen": seen, "stages": summaries}
