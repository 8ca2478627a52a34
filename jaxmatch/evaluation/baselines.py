"""Classical classifiers, learned from a run's labels: what a network has to beat.

They learn from pixels (:mod:`~jaxmatch.evaluation.on_pixels`) and, if the run begins with a
pretrained network, from its frozen features (:mod:`~jaxmatch.evaluation.on_features`).
"""

import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from jaxmatch.algorithms import build_algorithm
from jaxmatch.config.argument import SHARES
from jaxmatch.config.saved import complete
from jaxmatch.config.stages import stages_of
from jaxmatch.errors import InputError
from jaxmatch.evaluation import features, on_features, on_pixels
from jaxmatch.evaluation.encoder import Encoder, of_init
from jaxmatch.evaluation.features import Cache
from jaxmatch.record import run_data
from jaxmatch.record.data import Data
from jaxmatch.record.folder import RunFolder, keep
from jaxmatch.record.settled import settled, standardized
from jaxmatch.weights.transfer import STAGE, source_folder

log = logging.getLogger(__name__)

# Settings ``data.*`` that do not change what the baselines see, beside the split.
OF_TRAINING = ("batch_size", "ratio", "mean", "std", "include_labeled", "labels", "split", *SHARES)


class Network(NamedTuple):
    """A pretrained network whose frozen features baselines learn from."""

    encoder: Encoder
    cache: Cache | None  # of its features of the data, if there is one


def of_config(config: ConfigDict, cache: Path | None = None) -> dict[str, Any]:
    """The baselines for the data, the labels and the seed of a configuration.

    Args:
        config: of a run; of a run in stages the last stage counts. If it names a network by
            ``init_from``, that network's frozen features count, too.
        cache: the folder of these features (:mod:`jaxmatch.evaluation.features`), which is made if
            it does not exist; by default an existing cache in the usual place is used.

    Returns:
        As :func:`measure`.

    Raises:
        InputError: if the method reads no labels, the data or the network cannot be read as
            configured, ``cache`` is of other weights or images, or :func:`measure` cannot use them.
    """
    *_, last = stages_of(config).values()
    if not build_algorithm(last.algorithm).labeled:
        raise InputError(
            f"{last.algorithm.name} reads no labels, and a baseline learns from labels: name a "
            "method that reads some, such as --config=supervised:DATA,labels=N."
        )
    chosen, _ = settled(last)
    network = None
    if chosen.init_from.startswith(STAGE):  # no stage is trained yet
        chosen.init_from = ""
    _check_network(chosen, cache)
    data = run_data.load_new(chosen)
    if chosen.init_from:
        network = network_of(chosen, data, Path(), cache)
    return measure(data, chosen.seed, network)


def of_run(workdir: str | Path, place: str = "", cache: Path | None = None) -> dict[str, Any]:
    """The baselines for the images and labels that a run began with, also kept in its folder.

    Args:
        workdir: the run folder; of a run in stages the last stage counts. If it began from
            ``init_from``, the frozen features of that network count, too.
        place: where the data is now, if it has moved.
        cache: as of :func:`of_config`.

    Returns:
        As :func:`measure`.

    Raises:
        InputError: if ``workdir`` is no run folder, its data is gone or changed, ``cache`` is of
            other weights or images, or :func:`measure` cannot use it.
    """
    run = RunFolder.at(workdir)
    config = _config_of(run)
    if not build_algorithm(config.algorithm).labeled:
        raise InputError(
            f"{run.path} was trained without labels, and a baseline learns from labels; give the "
            "folder of a run that read some."
        )
    _check_network(config, cache)
    data = run_data.load_recorded(config, run.path, place=place)
    found = of_data(config, data, run.path, cache)
    keep(run.write_baselines, found)
    return found


def of_data(
    config: ConfigDict, data: Data, folder: Path, cache: Path | None = None
) -> dict[str, Any]:
    """The baselines for ``data``, on features, too, if the run of ``config`` began from a network.

    If that network is gone, there are none on features, and a note says so.

    Args:
        config: of the run in ``folder``.
        data: of that run.
        folder: of that run.
        cache: as of :func:`of_config`.

    Raises:
        InputError: as :func:`measure`, or if ``cache`` is of other weights or images.
    """
    if not config.init_from or jax.process_count() > 1:
        return measure(data, config.seed)
    try:
        network = network_of(config, data, folder, cache)
    except InputError as error:
        if cache is not None:
            raise
        log.warning("no baselines on features: %s", error)
        found = measure(data, config.seed)
        return {**found, "notes": [*found["notes"], f"No baselines on features: {error}"]}
    return measure(data, config.seed, network)


def network_of(config: ConfigDict, data: Data, folder: Path, cache: Path | None) -> Network:
    """The network that ``config.init_from`` names, and the cache of its features, if there is one.

    Arguments are those of :func:`of_data`.

    Raises:
        InputError: if the network cannot be read, or ``cache`` is of other weights or images.
    """
    config = standardized(config, data.source.images)
    encoder = of_init(config, data.facts(), folder)
    if cache is not None:
        return Network(encoder, features.cached(encoder, data, cache)[0])
    if not features.FOLDER.is_dir():
        return Network(encoder, None)
    of_images = features.identity(data)
    usual = features.default_folder(encoder, data, of_images)
    return Network(encoder, features.opened(encoder, of_images, usual))


def _check_network(config: ConfigDict, cache: Path | None) -> None:
    """Check that there is a network if a cache of its features is given.

    Raises:
        InputError: if not.
    """
    if cache is not None and not config.init_from:
        raise InputError(
            f"{cache} would hold features, but there is no network to take them from: give "
            "--config.init_from=RUN_OR_FILE, or --workdir of a run that began from one."
        )


