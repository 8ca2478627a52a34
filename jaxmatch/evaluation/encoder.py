"""A frozen encoder: the network of a run, or of ``init_from``, whose pooled features are used."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxmatch.config.own import with_usual_input
from jaxmatch.config.saved import to_json
from jaxmatch.data.facts import Facts
from jaxmatch.errors import InputError
from jaxmatch.evaluation.classifier import Classifier
from jaxmatch.evaluation.trunk import OF_TRAINING, read_trunk
from jaxmatch.models.heads import KEPT
from jaxmatch.models.lora import merged
from jaxmatch.program import Program
from jaxmatch.types import PyTree
from jaxmatch.weights import transfer

# Settings that change the features of equal weights, and settings of the network that do not.
COMPUTED = ("dtype", "precision")
READ = ("center_crop", "background", "white_level")  # of config.data


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """A frozen encoder.

    Attributes:
        program: its network, its devices and the scale of its input.
        variables: of the whole network; its classifier and heads do not matter.
        name: where it comes from, for people.
        digest: SHA-256 over its weights and the settings.
        settings: those that its features depend on, as a JSON object.
    """

    program: Program
    variables: PyTree
    name: str
    digest: str
    settings: Mapping[str, Any]


def of_run(classifier: Classifier) -> Encoder:
    """The trained encoder that a run reports."""
    program = classifier.program
    variables = merged(program.model, classifier.variables())
    trunk = transfer.encoder(variables, program.algorithm)
    name = f"{classifier.folder}, step {classifier.step}"
    return _make(classifier.config, program, variables, trunk, name)


def of_init(config: ConfigDict, facts: Facts, folder: Path) -> Encoder:
    """The encoder that runs of ``config`` begin with: that of ``config.init_from``.

    Args:
        config: of one run; it has no open settings but those of the input's scale.
        facts: of its data.
        folder: of the run, beside which an earlier stage lies.

    Raises:
        InputError: if ``init_from`` is empty, cannot be read, or does not fit the network.
    """
    if not config.init_from:
        raise InputError(
            "there is no network to take features from: give --config.init_from=RUN_OR_FILE, or "
            "--workdir=RUN of a trained run."
        )
    alone = jax.process_count() == 1 and jax.default_backend() != "cpu"
    config = with_usual_input(config)
    config.devices = 1 if alone else 0  # the run may be for other devices
    program = Program.build(config, replace(facts, frozen={}))
    trunk = read_trunk(config, folder, program).variables
    state = transfer.transfer(jax.jit(program.init, out_shardings=program.shardings)(), trunk)
    return _make(config, program, state.student(), trunk, config.init_from)


def _make(
    config: ConfigDict, program: Program, variables: PyTree, trunk: PyTree, name: str
) -> Encoder:
    """``trunk`` has the variables that the features depend on."""
    used = {
        kind: {part: leaf for part, leaf in tree.items() if part != KEPT}
        for kind, tree in trunk.items()
    }
    settings = _settings(to_json(config), program)
    found = digest(used, json.dumps(settings, sort_keys=True))
    return Encoder(program=program, variables=variables, name=name, digest=found, settings=settings)


def _settings(values: Mapping[str, Any], program: Program) -> dict[str, Any]:
    """The settings that the features depend on beside the weights."""
    model = {key: value for key, value in values["model"].items() if key not in OF_TRAINING}
    return {
        "model": model,
        **{key: values[key] for key in COMPUTED},
        **{key: values["data"][key] for key in READ},
        "mean": list(program.mean),
        "std": list(program.std),
        "image_shape": list(program.image_shape),
    }


def digest(variables: PyTree, more: str = "") -> str:
    """SHA-256 over the names, shapes, types and bytes of all arrays and a text, in hexadecimal."""
    found = hashlib.sha256(more.encode())
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
        array = np.asarray(leaf)
        found.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}\n".encode())
        found.update(array.tobytes())
    return found.hexdigest()
