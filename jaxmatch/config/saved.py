"""Saved configurations, and the settings that identify a run."""

import json
import os
import re
from collections.abc import Iterable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from jaxmatch.algorithms import ALGORITHMS
from jaxmatch.algorithms.unequal import Unequal
from jaxmatch.config.dotted import flatten, put
from jaxmatch.config.keys import defaults, field_defaults
from jaxmatch.config.layers import larger
from jaxmatch.config.own import AUTO, LARGER, OPEN, put_layer
from jaxmatch.config.presets import DATASETS
from jaxmatch.config.recipe import set_model
from jaxmatch.config.stages import stages_of
from jaxmatch.data import added
from jaxmatch.data.sources import names_path
from jaxmatch.errors import InputError
from jaxmatch.models.build import MODELS
from jaxmatch.weights.transfer import STAGE

# The settings that identify a run, and what depends on each. Every other setting may change when
# the run is continued. The name of a section stands for all its settings.
IDENTITY = {
    "recipe": "the method; scripts that change a method give it a name of their own",
    "algorithm": "the loss",
    "unequal": "the loss, and the order of the labeled images",
    "model": "the network",
    "views": "the images that the network sees",
    "augment": "which views these are",
    "optim": "the steps of the optimizer",
    "ema": "the teacher",
    "seed": "all random numbers, with the order of the images",
    "size": "the settings that it chooses",
    "minutes": "the steps",
    "steps": "schedules and ramps",
    "eval_every": "mean_20, median_20 and best, which run over evaluations",
    "dtype": "the rounding of activations",
    "precision": "the rounding of products",
    "forward": "which images are a BatchNorm batch",
    "microbatches": "which images are a BatchNorm batch",
    "init_from": "the first weights",
    "init_heads": "the first weights",
    "classifier_init": "the first weights",
    "classifier_temperature": "the first weights",
    "init_rules": "the first weights",
    "data.name": "the images; of files only the kind, since the run records their content",
    "data.labels": "which images are labeled; not data.split, since the run records its split",
    "data.added_labels": "which images are labeled; of the tables only the names, since the run "
    "records their labels",
    "data.balance": "which images are labeled",
    "data.imbalance": "which images are labeled",
    "data.largest": "which images are labeled",
    "data.imbalance_unlabeled": "which images are unlabeled",
    "data.largest_unlabeled": "which images are unlabeled",
    "data.eval_images": "which images the accuracies of a run are measured on",
    "data.validation": "which images are held back",
    "data.validation_draw": "which images are held back",
    "data.include_labeled": "which images are unlabeled",
    "data.known_classes": "the classes",
    "data.strangers": "which images are unlabeled",
    "data.extra": "which images are unlabeled",
    "data.batch_size": "the images of a step",
    "data.ratio": "the images of a step",
    "data.mean": "the network's input",
    "data.std": "the network's input",
    "data.image_size": "the network's input",
    "data.center_crop": "the network's input in evaluations",
    "data.background": "the images, where they are transparent",
    "data.white_level": "the images, where they have more than 8 bits",
    "data.stream": "the random numbers of crops, which the host draws for streamed images",
}
# The periods that do not identify a run.
PERIODS_OF_A_CALL = ("steps_per_call", "log_every", "save_every")
# The settings that are paths. As absolute paths they tell new runs apart, too. After a run has
# begun the files may move: the run records what it found.
PLACES = (
    "data.name",
    "data.split",
    "data.added_labels",
    "data.pseudo_labels",
    "init_from",
    "frozen",
)


# Keys that have no effect at these values: runs from before these keys keep their names.
WITHOUT_EFFECT = {
    "data.balance": "equal",
    "data.imbalance": 1.0,
    "data.largest": 0,
    "data.imbalance_unlabeled": "",
    "data.largest_unlabeled": 0,
    "algorithm.alignment_prior": "uniform",
    "algorithm.shuffle": False,
    "views.crops": [],
    "views.ctaugment.cutout": True,
    **{f"unequal.{key}": value for key, value in field_defaults(Unequal).items()},
}
ALWAYS_SHUFFLED = ("moco_v2", "pcl")  # algorithm.shuffle is in the names of all their runs

