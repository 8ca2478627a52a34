"""The table of networks, and a network from the settings of ``config.model``."""

from collections.abc import Mapping
from dataclasses import fields
from functools import partial
from typing import Any, cast

import jax.numpy as jnp

from jaxmatch.errors import InputError, suggest
from jaxmatch.models.model import NOT_SETTINGS, Model
from jaxmatch.models.resnet import ResNet
from jaxmatch.models.wide_resnet import WideResNet
from jaxmatch.settings import check_values
from jaxmatch.types import Heads

# By ``config.model.name``; the arguments of ``partial`` are fields that the name fixes.
MODELS: dict[str, partial[Model]] = {
    "wide_resnet": partial(WideResNet),
    "resnet18": partial(ResNet, blocks=(2, 2, 2, 2), block="basic"),
    "resnet50": partial(ResNet, blocks=(3, 4, 6, 3), block="bottleneck"),
}
DTYPES = {"float32": None, "bfloat16": jnp.bfloat16}


def model_settings(name: str) -> dict[str, Any]:
    """The settings of ``config.model`` beside the name, with their defaults.

    Raises:
        InputError: on an unknown name.
    """
    hidden = (*NOT_SETTINGS, *_find(name).keywords)
    return {
        field.name: field.default for field in fields(model_class(name)) if field.name not in hidden
    }


def model_class(name: str) -> type[Model]:
    """The class of a network, whose fields are its settings.

    Raises:
        InputError: on an unknown name.
    """
    return cast(type[Model], _find(name).func)


def build_model(
    values: Mapping[str, Any],
    *,
    classes: int,
    heads: Heads,
    dtype: str = "float32",
    remat: bool = False,
) -> Model:
    """Build the network of a name and its settings.

    Args:
        values: as ``config.model``.
        classes: number of classes.
        heads: extra heads that the method asks for, by name.
        dtype: compute dtype, "float32" or "bfloat16".
        remat: whether the gradient computes blocks again.

    Raises:
        InputError: on an unknown name or setting, or a value that a setting does not take.
    """
    settings = dict(values)
    name = settings.pop("name")
    model = _find(name)
    if dtype not in DTYPES:
        raise InputError(f"unknown dtype {dtype!r}; {suggest(dtype, DTYPES)}")
    check_values(model_class(name), settings, "model")
    known = model_settings(name)
    for key in settings:
        if key not in known:
            raise InputError(f"model {name} has no setting {key!r}; {suggest(key, known)}")
    # The classifier of a set without labels is never trained, but needs a width.
    derived = {"classes": max(1, classes), "extra_heads": heads}
    derived |= {"dtype": DTYPES[dtype], "remat": remat}
    return model(**derived, **settings)


def _find(name: str) -> partial[Model]:
    if name not in MODELS:
        raise InputError(f"unknown model {name!r}; {suggest(name, MODELS)}")
    return MODELS[name]
