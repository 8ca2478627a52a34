"""Notes on settings that others turn off; those of views have :mod:`jaxmatch.config.views`."""

from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

# The settings that have an effect under one value of another alone: {key: (that one, the value)}.
NEEDS: Mapping[str, tuple[str, Any]] = {
    "algorithm.temperature": ("algorithm.hard_labels", False),
    "optim.drops": ("optim.schedule", "steps"),
    "optim.drop_factor": ("optim.schedule", "steps"),
    "optim.trust_ratio": ("optim.name", "lars"),
    "optim.trust_coefficient": ("optim.name", "lars"),
    "optim.adapted": ("optim.name", "lars"),
}
# The settings that one value of another turns off.
TURNED_OFF: Mapping[str, tuple[str, Any]] = {
    "optim.momentum": ("optim.name", "adamw"),
    "optim.nesterov": ("optim.name", "adamw"),
    "optim.rate_inside_momentum": ("optim.name", "adamw"),
    "unequal.align_momentum": ("unequal.align", "none"),
    "unequal.abc_threshold": ("unequal.abc", 0),
    "unequal.debias_momentum": ("unequal.debias", 0),
}


def notes(config: ConfigDict, overrides: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """A sentence for each override that has no effect.

    Args:
        config: of the run, with its overrides.
        overrides: the values by dotted key that the user gave.
        prefix: of the keys in the sentences, for a stage of a run.
    """
    for key, value in overrides.items():
        other, named = {**NEEDS, **TURNED_OFF}.get(key, ("", None))
        section, _, name = other.partition(".")
        if not other or name not in config[section]:  # SimMatch's temperature needs nothing
            continue
        found = config[section][name]
        if (found == named) == (key in TURNED_OFF):
            yield f"--config.{prefix}{key}={value} has no effect: {prefix}{other} is {found}."