# Values of settings in runs that are older than the setting, where they are not the default.
BEFORE = {"data.background": []}


def to_json(config: ConfigDict) -> dict[str, Any]:
    """Plain JSON values of a configuration."""
    return json.loads(json.dumps(config.to_dict()))


def complete(values: Mapping[str, Any]) -> ConfigDict:
    """A saved configuration, with defaults for the settings that are newer than it."""
    usual = ConfigDict(defaults())
    if "algorithm" in values and values["algorithm"].get("name") in ALGORITHMS:
        usual.algorithm = ConfigDict(field_defaults(ALGORITHMS[values["algorithm"]["name"]]))
    if "model" in values and values["model"].get("name") in MODELS:
        set_model(usual, values["model"]["name"])
    if values.get("data", {}).get("validation"):
        usual.data.validation_draw = "balanced"  # the only draw before the key existed
    known = flatten(usual)
    for key, value in DATASETS.get(values.get("data", {}).get("name"), {}).items():
        if key in known:
            put(usual, key, value)

    def merged(usual: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
        return {
            **usual,
            **{
                key: merged(known, value)
                if isinstance(value, Mapping) and isinstance(known := usual.get(key, {}), Mapping)
                else value
                for key, value in values.items()
            },
        }

    found = ConfigDict(merged(usual.to_dict(), values))
    for key in _missing(values):
        put(found, key, BEFORE[key])
    return found


def as_begun(config: ConfigDict, old: Mapping[str, Any]) -> ConfigDict:
    """The configuration to continue a run with, whose saved one is ``old``.

    A setting that is newer than the run keeps the run's behaviour, unless another value than the
    default is given.
    """
    found, usual, given = config.copy_and_resolve_references(), flatten(defaults()), flatten(config)
    for key in _missing(old):
        if key in given and tuple(given[key]) == usual[key]:
            put(found, key, tuple(BEFORE[key]))
    return found


def _missing(values: Mapping[str, Any]) -> list[str]:
    """The keys of :data:`BEFORE` that a saved configuration of a run is older than."""
    return [key for key in BEFORE if "data" in values and key not in flatten(values)]


def filled(config: ConfigDict, old: Mapping[str, Any]) -> ConfigDict:
    """A copy of ``config`` whose open settings have the values of a saved configuration.

    Raises:
        InputError: if the saved one has no value for a setting that is open.
    """
    config, known = config.copy_and_resolve_references(), flatten(complete(old))
    if config.size == AUTO and known.get("size") == LARGER:
        put_layer(config, larger(config))
    # An extended run has periods of its own.
    own = () if config.steps in (None, known.get("steps")) else PERIODS_OF_A_CALL
    for key, value in flatten(config).items():
        auto = key == "size" and value == AUTO
        if key in own or not (auto or (value is None and key in (*OPEN, "data.image_size"))):
            continue
        saved_value = known.get(key)
        if saved_value is None and key in OPEN:
            raise InputError(f"config.json is damaged: it has no value of {key}; put a copy back.")
        put(config, key, tuple(saved_value) if isinstance(saved_value, list) else saved_value)
    return config


def identifies(key: str) -> bool:
    """Whether the setting with a dotted key identifies a run (:data:`IDENTITY`)."""
    return _listed(key, IDENTITY)


def tells_apart(key: str) -> bool:
    """Whether runs that differ in the setting with a dotted key have different default folders."""
    return identifies(key) or _listed(key, PLACES)


def identity(values: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that identify a run, by dotted key; equal ones give equal numbers."""
    found = {key: value for key, value in flatten(values).items() if identifies(key)}
    if "data.name" in found:
        found["data.name"] = data_kind(found["data.name"])
    for key, value in WITHOUT_EFFECT.items():
        named = key == "algorithm.shuffle" and found.get("algorithm.name") in ALWAYS_SHUFFLED
        if key in found and not named and not _differ(found[key], value):
            del found[key]
    if not found.get("data.validation"):
        found.pop("data.validation_draw", None)  # it has no effect
    if not found.get("data.known_classes"):
        for key in ("data.known_classes", "data.strangers"):  # no effect, either
            found.pop(key, None)
    # Runs of before have no such key in their names.
    if tables := added.files(found.pop("data.added_labels", "")):
        found["data.added_labels"] = [os.path.basename(name) for name in tables]
    if found.get("classifier_init") == "random":
        for key in ("classifier_init", "classifier_temperature"):  # no effect, either
            found.pop(key, None)
    if "init_from" in found:
        found["init_from"] = _absolute("init_from", found["init_from"])
    return found


def data_kind(name: str) -> str:
    """``data.name`` without its path, if it has one: "npz:" for "npz:cells.npz"."""
    kind, colon, _ = name.partition(":")
    return name if kind == "tfds" else kind + colon


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """The settings of :data:`IDENTITY` that differ, as ``key: old -> new``.

    Settings that ``old`` lacks have their defaults.
    """
    new = to_json(as_begun(ConfigDict(new), old))
    old = to_json(complete(old))
    mine, other = identity(old), identity(new)
    flat_old, flat_new = flatten(old), flatten(new)
    return [
        f"{key}: {flat_old.get(key)} -> {flat_new.get(key)}"
        for key in sorted(mine.keys() | other.keys())
        if _differ(mine.get(key), other.get(key)) and _differ(flat_old.get(key), flat_new.get(key))
    ]


def _differ(one: Any, other: Any) -> bool:
    """Whether two settings differ; True, such as a cutout of half the side, is not 1.0."""
    return one != other or isinstance(one, bool) != isinstance(other, bool)


def moved(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether one of the paths of :data:`PLACES` has changed."""
    new = to_json(as_begun(ConfigDict(new), old))
    return _with_places(to_json(complete(old))) != _with_places(new)


def run_name(config: ConfigDict) -> str:
    """The name <recipe>-<data>-<labels>-s<seed>-<8 hex> of the default run folder.

    The last part is a hash of the settings that identify the run and of the paths it reads.
    """
    values = [(name, _with_places(to_json(stage))) for name, stage in stages_of(config).items()]
    digest = sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]
    *_, last = stages_of(config).values()
    data = last.data.name.removeprefix("tfds:")
    kind, colon, path = data.partition(":")
    data = f"{kind}-{Path(_resolved(path)).stem}" if colon else data
    name = f"{config.recipe}-{data}-{last.data.labels}-s{config.seed}-{digest}"
    return re.sub(r"[^\w.+=-]", "_", name)  # one folder, whatever characters the values have


def _listed(key: str, keys: Iterable[str]) -> bool:
    """Whether a dotted key, or the section it is in, is among ``keys``."""
    return key in keys or key.partition(".")[0] in keys


def _with_places(values: Mapping[str, Any]) -> dict[str, Any]:
    flat = flatten(values)
    places = {key: _absolute(key, value) for key, value in flat.items() if _listed(key, PLACES)}
    for key in ("data.added_labels", "data.pseudo_labels"):
        if not places.get(key):
            places.pop(key, None)  # runs of before have no such key in their names
    return {**identity(values), **places}


def _absolute(key: str, place: str) -> str:
    """The value of a key of :data:`PLACES` with an absolute path; names stay as they are."""
    if key == "data.name":
        kind, _, path = place.partition(":")
        return f"{kind}:{_resolved(path)}" if names_path(place) else place
    if key == "data.added_labels":
        return ",".join(map(_resolved, added.files(place)))
    return place if place.startswith(STAGE) else _resolved(place)


def _resolved(path: str) -> str:
    remote = "://" in path
    # Links are not resolved: the name of the run follows from what the user wrote.
    return path if remote or not path else os.path.abspath(os.path.expanduser(path))
