"""Configurations: defaults, data sets, presets, the ``--config`` argument and overrides.

A configuration is an ``ml_collections.ConfigDict`` of primary quantities. ``configs/NAME.py``
calls :func:`make`; its layers are, from weak to strong: the defaults, the data set, the method,
the preset, the argument after the colon, and ``--config.key=value``.
"""

import dataclasses
import hashlib
import importlib.util
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder
from ml_collections.config_flags import config_flags

from jaxmatch.algorithms import ALGORITHMS
from jaxmatch.augment.randaugment import RandAugment
from jaxmatch.augment.weak import Weak
from jaxmatch.errors import InputError, suggest
from jaxmatch.optim import Ema, Optim

# What a run computes does not depend on these, so another value continues the same run.
NOT_IDENTITY = {"devices", "wandb"}
ARGUMENT_KEYS = ("labels", "seed", "preset", "split")
PRESETS = ("jaxmatch", "google", "torchssl", "usb")

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CIFAR10 = ((125.3 / 255, 123.0 / 255, 113.9 / 255), (63.0 / 255, 62.1 / 255, 66.7 / 255))
CIFAR100 = ((129.3 / 255, 124.1 / 255, 112.4 / 255), (68.2 / 255, 65.4 / 255, 70.4 / 255))
SVHN = ((0.4380, 0.4440, 0.4730), (0.1751, 0.1771, 0.1744))
STL10 = ((112.4 / 255, 109.1 / 255, 98.6 / 255), (68.4 / 255, 66.6 / 255, 68.5 / 255))

USB_NETWORK = {
    "model.legacy_transition": True,
    "model.padding": "torch",
    "model.conv_bias": "stem",
    "model.bn_eps": 1e-5,
}
MNIST5K = {
    **USB_NETWORK,
    "steps": 1500,
    "steps_per_call": 15,
    "log_every": 75,
    "eval_every": 75,
    "save_every": 150,
    "data.labels": "40",
    "data.batch_size": 16,
    "data.mean": (0.1307,),
    "data.std": (0.3081,),
    "model.depth": 10,
    "model.first_stride": 2,
    "model.bn_decay": 0.99,
    "views.weak.flip": False,
    "ema.decay": 0.99,
}
DATASETS: dict[str, dict[str, Any]] = {
    "mnist5k": MNIST5K,
    "digits": {**MNIST5K, "data.mean": (0.5,), "data.std": (0.5,)},
    "tfds:cifar10": {"data.labels": "40"},
    "tfds:cifar100": {"data.labels": "400", "model.width": 8.0, "optim.weight_decay": 1e-3},
    "tfds:svhn_cropped": {"data.labels": "40", "views.weak.flip": False},
    "tfds:stl10": {"data.labels": "40", "model.groups": 4, "model.first_stride": 2},
}
TORCHSSL_SCALE = {
    "tfds:cifar10": CIFAR10,
    "tfds:cifar100": CIFAR100,
    "tfds:svhn_cropped": SVHN,
    "tfds:stl10": STL10,
}
USB_SCALE = {**TORCHSSL_SCALE, "tfds:cifar10": IMAGENET}


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
        "wandb": "",
        "dtype": "float32",
        "forward": "joint",
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
        },
        "model": {
            "name": "wide_resnet",
            "depth": 28,
            "width": 2.0,
            "groups": 3,
            "first_stride": 1,
            "legacy_transition": False,
            "padding": "same",
            "conv_bias": "all",
            "bn_decay": 0.999,
            "bn_eps": 1e-3,
            "bn_eps_final": 1e-3,
        },
        "views": {
            "weak": {**_fields(Weak), "pad": placeholder(int)},
            "strong": {**_fields(RandAugment), "order": "weak_first"},
        },
        "optim": _fields(Optim),
        "ema": _fields(Ema),
    }


def preset_values(preset: str, data: str) -> dict[str, Any]:
    """What a preset sets for a data set, whatever the method (README, "Presets")."""
    values: dict[str, Any] = {}
    if preset == "google":
        values["views.strong.table"] = "google"
        if data == "tfds:stl10":
            values["model.first_stride"] = 1
    if preset in ("torchssl", "usb"):
        scale = TORCHSSL_SCALE if preset == "torchssl" else USB_SCALE
        values |= USB_NETWORK
        if data in scale:
            values["data.mean"], values["data.std"] = scale[data]
        if data == "tfds:svhn_cropped":
            values |= {"data.extra": True, "views.weak.flip": True}
    if preset == "torchssl":
        values |= {"model.conv_bias": "all", "model.bn_eps": 1e-3}
        values |= {"views.strong.order": "ops_first", "views.weak.pad": 4}
    if preset == "usb":
        values["views.weak.order"] = "crop_flip"
        if data == "tfds:cifar100":
            values["model.width"] = 2.0
    return values


