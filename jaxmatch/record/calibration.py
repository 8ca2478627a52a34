"""The content of ``calibration.json``: the temperatures of the networks at some steps of a run.

The object is that of the newest of these steps: ``step``, ``images`` (of the validation set) and,
for ``teacher`` and ``student``, ``temperature`` and two metrics ``before`` and ``after`` it is
applied. ``other_steps`` has the same of earlier steps by their number, such as that of the best
checkpoint.
"""

import math
from collections.abc import Mapping
from typing import Any

NETWORKS = ("teacher", "student")
OTHERS = "other_steps"

Calibrations = Mapping[int, Mapping[str, Any]]


def to_json(found: Calibrations) -> dict[str, Any]:
    """The content of the file for the calibrations ``found`` of at least one step."""
    *earlier, newest = sorted(found)
    others = {str(step): dict(found[step]) for step in earlier}
    return {"step": newest, **found[newest], **({OTHERS: others} if others else {})}


def from_json(content: Mapping[str, Any]) -> dict[int, dict[str, Any]]:
    """The calibrations by their step.

    Raises:
        ValueError: if something is missing or no calibration; it says what.
    """
    newest, others = dict(content), {}
    step, others = newest.pop("step", None), newest.pop(OTHERS, {})
    if type(step) is not int or not isinstance(others, dict):
        raise ValueError("the step is missing")
    if not all(number.isdecimal() for number in others):
        raise ValueError(f"{OTHERS} has other names than numbers")
    found = {**{int(number): each for number, each in others.items()}, step: newest}
    for number, each in found.items():
        if not _is_calibration(each):
            raise ValueError(f"the temperatures of step {number} are incomplete")
    return found


def _is_calibration(found: Any) -> bool:
    if not isinstance(found, dict) or type(found.get("images")) is not int:
        return False
    networks = [found.get(network) for network in NETWORKS]
    return all(isinstance(each, dict) and _is_of_network(each) for each in networks)


def _is_of_network(found: Mapping[str, Any]) -> bool:
    temperature = found.get("temperature", 0)
    if not _is_number(temperature) or temperature <= 0:
        return False
    metrics = [found.get(when) for when in ("before", "after")]
    return all(isinstance(each, dict) and all(map(_is_number, each.values())) for each in metrics)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
