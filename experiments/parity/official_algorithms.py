"""How the algorithms of their authors' repositories map onto the library's: one entry each."""

import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from experiments.parity import memories, overrides
from experiments.parity.entries import (
    Argument,
    Override,
    Quantities,
    Replay,
    first_later_epoch,
)
from experiments.parity.rows import Case
from jaxmatch.algorithms.comatch import CoMatch
from jaxmatch.algorithms.fixmatch_eman import FixMatchEMAN
from jaxmatch.algorithms.simmatch import SimMatch
from jaxmatch.algorithms.simmatch_v2 import SimMatchV2
from jaxmatch.types import Array

SIMMATCH = "github.com/mingkai-zheng/SimMatch"
SIMMATCH_V2 = "github.com/mingkai-zheng/SimMatchV2"
COMATCH = "github.com/salesforce/CoMatch"
EMAN = "github.com/amazon-research/exponential-moving-average-normalization"


def ema_decay(meta: Mapping[str, Any], step: int) -> float:
    """The share of the old teacher that stays after a step."""
    given = meta["hyperparameters"]
    constant = given["ema_m"]
    if not ramps_ema(meta):
        return constant
    epoch, inside, length = position(meta, step)
    # The authors count as if all epochs were as long as this one.
    done = (epoch * length + inside + 1) / (given["epochs"] * length)
    return 1 - (1 - constant) * (math.cos(math.pi * done) + 1) / 2


def ramps_ema(meta: Mapping[str, Any]) -> bool:
    """Whether the decay grows to 1: SimMatchV2's does where it starts at most from 0.996."""
    return meta["source"]["repo"] == SIMMATCH_V2 and meta["hyperparameters"]["ema_m"] <= 0.996


def position(meta: Mapping[str, Any], step: int) -> tuple[int, int, int]:
    """The epoch of a recorded step, its number inside the epoch, and the epoch's length."""
    epochs = meta["epoch_of_step"]
    epoch = epochs[step]
    return epoch, step - epochs.index(epoch), epochs.count(epoch)


def _simmatch(case: Case) -> SimMatch:
    given = case.meta["hyperparameters"]
    return SimMatch(
        threshold=given["threshold"],
        unlabeled_weight=given["lambda_u"],
        instance_weight=given["lambda_in"],
        temperature=given["tt"],
        smoothing=given["c_smooth"],
        instance_start_step=first_later_epoch(case.meta),
        alignment_length=memories.OFFICIAL_SIMMATCH_HISTORY if given["DA"] else 0,
        bank_momentum=0.0,
        teacher=True,
        projection=len(case["init_state/bank"]),
    )


def _simmatch_overrides(case: Case) -> list[Override]:
    given = case.meta["hyperparameters"]
    if given["tt"] == given["st"]:
        return []
    return [overrides.two_temperatures(given["tt"], given["st"])]


def _simmatch_v2(case: Case) -> SimMatchV2:
    given = case.meta["hyperparameters"]
    return SimMatchV2(
        threshold=given["threshold"],
        unlabeled_weight=given["lambda_nn"],
        edge_edge_weight=given["lambda_ee"],
        node_edge_weight=given["lambda_ne"],
        temperature=given["t"],
        propagation=given["alpha"],
        neighbors=given["topn"],
        alignment_momentum=given["da_m"],
        projection=case["init_state/l_bank"].shape[1],
        strong_views=len(_strong_views(case)),
    )


def _simmatch_v2_overrides(case: Case) -> list[Override]:
    found = []
    if not case.meta["hyperparameters"]["DA"]:
        found.append(overrides.no_alignment())
    if not case["init_state/u_labels"].any():
        found.append(overrides.drop_infinite_loss())
    return found


def _simmatch_v2_settings(case: Case, step: int) -> dict[str, Any]:
    return {"ema_m": ema_decay(case.meta, step)}


