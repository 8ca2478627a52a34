"""Configurations: defaults, data sets, presets, the ``--config`` argument and overrides.

A configuration is an ``ml_collections.ConfigDict`` of primary quantities. ``configs/NAME.py``
calls :func:`make`; its layers are, from weak to strong: the defaults, the data set, the method,
the preset, the argument after the colon, and ``--config.key=value``.
"""

import dataclasses
import importlib.util
import json
import logging
import os
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from absl import flags
from ml_collections import ConfigDict, FieldReference
from ml_collections.config_dict import placeholder
from ml_collections.config_flags import config_flags

from jaxmatch.algorithms import ALGORITHMS
from jaxmatch.augment.build import CONTRASTS
from jaxmatch.augment.contrast import Contrast
from jaxmatch.augment.ctaugment import CTAugment
from jaxmatch.augment.randaugment import RandAugment
from jaxmatch.augment.weak import Weak
from jaxmatch.config import scaling
from jaxmatch.config.argument import ARGUMENT_KEYS, parse_argument
from jaxmatch.config.dotted import flatten, put
from jaxmatch.config.presets import DATASETS, PRESETS, preset_values
from jaxmatch.data.sources import names_path
from jaxmatch.errors import InputError, suggest
from jaxmatch.models import MODELS
from jaxmatch.models import settings as model_settings
from jaxmatch.optim.optimizer import Ema, Optim
from jaxmatch.settings import turned_off
from jaxmatch.weights.transfer import STAGE

log = logging.getLogger(__name__)

# What identifies a run, with what of its numbers depends on it. Any other setting may change when
# the run is continued. A name without a dot may be that of a section, all of which counts.
IDENTITY = {
    "recipe": "the method; a script that changes a method in place tells its runs apart by it",
    "algorithm": "the loss",
    "model": "the network",
    "views": "the images that the network sees",
    "augment": "which views these are",
    "optim": "the steps of the optimizer",
    "ema": "the teacher",
    "seed": "all draws, the order of the images among them",
    "steps": "schedules and ramps, which end there",
    "eval_every": "mean_20, median_20 and best, which are over the evaluations",
    "dtype": "the rounding of activations",
    "precision": "the rounding of products",
    "forward": "which images are a BatchNorm batch",
    "microbatches": "which images are a BatchNorm batch",
    "init_from": "the first weights",
    "init_heads": "the first weights",
    "data.name": "the images; of files their kind, since the run records what they hold",
    "data.labels": "which images are labeled; not data.split, since the run records its split",
    "data.validation": "which images are held back",
    "data.include_labeled": "which images are unlabeled",
    "data.extra": "which images are unlabeled",
    "data.batch_size": "the images of a step",
    "data.ratio": "the images of a step",
    "data.mean": "the network's input",
    "data.std": "the network's input",
    "data.image_size": "the network's input",
    "data.center_crop": "the network's input in evaluations",
    "data.stream": "the crops, which the host draws where it makes them",
}
# These say where something lies. Their values as absolute paths tell new runs apart, beside what
# identifies them; a run that has begun knows what it found there, and it may move.
PLACES = ("data.name", "data.split", "init_from", "frozen")
# What the stages of a configuration have in common.
SHARED = ("seed", "devices", "memory_placement", "remat", "wandb", "workers")


def defaults() -> dict[str, Any]:
    """The configuration before anything is chosen, at CIFAR scale."""
    return {
        "recipe": "",
        "preset": "jaxmatch",
        "seed": 0,
        "steps": 2**20,
        "steps_per_call": 64,
        "log_every": 256,
        "eval_every": 1024,
        "save_every": 8192,
        "keep": 3,
        "devices": 0,
        "memory_placement": "auto",
        "workers": 0,
        "wandb": "",
        "init_from": "",
        "init_heads": (),
        "dtype": "float32",
        "precision": "default",
        "forward": "joint",
        "microbatches": 1,
        "remat": False,
        "augment": "randaugment",
        "data": {
            "name": "",
            "labels": "all",
            "split": "",
            "validation": 0,
            "include_labeled": True,
            "batch_size": 64,
            "ratio": 7,
            "mean": (0.5,),
            "std": (0.5,),
            "image_size": placeholder(int),
            "directory": "",
            "extra": False,
            "strict": False,
            "stream": False,
            "center_crop": 1.0,
        },
        "model": {"name": "wide_resnet", **model_settings("wide_resnet")},
        "views": {
            "weak": {**_fields(Weak), "pad": placeholder(int), "area": ()},
            "strong": {**_fields(RandAugment), "order": "weak_first"},
            **{role: {**_fields(Contrast), "size": placeholder(int)} for role in CONTRASTS},
            "ctaugment": _fields(CTAugment),
        },
        "optim": _fields(Optim),
        "ema": _fields(Ema),
        "frozen": {},
    }


