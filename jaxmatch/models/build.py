"""From the settings of ``config.model`` to a network."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from jaxmatch.errors import InputError, suggest
from jaxmatch.models import DERIVED, MODELS
from jaxmatch.models.resnet import FEATURE_NORMS, STEMS
from jaxmatch.settings import check_values

DTYPES = {"float32": None, "bfloat16": jnp.bfloat16}
CHOICES = {
    "padding": ("same", "torch"),
    "conv_bias": ("all", "stem", "none"),
    "stem": STEMS,
    "feature_norm": FEATURE_NORMS,
}


def build_model(
    values: Mapping[str, Any],
    *,
    classes: int,
    heads: Mapping[str, Any],
    dtype: str = "float32",
    remat: bool = False,
) -> Any:
    """The Linen module of a name and its settings.

    Args:
        values: as ``config.model``.
        classes: that its classifier tells apart.
        heads: that the method asks for, by name.
        dtype: "float32" or "bfloat16", in which it computes.
        remat: whether the gradient computes blocks again.

    Raises:
        InputError: on an unknown name or setting, or a value that a setting does not take.
    """
    settings = dict(values)
    name = settings.pop("name")
    if name not in MODELS:
        raise InputError(f"unknown model {name!r}; {suggest(name, MODELS)}")
    if dtype not in DTYPES:
        raise InputError(f"unknown dtype {dtype!r}; {suggest(dtype, DTYPES)}")
    model, fixed = MODELS[name]
    check_values(model, settings, "model")
    for key, known in CHOICES.items():
        value = settings.get(key, known[0])
        if value not in known:
            raise InputError(f"unknown model.{key} {value!r}; {suggest(value, known)}")
    depth = settings.get("depth", 4)
    if depth < 4 or (depth - 4) % 6:
        raise InputError(f"model.depth={depth} is not 6n + 4 (four, ten, sixteen, ... layers).")
    known = [key for key in model.__dataclass_fields__ if key not in (*DERIVED, *fixed)]
    for key in settings:
        if key not in known:
            raise InputError(f"model {name} has no setting {key!r}; {suggest(key, known)}")
    # Images without any label still pass a classifier.
    derived = {"classes": max(1, classes), "heads": heads, "dtype": DTYPES[dtype], "remat": remat}
    return model(**derived, **fixed, **settings)
