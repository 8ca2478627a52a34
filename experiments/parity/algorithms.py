"""How the algorithms of the references map onto the library's: one entry each."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxmatch.algorithms.fixmatch import FixMatch
from jaxmatch.algorithms.pseudo_label import PseudoLabel
from jaxmatch.algorithms.supervised import Supervised
from jaxmatch.types import Array

Meta = Mapping[str, Any]


class Argument(NamedTuple):
    """What the loss hands to a function that its module imports."""

    function: str
    call: int  # 0 for the first call inside one loss
    position: int
    then: Callable[[Array], Array] = jnp.asarray  # applied before the comparison


Quantities = Mapping[str, str | Argument]


@dataclass(frozen=True, kw_only=True)
class Replay:
    """How to replay one algorithm of the references.

    Attributes:
        build: the library's algorithm from a case's meta.
        views: keys of the recorded unlabeled views, in the order of the algorithm's roles.
        quantities: from a case's meta, where to find ``out/<step>/<name>`` other than the common
            ones: a metric of the step, or an argument inside the loss.
        source: "library", or "override: <method>" where ``build`` overrides one.
    """

    build: Callable[[Meta], Any]
    views: tuple[str, ...] = ()
    quantities: Callable[[Meta], Quantities] = lambda meta: {}
    source: str = "library"


COMMON_QUANTITIES: Quantities = {
    "sup_loss": "loss/supervised",
    "unsup_loss": "loss/unsupervised",
    "total_loss": "loss/total",
    "lr": "optim/learning_rate",
    "ramp": "optim/ramp",
    "util_ratio": "pseudo/coverage",
}


def _pseudo_label(meta: Meta) -> PseudoLabel:
    given = meta["hyperparameters"]
    return PseudoLabel(
        threshold=given["p_cutoff"],
        unlabeled_weight=given["ulb_loss_ratio"],
        ramp=given["unsup_warm_up"],
    )


def _pseudo_label_quantities(meta: Meta) -> Quantities:
    del meta
    return {
        "mask": Argument("pseudo_label_metrics", 0, 1),
        "pseudo_label": Argument("cross_entropy", 1, 1),
    }


def _fixmatch(meta: Meta) -> FixMatch:
    given = meta["hyperparameters"]
    return FixMatch(
        threshold=given["p_cutoff"],
        unlabeled_weight=given["ulb_loss_ratio"],
        hard_labels=given["hard_label"],
        temperature=given["T"] if _sharpens(meta) else 1.0,
    )


def _fixmatch_quantities(meta: Meta) -> Quantities:
    common = _pseudo_label_quantities(meta)
    if not _sharpens(meta):
        return common
    # The files of the corrected variant record the probabilities as they were before sharpening.
    return {**common, "pseudo_label": Argument("pseudo_label_metrics", 0, 0, jax.nn.softmax)}


def _sharpens(meta: Meta) -> bool:
    """USB as it is takes probabilities for its soft targets as they are: its T does nothing."""
    return meta["variant"] != "reference as is" and not meta["hyperparameters"]["hard_label"]


REPLAYS = {
    "fullysupervised": Replay(build=lambda meta: Supervised()),
    "pseudolabel": Replay(
        build=_pseudo_label, views=("x_ulb_w",), quantities=_pseudo_label_quantities
    ),
    "fixmatch": Replay(
        build=_fixmatch, views=("x_ulb_w", "x_ulb_s"), quantities=_fixmatch_quantities
    ),
}
