"""Networks by the name that ``config.model.name`` takes, and what lets algorithms call them."""

from typing import Any

from jaxmatch.models.resnet import ResNet
from jaxmatch.models.wide_resnet import WideResNet

# Each with the fields that its name fixes.
MODELS: dict[str, tuple[Any, dict[str, Any]]] = {
    "wide_resnet": (WideResNet, {}),
    "resnet18": (ResNet, {"blocks": (2, 2, 2, 2), "block": "basic"}),
    "resnet50": (ResNet, {"blocks": (3, 4, 6, 3), "block": "bottleneck"}),
}
# Fields of every model that follow from the rest of the configuration.
DERIVED = ("parent", "name", "classes", "heads", "dtype", "param_dtype", "remat")


def settings(name: str) -> dict[str, Any]:
    """The settings of ``config.model`` beside the name, with their defaults."""
    model, fixed = MODELS[name]
    return {
        key: field.default
        for key, field in model.__dataclass_fields__.items()
        if key not in (*DERIVED, *fixed)
    }
