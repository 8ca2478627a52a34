"""Notes on settings that others turn off; those of views have :mod:`jaxmatch.config.views`."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict


def _is(value: Any) -> Callable[[Any], bool]:
    return lambda found: found == value


def _not(value: Any) -> Callable[[Any], bool]:
    return lambda found: found != value


# For a setting the other one that it depends on, and whether it has an effect under its value.
EFFECTIVE: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    "algorithm.temperature": ("algorithm.hard_labels", _is(False)),
    "optim.drops": ("optim.schedule", _is("steps")),
    "optim.drop_factor": ("optim.schedule", _is("steps")),
    "optim.trust_ratio": ("optim.name", _is("lars")),
    "optim.trust_coefficient": ("optim.name", _is("lars")),
    "optim.adapted": ("optim.name", _is("lars")),
    "optim.momentum": ("optim.name", _not("adamw")),
    "optim.nesterov": ("optim.name", _not("adamw")),
    "optim.rate_inside_momentum": ("optim.name", _not("adamw")),
    "unequal.align_momentum": ("unequal.align", _not("none")),
    "unequal.abc_threshold": ("unequal.abc", _not(0)),
    "unequal.debias_momentum": ("unequal.debias", _not(0)),
}


def notes(config: ConfigDict, overrides: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """A sentence for each override that has no effect.

    Args:
        config: of the run, with its overrides.
        overrides: the values by dotted key that the user gave.
        prefix: of the keys in the sentences, for a stage of a run.
    """
    for key in sorted(overrides.keys() & EFFECTIVE.keys()):
        other, effective = EFFECTIVE[key]
        section, _, name = other.partition(".")
        # SimMatch has a temperature, too, but no hard labels.
        if name in config[section] and not effective(config[section][name]):
            yield (
                f"--config.{prefix}{key}={overrides[key]} has no effect: {prefix}{other} is "
                f"{config[section][name]}."
            )
