"""Semi-supervised image classification in functional JAX: FixMatch and after."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxmatch.config.flags import config
    from jaxmatch.evaluation.classifier import Classifier
    from jaxmatch.evaluation.exported import Exported, load
    from jaxmatch.evaluation.predictions import Predictions
    from jaxmatch.training.train import train

__all__ = ["Classifier", "Exported", "Predictions", "config", "load", "train"]

_HOMES = {
    "Classifier": "evaluation.classifier",
    "Exported": "evaluation.exported",
    "Predictions": "evaluation.predictions",
    "load": "evaluation.exported",
    "train": "training.train",
}


def __getattr__(name: str) -> Any:
    # On demand, so that the workers of a data loader import neither networks nor checkpoints.
    if name == "config":  # the room is the function
        return import_module("jaxmatch.config")
    if name not in _HOMES:
        raise AttributeError(f"module 'jaxmatch' has no attribute {name!r}")
    return getattr(import_module(f"jaxmatch.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return list(__all__)
