"""The configuration of a method: layers of values by dotted key.

A configuration is an ``ml_collections.ConfigDict`` of primary quantities. ``configs/NAME.py``
calls :func:`make`. Its layers are, from weak to strong: the defaults, the data set, the method,
the preset, the views, and the rest of the argument after the colon of ``--config``. Overrides
``--config.key=value`` come last (:mod:`jaxmatch.config.flags`).
"""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from jaxmatch.algorithms import ALGORITHMS
from jaxmatch.config import usb_cv
from jaxmatch.config.argument import FOR_LABELS, parse_argument, shares
from jaxmatch.config.keys import defaults, field_defaults
from jaxmatch.config.layers import Recipe
from jaxmatch.config.own import AUTO, PAPER, in_steps, open_settings, put_layer
from jaxmatch.config.presets import DATASETS, PRESETS, VIEWS, preset_values
from jaxmatch.data.splits import check_number
from jaxmatch.errors import InputError, suggest
from jaxmatch.models.build import model_settings

__all__ = ["make", "parse_argument", "set_model"]


def make(
    recipe: str,
    argument: str,
    *,
    algorithm: Mapping[str, Any],
    settings: Mapping[str, Any] | None = None,
    presets: Mapping[str, Mapping[str, Any]] | None = None,
) -> Recipe:
    """The configuration of one method.

    Args:
        recipe: the config file's name; it begins the run folder's name.
        argument: ``DATA[,key=value]*``, keys labels (total number or "all"), seed, preset, views,
            split, size, balance, imbalance, largest, imbalance_unlabeled, largest_unlabeled.
        algorithm: ``name`` and the fields that differ from the dataclass's defaults.
        settings: values by dotted key that this method sets for every data set.
        presets: the presets of this method beside "jaxmatch", each with the values by dotted key
            that it sets for this method only. :func:`jaxmatch.config.presets.preset_values` are
            those for every method.

    Raises:
        InputError: if a key, a preset or views are unknown, or if a value cannot be read.
    """
    data, chosen = parse_argument(argument)
    preset = chosen.get("preset", "jaxmatch")
    presets = {"jaxmatch": {}, **(presets or {})}
    if recipe in usb_cv.METHODS:
        chosen_task = usb_cv.settings(data, recipe) if preset == usb_cv.NAME else {}
        presets = {**presets, usb_cv.NAME: chosen_task}
    if preset not in (known := {*PRESETS, usb_cv.NAME, *presets}):
        raise InputError(f"unknown preset {preset!r}; {suggest(preset, known)}")
    if preset not in presets:
        raise InputError(f"{recipe} has no preset {preset!r}; it has {', '.join(presets)}.")
    views = chosen.get("views", "")
    if views and views not in VIEWS:
        raise InputError(f"unknown views {views!r}; {suggest(views, VIEWS)}")
    name = algorithm["name"]
    if name not in ALGORITHMS:
        raise InputError(f"unknown algorithm {name!r}; {suggest(name, ALGORITHMS)}")
    fields = field_defaults(ALGORITHMS[name])
    config = Recipe({**defaults(), "algorithm": {"name": name, **fields}})
    config.frozen = dict.fromkeys(ALGORITHMS[name].frozen, "")
    label_free = not ALGORITHMS[name].labeled
    if label_free and any(key in chosen for key in FOR_LABELS):
        given = " and ".join(key for key in FOR_LABELS if key in chosen)
        raise InputError(f"{recipe} reads no labels; leave {given} out of its argument.")
    if "size" in chosen and preset == usb_cv.NAME:
        raise InputError(f"preset={preset} has a size; leave size={chosen['size']} out.")
    if "size" in chosen and data in DATASETS:
        raise InputError(
            f"{data} has the settings of its papers; leave size={chosen['size']} out, or override "
            "single settings by --config.KEY=VALUE."
        )
    if chosen.keys() >= {"labels", "split"} and chosen["labels"] != "all":
        check_number(chosen["split"], None, int(chosen["labels"]))
    settings = settings or {}
    strong_first = (presets[preset], settings, DATASETS.get(data, {}))
    names = (layer["model.name"] for layer in strong_first if "model.name" in layer)
    if network := next(names, ""):
        set_model(config, network)
    wide = config.model.name == "wide_resnet"

    def fitting(layer: Mapping[str, Any]) -> dict[str, Any]:
        # Data sets and presets have settings of the wide residual network. Others lack some of
        # them, and to a transformer its depth and width mean other things.
        return {key: layer[key] for key in layer if wide or not key.startswith("model.")}

    size = PAPER if preset == usb_cv.NAME else chosen.get("size", AUTO)
    shared = preset_values(preset, data)
    if "optim.weight_decay" in settings:  # of another optimizer
        shared.pop("optim.weight_decay", None)
    preset_layer = {**fitting(shared), **presets[preset]}
    if label_free:  # their steps are passes over the usual images
        preset_layer.pop("data.extra", None)
    layers = [
        {f"algorithm.{key}": value for key, value in algorithm.items()},
        fitting(DATASETS[data] if data in DATASETS else open_settings(size)),
        {"data.labels": "none"} if label_free else {},
        settings,
        preset_layer,
        VIEWS[views].values if views else {},
        {"recipe": recipe, "preset": preset, "views_preset": views, "data.name": data},
        {"seed": int(chosen["seed"])} if "seed" in chosen else {},
        {f"data.{key}": chosen[key] for key in ("labels", "split") if key in chosen},
        shares(chosen),
    ]
    for layer in layers:
        put_layer(config, layer)
    config.remember(preset_layer, in_steps(config))
    return config


def set_model(config: ConfigDict, name: str) -> None:
    """Choose the network ``name`` with its default settings.

    Raises:
        InputError: if the name is unknown.
    """
    config.model = ConfigDict({"name": name, **model_settings(name)})