def make(
    recipe: str,
    argument: str,
    *,
    algorithm: Mapping[str, Any],
    settings: Mapping[str, Any] | None = None,
    presets: Mapping[str, Mapping[str, Any]] | None = None,
) -> ConfigDict:
    """The configuration of one method.

    Args:
        recipe: the config file's name; it begins the run folder's name.
        argument: ``DATA[,key=value]*``, keys labels (total number or "all"), seed, preset, split.
        algorithm: ``name`` and the fields that differ from the dataclass's defaults.
        settings: values by dotted key that this method changes whatever the data set.
        presets: the presets that exist for this method beside "jaxmatch", each with the values by
            dotted key that it sets for the method, beyond those of every method
            (:func:`jaxmatch.config.presets.preset_values`).

    Raises:
        InputError: on an unknown key, preset or malformed value, with the nearest known one.
    """
    data, chosen = parse_argument(argument)
    preset = chosen.get("preset", "jaxmatch")
    presets = {"jaxmatch": {}, **(presets or {})}
    if preset not in (known := {*PRESETS, *presets}):
        raise InputError(f"unknown preset {preset!r}; {suggest(preset, known)}")
    if preset not in presets:
        raise InputError(f"{recipe} has no preset {preset!r}; it has {', '.join(presets)}.")
    name = algorithm["name"]
    if name not in ALGORITHMS:
        raise InputError(f"unknown algorithm {name!r}; {suggest(name, ALGORITHMS)}")
    fields = _fields(ALGORITHMS[name])
    config = ConfigDict({**defaults(), "algorithm": {"name": name, **fields}})
    config.frozen = dict.fromkeys(getattr(ALGORITHMS[name], "frozen", ()), "")
    label_free = not ALGORITHMS[name].labeled
    if label_free and ("labels" in chosen or "split" in chosen):
        raise InputError(f"{recipe} reads no labels; leave labels and split out of its argument.")
    settings = settings or {}
    if "model.name" in settings:
        set_model(config, settings["model.name"])
    known = flatten(config)

    def fitting(layer: Mapping[str, Any]) -> dict[str, Any]:
        # Data sets and presets speak of the wide residual network, some of whose settings others
        # lack.
        return {key: layer[key] for key in layer if key in known or not key.startswith("model.")}

    layers = [
        {f"algorithm.{key}": value for key, value in algorithm.items()},
        fitting(DATASETS.get(data, {})),
        {"data.labels": "none"} if label_free else {},
        settings,
        fitting(preset_values(preset, data)),
        presets[preset],
        {"recipe": recipe, "preset": preset, "data.name": data},
        {"seed": int(chosen["seed"])} if "seed" in chosen else {},
        {f"data.{key}": chosen[key] for key in ("labels", "split") if key in chosen},
    ]
    for layer in layers:
        for key, value in layer.items():
            put(config, key, value)
    return config


def make_stages(recipe: str, stages: Mapping[str, ConfigDict]) -> ConfigDict:
    """A configuration of runs one after another, each starting from the encoder of the one before.

    ``stages`` are configurations of :func:`make` by name, in order. They share the seed and the
    devices; other values are overridden as ``--config.stages.NAME.key=value``.
    """
    *_, last = stages.values()
    shared = {key: FieldReference(last[key]) for key in SHARED}
    config = ConfigDict({"recipe": recipe, "preset": last.preset, "order": tuple(stages)})
    config.update(shared)
    config.stages = {}
    folder = ""
    for number, (name, stage) in enumerate(stages.items(), start=1):
        stage.update(shared)
        stage.init_from = f"{STAGE}{folder}" if folder else ""
        config.stages[name] = stage
        folder = f"{number}_{name}"
    return config


