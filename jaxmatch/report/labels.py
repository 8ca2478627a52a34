"""Names of groups of runs: the method, and what tells it apart from the other groups."""

from collections.abc import Mapping, Sequence
from itertools import count
from typing import Any

# The column "differs in" omits these settings: another column or the group's label shows them.
NAMED = {"recipe", "algorithm.name", "data.name", "data.labels"}


def differing(identity: Mapping[str, Any], others: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The settings of ``identity`` that differ in one of ``others``.

    Settings of the algorithm are compared only between runs of the same algorithm.
    """
    name = identity["algorithm.name"]
    found = {}
    for key, value in identity.items():
        own = key.startswith("algorithm.")
        compared = [
            other
            for other in others
            if key in other and (not own or other["algorithm.name"] == name)
        ]
        if key not in NAMED and any(other[key] != value for other in compared):
            found[key] = value
    return found


def labels_of(methods: Sequence[str], identities: Sequence[Mapping[str, Any]]) -> list[str]:
    """A unique label for each group: its method, and as far as needed labels, data and settings."""
    labels = list(methods)
    for key, text in (("data.labels", "{}, {} labels"), ("data.name", "{}, {}")):
        values = [str(identity[key]) for identity in identities]
        short = [short_name(value) for value in values]
        if len(set(values)) > 1:
            shown = short if len(set(short)) == len(set(values)) else values
            labels = [text.format(label, value) for label, value in zip(labels, shown, strict=True)]
    named = []
    for label, identity in zip(labels, identities, strict=True):
        same = [other for other, like in zip(identities, labels, strict=True) if like == label]
        differs = differing(identity, same)
        short = {
            key.rpartition(".")[2]: short_name(value) for key, value in list(differs.items())[:3]
        }
        name = f"{label}, {settings_text(short)}" if short else label
        numbers = (f"{name} ({number})" for number in count(2))
        named.append(name if name not in named else next(n for n in numbers if n not in named))
    return named


def short_name(value: Any) -> Any:
    """The last part of a path, with what is before its colon (folder:); else ``value``."""
    kind, colon, place = value.rpartition(":") if isinstance(value, str) else ("", "", "")
    name = place.rstrip("/").rpartition("/")[2]
    return f"{kind}{colon}{name}" if "/" in place and name else value


def settings_text(values: Mapping[str, Any]) -> str:
    """Settings by key as one line."""
    return ", ".join(f"{key}={value}" for key, value in values.items())
