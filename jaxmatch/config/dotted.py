"""Configurations by dotted key."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from jaxmatch.errors import InputError, suggest


def put(config: ConfigDict, key: str, value: Any) -> None:
    """Set the value of a dotted ``key``.

    Raises:
        InputError: if the key does not exist; it names the nearest known one.
    """
    known = list(flatten(config))
    if key not in known:
        raise InputError(f"unknown config key {key!r}; {suggest(key, known)}")
    *parents, last = key.split(".")
    for parent in parents:
        config = config[parent]
    config[last] = value


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of a configuration by dotted key."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping | ConfigDict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
