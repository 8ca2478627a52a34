"""Checks of a configuration that need neither data nor compilation."""

from collections.abc import Sequence
from importlib.util import find_spec

from ml_collections import ConfigDict

from jaxmatch.algorithms import ALGORITHMS, build_algorithm
from jaxmatch.algorithms.unequal import Unequal, with_options
from jaxmatch.augment.build import CONTRASTS, build_ctaugment, multi_crop
from jaxmatch.config.dotted import flatten
from jaxmatch.config.keys import KEYS
from jaxmatch.data.unequal import Shares
from jaxmatch.errors import InputError
from jaxmatch.models.build import build_model
from jaxmatch.models.network import make_network
from jaxmatch.optim.ema import Ema
from jaxmatch.optim.optimizer import Optim
from jaxmatch.settings import Count, build_section, check_value
from jaxmatch.types import Algorithm

INPUT = ("data.mean", "data.std")  # open until the images are read
MOST_IMAGES = 2**22  # of a step; a position in a batch is a 32-bit number


def check_settings(config: ConfigDict) -> None:
    """Refuse every setting that cannot work with any data.

    Raises:
        InputError: naming the setting.
    """
    check_numbers(config)
    unequal = build_section(Unequal, dict(config.unequal), "unequal")
    algorithm = with_options(build_algorithm(config.algorithm), unequal, config.algorithm.name)
    model = build_model(
        config.model, classes=1, heads=algorithm.heads, dtype=config.dtype, remat=config.remat
    )
    check_lora(config)
    make_network(model, 1, config.forward, precision=config.precision)
    multi_crop(config.augment, config.views, algorithm)
    build_ctaugment(config.views)
    build_section(Optim, dict(config.optim), "optim").rate(config.steps)
    build_section(Ema, dict(config.ema), "ema")
    if config.data.pseudo_labels:
        _check_pseudo_labels(config, algorithm)
    if config.classifier_init != "random":
        _check_first_classifier(config, algorithm)
    if not config.data.mean or not config.data.std:
        raise InputError("data.mean and data.std need a number for all channels, or one for each.")


def check_policy(config: ConfigDict) -> None:
    """Refuse a new run whose policy of CTAugment no view would follow.

    Runs from before this check go on, and are read.

    Raises:
        InputError: if so; it names the methods with strong views.
    """
    algorithm = build_algorithm(config.algorithm)
    if config.augment != "ctaugment" or "strong" in (*algorithm.labeled, *algorithm.unlabeled):
        return
    methods = sorted(name for name, kind in ALGORITHMS.items() if "strong" in kind().unlabeled)
    raise InputError(
        f"augment=ctaugment learns a policy for strong views, and {config.algorithm.name} draws "
        f"none; leave augment=randaugment, or choose one of {', '.join(methods)}."
    )


def _check_first_classifier(config: ConfigDict, algorithm: Algorithm) -> None:
    """Refuse a first classifier that nothing can be fitted to."""
    kind = config.classifier_init
    if not algorithm.labeled:
        raise InputError(
            f"classifier_init={kind} is fitted to labels, and {config.algorithm.name} reads none; "
            "leave it random."
        )
    if not config.init_from:
        raise InputError(
            f"classifier_init={kind} is fitted to the features of a trained network: give "
            "init_from=RUN_OR_FILE, or leave it random."
        )
    if config.unequal.abc and config.model.to_dict().get("head_layers"):
        raise InputError(
            f"classifier_init={kind} fits one classifier, but with unequal.abc and "
            "model.head_layers two read different features; set model.head_layers=0, or leave it "
            "random."
        )


def _check_pseudo_labels(config: ConfigDict, algorithm: Algorithm) -> None:
    """Refuse pseudo-labels that the method has no use for."""
    if algorithm.unlabeled and not algorithm.frozen:
        raise InputError(
            f"{config.algorithm.name} makes its own labels of the unlabeled images; "
            "data.pseudo_labels is for supervised, finetune and distillation."
        )
    if not algorithm.labeled:
        raise InputError(
            f"{config.algorithm.name} reads no labels; data.pseudo_labels is for supervised, "
            "finetune and distillation."
        )
    for role, run in config.frozen.items():
        if run:
            raise InputError(
                f"data.pseudo_labels takes the place of frozen.{role}={run}; give only one of them."
            )


