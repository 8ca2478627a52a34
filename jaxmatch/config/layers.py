"""A configuration that remembers which layer some of its values are from."""

from collections.abc import Collection, Mapping
from typing import Any, Self

from ml_collections import ConfigDict

from jaxmatch.config.dotted import flatten
from jaxmatch.config.presets import preset_values

REMEMBERED = ("_preset", "_starts", "_larger")


class Recipe(ConfigDict):
    """A configuration that remembers layers, which are no part of its values; so do its copies."""

    def remember(self, preset: Mapping[str, Any], starts: Mapping[str, int]) -> None:
        """Keep what the recipe chose.

        Args:
            preset: the values by dotted key that the preset set.
            starts: the starts and ramps in steps by dotted key, which a short run may move.
        """
        object.__setattr__(self, "_preset", dict(preset))
        object.__setattr__(self, "_starts", {key: {value} for key, value in starts.items()})

    def remember_larger(self, larger: ConfigDict) -> None:
        """Keep what the recipe sets for a larger size, which the devices may choose."""
        flat, starts = flatten(self), vars(larger).get("_starts", {})
        others = {
            key: (flat.get(key), value)
            for key, value in flatten(larger).items()
            if key != "size" and flat.get(key) != value
        }
        both = {key: values | starts.get(key, set()) for key, values in self._layer("_starts")}
        object.__setattr__(self, "_starts", both)
        object.__setattr__(self, "_larger", others)

    def scale_start(self, key: str, old: Any, new: Any) -> None:
        """Keep the ``new`` value of a key beside ``old`` if that is a start of the recipe."""
        starts = vars(self).get("_starts", {})
        if old in starts.get(key, ()):
            object.__setattr__(self, "_starts", starts | {key: starts[key] | {new}})

    def note_given(self, given: Collection[str]) -> None:
        """Note the dotted keys that overrides gave; no run moves their values."""
        for name in ("_starts", "_larger"):
            kept = {key: value for key, value in self._layer(name) if key not in given}
            object.__setattr__(self, name, kept)

    def _layer(self, name: str) -> Collection[tuple[str, Any]]:
        return vars(self).get(name, {}).items()

    def copy_and_resolve_references(self, visit_map: dict[int, Any] | None = None) -> Self:
        """A copy without references, which remembers the same layers."""
        copy = super().copy_and_resolve_references(visit_map)
        for name in REMEMBERED:
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
    return value in vars(config).get("_starts", {}).get(key, ())


def larger(config: ConfigDict) -> dict[str, Any]:
    """The values by dotted key that a configuration takes if the devices choose a larger size.

    As with starts, only what is still the recipe's changes.
    """
    both, flat = vars(config).get("_larger", {}), flatten(config)
    return {key: new for key, (old, new) in both.items() if flat.get(key) == old}
