"""Settings for k times the batch, with which a run sees the same images at the same pace.

The learning rate follows a rule: "linear" (times k; Goyal et al., "Accurate, Large Minibatch SGD",
2017, https://arxiv.org/abs/1706.02677), "sqrt" (times its root; Krizhevsky, "One weird trick for
parallelizing convolutional neural networks", 2014, https://arxiv.org/abs/1404.5997) or "none".
Numbers of steps and of batches are divided by k. A moving average with the decay d takes d^k
(Busbridge et al., "How to Scale Your EMA", NeurIPS 2023, https://arxiv.org/abs/2307.13813).
"""

import math
from typing import Any

from ml_collections import ConfigDict

from jaxmatch.config.dotted import flatten, put
from jaxmatch.config.layers import Recipe
from jaxmatch.errors import InputError, suggest

KEYS = ("scale", "rule")
RULES = {"linear": lambda factor: factor, "sqrt": math.sqrt, "none": lambda factor: 1.0}
# These stay multiples of steps_per_call, which does not change.
PERIODS = ("steps", "log_every", "eval_every", "save_every", "algorithm.refresh_steps")
BATCHES = ("algorithm.alignment_length", "algorithm.queue_batches")
AVERAGES = ("ema.decay", "model.bn_decay")
# These averages run over visits to an example, so the batch does not matter.
BY_VISIT = {("temporal_ensembling", "momentum"), ("simmatch", "bank_momentum")}


def split_argument(argument: str) -> tuple[str, float, str]:
    """Take ``scale=K`` and ``rule=NAME`` out of a configuration's argument.

    Returns:
        The rest of the argument, K (default 1) and the rule (default "linear").

    Raises:
        InputError: if K is not a positive number, if there is a rule without K, or if one of them
            has two values.
    """
    data, *pairs = argument.split(",")
    parts = [pair.partition("=") for pair in pairs]
    chosen: dict[str, str] = {}
    for key, _, value in parts:
        if key in KEYS and chosen.setdefault(key, value) != value:
            raise InputError(
                f"{key}={chosen[key]} and {key}={value} are both given; leave one out."
            )
    rest = ",".join([data, *("".join(part) for part in parts if part[0] not in KEYS)])
    if "rule" in chosen and "scale" not in chosen:
        raise InputError(f"rule={chosen['rule']} needs scale=K, the factor of the batch.")
    try:
        factor = float(chosen.get("scale", 1))
    except ValueError:
        factor = math.nan
    if not 0 < factor < math.inf:
        raise InputError(f"scale={chosen['scale']} is not a positive number; give one such as 8.")
    return rest, factor, chosen.get("rule", "linear")


def scale(config: ConfigDict, factor: float, rule: str = "linear") -> list[str]:
    """Change a configuration, or each of its stages, to ``factor`` times the batch, in place.

    Args:
        config: a configuration, as ``get_config`` of a config file returns it.
        factor: k; below 1 for a smaller batch.
        rule: rule of the learning rate (see the module).

    Returns:
        A note ``key: old -> new`` for each changed value; that of the learning rate names the rule.

    Raises:
        InputError: if the rule is unknown, or if a size would not be a whole number.
    """
    if rule not in RULES:
        raise InputError(f"unknown rule {rule!r}; {suggest(rule, RULES)}")
    if factor == 1:
        return []
    if "order" in config:
        return [
            f"stages.{name}.{note}"
            for name in config.order
            for note in scale(config.stages[name], factor, rule)
        ]
    flat = flatten(config)
    if flat["data.batch_size"] is None:
        raise InputError(
            f"scale={factor:g} multiplies a batch that size={config.size} chooses only when the "
            "images are known; leave scale out and give data.batch_size, or size=paper."
        )
    notes = []
    for key, old in flat.items():
        new = _scaled(key, old, flat, factor, rule)
        if new != old:
            put(config, key, new)
            if isinstance(config, Recipe):
                config.scale_start(key, old, new)
            by = f" ({rule})" if key == "optim.learning_rate" else ""
            notes.append(f"{key}: {old} -> {new}{by}")
    return notes


def _scaled(key: str, old: Any, flat: dict[str, Any], factor: float, rule: str) -> Any:
    """The value of a dotted key for ``factor`` times the batch."""
    section, _, name = key.rpartition(".")
    if key == "data.batch_size" or (key == "model.bn_groups" and old > 1):
        if old * factor % 1:
            raise InputError(
                f"scale={factor:g} makes {key} {old * factor:g}, which is not a whole number; give "
                "another scale."
            )
        return int(old * factor)
    if key == "optim.learning_rate":
        return old * RULES[rule](factor)
    if key in PERIODS:
        call = flat["steps_per_call"]
        return max(1, round(old / factor / call)) * call
    if key == "optim.period_steps" and old == 1:  # the rate changes at each step
        return old
    in_steps = section in ("algorithm", "optim") and name.endswith(("_step", "_steps"))
    if in_steps or key in BATCHES:
        return old and max(1, round(old / factor))
    by_step = section in ("algorithm", "unequal") and "momentum" in name
    if key in AVERAGES or (by_step and (flat["algorithm.name"], name) not in BY_VISIT):
        return old**factor
    return old
