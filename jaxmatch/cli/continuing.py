"""The words of ``jaxmatch train`` for a run that goes on from another, with its settings."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxmatch.config import usb_cv
from jaxmatch.config.dotted import flatten
from jaxmatch.config.flags import from_flags
from jaxmatch.config.saved import tells_apart, to_json
from jaxmatch.data.added import files
from jaxmatch.data.sources import names_path
from jaxmatch.errors import InputError
from jaxmatch.record.run_data import moved_to
from jaxmatch.record.settled import settled

# Settings that the words name in another way, or that a run which starts from another has anew.
APART = (
    *("recipe", "size", "minutes", "seed", "data.name", "data.labels", "data.added_labels"),
    *("init_from", "init_heads", "classifier_init", "classifier_temperature"),
)
# They identify no run, but its data is found, and its checkpoint chosen, by them.
BESIDE = ("data.directory", "select", "keep_best")
PLACEHOLDER = "AS_OF_THIS_RUN"
OF_TIME = ("steps", "eval_every")  # what minutes choose
FITTED = "logistic"  # classifier_init of the new run: its first classifier knows the new labels


def words(values: Mapping[str, Any]) -> list[str] | None:
    """``--config`` and overrides that give the settings which identify a run.

    They leave out where the run starts from and ``data.added_labels``.

    Args:
        values: the settings of a run, as its ``config.json`` has them.

    Returns:
        None if the run's config file is none of the package's.
    """
    flat = {key: value for key, value in flatten(values).items() if not key.startswith("facts.")}
    chosen = {"labels": flat["data.labels"], "seed": flat["seed"]}
    chosen |= {"preset": flat.get("preset"), "views": flat.get("views_preset")}
    if flat.get("preset") != usb_cv.NAME:  # it has a size
        chosen |= {"size": flat.get("size")}
    usual = {"labels": "none", "preset": "jaxmatch"}
    pairs = [f"{k}={v}" for k, v in chosen.items() if v not in (None, "", usual.get(k))]
    config = ",".join([f"{flat['recipe']}:{flat['data.name']}", *pairs])
    minutes = flat.get("minutes")
    left_out = (*APART, *(OF_TIME if minutes else ()))
    kept = {key: value for key, value in flat.items() if key not in left_out and _needed(key)}

    def lacking(overrides: Mapping[str, Any]) -> dict[str, Any]:
        """The settings of the run that the words with ``overrides`` do not give."""
        now = flatten(to_json(settled(from_flags(config, _flags(overrides))[0])[0]))
        return {key: value for key, value in kept.items() if key in now and now[key] != value}

    def lacks(overrides: Mapping[str, Any]) -> bool:
        try:
            return bool(lacking(overrides))
        except InputError:  # another setting needs the one that is left out
            return True

    overrides: dict[str, Any] = {"minutes": minutes} if minutes else {}
    try:
        for _ in range(2):  # the network's own settings follow from its name
            overrides |= lacking(overrides)
    except InputError:
        return None
    for key in list(overrides):  # some follow from others
        fewer = {each: value for each, value in overrides.items() if each != key}
        if key != "minutes" and not lacks(fewer):
            overrides = fewer
    return [f"--config={config}", *_flags(overrides)]


def going_on(
    values: Mapping[str, Any], run: Path, table: Path, place: str = "", location: str = ""
) -> list[str]:
    """The words of ``jaxmatch train`` for a run that starts from another, with more labels.

    If the settings of the old run cannot be written as words, its own words are to be filled in.

    Args:
        values: the settings of the old run.
        run: its folder.
        table: of the labels to add.
        place: where the data is now, if it has moved.
        location: the absolute path of the data, by which it is found from another folder.
    """
    data = dict(values["data"])
    tables = files(data.get("added_labels", ""))
    if not place and (base := _began_in(data["name"], location)) not in (None, Path.cwd()):
        place, tables = location, tuple(str(base / name) for name in tables)
    data["name"], data["directory"] = moved_to(place, data["name"], data.get("directory", ""))
    tables = (*tables, str(table))
    return [
        *(words({**values, "data": data}) or [f"--config={PLACEHOLDER}"]),
        f"--config.init_from={run}",
        f"--config.classifier_init={FITTED}",
        f"--config.data.added_labels={','.join(tables)}",
        f"--workdir={following(run)}",
    ]


def _began_in(name: str, location: str) -> Path | None:
    """The folder in which a run began whose data has a relative path; None if it has none."""
    place = os.path.normpath(name.partition(":")[2])
    if not names_path(name) or os.path.isabs(place) or not location.endswith(f"/{place}"):
        return None
    return Path(location.removesuffix(place))


def following(path: Path) -> Path:
    """The name for what comes after a file or folder: ``run-2`` after ``run``, then ``run-3``."""
    found = re.fullmatch(r"(.+)-(\d+)", path.stem)
    stem, number = (found[1], int(found[2])) if found else (path.stem, 1)
    # Other numbers, such as of labels, are parts of the name.
    before = (f"{stem}{path.suffix}", f"{stem}-{number - 1}{path.suffix}")
    if not any(path.with_name(name).exists() for name in before):
        stem, number = path.stem, 1
    return path.with_name(f"{stem}-{number + 1}{path.suffix}")


def _needed(key: str) -> bool:
    return tells_apart(key) or key in BESIDE


def _flags(overrides: Mapping[str, Any]) -> list[str]:
    return [
        f"--config.{key}={tuple(value)!r}" if isinstance(value, list) else f"--config.{key}={value}"
        for key, value in overrides.items()
    ]