def check_lora(config: ConfigDict) -> None:
    """Refuse to train LoRA where the network has none.

    Raises:
        InputError: if so; it names a network or a setting that works.
    """
    if config.optim.train != "lora" or config.model.get("lora_rank"):
        return
    remedy = (
        "it needs a rank; set --config.model.lora_rank=8"
        if "lora_rank" in config.model
        else f"{config.model.name} has no attention that it could adapt; set "
        "--config.optim.train=norms or head, or choose a Vision Transformer"
    )
    raise InputError(f"optim.train=lora trains LoRA, but {remedy}.")


def check_numbers(config: ConfigDict) -> None:
    """Refuse values that a key does not take, and periods that are no multiples of a call.

    Raises:
        InputError: naming the key.
    """
    flat = flatten(config)
    for key, entry in KEYS.items():
        if key in flat and not (key in INPUT and flat[key] is None):
            check_value(key, flat[key], entry.kind)
    for role, run in config.frozen.items():
        check_value(f"frozen.{role}", run, str)
    _ = Shares.of(config.data).unlabeled  # raises where it cannot be read
    if config.wandb and find_spec("wandb") is None:
        raise InputError('config.wandb needs wandb: pip install "jaxmatch[wandb]".')
    images = config.data.batch_size * (1 + config.data.ratio)
    if images > MOST_IMAGES:
        raise InputError(
            f"data.batch_size={config.data.batch_size} and data.ratio={config.data.ratio} make "
            f"{images} images a step, but it takes at most {MOST_IMAGES}; lower one of them."
        )
    periods = {key: config[key] for key in ("steps", "log_every", "eval_every", "save_every")}
    if "refresh_steps" in config.algorithm:
        check_value("algorithm.refresh_steps", config.algorithm.refresh_steps, Count)
        periods["algorithm.refresh_steps"] = config.algorithm.refresh_steps
    for key, period in periods.items():
        if period % config.steps_per_call:
            raise InputError(
                f"{key}={period} is not a multiple of steps_per_call={config.steps_per_call}; "
                "change one of them."
            )


def check_crops(config: ConfigDict, algorithm: Algorithm, image_shape: Sequence[int]) -> None:
    """Refuse views that are larger than the images [h w c] they are cropped from.

    Raises:
        InputError: naming the view and the largest size.
    """
    roles = {
        "contrast" if role == "strong" and config.augment == "contrast" else role
        for role in (*algorithm.labeled, *algorithm.unlabeled)
    }
    side = min(image_shape[:2])
    sizes = [
        (f"views.{role}.size={size}", size)
        for role in CONTRASTS
        if role in roles and (size := config.views[role].size) is not None
    ]
    if "strong" in algorithm.unlabeled:
        sizes += [(f"the side {size} in views.crops", size) for size, *_ in config.views.crops]
    for name, size in sizes:
        if size > side:
            raise InputError(
                f"{name} is larger than the images, whose shorter side is {side}; give at "
                f"most {side}, or larger images by data.image_size."
            )


def check_batches(config: ConfigDict, groups: int, devices: int, batches: Sequence[int]) -> None:
    """Refuse batches that do not divide into BatchNorm groups or into microbatches.

    Raises:
        InputError: naming the settings that do not fit.
    """
    parts, listed = config.microbatches, ", ".join(map(str, batches))
    if any(batch % groups for batch in batches):
        raise InputError(
            f"batch sizes {listed} do not divide into model.bn_groups={groups}; "
            "change data.batch_size or model.bn_groups."
        )
    if groups > 1 and groups % parts:
        raise InputError(
            f"microbatches={parts} does not divide model.bn_groups={groups}; change one of them."
        )
    if groups == 1 and any(batch % (devices * parts) for batch in batches):
        raise InputError(
            f"batch sizes {listed} do not divide into {devices} devices x microbatches={parts}; "
            "change data.batch_size, microbatches or devices."
        )
