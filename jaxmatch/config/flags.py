"""Configurations from the command line, and from Python in the same words."""

import importlib.util
import inspect
import logging
import re
import tomllib
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from absl import flags
from ml_collections import ConfigDict
from ml_collections.config_flags import config_flags

from jaxmatch.algorithms import ALGORITHMS
from jaxmatch.augment.randaugment import RandAugment
from jaxmatch.config import idle, scaling, views
from jaxmatch.config.argument import ARGUMENT_KEYS, parse_argument
from jaxmatch.config.argument import FOR_LABELS as ARGUMENT_FOR_LABELS
from jaxmatch.config.dotted import flatten
from jaxmatch.config.keys import KEYS, LIST, field_defaults, kinds_of, without_stage
from jaxmatch.config.layers import Recipe
from jaxmatch.config.own import AUTO, LARGER, leave_periods_open
from jaxmatch.config.presets import DATASETS, VIEWS
from jaxmatch.config.recipe import set_model
from jaxmatch.config.stages import SHARED, make_stages, scale_notes, stages_of
from jaxmatch.errors import InputError, printable, suggest
from jaxmatch.settings import check_value, demand, unusual
from jaxmatch.types import Algorithm

log = logging.getLogger(__name__)

PARTS = {"algorithm", "data", "model", "optim", "recipe"}  # of every run's configuration
# Keys that only stages that read labels take.
FOR_LABELS = (
    *(f"data.{key}" for key in ARGUMENT_FOR_LABELS),
    "data.added_labels",
    "data.validation",
    "data.validation_draw",
    "keep_best",
    "select",
)
# Whether the stage of a method takes a key that an override gives to all stages.
TAKES: dict[str, Callable[[type[Algorithm]], bool]] = {
    **dict.fromkeys(FOR_LABELS, lambda method: bool(method.labeled)),
    "augment": lambda method: "strong" in method().unlabeled,
}


def config(
    recipe: str,
    *,
    labels: int | str | None = None,
    seed: int | None = None,
    preset: str | None = None,
    views: str | None = None,
    split: str | Path | None = None,
    size: str | None = None,
    balance: str | None = None,
    imbalance: float | None = None,
    largest: int | None = None,
    imbalance_unlabeled: float | str | None = None,
    largest_unlabeled: int | None = None,
    scale: float | None = None,
    rule: str | None = None,
    **overrides: Any,
) -> ConfigDict:
    """The configuration of a recipe, as ``jaxmatch train --config=...`` reads it.

    ::

        jaxmatch.config("fixmatch:mnist5k", labels=40, steps=600, **{"algorithm.threshold": 0.9})

    Args:
        recipe: ``NAME:DATA``, or the path of a config file in place of the name; it may have an
            argument of its own.
        labels: total number of labeled images, or "all".
        seed: seed of all random numbers.
        preset: code base whose settings are taken.
        views: named augmentation (:data:`jaxmatch.config.presets.VIEWS`).
        split: file that lists the labeled images.
        size: settings for own images (:mod:`jaxmatch.config.own`).
        balance: how the labeled images are drawn, "equal", "proportional" or "as_given".
        imbalance: gamma of a long tail of labeled images.
        largest: its number of images of the first class, in place of ``labels``.
        imbalance_unlabeled: gamma of a long tail of unlabeled images, or "reversed".
        largest_unlabeled: its number of images of the largest class.
        scale: factor of the batch, which other settings follow (:mod:`jaxmatch.config.scaling`).
        rule: how the learning rate follows it, "linear", "sqrt" or "none".
        overrides: values by dotted key, which win; NumPy's and JAX's, too. Notes about them are
            logged as warnings.

    Raises:
        InputError: if a recipe, key or preset is unknown, or if a value cannot be read.
    """
    chosen = {"labels": labels, "seed": seed, "preset": preset, "split": split}
    chosen |= {"views": views, "size": size, "balance": balance, "imbalance": imbalance}
    chosen |= {"largest": largest, "imbalance_unlabeled": imbalance_unlabeled}
    chosen |= {"largest_unlabeled": largest_unlabeled, "scale": scale, "rule": rule}
    if not isinstance(recipe, str):
        raise InputError("recipe must be a text: give NAME:DATA, such as 'fixmatch:mnist5k'.")
    words = [f"{key}={value}" for key, value in chosen.items() if value is not None]
    if words and ":" not in recipe:
        raise InputError(f"{recipe} names no data set, which comes first: {recipe}:DATA.")
    flags = [f"--config.{key}={plain(value)}" for key, value in overrides.items()]
    found, notes = from_flags(",".join([recipe, *words]), flags)
    for note in notes:
        log.warning("%s", note)
    return found