def stages_of(config: Mapping[str, Any] | ConfigDict) -> dict[str, Any]:
    """The stages of a configuration, by name in their order; itself under "" if it has none."""
    return (
        {name: config["stages"][name] for name in config["order"]}
        if "order" in config
        else {"": config}
    )


def stage_folders(config: Mapping[str, Any] | ConfigDict) -> dict[str, Any]:
    """The stages by the name of their folder inside the run's.

    Raises InputError on a name that would lead elsewhere.
    """
    for name in stages_of(config):
        if name and not re.fullmatch(r"\w+", name):
            raise InputError(f"a stage cannot be called {name!r}: use letters, digits and _.")
    return {f"{n}_{name}": stage for n, (name, stage) in enumerate(stages_of(config).items(), 1)}


def set_model(config: ConfigDict, name: str) -> None:
    """Choose the network ``name`` with its default settings; InputError on an unknown name."""
    if name not in MODELS:
        raise InputError(f"unknown model {name!r}; {suggest(name, MODELS)}")
    config.model = ConfigDict({"name": name, **model_settings(name)})


def config(
    recipe: str,
    *,
    labels: int | str | None = None,
    seed: int | None = None,
    preset: str | None = None,
    split: str | Path | None = None,
    **overrides: Any,
) -> ConfigDict:
    """The configuration of a recipe, as ``jaxmatch train --config=...`` reads it.

    ::

        jaxmatch.config("fixmatch:mnist5k", labels=40, steps=600, **{"algorithm.threshold": 0.9})

    Args:
        recipe: ``NAME:DATA``, or the path of a config file in place of the name; it may have an
            argument of its own.
        labels: how many images are labeled in all, or "all".
        seed: of all draws.
        preset: a name that stands for other values.
        split: the file that lists the labeled images.
        overrides: values by dotted key; they win. A note about them is logged as a warning.

    Raises:
        InputError: on an unknown recipe, key or preset, or a value that cannot be read.
    """
    chosen = {"labels": labels, "seed": seed, "preset": preset, "split": split}
    words = [f"{key}={value}" for key, value in chosen.items() if value is not None]
    if words and ":" not in recipe:
        raise InputError(f"{recipe} names no data set, which comes first: {recipe}:DATA.")
    flags = [f"--config.{key}={value}" for key, value in overrides.items()]
    found, notes = from_flags(",".join([recipe, *words]), flags)
    for note in notes:
        log.warning("%s", note)
    return found


def from_flags(config: str, overrides: Sequence[str]) -> tuple[ConfigDict, list[str]]:
    """The configuration that ``--config=CONFIG`` and the flags ``--config.key=value`` describe.

    Returns:
        The configuration, and a note for each value that ``scale=`` in CONFIG's argument changed
        (:mod:`jaxmatch.config.scaling`), for each override that contradicts its preset and for each
        value that turns its setting off.

    Raises:
        InputError: if the file, a key or a value is wrong.
    """
    path, _, argument = config.partition(":")
    argument, factor, rule = scaling.split_argument(argument)
    module = load_module(path)
    result = module.get_config(argument) if argument else module.get_config()
    scaled = scaling.scale(result, factor, rule)
    _choose_models(result, overrides)
    known = flatten(result)
    for override in overrides:
        key = override.removeprefix("--config.").partition("=")[0]
        if key not in known:
            raise InputError(f"unknown config key {key!r}; {suggest(key, known)}")
        if key == "preset":  # it stands for other values, which an override would leave as they are
            raise InputError("a preset belongs in the argument: --config=NAME:DATA,preset=NAME.")
    values = flags.FlagValues()
    # Of a key given twice the last value counts, as everywhere on command lines.
    argv = ["jaxmatch", *{override.partition("=")[0]: override for override in overrides}.values()]
    try:
        config_flags.DEFINE_config_dict("config", result, flag_values=values, sys_argv=argv)
        values(argv)
    except (flags.Error, TypeError, ValueError) as error:
        raise InputError(f"cannot read an override: {' '.join(str(error).split())}") from error
    chosen = config_flags.get_override_values(values["config"])
    default = _preset_of(module, argument, result)
    notes = [
        f"--config.{key}={value} contradicts preset {result.preset!r}, which has {default[key]}."
        for key, value in chosen.items()
        if key in default and default[key] != value
    ]
    for name, part in stages_of(result).items():
        if kind := ALGORITHMS.get(part.algorithm.name):
            where = f"stages.{name}.algorithm" if name else "algorithm"
            notes += turned_off(kind, part.algorithm, where)
    return result, [note for note in scaled if note.split(":")[0] not in chosen] + notes


