"""Notes on views that a user may not expect: settings without effect, and what replaces what."""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from jaxmatch.algorithms import build_algorithm
from jaxmatch.augment.build import CONTRASTS
from jaxmatch.augment.randaugment import RandAugment
from jaxmatch.config.layers import Recipe
from jaxmatch.config.presets import VIEWS
from jaxmatch.errors import InputError
from jaxmatch.settings import build_section
from jaxmatch.types import Algorithm


def notes(config: ConfigDict, overrides: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Sentences on the views of one run.

    Args:
        config: of the run, with its overrides.
        overrides: the values by dotted key that the user gave.
        prefix: of the keys in the sentences, for a stage of a run.
    """
    named = VIEWS.get(config.get("views_preset", ""))
    if named and isinstance(config, Recipe):
        for key, value in config.contradictions(named.values).items():
            if key not in overrides:
                yield (
                    f"{prefix}{key}: preset {config.preset!r} has {value}, "
                    f"views={config.views_preset} has {named.values[key]}, which is taken."
                )
    try:
        algorithm, idle = build_algorithm(config.algorithm), _idle(config.views)
    except InputError:  # a later check reports it
        return
    yield from _without_effect(config, algorithm, idle, overrides, prefix)
    weak, part = config.views.weak, f"{prefix}views.weak."
    if "rotation" in algorithm.heads and (weak.rotate90 or (weak.flip and weak.vertical_flip)):
        yield (
            f"{config.algorithm.name} learns to tell rotations, but the views are turned at random "
            f"already: set {part}vertical_flip=False and {part}rotate90=False."
        )


def _without_effect(
    config: ConfigDict,
    algorithm: Algorithm,
    idle: Mapping[str, str],
    overrides: Mapping[str, Any],
    prefix: str,
) -> Iterator[str]:
    """A sentence for each override of a setting that no view of the method reads."""
    roles = {*algorithm.labeled, *algorithm.unlabeled}
    read = _sections(config.augment, roles)
    if "strong" not in roles and overrides.get("augment", "ctaugment") != "ctaugment":
        yield (
            f"--config.{prefix}augment={config.augment} has no effect: {config.algorithm.name} "
            "draws no strong views."
        )
    for key, value in overrides.items():
        top, _, rest = key.partition(".")
        section = "strong" if rest == "crops" else rest.partition(".")[0]
        if rest == "crops" and "strong" in roles:  # refused where nothing reads them
            continue
        ordered = rest == "strong.order" and config.augment != "contrast" and "strong" in roles
        if top != "views" or ((section in read or ordered) and rest not in idle):
            continue
        why = f"{config.algorithm.name} draws no {section} views"
        if section in read:
            why = idle[rest]
        elif section in ("strong", "ctaugment") and "strong" in roles:
            why = f"augment={config.augment} reads views.{' and views.'.join(sorted(read))}"
        yield f"--config.{prefix}{key}={value} has no effect: {why}."


def _idle(views: ConfigDict) -> dict[str, str]:
    """The settings of views that others turn off, by section and name, with the reasons.

    Raises:
        InputError: if RandAugment does not take its settings.
    """
    found: dict[str, str] = {}
    if views.weak.area:
        why = "with views.weak.area a crop is resized, not padded"
        found |= dict.fromkeys(("weak.pad", "weak.padding", "weak.order"), why)
    elif views.weak.pad == 0:
        found |= dict.fromkeys(("weak.padding", "weak.order"), "views.weak.pad is 0")
    for role in CONTRASTS:
        if not views[role].jitter:
            names = ("brightness", "contrast", "saturation", "hue")
            why = f"views.{role}.jitter is 0"
            found |= dict.fromkeys((f"{role}.{name}" for name in names), why)
        if not views[role].blur:
            found[f"{role}.sigma"] = f"views.{role}.blur is 0"
    ops = {key: value for key, value in views.strong.items() if key != "order"}
    strong = build_section(RandAugment, ops, "views.strong")
    if strong.padding != "fill" and not strong.policy().cuts:
        found["strong.fill"] = (
            f"views.strong.padding={strong.padding} fills, and nothing is cut out"
        )
    return found


def _sections(augment: str, roles: Collection[str]) -> set[str]:
    """The sections of ``config.views`` that the views of ``roles`` read."""
    read = {role for role in roles if role != "strong"}
    if "strong" not in roles:
        return read
    strong = {"randaugment": {"weak", "strong"}, "ctaugment": {"weak", "ctaugment"}}
    return read | strong.get(augment, {"contrast"})
