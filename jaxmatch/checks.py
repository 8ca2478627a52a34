"""Checks of a configuration that need neither data nor compilation."""

from collections.abc import Sequence
from importlib.util import find_spec

from ml_collections import ConfigDict

from jaxmatch.config import CONTRASTS
from jaxmatch.errors import InputError
from jaxmatch.types import Algorithm


def check_numbers(config: ConfigDict) -> None:
    """Refuse a run without steps, periods that end inside a call, and seeds NumPy cannot take."""
    if not 0 <= config.seed < 2**32:
        raise InputError(f"seed={config.seed} must lie between 0 and 2**32 - 1.")
    if config.wandb and find_spec("wandb") is None:
        raise InputError('config.wandb needs wandb: pip install "jaxmatch[wandb]".')
    if config.devices < 0:
        raise InputError(f"devices={config.devices} must be a number of devices, or 0 for all.")
    if config.data.image_size is not None and config.data.image_size < 1:
        raise InputError(f"data.image_size={config.data.image_size} must be at least 1.")
    for key in (
        "steps",
        "steps_per_call",
        "log_every",
        "eval_every",
        "save_every",
        "keep",
        "microbatches",
    ):
        if config[key] < 1:
            raise InputError(f"{key}={config[key]} must be at least 1.")
    periods = {key: config[key] for key in ("steps", "log_every", "eval_every", "save_every")}
    if "refresh_steps" in config.algorithm:
        periods["algorithm.refresh_steps"] = config.algorithm.refresh_steps
    for key, period in periods.items():
        if period % config.steps_per_call:
            raise InputError(
                f"{key}={period} is not a multiple of steps_per_call={config.steps_per_call}; "
                "change one of them."
            )


def check_crops(config: ConfigDict, algorithm: Algorithm, image_shape: Sequence[int]) -> None:
    """Refuse views that would be larger than the images [h w c] they are cropped from."""
    roles = {
        "contrast" if role == "strong" and config.augment == "contrast" else role
        for role in (*algorithm.labeled, *algorithm.unlabeled)
    }
    side = min(image_shape[:2])
    for role in CONTRASTS:
        size = config.views[role].size
        if role in roles and size is not None and size > side:
            raise InputError(
                f"views.{role}.size={size} is larger than the images, whose shorter side is "
                f"{side}; give at most {side}, or larger images by data.image_size."
            )


def check_batches(config: ConfigDict, groups: int, devices: int, batches: Sequence[int]) -> None:
    """Refuse batches that do not divide into BatchNorm's groups, or either into microbatches."""
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
            "change data.batch_size or microbatches."
        )