def make(
    recipe: str,
    argument: str,
    *,
    algorithm: Mapping[str, Any],
    settings: Mapping[str, Any] | None = None,
) -> ConfigDict:
    """The configuration of one method.

    Args:
        recipe: the config file's name; it begins the run folder's name.
        argument: ``DATA[,key=value]*``, keys labels (total number or "all"), seed, preset, split.
        algorithm: ``name`` and the fields that differ from the dataclass's defaults.
        settings: values by dotted key that this method changes whatever the data set.

    Raises:
        InputError: on an unknown key, preset or malformed value, with the nearest known one.
    """
    data, chosen = parse_argument(argument)
    preset = chosen.get("preset", "jaxmatch")
    if preset not in PRESETS:
        raise InputError(f"unknown preset {preset!r}; {suggest(preset, PRESETS)}")
    name = algorithm["name"]
    if name not in ALGORITHMS:
        raise InputError(f"unknown algorithm {name!r}; {suggest(name, ALGORITHMS)}")
    fields = _fields(ALGORITHMS[name])
    config = ConfigDict({**defaults(), "algorithm": {"name": name, **fields}})
    layers = [
        {f"algorithm.{key}": value for key, value in algorithm.items()},
        DATASETS.get(data, {}),
        settings or {},
        preset_values(preset, data),
        {"recipe": recipe, "preset": preset, "data.name": data},
        {"seed": int(chosen["seed"])} if "seed" in chosen else {},
        {f"data.{key}": chosen[key] for key in ("labels", "split") if key in chosen},
    ]
    for layer in layers:
        for key, value in layer.items():
            put(config, key, value)
    return config


def parse_argument(argument: str) -> tuple[str, dict[str, str]]:
    """Split ``DATA[,key=value]*`` into the data set and the values, checked."""
    data, *pairs = argument.split(",")
    if not data:
        raise InputError(f"the config argument needs a data set first: {suggest('', DATASETS)}")
    chosen = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if key not in ARGUMENT_KEYS or not equals or not value:
            raise InputError(
                f"cannot read {pair!r} in the config argument, which is DATA,key=value,...; "
                f"{suggest(key, ARGUMENT_KEYS)}"
            )
        chosen[key] = value
    for key in ("labels", "seed"):
        value = chosen.get(key, "0")
        if not value.isdecimal() and not (key == "labels" and value == "all"):
            raise InputError(f"{key}={value} is not a whole number{' or all' * (key == 'labels')}.")
    return data, chosen


def put(config: ConfigDict, key: str, value: Any) -> None:
    """Set a dotted ``key`` that must exist; InputError names the nearest known one."""
    known = list(flatten(config))
    if key not in known:
        raise InputError(f"unknown config key {key!r}; {suggest(key, known)}")
    *parents, last = key.split(".")
    for parent in parents:
        config = config[parent]
    config[last] = value


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of a configuration by dotted key."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping | ConfigDict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def from_flags(config: str, overrides: Sequence[str]) -> tuple[ConfigDict, list[str]]:
    """The configuration that ``--config=CONFIG`` and the flags ``--config.key=value`` describe.

    Returns:
        The configuration, and a note for each override that contradicts its preset.

    Raises:
        InputError: if the file, a key or a value is wrong.
    """
    path, _, argument = config.partition(":")
    module = load_module(path)
    result = module.get_config(argument) if argument else module.get_config()
    known = flatten(result)
    for override in overrides:
        key = override.removeprefix("--config.").partition("=")[0]
        if key not in known:
            raise InputError(f"unknown config key {key!r}; {suggest(key, known)}")
        if key == "preset":  # it stands for other values, which an override would leave as they are
            raise InputError("a preset belongs in the argument: --config=NAME:DATA,preset=NAME.")
    values = flags.FlagValues()
    argv = ["jaxmatch", *overrides]
    try:
        config_flags.DEFINE_config_dict("config", result, flag_values=values, sys_argv=argv)
        values(argv)
    except (flags.Error, TypeError, ValueError) as error:
        raise InputError(f"cannot read an override: {' '.join(str(error).split())}") from error
    chosen = config_flags.get_override_values(values["config"])
    default = flatten(preset_values(result.preset, result.data.name))
    notes = [
        f"--config.{key}={value} contradicts preset {result.preset!r}, which has {default[key]}."
        for key, value in chosen.items()
        if key in default and default[key] != value
    ]
    return result, notes


def load_module(path: str) -> Any:
    """Execute a config file: a path, or the name of one that comes with the package."""
    file = Path(path)
    if file.suffix != ".py":
        folders = (Path(__file__).parent / "configs", Path(__file__).parents[1] / "configs")
        names = {entry.stem: entry for folder in folders for entry in folder.glob("[!_]*.py")}
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


def build_dataclass(kind: type, values: Mapping[str, Any], where: str) -> Any:
    """An instance of a dataclass from config values; InputError on a key it does not have."""
    known = [field.name for field in dataclasses.fields(kind)]
    for key in values:
        if key not in known:
            hint = suggest(key, known) if known else f"{where} has no settings."
            raise InputError(f"unknown config key {where}.{key}; {hint}")
    return kind(**values)


def to_json(config: ConfigDict) -> dict[str, Any]:
    """Plain JSON values of a configuration."""
    return json.loads(json.dumps(config.to_dict()))


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What differs, apart from :data:`NOT_IDENTITY`, as ``key: old -> new``."""
    flat_old, flat_new = flatten(old), flatten(new)
    keys = sorted((flat_old.keys() | flat_new.keys()) - NOT_IDENTITY)
    return [
        f"{key}: {flat_old.get(key)} -> {flat_new.get(key)}"
        for key in keys
        if flat_old.get(key) != flat_new.get(key)
    ]


def run_name(config: ConfigDict) -> str:
    """The default folder name <recipe>-<data>-<labels>-s<seed>-<8 hex of the config>."""
    flat = flatten(to_json(config))
    values = {key: value for key, value in flat.items() if key not in NOT_IDENTITY}
    digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]
    data = config.data.name.removeprefix("tfds:")
    kind, colon, path = data.partition(":")
    data = f"{kind}-{Path(path).stem}" if colon else data
    return f"{config.recipe}-{data}-{config.data.labels}-s{config.seed}-{digest}"


def _fields(kind: type) -> dict[str, Any]:
    return {field.name: field.default for field in dataclasses.fields(kind)}
