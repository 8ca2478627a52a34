"""The table of networks, and a network from the settings of ``config.model``."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import jax.numpy as jnp

from jaxmatch.errors import InputError, suggest
from jaxmatch.models.model import NOT_SETTINGS, Model
from jaxmatch.models.resnet import ResNet
from jaxmatch.models.resnet_v2 import ResNetV2
from jaxmatch.models.vit import PRESETS, ViT
from jaxmatch.models.wide_resnet import WideResNet
from jaxmatch.settings import check_value, check_values
from jaxmatch.types import Heads


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A network that has a name.

    Attributes:
        kind: the class, whose fields are the settings.
        fixed: the values of fields that the name fixes, which are no settings.
        usual: defaults of settings in place of those of the class.
    """

    kind: type[Model]
    fixed: Mapping[str, Any] = field(default_factory=dict)
    usual: Mapping[str, Any] = field(default_factory=dict)


# By ``config.model.name``.
MODELS: dict[str, Entry] = {
    "wide_resnet": Entry(kind=WideResNet),
    "resnet18": Entry(kind=ResNet, fixed={"blocks": (2, 2, 2, 2), "block": "basic"}),
    "resnet50": Entry(kind=ResNet, fixed={"blocks": (3, 4, 6, 3), "block": "bottleneck"}),
    "resnet50_v2": Entry(kind=ResNetV2, fixed={"blocks": (3, 4, 6, 3), "block": "bottleneck"}),
    "vit": Entry(kind=ViT),
    **{name: Entry(kind=ViT, usual=settings) for name, settings in PRESETS.items()},
}
Dtype = Literal["float32", "bfloat16"]
DTYPES = {"float32": None, "bfloat16": jnp.bfloat16}


def model_settings(name: str) -> dict[str, Any]:
    """The settings of ``config.model`` beside the name, with their defaults.

    Raises:
        InputError: on an unknown name.
    """
    entry = _find(name)
    hidden = (*NOT_SETTINGS, *entry.fixed)
    usual = {each.name: each.default for each in fields(entry.kind) if each.name not in hidden}
    return {**usual, **entry.usual}


def model_class(name: str) -> type[Model]:
    """The class of a network, whose fields are its settings.

    Raises:
        InputError: on an unknown name.
    """
    return _find(name).kind


def build_model(
    values: Mapping[str, Any],
    *,
    classes: int,
    heads: Heads,
    dtype: str = "float32",
    remat: bool = False,
    frozen_trunk: bool = False,
) -> Model:
    """Build the network of a name and its settings.

    Args:
        values: as ``config.model``.
        classes: number of classes.
        heads: extra heads that the method asks for, by name.
        dtype: compute dtype, "float32" or "bfloat16".
        remat: whether the gradient computes blocks again.
        frozen_trunk: whether only the classifier and the extra heads train.

    Raises:
        InputError: on an unknown name or setting, or a value that a setting does not take.
    """
    settings = dict(values)
    name = settings.pop("name")
    entry = _find(name)
    check_value("dtype", dtype, Dtype)
    check_values(entry.kind, settings, "model")
    known = model_settings(name)
    for key in settings:
        if key not in known:
            raise InputError(f"model {name} has no setting {key!r}; {suggest(key, known)}")
    # The classifier of a set without labels is never trained, but needs a width.
    derived = {"classes": max(1, classes), "extra_heads": heads}
    derived |= {"dtype": DTYPES[dtype], "remat": remat, "frozen_trunk": frozen_trunk}
    return entry.kind(**derived, **entry.fixed, **{**entry.usual, **settings})


def _find(name: str) -> Entry:
    if name not in MODELS:
        raise InputError(f"unknown model {name!r}; {suggest(name, MODELS)}")
    return MODELS[name]
