"""Checks of JSON files of the run folder that several modules write: what readers rely on is there.

Each function takes the object in a file, and raises ValueError, which says what is missing.
"""

from collections.abc import Mapping
from typing import Any


def check_config(values: Mapping[str, Any]) -> None:
    """Check ``config.json``: the settings of a run, or of each of its ``stages``.

    Raises:
        ValueError: if a name of a method or data set is missing, or a group of settings is none.
    """
    parts: dict[str, Any] = {"": values}
    if "order" in values:
        order, stages = values["order"], values.get("stages")
        if not (
            isinstance(stages, dict)
            and isinstance(order, list)
            and order
            and all(isinstance(name, str) for name in order)
        ):
            raise ValueError("its stages are not listed")
        parts = {f"stages.{name}.": stages.get(name) for name in order}
    for prefix, part in parts.items():
        for key in ("algorithm", "data"):
            section = part.get(key) if isinstance(part, dict) else None
            if not isinstance(section, dict) or not isinstance(section.get("name"), str):
                raise ValueError(f"{prefix}{key}.name is missing")
        for key in ("model", "optim", "ema"):
            if isinstance(part, dict) and not isinstance(part.get(key, {}), dict):
                raise ValueError(f"{prefix}{key} is no group of settings")


def check_summary(summary: Mapping[str, Any]) -> None:
    """Check ``summary.json``, of which older versions lack some parts.

    Raises:
        ValueError: if a number is missing, or a part is incomplete.
    """
    for key in ("steps", "forward_images", "seconds"):
        if not _is_number(summary.get(key)):
            raise ValueError(f"{key} is no number")
    if summary.get("evaluated") not in ("teacher", "student"):
        raise ValueError("evaluated is neither teacher nor student")
    seen = summary.get("images_seen")
    if not isinstance(seen, dict) or not all(_is_number(seen.get(k)) for k in _SEEN):
        raise ValueError("images_seen is missing")
    for key, needed in _SECTIONS.items():
        section = summary.get(key)
        if section is None:
            continue
        for name in needed:
            value = section.get(name) if isinstance(section, dict) else ""
            not_measured_yet = key == "probe" and value is None
            if not _is_number(value) and not not_measured_yet:
                raise ValueError(f"{key}.{name} is no number")
    for key in ("validation", "best", "unlabeled_unused"):
        if not _OPTIONAL[key](summary.get(key)):
            raise ValueError(f"{key} is incomplete")
    for network in ("teacher", "student"):
        if not _are_metrics((summary.get(network) or {}).get("metrics", {})):
            raise ValueError(f"{network}.metrics is incomplete")


def check_baselines(found: Mapping[str, Any]) -> None:
    """Check ``baselines.json``.

    Raises:
        ValueError: if an accuracy is missing.
    """
    try:
        known = [some["test"] for some in found["baselines"].values()]
        whole = all(_is_number(some[key]) for some in known for key in _METRICS)
    except (KeyError, TypeError, AttributeError):
        whole = False
    if not whole:
        raise ValueError("an accuracy is missing")


def check_examples(found: Mapping[str, Any]) -> None:
    """Check ``examples.json``.

    Raises:
        ValueError: if an example is incomplete.
    """
    if not _are_examples(found):
        raise ValueError("an example is incomplete")


_METRICS = ("accuracy", "balanced_accuracy")  # of each baseline
_SEEN = ("labeled", "unlabeled")
_ACCURACIES = ("last", "mean_20", "median_20", "best")
_SECTIONS = {"teacher": _ACCURACIES, "student": _ACCURACIES, "probe": ("knn", "linear")}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _are_metrics(values: Any) -> bool:
    """Whether ``values`` are metrics by name, of which the balanced accuracy is read."""
    known = isinstance(values, dict) and values.get("balanced_accuracy")
    return known is None or _is_number(known)


def _are_examples(values: Mapping[str, Any]) -> bool:
    """Whether ``values`` are lists of examples by their kind."""
    classes = values.get("by_class")
    if not isinstance(classes, dict) or not all(isinstance(one, dict) for one in classes.values()):
        return False
    if not all(isinstance(values.get(key), dict) for key in ("metrics", "intervals")):
        return False
    lists = [values.get(kind) for kind in ("mistakes", "uncertain", "wrong_pseudo_labels")]
    lists += [each.get("examples") for each in classes.values()]
    texts = ("picture", "name", "truth", "prediction")
    return all(
        isinstance(each, list)
        and all(
            isinstance(one, dict)
            and all(isinstance(one.get(key), str) for key in texts)
            and _is_number(one.get("confidence"))
            for one in each
        )
        for each in lists
    )


def _is_validation(values: Any) -> bool:
    """Whether ``values`` are the accuracies of both networks, as far as there are any."""
    if values is None:
        return True
    networks = values.values() if isinstance(values, dict) else [3]
    return all(
        each is None
        or (isinstance(each, dict) and all(_is_number(each.get(key)) for key in _ACCURACIES))
        for each in networks
    )


def _is_best(values: Any) -> bool:
    """Whether ``values`` name a checkpoint, and the test metrics of the networks at its step."""
    if values is None:
        return True
    tests = values.get("test") if isinstance(values, dict) else None
    return (
        isinstance(tests, dict)
        and isinstance(values.get("key"), str)
        and all(_is_number(values.get(key)) for key in ("step", "value"))
        and all(
            isinstance(each, dict) and all(map(_is_number, each.values()))
            for each in tests.values()
        )
    )


def _is_span(values: Any) -> bool:
    """Whether ``values`` are the two steps of a span."""
    if values is None:
        return True
    return isinstance(values, dict) and all(map(_is_number, map(values.get, ("since", "step"))))


_OPTIONAL = {"validation": _is_validation, "best": _is_best, "unlabeled_unused": _is_span}
