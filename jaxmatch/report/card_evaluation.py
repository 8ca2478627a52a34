"""What ``jaxmatch evaluate --json`` printed, as a model card takes its figures."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxmatch.errors import InputError
from jaxmatch.evaluation.metrics import METRICS
from jaxmatch.report.shares import SHARES
from jaxmatch.runtime import paths
from jaxmatch.runtime.json_files import read_object
from jaxmatch.weights.trained import Trained


def read_evaluation(path: str | Path, trained: Trained) -> Mapping[str, Any]:
    """The JSON object that ``jaxmatch evaluate --json`` printed for an exported network.

    Raises:
        InputError: if the file is missing, holds something else, or is of another run, step or
            temperature.
    """
    path = paths.path(path)
    found = read_object(path, "write it by jaxmatch evaluate --json")
    if found is None:
        raise InputError(f"there is no file {path}; write it by jaxmatch evaluate --json.")
    network, step = trained.origin["network"], trained.origin["step"]
    if not _is_evaluation(found, network):
        raise InputError(f"{path} is not what jaxmatch evaluate --json prints.")
    if found.get("step") != step:
        raise InputError(
            f"{path} is of step {found.get('step')}, but step {step} is exported; "
            f"evaluate with --step {step}."
        )
    weights = trained.origin["hashes"]["weights"]
    same = found.get("weights", {}).get(network, weights) == weights
    if not same or list(found[network]["per_class"]) != list(trained.classes):
        raise InputError(f"{path} is of another run; evaluate the run that is exported.")
    temperature = found.get("calibration", {}).get(network, {}).get("temperature", 1)
    if temperature != trained.temperature:
        raise InputError(
            f"{path} is of temperature {temperature:.4g}, but {trained.temperature:.4g} is "
            "exported; evaluate with --uncalibrated if, and only if, the export has it."
        )
    return found


def _is_evaluation(found: Mapping[str, Any], network: str) -> bool:
    """Whether ``found`` has what a card reads of ``jaxmatch evaluate --json``."""
    try:
        own, weights = found[network], found.get("weights", {})
        limits, per_class = own.get("intervals", {}), own["per_class"].values()
        bounds = [limits.get(name) for name in METRICS]
        bounds += [each.get(key) for each in limits.get("per_class", {}).values() for key in SHARES]
        numbers = [own["accuracy"], found.get("bootstrap", {}).get("confidence", 0)]
        numbers += [row[key] for row in per_class for key in (*SHARES, "support")]
        numbers += [end for pair in bounds if pair is not None for end in pair]
        numbers += [found["calibration"][network]["temperature"]] if "calibration" in found else []
        pairs = all(pair is None or len(pair) == 2 for pair in bounds)
    except (KeyError, TypeError, AttributeError):
        return False
    return (
        pairs
        and all(isinstance(each, int | float) for each in numbers)
        and isinstance(weights, dict)
    )