def plain(value: Any) -> Any:
    """A value in Python's numbers and tuples; those of NumPy and JAX are printed in other ways."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    return tuple(map(plain, value)) if isinstance(value, tuple | list) else value


def from_flags(config: str, overrides: Sequence[str]) -> tuple[ConfigDict, list[str]]:
    """The configuration that ``--config=CONFIG`` and the flags ``--config.key=value`` describe.

    Returns:
        The configuration and notes. There is a note for each value that ``scale=`` in the argument
        changed (:mod:`jaxmatch.config.scaling`), for the views that it names, for each override
        that contradicts the preset, for each value beyond the usual ones, for settings of views
        without effect (:mod:`jaxmatch.config.views`), and for stages whose input differs.

    Raises:
        InputError: if the file, a key or a value is wrong.
    """
    path, colon, argument = config.partition(":")
    if colon and not argument:
        raise InputError(f"{config} needs a data set after the colon; {suggest('', DATASETS)}")
    argument, factor, rule = scaling.split_argument(argument)
    module = load_module(path)
    result = _configured(module, path, argument)
    scaled = scaling.scale(result, factor, rule)
    _remember_larger(result, module, argument, (factor, rule))
    # Stages have the keys of a network's own settings once it is chosen.
    _choose_models(result, _for_all_stages(result, overrides))
    overrides = _for_all_stages(result, overrides)
    _check_keys(result, overrides)
    kinds = {key: entry.kind for key, entry in KEYS.items()}
    for name, part in stages_of(result).items():
        prefix = f"stages.{name}." if name else ""
        kinds |= {f"{prefix}{key}": kind for key, kind in kinds_of(part).items()}
    values = flags.FlagValues()
    # The last value of a key counts, as everywhere on command lines.
    given = {override.partition("=")[0]: override for override in overrides}
    argv = ["jaxmatch", *given.values()]
    try:
        config_flags.DEFINE_config_dict("config", result, flag_values=values, sys_argv=argv)
        values(argv)
    except (flags.Error, TypeError, ValueError) as error:
        raise InputError(_unreadable(str(error), given, kinds)) from error
    chosen = config_flags.get_override_values(values["config"])
    for key, value in chosen.items():
        if not demand(None, kinds.get(key)):  # it takes None, so it was read as any literal
            check_value(key, value, kinds.get(key))
        elif value == "None":
            raise InputError(f"{key}=None: it takes a text; give an empty one for none.")
    notes = [note for note in scaled if note.split(":")[0] not in chosen]
    named = {part.get("views_preset", ""): None for part in stages_of(result).values()}
    notes += [f"views={name}: {VIEWS[name].meaning}" for name in named if name in VIEWS]
    for name, part in stages_of(result).items():
        prefix = f"stages.{name}." if name else ""
        own = {key.removeprefix(prefix): chosen[key] for key in chosen if key.startswith(prefix)}
        leave_periods_open(part, own | {key: chosen[key] for key in SHARED if key in chosen})
        if isinstance(part, Recipe):
            part.note_given(own)
            notes += [
                f"--config.{prefix}{key}={own[key]} contradicts preset {part.preset!r}, "
                f"which has {value}."
                for key, value in part.contradictions(own).items()
            ]
        if kind := ALGORITHMS.get(part.algorithm.name):
            notes += unusual(kind, part.algorithm, f"{prefix}algorithm")
            notes += views.notes(part, _not_refused(part, own), prefix)
            notes += idle.notes(part, own, prefix)
    notes += scale_notes(result)
    return result, notes


def _configured(module: Any, path: str, argument: str) -> ConfigDict:
    """What a module's ``get_config`` returns.

    Raises:
        InputError: if it does not take the argument, or returns something else.
    """
    words = (argument,) if argument else ()
    try:
        inspect.signature(module.get_config).bind(*words)
    except TypeError as error:
        problem = (
            f"takes no argument; leave {argument!r} out, or write get_config(argument)"
            if words
            else "needs an argument; give --config=FILE:ARGUMENT"
        )
        raise InputError(f"{path}: its get_config {problem}.") from error
    result = module.get_config(*words)
    if not isinstance(result, ConfigDict) or not ("stages" in result or {*result} >= PARTS):
        raise InputError(
            f"{path}: its get_config must return a configuration of jaxmatch, such as that of "
            "jaxmatch.config.recipe.make, changed as you like."
        )
    return result


def _remember_larger(
    config: ConfigDict, module: SimpleNamespace, argument: str, scale: tuple[float, str]
) -> None:
    """Where the devices choose the size, keep what the recipe sets for a larger one, too."""
    parts = [part for part in stages_of(config).values() if isinstance(part, Recipe)]
    if not any(part.size == AUTO for part in parts):
        return
    first = next(iter(inspect.signature(module.get_config).parameters.values()), None)
    if first is None:  # the file takes no argument
        return
    data, *pairs = (argument or str(first.default)).split(",")
    pairs = [pair for pair in pairs if pair != f"size={AUTO}"]
    try:
        larger = module.get_config(",".join([data, *pairs, f"size={LARGER}"]))
        scaling.scale(larger, *scale)
        others = stages_of(larger)
    except Exception:  # a file of one's own may read its argument in any way
        return
    for name, part in stages_of(config).items():
        if name in others and isinstance(part, Recipe):
            part.remember_larger(others[name])


def _check_keys(config: ConfigDict, overrides: Sequence[str]) -> None:
    """Refuse overrides of keys that do not exist or that set nothing.

    Raises:
        InputError: on the first one; it says what to give instead.
    """
    known = flatten(config)
    for override in overrides:
        key, _, value = override.removeprefix("--config.").partition("=")
        if key not in known:
            raise InputError(_unknown(key, known, config.recipe))
        if key == "order":
            raise InputError(
                "order: the stages are those of the recipe; give others by --config=A+B:DATA."
            )
        # Of a run, or as "stages.NAME.preset" of a stage; "views.contrast.size" is another.
        last = without_stage(key)
        # An override would not set their values.
        if last in ("preset", "views_preset", "size"):
            word = last.removesuffix("_preset")
            raise InputError(f"{word} belongs in the argument: --config=NAME:DATA,{word}=NAME.")
        if last == "algorithm.name" and value != known[key]:
            if value not in ALGORITHMS:
                raise InputError(f"unknown algorithm {value!r}; {suggest(value, ALGORITHMS)}")
            raise InputError(
                f"{key}={value}: the recipe is the method; give --config={value}:DATA instead."
            )


def _unknown(key: str, known: Collection[str], recipe: str) -> str:
    """The sentence about an override of a key that is not among the ``known`` ones."""
    if without_stage(key).startswith("frozen.") and not any("frozen." in each for each in known):
        methods = [name for name, kind in ALGORITHMS.items() if kind.frozen]
        return (
            f"{key}: {recipe} learns from no trained network; leave it out, or give --config="
            f"{' or '.join(methods)}:DATA."
        )
    return f"unknown config key {key!r}; {suggest(key, known, LIST)}"


def _unreadable(error: str, given: Mapping[str, str], kinds: Mapping[str, Any]) -> str:
    """The sentence about the override that the ``error`` of the parser names.

    ``given`` are the overrides by ``--config.key``.
    """
    found = re.search(r"--config\.([\w.]+)", error)
    key = found[1] if found else ""
    flag, equals, value = given.get(f"--config.{key}", "").partition("=")
    if flag and not equals:
        return f"{flag} has no value; give {flag}=VALUE."
    if flag and (failed := demand(value, kinds.get(key))):
        return f"{key}={printable(value)} {failed}."
    return f"cannot read an override: {' '.join(error.split())}"


def _not_refused(config: ConfigDict, own: Mapping[str, Any]) -> dict[str, Any]:
    """The overrides without those of RandAugment that a check of CTAugment's views refuses."""
    if config.augment != "ctaugment":
        return dict(own)
    usual = field_defaults(RandAugment)
    refused = {f"views.strong.{key}": usual[key] for key in usual if key != "table"}
    return {key: value for key, value in own.items() if value == refused.get(key, value)}


