"""A configuration that remembers which layer some of its values are from."""

from collections.abc import Collection, Mapping
from typing import Any, Self

from ml_collections import ConfigDict

from jaxmatch.config.presets import preset_values


class Recipe(ConfigDict):
    """A configuration that remembers layers, which are no part of its values; so do its copies."""

    def remember(self, preset: Mapping[str, Any], starts: Mapping[str, int]) -> None:
        """Keep what the recipe chose.

        Args:
            preset: the values by dotted key that the preset set.
            starts: the starts and ramps in steps by dotted key, which a short run may move.
        """
        object.__setattr__(self, "_preset", dict(preset))
        object.__setattr__(self, "_starts", dict(starts))

    def note_given(self, given: Collection[str]) -> None:
        """Note the dotted keys that overrides gave; no run moves their values."""
        starts = vars(self).get("_starts", {})
        kept = {key: value for key, value in starts.items() if key not in given}
        object.__setattr__(self, "_starts", kept)

    def copy_and_resolve_references(self, visit_map: dict[int, Any] | None = None) -> Self:
        """A copy without references, which remembers the same layers."""
        copy = super().copy_and_resolve_references(visit_map)
        for name in ("_preset", "_starts"):
            if name in vars(self):
                object.__setattr__(copy, name, vars(self)[name])
        return copy

    def contradictions(self, overrides: Mapping[str, Any]) -> dict[str, Any]:
        """The preset's values, by dotted key, of which ``overrides`` have others."""
        layer = vars(self).get("_preset") or preset_values(self.preset, self.data.name)
        return {
            key: layer[key]
            for key, value in overrides.items()
            if key in layer and layer[key] != value
        }


def may_move(config: ConfigDict, key: str, value: int) -> bool:
    """Whether a short run may move a start or a ramp: if it is still the one of the recipe.

    A configuration that is no recipe, such as that of a run folder, keeps its values.
    """
    return vars(config).get("_starts", {}).get(key) == value
