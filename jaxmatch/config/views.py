"""Notes on views that a user may not expect: settings without effect, and what replaces what."""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from jaxmatch.algorithms import build_algorithm
from jaxmatch.config.presets import VIEWS
from jaxmatch.config.recipe import Recipe
from jaxmatch.errors import InputError
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
        algorithm = build_algorithm(config.algorithm)
    except InputError:  # a later check reports it
        return
    yield from _without_effect(config, algorithm, overrides, prefix)
    weak, part = config.views.weak, f"{prefix}views.weak."
    if "rotation" in algorithm.heads and (weak.rotate90 or (weak.flip and weak.vertical_flip)):
        yield (
            f"{config.algorithm.name} learns to tell rotations, but the views are turned at random "
            f"already: set {part}vertical_flip=False and {part}rotate90=False."
        )


def _without_effect(
    config: ConfigDict, algorithm: Algorithm, overrides: Mapping[str, Any], prefix: str
) -> Iterator[str]:
    """A sentence for each override of a setting of views that the method does not draw."""
    roles = {*algorithm.labeled, *algorithm.unlabeled}
    read = _sections(config.augment, roles)
    for key, value in overrides.items():
        top, _, rest = key.partition(".")
        section, _, name = rest.partition(".")
        if top != "views" or section in read or (name == "order" and "strong" in roles):
            continue
        why = f"{config.algorithm.name} draws no {section} views"
        if section in ("strong", "ctaugment") and "strong" in roles:
            why = f"augment={config.augment} reads views.{' and views.'.join(sorted(read))}"
        yield f"--config.{prefix}{key}={value} has no effect: {why}."


def _sections(augment: str, roles: Collection[str]) -> set[str]:
    """The sections of ``config.views`` that the views of ``roles`` read."""
    read = {role for role in roles if role != "strong"}
    if "strong" not in roles:
        return read
    strong = {"randaugment": {"weak", "strong"}, "ctaugment": {"weak", "ctaugment"}}
    return read | strong.get(augment, {"contrast"})
