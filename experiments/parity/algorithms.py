"""How USB's algorithms map onto the library's: one entry each."""

import jax
import jax.numpy as jnp

from experiments.parity import (
    consistency_mix,
    consistency_regression,
    consistency_thresholds,
    consistency_uda_dash,
    consistency_vat,
    memories,
    overrides,
)
from experiments.parity.entries import (
    Argument,
    Override,
    Quantities,
    Replay,
    Result,
    first_later_epoch,
)
from experiments.parity.rows import Case, UnknownCaseError
from jaxmatch.algorithms.comatch import CoMatch
from jaxmatch.algorithms.fixmatch import FixMatch
from jaxmatch.algorithms.pseudo_label import PseudoLabel
from jaxmatch.algorithms.simmatch import SimMatch
from jaxmatch.algorithms.supervised import Supervised

# USB lets the teacher's embeddings enter SimMatch's bank but for these data sets.
STUDENT_BANK = (
    "stl10",
    "cifar10",
    "cifar100",
    "svhn",
    "superks",
    "tissuemnist",
    "eurosat",
    "superbks",
    "esc50",
    "gtzan",
    "urbansound8k",
    "aclImdb",
    "ag_news",
    "dbpedia",
)
STUDENT_BANK_MOMENTUM = 0.7


def _pseudo_label(case: Case) -> PseudoLabel:
    given = case.meta["hyperparameters"]
    return PseudoLabel(
        threshold=given["p_cutoff"],
        unlabeled_weight=given["ulb_loss_ratio"],
        ramp=given["unsup_warm_up"],
    )


def _pseudo_label_quantities(case: Case) -> Quantities:
    del case
    return {
        "mask": Argument("pseudo_label_metrics", 0, 1),
        "pseudo_label": Argument("cross_entropy", 1, 1),
    }


def _fixmatch(case: Case) -> FixMatch:
    given = case.meta["hyperparameters"]
    return FixMatch(
        threshold=given["p_cutoff"],
        unlabeled_weight=given["ulb_loss_ratio"],
        hard_labels=given["hard_label"],
        temperature=given["T"] if _sharpens(case) else 1.0,
    )


def _fixmatch_quantities(case: Case) -> Quantities:
    common: Quantities = {
        "mask": Argument("weighted_cross_entropy", 0, 2),
        "pseudo_label": Argument("weighted_cross_entropy", 0, 1),
    }
    if not _sharpens(case):
        return common
    # The files of the corrected variant record the probabilities as they were before sharpening.
    return {**common, "pseudo_label": Argument("pseudo_label_metrics", 0, 0, jax.nn.softmax)}


def _sharpens(case: Case) -> bool:
    """USB as it is takes probabilities for its soft targets as they are: its T does nothing."""
    return (
        case.meta["variant"] != "reference as is" and not case.meta["hyperparameters"]["hard_label"]
    )


def _simmatch(case: Case) -> SimMatch:
    given = case.meta["hyperparameters"]
    _refuse_three_projections(case)
    return SimMatch(
        threshold=given["p_cutoff"],
        unlabeled_weight=given["ulb_loss_ratio"],
        instance_weight=given["in_loss_ratio"],
        temperature=given["T"],
        smoothing=given["smoothing_alpha"],
        instance_start_step=first_later_epoch(case.meta, case.meta["it0"]),
        alignment_length=given["da_len"],
        bank_momentum=STUDENT_BANK_MOMENTUM if given["dataset"] in STUDENT_BANK else 0.0,
        projection=given["proj_size"],
    )


def _simmatch_overrides(case: Case) -> list[Override]:
    given = case.meta["hyperparameters"]
    together, teacher = given["use_cat"], given["dataset"] not in STUDENT_BANK
    found = [overrides.align_with_epsilon()]
    if teacher or not together:
        found.append(overrides.usb_forward(together, teacher))
    if not teacher:
        found.append(overrides.normalize_across_batch())
    return found


def _comatch(case: Case) -> CoMatch:
    given = case.meta["hyperparameters"]
    _refuse_three_projections(case)
    after_batches = int(given["queue_batch"] // 1) + 1
    return CoMatch(
        threshold=given["p_cutoff"],
        graph_threshold=given["contrast_p_cutoff"],
        unlabeled_weight=given["ulb_loss_ratio"],
        contrastive_weight=given["contrast_loss_ratio"],
        temperature=given["T"],
        smoothing=given["smoothing_alpha"],
        smoothing_start_step=max(first_later_epoch(case.meta, case.meta["it0"]), after_batches),
        alignment_length=given["da_len"],
        projection=given["proj_size"],
        activation="relu",
    )


def _comatch_overrides(case: Case) -> list[Override]:
    size, start = len(case["init_state/queue_feats"]), int(case["init_state/queue_ptr"].item())
    given = case.meta["hyperparameters"]
    pushed = given["batch_size"] * (1 + given["uratio"])
    found = [overrides.align_with_epsilon()]
    if size % pushed or start % pushed:
        found.append(overrides.push_without_wrap(2))
    return found


def _aligned_quantities(case: Case) -> Quantities:
    del case
    return {
        "mask": Argument("pseudo_label_metrics", 0, 1),
        "probs_aligned": Result("align_by_history", 0, 0, jnp.exp),
    }


def _refuse_three_projections(case: Case) -> None:
    if case.meta["hyperparameters"].get("use_epass"):
        raise UnknownCaseError("the mean of several projections is not in the library")


REPLAYS = {
    "fullysupervised": Replay(build=lambda case: Supervised()),
    "pimodel": consistency_regression.PI_MODEL,
    "meanteacher": consistency_regression.MEAN_TEACHER,
    "pseudolabel": Replay(
        build=_pseudo_label,
        views=lambda case: ("x_ulb_w",),
        quantities=_pseudo_label_quantities,
    ),
    "vat": consistency_vat.VAT_REPLAY,
    "mixmatch": consistency_mix.MIXMATCH,
    "remixmatch": consistency_mix.REMIXMATCH,
    "uda": consistency_uda_dash.UDA,
    "dash": consistency_uda_dash.DASH,
    "fixmatch": Replay(
        build=_fixmatch,
        views=lambda case: ("x_ulb_w", "x_ulb_s"),
        quantities=_fixmatch_quantities,
    ),
    "flexmatch": consistency_thresholds.FLEXMATCH,
    "freematch": consistency_thresholds.FREEMATCH,
    "softmatch": consistency_thresholds.SOFTMATCH,
    "adamatch": consistency_thresholds.ADAMATCH,
    "simmatch": Replay(
        build=_simmatch,
        views=lambda case: ("x_ulb_w", "x_ulb_s"),
        quantities=_aligned_quantities,
        memory=memories.usb_simmatch,
        states=memories.usb_simmatch_states,
        overrides=_simmatch_overrides,
    ),
    "comatch": Replay(
        build=_comatch,
        views=lambda case: ("x_ulb_w", "x_ulb_s_0", "x_ulb_s_1"),
        quantities=_aligned_quantities,
        memory=memories.usb_comatch,
        states=memories.usb_comatch_states,
        overrides=_comatch_overrides,
    ),
}
