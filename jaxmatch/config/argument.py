"""The argument of a configuration: ``DATA[,key=value]*`` after the colon of ``--config``."""

import re
from collections.abc import Mapping
from typing import Any

from jaxmatch.config import scaling
from jaxmatch.config.presets import DATASETS
from jaxmatch.data.sources import names_path
from jaxmatch.errors import InputError, suggest
from jaxmatch.runtime import paths

# Of the labeled images; only stages that read labels take them.
FOR_LABELS = ("labels", "split", "balance", "largest")
# Of the shares of classes, which are keys of ``config.data`` by the same names.
SHARES = ("balance", "imbalance", "largest", "imbalance_unlabeled", "largest_unlabeled")
ARGUMENT_KEYS = ("labels", "seed", "preset", "views", "split", "size", *SHARES)
WHOLE = ("labels", "seed", "largest", "largest_unlabeled")


def parse_argument(argument: str) -> tuple[str, dict[str, str]]:
    """The data set and the values by key of an argument ``DATA[,key=value]*``.

    DATA and the value of ``split`` are paths that may contain commas: they end where a known key
    and ``=`` follow the comma.

    Raises:
        InputError: if a key is unknown, or a value cannot be read.
    """
    keys = "|".join((*ARGUMENT_KEYS, *scaling.KEYS))
    data, *pairs = re.split(f",(?=(?:{keys})=)", argument)
    data, *unread = _split_path(data)
    if not data:
        raise InputError(f"the config argument needs a data set first: {suggest('', DATASETS)}")
    chosen = {}
    for pair in (*unread, *pairs):
        key, equals, value = pair.partition("=")
        if key != "split" and "," in value:
            pair = value.partition(",")[2]
            key, equals, value = pair.partition("=")
        if key in scaling.KEYS:  # from_flags takes these out before
            raise InputError(
                f"{pair} belongs to --config; in Python call jaxmatch.config.scaling.scale."
            )
        if key not in ARGUMENT_KEYS or not equals or not value:
            raise InputError(
                f"cannot read {pair!r} in the config argument, which is DATA,key=value,...; "
                f"{suggest(key, (*ARGUMENT_KEYS, *scaling.KEYS))}"
            )
        if chosen.setdefault(key, value) != value:
            raise InputError(f"{key}={chosen[key]} and {pair} are both given; leave one out.")
    for key in WHOLE:
        value = chosen.get(key, "0")
        if not value.isdecimal() and not (key == "labels" and value == "all"):
            raise InputError(f"{key}={value} is not a whole number{' or all' * (key == 'labels')}.")
    return data, chosen


def shares(chosen: Mapping[str, str]) -> dict[str, Any]:
    """The values by dotted key that the keys :data:`SHARES` of a parsed argument set.

    Raises:
        InputError: if ``imbalance`` is no number.
    """
    kinds = {"imbalance": float, "largest": int, "largest_unlabeled": int}
    found = {}
    for key in SHARES:
        if key in chosen:
            try:
                found[f"data.{key}"] = kinds.get(key, str)(chosen[key])
            except ValueError:
                raise InputError(f"{key}={chosen[key]} is not a number.") from None
    if found.get("data.largest") and "labels" not in chosen:
        found["data.labels"] = "all"  # in place of the number that a data set has by default
    return found


def _split_path(data: str) -> list[str]:
    """DATA, and the pieces after a comma that are neither of its path nor known keys."""
    name, *pieces = data.split(",")
    if not pieces or not names_path(name):
        return [name, *pieces]
    starts = [",".join([name, *pieces[:end]]) for end in range(len(pieces) + 1)]
    there = [end for end, start in enumerate(starts) if _exists(start)]
    if there:  # the longest path that exists
        return [starts[there[-1]], *pieces[there[-1] :]]
    pairs = [end for end, piece in enumerate(pieces) if re.match(r"\w+=", piece)]
    end = pairs[0] if pairs else len(pieces)
    return [starts[end], *pieces[end:]]


def _exists(name: str) -> bool:
    """Whether a source's path is on this machine."""
    path = name.partition(":")[2]
    return "://" not in path and paths.path(path).exists()
