"""What ``config.json`` and ``summary.json`` of a run folder say, checked before it is used."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxmatch.config.recipe import stage_folders
from jaxmatch.runtime import paths
from jaxmatch.runtime.json_files import damaged, read_object

CONFIG, SUMMARY = "config.json", "summary.json"


def run_folder(folder: str | Path) -> Path:
    """The folder of the run in ``folder``: its last stage's if it has stages.

    Raises InputError where its config.json is damaged.
    """
    folder = paths.path(folder)
    values = read_config(folder)
    if values is None or "order" not in values:
        return folder
    return folder / list(stage_folders(values))[-1]


def read_config(folder: Path) -> dict[str, Any] | None:
    """The settings of the run, or of the stages, in ``folder``; None where there are none.

    Raises:
        InputError: if the file cannot be read or is damaged.
    """
    file = folder / CONFIG
    values = read_object(file)
    if values is None:
        return None
    if "order" in values:
        order, stages = values["order"], values.get("stages")
        if not (
            isinstance(stages, dict)
            and isinstance(order, list)
            and order
            and all(isinstance(name, str) for name in order)
        ):
            raise damaged(file, "its stages are not listed")
        parts = {f"stages.{name}.": stages.get(name) for name in order}
    else:
        parts = {"": values}
    for prefix, part in parts.items():
        for key in ("algorithm", "data"):
            section = part.get(key) if isinstance(part, dict) else None
            if not isinstance(section, dict) or not isinstance(section.get("name"), str):
                raise damaged(file, f"{prefix}{key}.name is missing")
        for key in ("model", "optim", "ema"):
            if isinstance(part, dict) and not isinstance(part.get(key, {}), dict):
                raise damaged(file, f"{prefix}{key} is no group of settings")
    return values


def read_facts(folder: Path, values: Mapping[str, Any]) -> dict[str, Any]:
    """What the ``values`` of config.json say of the run's data. InputError where it is damaged."""
    facts = values.get("facts")
    facts = facts if isinstance(facts, dict) else {}
    kinds = {"classes": list, "image_shape": list, "labels": list, "unlabeled": int}
    for key, kind in kinds.items():
        if not isinstance(facts.get(key), kind):
            raise damaged(folder / CONFIG, f"facts.{key} is missing")
    return facts


def read_summary(folder: Path) -> dict[str, Any] | None:
    """The summary of the finished run in ``folder``; None where there is none.

    Raises:
        InputError: if the file cannot be read or is damaged.
    """
    file = folder / SUMMARY
    advice = "remove it and give the train command again, which writes it from the last checkpoint"
    summary = read_object(file, advice)
    if summary is None:
        return None
    for key in ("steps", "forward_images", "seconds"):
        if not _is_number(summary.get(key)):
            raise damaged(file, f"{key} is no number", advice)
    if summary.get("evaluated") not in ("teacher", "student"):
        raise damaged(file, "evaluated is neither teacher nor student", advice)
    seen = summary.get("images_seen")
    if not isinstance(seen, dict) or not all(_is_number(seen.get(k)) for k in _SEEN):
        raise damaged(file, "images_seen is missing", advice)
    for key, needed in _SECTIONS.items():
        section = summary.get(key)
        if section is None:
            continue
        for name in needed:
            value = section.get(name) if isinstance(section, dict) else ""
            if not _is_number(value) and not (key == "probe" and value is None):  # to be made yet
                raise damaged(file, f"{key}.{name} is no number", advice)
    return summary


_SEEN = ("labeled", "unlabeled")
_ACCURACIES = ("last", "mean_20", "median_20", "best")
_SECTIONS = {"teacher": _ACCURACIES, "student": _ACCURACIES, "probe": ("knn", "linear")}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
