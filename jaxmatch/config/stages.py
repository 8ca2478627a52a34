"""Configurations of runs that follow one another, each from the encoder of the one before."""

import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from typing import Any

from ml_collections import ConfigDict, FieldReference

from jaxmatch.errors import InputError
from jaxmatch.weights.transfer import STAGE

# The settings that all stages of a configuration share.
SHARED = ("seed", "minutes", "devices", "memory_placement", "remat", "wandb", "workers")


def make_stages(recipe: str, stages: Mapping[str, ConfigDict]) -> ConfigDict:
    """A configuration of stages; each starts from the encoder of the stage before.

    ``stages`` are configurations by name, in order. They share the settings :data:`SHARED`; others
    are overridden as ``--config.stages.NAME.key=value``.
    """
    *_, last = stages.values()
    shared = {key: FieldReference(last[key]) for key in SHARED}
    config = ConfigDict({"recipe": recipe, "preset": last.preset, "order": tuple(stages)})
    config.update(shared)
    config.stages = {}
    folder = ""
    for number, (name, stage) in enumerate(stages.items(), start=1):
        stage.update(shared)
        stage.init_from = f"{STAGE}{folder}" if folder else ""
        config.stages[name] = stage
        folder = f"{number}_{name}"
    return config


def with_stages(config: ConfigDict, stages: Iterable[ConfigDict]) -> ConfigDict:
    """A copy of a configuration with other settings in its stages, which are given in order."""
    copy = config.copy_and_resolve_references()
    copy.stages = dict(zip(config.order, stages, strict=True))
    return copy


def stages_of(config: Mapping[str, Any] | ConfigDict) -> dict[str, Any]:
    """The stages of a configuration by name, in order; ``{"": config}`` if it has none."""
    return (
        {name: config["stages"][name] for name in config["order"]}
        if "order" in config
        else {"": config}
    )


def scale_notes(config: ConfigDict) -> Iterator[str]:
    """A sentence for each stage whose input is scaled otherwise than its encoder's was."""
    for (before, first), (name, second) in pairwise(stages_of(config).items()):
        if not second.init_from.startswith(STAGE):
            continue
        for key in ("mean", "std"):
            ours, theirs = tuple(second.data[key] or ()), tuple(first.data[key] or ())
            if ours != theirs:
                yield (
                    f"stages.{name}.data.{key} is {ours}, but its encoder comes from stage "
                    f"{before!r} with {theirs}; give both the same."
                )


def stage_folders(config: Mapping[str, Any] | ConfigDict) -> dict[str, Any]:
    """The stages by the name of their folder inside the run folder.

    Raises:
        InputError: if a name has characters that could lead to another folder.
    """
    for name in stages_of(config):
        if name and not re.fullmatch(r"\w+", name):
            raise InputError(f"a stage cannot be called {name!r}: use letters, digits and _.")
    return {f"{n}_{name}": stage for n, (name, stage) in enumerate(stages_of(config).items(), 1)}