def _simmatch_v2_quantities(case: Case) -> Quantities:
    strong = len(_strong_views(case))

    def for_each_strong(value: Array) -> Array:
        return jnp.concatenate([value] * strong)

    return {
        "logits_x": Argument("cross_entropy", 0, 0),
        "logits_qu": Argument("cross_entropy", slice(1, 1 + strong), 0),
        "prob_ku": Argument("propagate", 0, 1, for_each_strong),
        "pseudo_label": Argument("pseudo_label_metrics", 0, 0, for_each_strong),
        "mask": Argument("pseudo_label_metrics", 0, 1, for_each_strong),
        "loss_nn": "loss/unsupervised",
        "loss_ee": "loss/edge_edge",
        "loss_ne": "loss/node_edge",
    }


def _comatch(case: Case) -> CoMatch:
    meta, given = case.meta, case.meta["hyperparameters"]
    smooths = [
        epoch > 0 or iteration > given["queue_batch"]
        for epoch, iteration in zip(meta["epoch_of_step"], meta["it_in_epoch"], strict=True)
    ]
    return CoMatch(
        threshold=given["thr"],
        graph_threshold=given["contrast_th"],
        unlabeled_weight=given["lam_u"],
        contrastive_weight=given["lam_c"],
        temperature=given["temperature"],
        smoothing=given["alpha"],
        smoothing_start_step=smooths.index(True) if True in smooths else len(smooths),
        alignment_length=memories.OFFICIAL_COMATCH_HISTORY,
        projection=given["low_dim"],
    )


def _comatch_settings(case: Case, step: int) -> dict[str, Any]:
    return {"smoothing_on": float(step >= _comatch(case).smoothing_start_step)}


def _comatch_quantities(case: Case) -> Quantities:
    del case
    return {
        "logits": "fwd/0/logits",
        "features": "fwd/0/embedding",
        "pseudo_label": Argument("pseudo_label_metrics", 0, 0),
        "mask": Argument("pseudo_label_metrics", 0, 1),
    }


def _fixmatch_eman(case: Case) -> FixMatchEMAN:
    given = case.meta["hyperparameters"]
    return FixMatchEMAN(threshold=given["threshold"], unlabeled_weight=given["lambda_u"])


def _pseudo_label_quantities(case: Case) -> Quantities:
    del case
    return {
        "logits_x": Argument("cross_entropy", 0, 0),
        "logits_u_s": Argument("cross_entropy", 1, 0),
        "pseudo_label": Argument("cross_entropy", 1, 1),
        "logits_u_w": Argument("pseudo_label_metrics", 0, 0),
        "mask": Argument("pseudo_label_metrics", 0, 1),
    }


def _weak_and_strong(case: Case) -> tuple[str, ...]:
    return ("x_ulb_w", *_strong_views(case))


def _strong_views(case: Case) -> list[str]:
    return sorted(name for name in case.names("batch/0/") if name.startswith("x_ulb_s"))


# By the repository and the files that a case names as its source, with the name of the family.
REPLAYS: Mapping[tuple[str, str], tuple[str, Replay]] = {
    (SIMMATCH, "models/simmatch.py, simmatch.py"): (
        "simmatch",
        Replay(
            build=_simmatch,
            views=_weak_and_strong,
            quantities=_pseudo_label_quantities,
            memory=memories.official_simmatch,
            states=memories.official_simmatch_states,
            overrides=_simmatch_overrides,
        ),
    ),
    (SIMMATCH_V2, "models/simmatchv2.py, main.py"): (
        "simmatch_v2",
        Replay(
            build=_simmatch_v2,
            views=_weak_and_strong,
            quantities=_simmatch_v2_quantities,
            settings=_simmatch_v2_settings,
            memory=memories.official_simmatch_v2,
            states=memories.official_simmatch_v2_states,
            overrides=_simmatch_v2_overrides,
        ),
    ),
    (COMATCH, "Train_CoMatch.py, WideResNet.py, utils.py"): (
        "comatch",
        Replay(
            build=_comatch,
            views=_weak_and_strong,
            quantities=_comatch_quantities,
            settings=_comatch_settings,
            memory=memories.official_comatch,
            states=memories.official_comatch_states,
        ),
    ),
    (EMAN, "models/fixmatch.py, main_fixmatch.py"): (
        "fixmatch_eman",
        Replay(
            build=_fixmatch_eman,
            views=_weak_and_strong,
            quantities=_pseudo_label_quantities,
        ),
    ),
}
