"""Holds what a replayed step gives against what the file records of it."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from experiments.parity.entries import Quantities
from experiments.parity.recording import PASSES
from experiments.parity.rows import Case, Comparison, UnknownCaseError
from experiments.parity.tensors import to_torch
from jaxmatch.types import Array, PyTree, Ratio

COUNT = "num_batches_tracked"
# Tolerances of what the reference has to a lower precision: it computes the mean of a mask and the
# uniform target in float32, and records the instance loss as a difference of other losses.
ROUNDED = {"util_ratio": 1e-7, "da_p_target": 1e-7, "in_loss": 1e-8}


class Names(NamedTuple):
    """How a file names the student's tensors.

    Attributes:
        naming: of :mod:`experiments.parity.tensors`.
        prefix: what precedes the names, "main." where the teacher's have another.
    """

    naming: str
    prefix: str

    def of(self, **trees: PyTree) -> dict[str, np.ndarray]:
        """The leaves of {"params": ...} or {"batch_stats": ...}, without the prefix."""
        return to_torch(trees, naming=self.naming)


def compare_step(
    comparison: Comparison,
    case: Case,
    step: int,
    metrics: Mapping[str, Array | Ratio],
    quantities: Quantities,
) -> None:
    """Losses, masks, labels and logits of one step."""
    for name in case.names(f"fwd/{step}/"):
        if f"fwd/{name}" in metrics:
            ours, theirs = metrics[f"fwd/{name}"], case[f"fwd/{step}/{name}"]
            comparison.add(f"fwd/{name}", str(step), ours, theirs)
    for name in case.names(f"out/{step}/"):
        known = quantities.get(name)
        key = known if isinstance(known, str) else name
        if key in metrics:
            ours, theirs = metrics[key], case[f"out/{step}/{name}"]
            ours = ours.total / ours.count if isinstance(ours, Ratio) else ours
            if np.issubdtype(theirs.dtype, np.integer) and np.ndim(ours) == theirs.ndim + 1:
                ours = ours.argmax(-1)  # classes, which here are probabilities of 0 and 1
            at_least = ROUNDED.get(name, 0.0)
            comparison.add(f"out/{name}", str(step), ours, theirs, at_least=at_least)


def compare_states(
    comparison: Comparison, case: Case, step: int, states: Mapping[str, Array]
) -> None:
    """The algorithm's memory after one step."""
    for name in case.names(f"state/{step}/"):
        if name in states:
            theirs = case[f"state/{step}/{name}"]
            at_least = ROUNDED.get(name, 0.0)
            comparison.add(f"state/{name}", str(step), states[name], theirs, at_least=at_least)


def compare_gradient(comparison: Comparison, case: Case, names: Names, gradient: PyTree) -> None:
    """The first step's gradient, which is 0 where none is recorded."""
    ours = names.of(params=gradient)
    theirs = case.under("grad/0/" + names.prefix)
    comparison.add_each("grad/0", ours, theirs)
    unused = {name: np.zeros_like(value) for name, value in ours.items() if name not in theirs}
    if set(case.meta.get("params_without_gradient", unused)) != set(unused):
        raise UnknownCaseError("grad/0 and meta.params_without_gradient contradict each other")
    comparison.add_each("grad/0 of unused parameters", ours, unused)


def compare_variables(
    comparison: Comparison,
    case: Case,
    names: Names,
    key: str,
    variables: Mapping[str, PyTree],
    start: str,
) -> None:
    """Parameters, statistics and the counts of statistics updates of a network.

    ``key`` precedes the tensors' names in the file, and ``start`` those before the first step,
    where the counts start.
    """
    stats = dict(variables["batch_stats"])
    passes = stats.pop(PASSES)
    ours = names.of(params=variables["params"], batch_stats=stats)
    quantity = key.rstrip("/.").replace(".", "/")
    for tensor, theirs in case.under(key).items():
        if tensor.endswith(COUNT):
            kind, value = COUNT, case[start + tensor] + passes
        else:
            kind = "statistics" if ".running_" in tensor else "parameters"
            value = ours.get(tensor, np.nan)
        comparison.add(f"{quantity}/{kind}", tensor, value, theirs)
