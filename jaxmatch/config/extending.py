"""Whether a run can go on for more steps than it was begun with."""

from collections.abc import Mapping
from typing import Any

from jaxmatch.config.dotted import flatten

# The settings on which the steps before the old end depend together with ``steps``, and the values
# with which they do not.
DEPENDENT = {
    "optim.schedule": ("constant",),
    "ema.schedule": ("constant", "warmup"),
    "algorithm.ramp": (0.0,),
    "algorithm.signal": ("none",),
    "algorithm.freeze": (0.0,),
    "algorithm.queue_start": (0.0,),
    "algorithm.open_start": (0.0,),
    "unequal.abc": (0.0,),
}


def dependent(values: Mapping[str, Any]) -> list[str]:
    """The settings ``key=value`` because of which the steps of a run depend on its length."""
    flat = flatten(values)
    return [
        f"{key}={flat[key]}"
        for key, independent in DEPENDENT.items()
        if key in flat
        and flat[key] not in independent
        # Without a queue it does not matter when the queue takes part.
        and not (key == "algorithm.queue_start" and not flat.get("algorithm.queue"))
    ]


def refusal(old: Mapping[str, Any], new: Mapping[str, Any], changed: list[str]) -> str | None:
    """Why a run with the settings ``old`` cannot go on with ``new``; None if it can.

    Args:
        old: saved settings.
        new: settings for the same folder.
        changed: the settings that differ and that identify a run, as
            :func:`jaxmatch.config.saved.differences` gives them.
    """
    if not changed:
        return None
    if [text for text in changed if not text.startswith("steps: ")]:
        return f"another configuration ({'; '.join(changed)})"
    if new["steps"] < old["steps"]:
        return f"more steps ({changed[0]})"
    if because := dependent(new):
        return (
            f"{changed[0]}, and cannot be extended because {' and '.join(because)} follows the "
            "whole run"
        )
    return None
