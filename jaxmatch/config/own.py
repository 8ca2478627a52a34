"""Settings that a configuration leaves open: those for a user's own images, periods, steps.

A published data set has its papers' settings. Other data has ``size=small|base|large``; by default
the devices decide. A setting that is open has the value None until :func:`settle` chooses it, from
the images, the devices and the other settings. A value that anyone gives is kept.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from jaxmatch.algorithms import ALGORITHMS
from jaxmatch.config import usb_cv
from jaxmatch.config.dotted import flatten, put
from jaxmatch.config.keys import KEYS
from jaxmatch.config.layers import larger, may_move
from jaxmatch.config.presets import DATASETS
from jaxmatch.errors import InputError, suggest
from jaxmatch.settings import check_value

AUTO, PAPER = "auto", "paper"
LARGER = "base"  # the size that accelerators choose
EVALUATIONS = 20  # of a run whose periods are open; mean_20 and median_20 run over 20
PROVISIONAL = 1000  # steps of a program whose speed is measured
MOST_CALLS = 1000  # of a run, if fewer but longer calls are possible
CALL = 64  # the most steps of a call, if they are open
PERIODS = ("log_every", "eval_every", "save_every")
# A start or a ramp that a run gives in steps ends at the latest after this share of the run.
LATEST = 0.1


@dataclass(frozen=True, kw_only=True)
class Size:
    """Settings for own images.

    Attributes:
        meaning: what it is for.
        side: the images' side, unless they are smaller.
        halved_from: from this side on the first convolution has stride 2.
        steps: of a run on images of this side; smaller images take more in the same time.
        most_steps: of a run on the smallest images.
        values: settings by dotted key.
    """

    meaning: str
    side: int
    halved_from: int
    steps: int
    most_steps: int
    values: Mapping[str, Any]


SIZES = {
    "small": Size(
        meaning="a first result within minutes on a CPU",
        side=64,
        halved_from=24,
        steps=400,
        most_steps=1200,
        values={
            "data.batch_size": 16,
            "data.eval_images": 1000,
            "model.depth": 10,
            "model.width": 2.0,
            "model.bn_decay": 0.99,
            "ema.decay": 0.99,
        },
    ),
    "base": Size(
        meaning="a good result within hours on one GPU",
        side=96,
        halved_from=48,
        steps=2**14,
        most_steps=2**16,
        values={
            "data.batch_size": 64,
            "data.eval_images": 10_000,
            "model.depth": 28,
            "model.width": 2.0,
            "model.bn_decay": 0.999,
            "ema.decay": 0.999,
        },
    ),
    "large": Size(
        meaning="the best result, within days on one GPU or hours on many",
        side=128,
        halved_from=48,
        steps=2**16,
        most_steps=2**18,
        values={
            "data.batch_size": 64,
            "data.eval_images": 10_000,
            "model.depth": 28,
            "model.width": 8.0,
            "model.bn_decay": 0.999,
            "ema.decay": 0.999,
        },
    ),
}
CHOICES = (AUTO, *SIZES, PAPER)
# The type of each setting that a size leaves open.
OPEN = {
    "steps": int,
    "steps_per_call": int,
    **dict.fromkeys(PERIODS, int),
    "data.batch_size": int,
    "data.eval_images": int,
    "data.mean": tuple,
    "data.std": tuple,
    "model.depth": int,
    "model.width": float,
    "model.first_stride": int,
    "model.bn_decay": float,
    "ema.decay": float,
}


@dataclass(frozen=True, kw_only=True)
class Circumstances:
    """What the open settings are chosen for.

    Attributes:
        side: the shorter side of a typical image, in pixels.
        one_side: all images are squares of this side, so that nothing has to be resized.
        platform: of the devices, such as "cpu".
        stages: the number of stages that share the time of a run.
    """

    side: int
    one_side: bool = False
    platform: str = "cpu"
    stages: int = 1


def published(data: str, size: str = "") -> bool:
    """Whether the data set has published settings, or is to have those of CIFAR-10."""
    return data in DATASETS or size == PAPER


def method_settings(
    settings: Mapping[str, Mapping[str, Any]],
    argument: tuple[str, Mapping[str, str]],
    usual: Mapping[str, Any],
) -> dict[str, Any]:
    """A method's settings for the data set of a parsed argument.

    Args:
        settings: by data set. Own images take ``usual`` without its steps; a short run takes those
            of MNIST-5k, but for its views, which suit digits.
        argument: as :func:`jaxmatch.config.argument.parse_argument` returns it.
        usual: the settings for data sets that are not listed.
    """
    data, chosen = argument
    if published(data, chosen.get("size", "")):
        return dict(settings.get(data, usual))
    small = chosen.get("size", AUTO) in (AUTO, "small")
    short = settings.get("mnist5k", usual) if small else usual
    kept = {key: value for key, value in short.items() if not key.startswith("views.")}
    views = {key: value for key, value in usual.items() if key.startswith("views.")}
    return {key: value for key, value in {**kept, **views}.items() if key != "steps"}


def open_settings(size: str) -> dict[str, Any]:
    """The layer of a configuration for own images: its size, and None for what that chooses.

    Raises:
        InputError: if the size is unknown.
    """
    if size not in CHOICES:
        raise InputError(f"unknown size {size!r}; {suggest(size, CHOICES)}")
    return {"size": size} | (dict.fromkeys(OPEN) if size != PAPER else {})


def leave_open(config: ConfigDict, key: str) -> None:
    """Set a setting to None; a later value must have the type that :data:`OPEN` gives."""
    put(config, key, placeholder(OPEN[key]))


def put_layer(config: ConfigDict, layer: Mapping[str, Any]) -> None:
    """Set settings by dotted key; None leaves one open that may be."""
    for key, value in layer.items():
        if value is None and key in OPEN:
            leave_open(config, key)
        else:
            put(config, key, value)


def leave_periods_open(config: ConfigDict, given: Mapping[str, Any]) -> None:
    """Leave steps open if minutes are given, and periods if they do not fit steps that are given.

    Args:
        config: of one run or stage, with the overrides.
        given: the overrides by dotted key, which stay.

    Raises:
        InputError: if both steps and minutes are given.
    """
    if config.minutes:
        if "steps" in given:
            raise InputError("steps and minutes are both given; leave one of them out.")
        leave_open(config, "steps")
    elif not {"steps", "steps_per_call", *PERIODS} & {*given} or _fit_together(config):
        return
    # The evaluations identify a run, so they stay if they can.
    period = config.eval_every
    kept = None not in (config.steps, period) and config.steps % max(1, period) == 0
    evaluations = () if kept else ("eval_every",)
    for key in ("steps_per_call", "log_every", "save_every", *evaluations):
        if key not in given:
            leave_open(config, key)


def _fit_together(config: ConfigDict) -> bool:
    """Whether the periods are multiples of a call, and a run has an evaluation before its end."""
    numbers = [config[key] for key in ("steps", *PERIODS)]
    call = config.steps_per_call
    if None in numbers or call is None:
        return False
    return all(number % max(1, call) == 0 for number in numbers) and numbers[2] <= numbers[0]


def needs_images(config: ConfigDict) -> bool:
    """Whether a setting is open that depends on the images."""
    flat = flatten(config)
    sized = bool(config.size) and config.size != PAPER
    return sized and (flat["data.image_size"] is None or _open(flat) != [])


def with_usual_input(config: ConfigDict) -> ConfigDict:
    """A copy whose mean and deviation have values, for checks before the images are read."""
    copy = config.copy_and_resolve_references()
    for key in ("mean", "std"):
        if copy.data[key] is None:
            copy.data[key] = (0.5,)
    return copy


def settle(config: ConfigDict, at: Circumstances | None) -> tuple[ConfigDict, list[str]]:
    """Choose all open settings but the mean and the deviation of the images.

    Args:
        config: of one run or stage; it stays as it is.
        at: None if :func:`needs_images` is False.

    Returns:
        A copy without open settings, and sentences that say what was chosen.

    Raises:
        InputError: if given settings contradict each other, or a key does not take its value.
    """
    config, notes = config.copy_and_resolve_references(), []
    for key, value in flatten(config).items():
        if key in KEYS and value is not None:  # before anything is computed from it
            check_value(key, value, KEYS[key].kind)
    if needs_images(config):
        assert at is not None
        notes.append(_fit(config, at))
    if config.steps is None:  # minutes are given, from which the caller chooses steps
        config.steps = PROVISIONAL
    if any(config[key] is None for key in ("steps_per_call", *PERIODS)):
        _choose_periods(config)
    if config.size and (config.size != PAPER or config.preset == usb_cv.NAME):
        notes += _hasten(config)
    return config, notes + _never_reached(config)


def _open(flat: Mapping[str, Any]) -> list[str]:
    return [key for key in OPEN if flat.get(key, 0) is None]


def _fit(config: ConfigDict, at: Circumstances) -> str:
    """Choose the size and what follows from it; the sentence that says so."""
    why = ""
    if config.size == AUTO:
        config.size = "small" if at.platform == "cpu" else LARGER
        why = f", chosen for {'a CPU' if at.platform == 'cpu' else 'an accelerator'}"
        put_layer(config, larger(config) if config.size == LARGER else {})
    size = SIZES[config.size]
    if config.data.image_size is None:
        config.data.image_size = _side(size, at, config.model.get("patch"))
    timed = config.minutes and config.steps is None
    chosen = {
        **size.values,
        "steps": _steps(size, config.data.image_size, at.stages),
        "model.first_stride": 2 if config.data.image_size >= size.halved_from else 1,
    }
    flat = flatten(config)
    for key, value in chosen.items():
        if flat.get(key, 0) is None:
            put(config, key, value)
    model, batch = config.model, config.data.batch_size
    network = model.name
    if "depth" in model and "width" in model:
        network = f"{model.name} {model.depth}-{model.width:g}"
    method = ALGORITHMS.get(config.algorithm.name)
    if method is None:
        name = config.algorithm.name
        raise InputError(f"unknown algorithm {name!r}; {suggest(name, ALGORITHMS)}")
    images = [f"{batch} labeled"] if method.labeled else []
    if method.unlabeled and config.data.ratio:
        images.append(f"{batch * config.data.ratio} unlabeled")
    steps = f"as many as take {config.minutes:g} minutes" if timed else f"{config.steps} steps"
    return (
        f"size={config.size}{why} ({size.meaning}): {network}, images of "
        f"{config.data.image_size} pixels, {' and '.join(images)} images a step, {steps}. "
        f"size={'|'.join(SIZES)}, --minutes=M or --config.KEY=VALUE choose otherwise."
    )


def _side(size: Size, at: Circumstances, patch: int | None) -> int:
    """The side of the images: a multiple of eight pixels, or of the network's patch."""
    side = min(size.side, at.side)
    if patch:
        return max(side // patch, 1) * patch
    # Images that are not resized keep every pixel.
    kept = at.one_side and side == at.side
    return side if kept else side // 8 * 8 or side


def _steps(size: Size, side: int, stages: int) -> int:
    """The steps of a stage, as many as take the time of ``size.steps`` at the largest side."""
    found = min(size.most_steps, round(size.steps * (size.side / side) ** 2)) // stages
    return round_steps(found)


def round_steps(found: int) -> int:
    """A number of steps, at most ``found`` if that is not tiny, that twenty periods divide."""
    calls = 1 if found < 1000 else 5 if found < 10_000 else CALL
    return max(found - found % (calls * EVALUATIONS), EVALUATIONS)


def _choose_periods(config: ConfigDict) -> None:
    """Choose the periods that are open: some twenty evaluations, and calls that divide them all."""
    given = [config[key] for key in PERIODS if config[key] is not None]
    if "refresh_steps" in config.algorithm:
        given.append(config.algorithm.refresh_steps)
    call = config.steps_per_call
    if call is None:
        common = math.gcd(config.steps, *given)
        call = _largest(common)
        if config.steps % EVALUATIONS == 0:  # exactly twenty evaluations, unless calls are many
            even = _largest(math.gcd(common, config.steps // EVALUATIONS))
            call = even if config.steps // even <= MOST_CALLS else call
        config.steps_per_call = call
    period = max(1, round(config.steps / EVALUATIONS / call)) * call
    for key, times in (("eval_every", 1), ("log_every", 1), ("save_every", 2)):
        if config[key] is None:
            config[key] = times * period


def _largest(common: int) -> int:
    """The largest divisor of ``common`` that is at most :data:`CALL`."""
    return next(some for some in range(min(CALL, common), 0, -1) if common % some == 0)


def in_steps(config: ConfigDict) -> dict[str, int]:
    """The starts and ramps that are given in steps, by dotted key."""
    return {
        key: value
        for key, value in flatten(config).items()
        if key.partition(".")[0] in ("algorithm", "optim")
        and key.endswith(("_step", "_steps"))
        and key != "optim.period_steps"
        and isinstance(value, int)
    }


def _hasten(config: ConfigDict) -> list[str]:
    """Start early enough what would start late, or never, in a short run, unless it was given."""
    latest, notes = max(1, int(LATEST * config.steps)), []
    for key, value in in_steps(config).items():
        if value > latest and may_move(config, key, value):
            call = config.steps_per_call if key.endswith("refresh_steps") else 1
            new = max(1, latest // call) * call
            if new == value:  # it cannot be less than a call
                continue
            put(config, key, new)
            notes.append(f"{key} is {new}, a tenth of the run, instead of {value}.")
    return notes


def _never_reached(config: ConfigDict) -> list[str]:
    """Sentences about starts and ramps that the run does not reach."""
    return [
        f"{key}={value} lies at or after the end of this run of {config.steps} steps; give a "
        "smaller one."
        for key, value in in_steps(config).items()
        if value >= config.steps
    ]
