"""Trained networks that a run learns from and does not change, such as a distillation teacher."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxmatch.data import splits
from jaxmatch.errors import InputError
from jaxmatch.evaluation.classifier import Classifier, load
from jaxmatch.evaluation.encoder import digest
from jaxmatch.program import Program
from jaxmatch.record.data import Data
from jaxmatch.record.folder import RunFolder
from jaxmatch.step import ByIndex, FrozenNetwork
from jaxmatch.types import Network, PyTree
from jaxmatch.weights.transfer import source_folder

PSEUDO = "pseudo_labels"  # the name of their digest
LEAST = 1e-30  # the least probability of a pseudo-label


@dataclass(frozen=True, kw_only=True)
class Frozen:
    """The frozen networks of a run, by role.

    Attributes:
        networks: take views in the input scale of the run that learns from them.
        variables: arrays on the host.
        digests: :func:`digest` of the variables.
    """

    networks: Mapping[str, FrozenNetwork]
    variables: Mapping[str, PyTree]
    digests: Mapping[str, str]


def frozen_runs(config: ConfigDict, folder: Path) -> dict[str, Path]:
    """The run folder of each role of ``config.frozen``.

    Args:
        config: of the run in ``folder``. As ``init_from``, a role may name an earlier stage.
        folder: of the run that learns from the networks.

    Raises:
        InputError: if a role names no run.
    """
    if config.data.pseudo_labels:  # they take the place of networks
        return {}
    for role, name in config.frozen.items():
        if not name:
            raise InputError(
                f"{config.algorithm.name} learns from a trained network; give its run folder as "
                f"--config.frozen.{role}=RUN, or pseudo-labels as --config.data.pseudo_labels=FILE."
            )
    return {role: source_folder(name, folder) for role, name in config.frozen.items()}


def load_frozen(
    config: ConfigDict, folder: Path, program: Program, data: Data | None = None
) -> Frozen:
    """Load the networks that ``config.frozen`` names: those that their runs report, at the end.

    They may have any architecture and input scale, but must have the same classes as the run.
    Pseudo-labels of ``data`` take their place.

    Args:
        config: of the run that learns from them.
        folder: of that run; an interrupted run must go on with the networks that it began with.
        program: of that run.
        data: of that run; it may have pseudo-labels.

    Raises:
        InputError: if a run is missing, has no checkpoint or no classifier, has other classes or
            another image size, or is not the one that an interrupted run began with.
    """
    if data is not None:
        _check_pseudo(data, folder)
    if data is not None and data.pseudo is not None:
        found = {PSEUDO: data.pseudo.digest}
        if data.learns_pseudo:
            return Frozen(networks={}, variables={}, digests=found)
        roles = program.algorithm.frozen
        table = logits_of_pool(data)
        return Frozen(
            networks=dict.fromkeys(roles, ByIndex()),
            variables=dict.fromkeys(roles, table),
            digests=found,
        )
    networks, variables, digests = {}, {}, {}
    for role, path in frozen_runs(config, folder).items():
        other = load(path)
        where = f"frozen.{role}={config.frozen[role]}"
        _check(other, program, where)
        networks[role] = rescaled(other, program)
        variables[role] = jax.device_get(other.variables())
        digests[role] = digest(variables[role])
        if _recorded_digests(folder).get(role, digests[role]) != digests[role]:
            raise InputError(
                f"{where} is not the network that {folder} began with; put that one back or "
                "choose another --workdir."
            )
    return Frozen(networks=networks, variables=variables, digests=digests)


def logits_of_pool(data: Data) -> np.ndarray:
    """The logarithms [u C] float32 of the pseudo-labels' probabilities, for the unlabeled pool."""
    assert data.pseudo is not None
    pool = np.arange(len(data.source.rows))
    if not data.include_labeled:
        pool = np.setdiff1d(pool, splits.locate(data.source, data.split))
    return np.log(np.maximum(data.pseudo.probabilities[pool], LEAST)).astype(np.float32)


def _check_pseudo(data: Data, folder: Path) -> None:
    """Check that a run that has begun goes on with the pseudo-labels that it began with.

    Raises:
        InputError: if it does not.
    """
    if "facts" not in (RunFolder(folder).read_config() or {}):
        return
    before = _recorded_digests(folder).get(PSEUDO)
    now = None if data.pseudo is None else data.pseudo.digest
    if before != now:
        raise InputError(
            f"data.pseudo_labels is not the file that {folder} began with; put that one back or "
            "choose another --workdir."
        )


def rescaled(other: Classifier, program: Program) -> Network:
    """The network of ``other``; it takes views in the input scale of ``program``."""
    mean, std, its_mean, its_std = (
        np.asarray(values)
        for values in (program.mean, program.std, other.program.mean, other.program.std)
    )
    factor, shift = std / its_std, (mean - its_mean) / its_std
    if np.all(factor == 1) and not np.any(shift):
        return other.program.network

    def network(
        variables: PyTree, views: PyTree, *rest: Any, **options: Any
    ) -> tuple[PyTree, PyTree]:
        views = jax.tree.map(
            lambda view: view * factor.astype(view.dtype) + shift.astype(view.dtype), views
        )
        return other.program.network(variables, views, *rest, **options)

    return network


def _check(other: Classifier, program: Program, where: str) -> None:
    if not other.program.algorithm.labeled:
        raise InputError(
            f"{where} was trained without labels and has no classifier; fine-tune it first "
            "(--config=finetune, --config.init_from)."
        )
    if len(other.classes) != program.spec.classes:
        raise InputError(
            f"{where} tells {len(other.classes)} classes apart, but the data has "
            f"{program.spec.classes}; give a run on the same classes."
        )
    if other.classes != program.classes:
        theirs, ours = next(
            pair for pair in zip(other.classes, program.classes, strict=True) if pair[0] != pair[1]
        )
        raise InputError(
            f"{where} was trained on other classes: {theirs!r} stands where the data has {ours!r}; "
            "give a run on the same classes."
        )
    if other.image_shape != program.image_shape:
        raise InputError(
            f"{where} was trained on images of shape {other.image_shape}, but these are "
            f"{program.image_shape}; give a run on images of the same size."
        )


def _recorded_digests(folder: Path) -> Mapping[str, str]:
    """The digests of the networks that the run in ``folder`` began with, by role."""
    found = RunFolder(folder)
    return found.read_facts().frozen if "facts" in (found.read_config() or {}) else {}