def _preset_of(module: Any, argument: str, chosen: ConfigDict) -> dict[str, Any]:
    """What the argument's preset sets, by dotted key, before any override."""
    values = {}
    for name, part in stages_of(chosen).items():
        prefix = f"stages.{name}." if name else ""
        general = preset_values(part.preset, part.data.name)
        values |= {f"{prefix}{key}": value for key, value in general.items()}
    plain = ",".join(part for part in argument.split(",") if not part.startswith("preset="))
    if plain != argument:
        usual, own = flatten(module.get_config(plain)), flatten(module.get_config(argument))
        values |= {key: value for key, value in own.items() if value != usual.get(key)}
    return values


def _choose_models(config: ConfigDict, overrides: Sequence[str]) -> None:
    """Give a network that an override names its own settings, for other overrides to change."""
    for name, part in stages_of(config).items():
        flag = f"--config.{f'stages.{name}.' if name else ''}model.name="
        for override in overrides:
            if override.startswith(flag) and override != flag + part.model.name:
                set_model(part, override.removeprefix(flag))


def load_module(path: str) -> Any:
    """Execute a config file: a path, or the name of one that comes with the package.

    ``A+B`` are both as stages, B starting from the encoder of A, and so on.
    """
    if "+" in path:
        return SimpleNamespace(get_config=partial(_chain, path))
    file = Path(path)
    if file.suffix != ".py":
        names = named_configs(Path(__file__).parents[1])
        if path not in names:
            raise InputError(f"unknown config {path!r}; {suggest(path, names)}")
        file = names[path]
    if not file.is_file():
        raise InputError(f"there is no config file {path}.")
    spec = importlib.util.spec_from_file_location(f"jaxmatch_config_{file.stem}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise InputError(f"{path} defines no get_config(argument).")
    return module


def named_configs(package: Path) -> dict[str, Path]:
    """The config files that come with ``package``, by name: its own, or those of its checkout.

    What else lies beside an installed package belongs to others and is never looked at.
    """
    folders = [package / "configs"]
    try:
        project = tomllib.loads((package.parent / "pyproject.toml").read_text())["project"]["name"]
    except (OSError, ValueError, KeyError, TypeError):
        project = None
    if project == package.name:
        folders.insert(0, package.parent / "configs")
    return {entry.stem: entry for folder in folders for entry in folder.glob("[!_]*.py")}


def _chain(path: str, argument: str = "mnist5k") -> ConfigDict:
    """Stages: labels and split for those that read labels, a preset for those that have it."""
    data, chosen = parse_argument(argument)
    given = {key: [f"{key}={chosen[key]}"] if key in chosen else [] for key in ARGUMENT_KEYS}
    seed, preset, labels = given["seed"], given["preset"], given["labels"] + given["split"]
    stages, refusals = {}, []
    for part in path.split("+"):
        module = load_module(part)
        stage = module.get_config(",".join([data, *seed]))
        if "order" in stage:
            raise InputError(f"{part} consists of stages itself; name those instead, with a +.")
        if Path(part).stem in stages:
            raise InputError(f"{path} names {part} twice; a stage has a name of its own.")
        words = [data, *seed, *(labels if ALGORITHMS[stage.algorithm.name].labeled else [])]
        try:
            stage = module.get_config(",".join([*words, *preset]))
        except InputError as refusal:
            if not preset:
                raise
            refusals.append(refusal)
            stage = module.get_config(",".join(words))
        stages[Path(part).stem] = stage
    if len(refusals) == len(stages):
        raise refusals[-1]
    return make_stages("+".join(stages), stages)


def to_json(config: ConfigDict) -> dict[str, Any]:
    """Plain JSON values of a configuration."""
    return json.loads(json.dumps(config.to_dict()))


def complete(values: Mapping[str, Any]) -> ConfigDict:
    """A saved configuration with its data set's defaults of the settings that are newer than it."""
    usual = ConfigDict(defaults())
    if "algorithm" in values and values["algorithm"].get("name") in ALGORITHMS:
        usual.algorithm = ConfigDict(_fields(ALGORITHMS[values["algorithm"]["name"]]))
    if "model" in values and values["model"].get("name") in MODELS:
        set_model(usual, values["model"]["name"])
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

    return ConfigDict(merged(usual.to_dict(), values))


def identifies(key: str) -> bool:
    """Whether the setting of a dotted key identifies a run, see :data:`IDENTITY`."""
    return _listed(key, IDENTITY)


def tells_apart(key: str) -> bool:
    """Whether runs that differ in the setting of a dotted key are different runs."""
    return identifies(key) or _listed(key, PLACES)


def identity(values: Mapping[str, Any]) -> dict[str, Any]:
    """What identifies a run, by dotted key: two runs of equal ones have equal numbers."""
    found = {key: value for key, value in flatten(values).items() if identifies(key)}
    if "data.name" in found:
        found["data.name"] = data_kind(found["data.name"])
    if "init_from" in found:
        found["init_from"] = _absolute("init_from", found["init_from"])
    return found


def data_kind(name: str) -> str:
    """``data.name`` without the path of those that have one: "npz:" of "npz:cells.npz"."""
    kind, colon, _ = name.partition(":")
    return name if kind == "tfds" else kind + colon


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What of :data:`IDENTITY` differs, as ``key: old -> new``.

    Settings that ``old`` lacks count as their defaults.
    """
    old = to_json(complete(old))
    mine, other = identity(old), identity(new)
    flat_old, flat_new = flatten(old), flatten(new)
    return [
        f"{key}: {flat_old.get(key)} -> {flat_new.get(key)}"
        for key in sorted(mine.keys() | other.keys())
        if mine.get(key) != other.get(key)
    ]


def moved(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether a place that a run reads from is another one than before."""
    return _with_places(to_json(complete(old))) != _with_places(new)


def run_name(config: ConfigDict) -> str:
    """The default folder name <recipe>-<data>-<labels>-s<seed>-<8 hex>.

    The last part is of what identifies the run and of the places it reads from.
    """
    values = [(name, _with_places(to_json(stage))) for name, stage in stages_of(config).items()]
    digest = sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]
    *_, last = stages_of(config).values()
    data = last.data.name.removeprefix("tfds:")
    kind, colon, path = data.partition(":")
    data = f"{kind}-{Path(path).stem}" if colon else data
    name = f"{config.recipe}-{data}-{last.data.labels}-s{config.seed}-{digest}"
    return re.sub(r"[^\w.+=-]", "_", name)  # one folder, whatever the values


def _listed(key: str, keys: Iterable[str]) -> bool:
    """Whether a dotted key, or the section it is in, is among ``keys``."""
    return key in keys or key.partition(".")[0] in keys


def _with_places(values: Mapping[str, Any]) -> dict[str, Any]:
    flat = flatten(values)
    places = {key: _absolute(key, value) for key, value in flat.items() if _listed(key, PLACES)}
    return {**identity(values), **places}


def _absolute(key: str, place: str) -> str:
    """The value of one of :data:`PLACES` with its path as an absolute one; names stay."""
    if key == "data.name":
        kind, _, path = place.partition(":")
        return f"{kind}:{_resolved(path)}" if names_path(place) else place
    return place if place.startswith(STAGE) else _resolved(place)


def _resolved(path: str) -> str:
    remote = "://" in path
    # Not by the links on the way: the path may hold anything.
    return path if remote or not path else os.path.abspath(os.path.expanduser(path))


def _fields(kind: type) -> dict[str, Any]:
    return {field.name: field.default for field in dataclasses.fields(kind)}