def _for_all_stages(config: ConfigDict, overrides: Sequence[str]) -> list[str]:
    """The overrides, of which those of a key that only stages have are one for each such stage.

    An override of one stage wins. Keys of :data:`TAKES` go to the stages whose methods take them.
    """
    if "order" not in config:
        return list(overrides)
    top, shared, own = flatten(config), [], []
    for override in overrides:
        key, equals, value = override.removeprefix("--config.").partition("=")
        stages = [name for name in config.order if f"stages.{name}.{key}" in top]
        takes = TAKES.get(key)
        if takes is not None:
            methods = {name: ALGORITHMS[config.stages[name].algorithm.name] for name in stages}
            stages = [name for name in stages if takes(methods[name])] or stages
        if key in top or not stages:
            own.append(override)
        else:
            shared += [f"--config.stages.{name}.{key}{equals}{value}" for name in stages]
    return shared + own


def _choose_models(config: ConfigDict, overrides: Sequence[str]) -> None:
    """Choose the network that an override names, so that others can change its settings."""
    for name, part in stages_of(config).items():
        flag = f"--config.{f'stages.{name}.' if name else ''}model.name="
        for override in overrides:
            if override.startswith(flag) and override != flag + part.model.name:
                set_model(part, override.removeprefix(flag))


def load_module(path: str) -> Any:
    """Execute a config file, given as a path or as the name of one of the package.

    ``A+B`` are stages: B starts from the encoder of A.

    Raises:
        InputError: if there is no such file, or if it defines no ``get_config``.
    """
    if "+" in path:
        return SimpleNamespace(get_config=partial(_chain, path))
    file = Path(path).expanduser()
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
    """The config files of ``package`` by name: its own, and those of its checkout if it is in one.

    Files beside an installed package belong to others and are never read.
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
    """Stages; what is about labels goes to those that read them, a preset to those that have it.

    The rest goes to all.
    """
    data, chosen = parse_argument(argument)
    given = {key: [f"{key}={chosen[key]}"] if key in chosen else [] for key in ARGUMENT_KEYS}
    preset, labels = (
        given.pop("preset"),
        [word for key in ARGUMENT_FOR_LABELS for word in given[key]],
    )
    common = [word for key in given if key not in ARGUMENT_FOR_LABELS for word in given[key]]
    stages, refusals = {}, []
    for part in path.split("+"):
        module = load_module(part)
        stage = module.get_config(",".join([data, *common]))
        if "order" in stage:
            raise InputError(f"{part} consists of stages itself; name those instead, with a +.")
        if Path(part).stem in stages:
            raise InputError(f"{path} names {part} twice; a stage has a name of its own.")
        words = [data, *common, *(labels if ALGORITHMS[stage.algorithm.name].labeled else [])]
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
