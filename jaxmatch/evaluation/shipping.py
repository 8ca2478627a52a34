"""A checkpoint as exporters take it, with the facts that tell where it comes from."""

import hashlib
import json
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import jax
import numpy as np

from jaxmatch.data.record import array_hash
from jaxmatch.evaluation.classifier import Classifier
from jaxmatch.models.lora import merged
from jaxmatch.record.folder import RunFolder
from jaxmatch.types import PyTree
from jaxmatch.weights.trained import Trained

PACKAGES = ("jaxmatch", "jax", "flax")


def trained_of(
    classifier: Classifier,
    network: str = "",
    naming: str | None = None,
    unknown: bool | str = False,
) -> Trained:
    """One network of a checkpoint, for :func:`jaxmatch.weights.export.export`.

    Args:
        classifier: the checkpoint.
        network: "teacher" or "student"; by default, the one that the method reports.
        naming: as of :class:`~jaxmatch.weights.trained.Trained`.
        unknown: whether the file tells how strange images look, and by which score: its name, or
            True for the usual one.

    Raises:
        InputError: if ``network`` is another name, a file of the run is damaged, or ``unknown`` is
            asked for and is no score or the known images are not there.
    """
    program, config = classifier.program, classifier.config
    variables = merged(program.model, classifier.variables(network))
    run = RunFolder(classifier.folder)
    record = run.read_record()
    settings = {key: each for key, each in (run.read_config() or {}).items() if key != "facts"}
    origin = {
        "versions": {name: _version(name) for name in PACKAGES},
        "method": config.algorithm.name,
        "model": config.model.name,
        "network": network or program.algorithm.evaluated,
        "step": classifier.step,
        "dtype": config.dtype,
        "hashes": {
            "weights": digest(variables),
            "data": record.digest if record else None,
            "settings": _hash(settings),
        },
    }
    return Trained(
        variables=variables,
        algorithm=program.algorithm,
        network=program.network,
        classes=classifier.classes,
        image_shape=classifier.image_shape,
        mean=program.mean,
        std=program.std,
        naming=naming,
        temperature=classifier.temperature(network),
        fitting=classifier.fitting,
        levels=classifier.levels,
        known=classifier.compared(unknown if isinstance(unknown, str) else "", network)
        if unknown
        else None,
        origin=origin,
    )


def hash_of_weights(classifier: Classifier, network: str) -> str:
    """The :func:`digest` of a network as it is exported."""
    return digest(merged(classifier.program.model, classifier.variables(network)))


def digest(variables: PyTree) -> str:
    """SHA-256 of names, types, shapes and values of a network's variables, in hexadecimal."""
    leaves = jax.tree_util.tree_leaves_with_path(jax.device_get(variables))
    return _hash(
        [[jax.tree_util.keystr(path), array_hash(np.asarray(leaf))] for path, leaf in leaves]
    )


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # a copy of the source that nobody installed
        return "unknown"
