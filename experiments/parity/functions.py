"""Replays function cases: the library's schedules, averages and losses on recorded inputs."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from experiments.parity import (
    consistency_uda_dash,
    functions_alignment,
    functions_contrastive,
    functions_pretraining,
    functions_schedules,
    functions_thresholds,
    functions_vit,
)
from experiments.parity.consistency_regression import mean_squared_difference
from experiments.parity.consistency_vat import mean_divergence, mean_entropy
from experiments.parity.functions_common import REFERENCE_ONLY, tags
from experiments.parity.rows import Case, Comparison, UnknownCaseError
from jaxmatch.functional.losses import cross_entropy
from jaxmatch.optim.ema import Ema
from jaxmatch.types import Array


def replay(case: Case, tolerance: float) -> Comparison:
    """Replay a case of kind "function"; raises UnknownCaseError if its functions are not ours."""
    function = next((REPLAYS[key] for key in REPLAYS if key in case.meta["case"]), None)
    if function is None:
        raise UnknownCaseError("its functions are not in the library")
    comparison = Comparison(case, tolerance)
    function(case, comparison)
    return comparison


def _ema(case: Case, comparison: Comparison) -> None:
    ema = Ema(decay=float(case["in/decay"]), statistics="copied")

    def variables(prefix: str) -> dict[str, dict[str, Array]]:
        values = {name: jnp.asarray(value) for name, value in case.under(prefix).items()}
        stats = {name: value for name, value in values.items() if ".running_" in name}
        params = {name: value for name, value in values.items() if name not in stats}
        return {"params": params, "batch_stats": stats}

    teacher = variables("in/init/")
    for tag in sorted((tag for tag in tags(case) if tag.isdecimal()), key=int):
        student = variables(f"in/{tag}/")
        teacher = ema.update(
            teacher, student["params"], student["batch_stats"], step=int(tag), steps=1
        )
        theirs = variables(f"out/{tag}/")
        for kind, values in theirs.items():
            named = {f"{tag}/{name}": value for name, value in values.items()}
            ours = {f"{tag}/{name}": value for name, value in teacher[kind].items()}
            comparison.add_each(f"out/{kind}", ours, named)


def _losses(case: Case, comparison: Comparison) -> None:
    for tag in tags(case):
        if tag == "smooth_targets":
            _smooth_targets(case, comparison)
        if tag not in LOSSES:
            continue
        loss, source = LOSSES[tag]
        given = {name: jnp.asarray(value) for name, value in case.under(f"in/{tag}/").items()}
        theirs = case.under(f"grad/{tag}/")
        cotangent = given.pop("cotangent")
        varied = {name: given[name] for name in theirs}

        def value(varied: Mapping[str, Array], loss=loss, given=given) -> Array:
            return loss(**{**given, **varied})

        ours, backward = jax.vjp(value, varied)
        comparison.add(f"out/{tag}", "loss", ours, case[f"out/{tag}/loss"], source)
        (gradients,) = backward(cotangent.astype(ours.dtype))
        comparison.add_each(f"grad/{tag}", gradients, theirs, source=source)


def _smooth_targets(case: Case, comparison: Comparison) -> None:
    targets = jnp.asarray(case["in/smooth_targets/targets"])
    for name, theirs in case.under("out/smooth_targets/").items():
        smoothing, classes = float(name), theirs.shape[1]
        itself = jax.nn.one_hot(targets, classes, dtype=float)
        ours = (1 - smoothing) * itself + smoothing / (classes - 1) * (1 - itself)
        comparison.add("out/smooth_targets", name, ours, theirs, REFERENCE_ONLY)


def _cross_entropy(logits: Array, targets: Array) -> Array:
    return cross_entropy(logits, targets)


def _mean_cross_entropy(logits: Array, targets: Array) -> Array:
    return cross_entropy(logits, targets).mean()


def _masked_cross_entropy(logits: Array, targets: Array, mask: Array) -> Array:
    return jnp.mean(cross_entropy(logits, targets) * mask)


def _inverted_mask_divergence(logits: Array, targets: Array, mask: Array) -> Array:
    """USB's consistency of kind "kl": it counts the examples that the mask leaves out."""
    log_student, log_target = jax.nn.log_softmax(logits / 0.5), jax.nn.log_softmax(targets / 0.5)
    divergence = jnp.sum(jnp.exp(log_target) * (log_target - log_student), -1)
    return jnp.mean(divergence * (1 - mask))


LOSSES: dict[str, tuple[Callable[..., Array], str]] = {
    "ce_hard_none": (_cross_entropy, "library"),
    "ce_soft_none": (_cross_entropy, "library"),
    "ce_hard_mean": (_mean_cross_entropy, "library"),
    "ce_soft_mean": (_mean_cross_entropy, "library"),
    "consistency_ce_hard": (_mean_cross_entropy, "library"),
    "consistency_ce_soft": (_mean_cross_entropy, "library"),
    "consistency_ce_hard_mask": (_masked_cross_entropy, "library"),
    "consistency_ce_soft_mask": (_masked_cross_entropy, "library"),
    "consistency_mse": (mean_squared_difference, "library"),
    "consistency_mse_mask": (mean_squared_difference, "library"),
    "vat_kl": (mean_divergence, "library"),
    "entropy_min": (mean_entropy, "library"),
    "consistency_kl_mask": (_inverted_mask_divergence, REFERENCE_ONLY),
    "comatch_contrastive": (functions_contrastive.comatch, "override: pseudo_label_graph"),
}
REPLAYS: dict[str, Callable[[Case, Comparison], None]] = {
    "fn_cosine_7_16": functions_schedules.cosine_7_16,
    "fn_simmatch_official_schedule": functions_schedules.simmatch,
    "fn_comatch_official_schedule": functions_schedules.comatch,
    "fn_ema_hook": _ema,
    "fn_dist_align": functions_alignment.replay,
    "fn_losses": _losses,
    "fn_uda_tsa": consistency_uda_dash.training_signal,
    "fn_dash_rho": consistency_uda_dash.dash_rho,
    **functions_thresholds.REPLAYS,
    "fn_vit_drop_path": functions_vit.replay_drop_path,
    "fn_pos_embed_resize": functions_vit.replay_positions,
    "fn_lora": functions_vit.replay_lora,
    "solo_simclr": functions_contrastive.simclr,
    "solo_swav": functions_pretraining.swapped_prediction,
    "solo_mocov2plus": functions_pretraining.momentum_contrast,
    "solo_byol": functions_pretraining.byol,
}