def add_missing(workdirs: Iterable[str | Path], place: str = "") -> None:
    """Measure and keep the baselines of the runs that have none, if they have labels.

    Runs on the same images and labels are measured once.

    Args:
        workdirs: the run folders.
        place: where their data is now, if it has moved.

    Raises:
        InputError: as :func:`of_run`.
    """
    known: dict[str, Mapping[str, Any]] = {}
    for workdir in workdirs:
        run = RunFolder.at(workdir)
        config = _config_of(run)
        if not build_algorithm(config.algorithm).labeled:
            continue
        key = _what_counts(run, config)
        found = run.read_baselines()
        if found is not None and config.init_from and "network" not in found:
            found = None  # an older version measured them on pixels alone
        if found is None and key in known:
            found = known[key]
            keep(run.write_baselines, found)
        known[key] = of_run(workdir, place) if found is None else found


def _config_of(run: RunFolder) -> ConfigDict:
    """The configuration of a run.

    Raises:
        InputError: if there is no run.
    """
    values = run.read_config()
    if values is None:
        raise InputError(f"{run.path} is no run folder: it has no config.json.")
    return complete({key: value for key, value in values.items() if key != "facts"})


def _what_counts(run: RunFolder, config: ConfigDict) -> str:
    """A text that is equal for runs with the same baselines."""
    record = run.read_record()
    if record is None:  # the images are not known by their content
        return str(run.path)
    data = {key: value for key, value in config.data.to_dict().items() if key not in OF_TRAINING}
    content = [record.digest, run.read_split().hash, config.seed, data]
    if config.init_from:
        content += [str(source_folder(config.init_from, run.path)), config.model.to_dict()]
        content += [config.data.mean, config.data.std]
    return json.dumps(content, sort_keys=True, default=str)


def measure(data: Data, seed: int, network: Network | None = None) -> dict[str, Any]:
    """All baselines for ``data``; the result is the same at each call.

    Args:
        data: images, and which of them are labeled.
        seed: thins images where there are too many, and draws folds.
        network: whose frozen features count, too.

    Returns:
        ``data`` (its name), ``seed``, ``split`` (the hash of the labeled images), the numbers of
        images used (``labels``, ``unlabeled``, ``test``, ``validation``), ``pixels`` (height,
        width, channels), ``network`` (null, or ``name``, ``weights`` and ``width``), ``notes``,
        ``best`` (the name of the baseline with the best test accuracy) and ``baselines``: for each
        name ``title``, ``settings``, ``test`` and ``validation``, which hold ``accuracy`` and
        ``balanced_accuracy`` as fractions, ``roc_auc`` of two classes, and on features all other
        metrics. ``validation`` is null without a validation set.

    Raises:
        InputError: if the labeled images are of one class, there are more than 200 classes and no
            network, or no test image has a label.
    """
    notes: tuple[str, ...] = ()
    found, about = {}, None
    many = len(data.source.classes) > on_pixels.MOST_CLASSES
    if network is None or not many:
        sets = on_pixels.gather(data, seed)
        found, notes = dict(on_pixels.each(sets, seed)), sets.notes
        counts, pixels = _counts(sets), list(sets.shape)
    else:
        counts, pixels = {}, list(data.source.images.shape[1:])
        notes = (f"There are more than {on_pixels.MOST_CLASSES} classes, so none is on pixels.",)
    if network is not None:
        points = gather_features(data, network, seed)
        counts = counts or _counts(points)
        found |= on_features.each(points, seed)
        about = {
            "name": network.encoder.name,
            "weights": network.encoder.digest,
            "width": points.labeled.features.shape[1],
        }
    return {
        "data": data.name,
        "seed": seed,
        "split": data.split.hash,
        **counts,
        "pixels": pixels,
        "network": about,
        "notes": list(notes),
        "best": max(found, key=lambda name: found[name]["test"]["accuracy"]),
        "baselines": found,
    }


def _counts(sets: on_pixels.Sets | on_features.Sets) -> dict[str, int]:
    """The numbers of images of each part."""
    held_out = {
        name: len(sets.held_out[name].labels) if name in sets.held_out else 0
        for name in ("test", "validation")
    }
    return {"labels": len(sets.labeled.labels), "unlabeled": len(sets.unlabeled.labels), **held_out}


def gather_features(data: Data, network: Network, seed: int) -> on_features.Sets:
    """The features of the images that the baselines use, thinned as their pixels are.

    Raises:
        InputError: as :func:`measure`.
    """
    known = features.parts(data)
    points, used = {}, on_pixels.used(data)
    on_pixels.check_labels(
        data, {name: labels[rows] for name, (_, labels, rows, _) in used.items()}
    )
    for name, (images, labels, rows, most) in used.items():
        rows = on_pixels.thinned(rows, most, seed)
        ids = known["training" if name in ("labeled", "unlabeled") else name].ids[rows]
        found = features.gathered(network.encoder, images[rows], network.cache, ids)
        readable = found.readable
        points[name] = on_features.Points(found.features[readable], labels[rows][readable])
    on_pixels.check_labels(data, {name: part.labels for name, part in points.items()})
    labeled, unlabeled = points.pop("labeled"), points.pop("unlabeled")
    if not len(unlabeled.labels):
        unlabeled = on_features.Points(labeled.features[:0], unlabeled.labels)
    return on_features.Sets(
        labeled=labeled,
        unlabeled=unlabeled,
        held_out={name: part for name, part in points.items() if len(part.labels)},
        classes=len(data.source.classes),
    )
