"""The settings of a run that its configuration leaves open, chosen from its images and devices."""

from collections.abc import Mapping
from pathlib import Path
from statistics import median

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxmatch.config import input_scales, own, saved
from jaxmatch.data import sources
from jaxmatch.data.lazy import Images, LazyImages
from jaxmatch.record.folder import RunFolder
from jaxmatch.record.run_data import moved_to, reading
from jaxmatch.runtime import hosts
from jaxmatch.weights.transfer import names_weights

LOOKED_AT = 1000  # images whose mean and deviation stand for all
LEAST_DEVIATION = 0.01  # of the network's input, even if all images are plain


def settled(
    config: ConfigDict,
    folder: Path | None = None,
    *,
    place: str = "",
    stages: int = 1,
    steps: int | None = None,
) -> tuple[ConfigDict, list[str]]:
    """Choose the open settings of a configuration, but for the input's mean and deviation.

    Args:
        config: of one run or stage; it stays as it is.
        folder: of the run; one that has begun keeps what was chosen then.
        place: where the data is now, if it has moved.
        stages: the number of stages that share the time of a run.
        steps: of the run, if they are open.

    Returns:
        A copy of the configuration, and sentences that say what was chosen.

    Raises:
        InputError: if the images cannot be found, or given settings contradict each other.
    """
    old = None if folder is None else hosts.from_leader(RunFolder(folder).read_config)
    if old is not None and "order" not in old:
        config = saved.filled(config, old)
    elif steps is not None:
        config = config.copy_and_resolve_references()
        config.steps = steps
    at = None
    if own.needs_images(config):
        at = hosts.agreed(lambda: _circumstances(config, place, stages))
    config, notes = own.settle(config, at)
    return config, [] if old else notes


def _circumstances(config: ConfigDict, place: str, stages: int) -> own.Circumstances:
    name, directory = moved_to(place, config.data.name, config.data.directory)
    sizes = sources.sizes(name, reading(config, directory))
    return own.Circumstances(
        side=round(median(min(size) for size in sizes)),
        one_side=len(set(sizes)) == 1 and sizes[0][0] == sizes[0][1],
        platform=jax.default_backend(),
        stages=stages,
    )


def standardized(config: ConfigDict, images: Images) -> ConfigDict:
    """A copy whose open ``data.mean`` and ``data.std`` are chosen.

    A network that begins with a file of published weights has the scale of their training. Others
    have that of each channel of the training images [n h w 3], rounded to four digits.
    """
    open_keys = [key for key in ("mean", "std") if config.data[key] is None]
    if not open_keys:
        return config
    config = config.copy_and_resolve_references()
    known = names_weights(config.init_from) and input_scales.of_pretrained(config.model.name)
    if known:
        found: Mapping[str, tuple[float, ...]] = dict(zip(("mean", "std"), known, strict=True))
    else:
        found = statistics(images)
    for key in open_keys:
        config.data[key] = found[key]
    return config


def statistics(images: Images) -> Mapping[str, tuple[float, ...]]:
    """Mean and standard deviation of each channel of ``images`` in [0, 1], by "mean" and "std"."""
    rows = np.arange(0, len(images), max(1, len(images) // LOOKED_AT))
    some = images.read(rows, replace=True)[0] if isinstance(images, LazyImages) else images[rows]
    some = some / 255.0
    mean, std = some.mean((0, 1, 2)), some.std((0, 1, 2))
    return {
        "mean": tuple(round(float(value), 4) for value in mean),
        "std": tuple(round(max(float(value), LEAST_DEVIATION), 4) for value in std),
    }
