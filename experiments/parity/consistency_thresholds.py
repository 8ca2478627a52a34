"""How USB's FlexMatch, FreeMatch, SoftMatch and AdaMatch map onto the library's."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.parity.entries import Argument, Call, Override, Quantities, Replay, Result
from experiments.parity.functions_alignment import padded
from experiments.parity.rows import Case, UnknownCaseError
from jaxmatch.algorithms import adamatch, flexmatch, freematch, softmatch
from jaxmatch.functional.alignment import Marginal
from jaxmatch.functional.per_example import PerExample, make_rows
from jaxmatch.functional.thresholds import (
    Gaussian,
    SelfAdaptive,
    learning_effect,
    update_self_adaptive,
)
from jaxmatch.types import Array

# Of the largest probabilities of a batch, where USB takes a quantile in place of their mean.
USB_QUANTILE = 0.8
USB_CEILING = 0.95
QUANTITIES: Quantities = {
    "mask": Argument("weighted_cross_entropy", 0, 2),
    "pseudo_label": Argument("weighted_cross_entropy", 0, 1),
}


def float32_mean(values: Array) -> Array:
    """The mean as USB reports it: added up in float32, one after the other."""
    return sum(values.astype(jnp.float32), jnp.zeros((), jnp.float32)) / len(values)


class Whole(Result):
    """All that such a function returns, whatever the position."""

    def find(self, calls: Sequence[Call]) -> Array:
        """The value; raises IndexError if there is none."""
        return self.then(calls[self.call].result)


def align_with_epsilon(module: Any) -> Override:
    """USB adds 1e-6 to both averages before it divides by one of them."""
    library = module.align
    return Override(module, "align", lambda *arrays: padded(library, *arrays))


def keep_effects_of_a_filled_memory(examples: int) -> Override:
    """USB does not update the learning effects while all examples count for one class."""
    library = flexmatch.remember

    def remember(memory: flexmatch.Memory, *confident: Array) -> flexmatch.Memory:
        labels = memory.selected.rows["label"]
        classes = jnp.arange(len(memory.counts))
        counts = (labels[:, None] == classes).sum(0, dtype=memory.counts.dtype)
        new = library(memory._replace(counts=counts), *confident)
        filled = new.counts.max() == examples
        return new._replace(counts=jnp.where(filled, memory.counts, new.counts))

    return Override(flexmatch, "remember", remember)


def usb_confidence(quantile: bool, ceiling: bool) -> Override:
    """USB's switches for FreeMatch's average confidence.

    Args:
        quantile: a quantile of a batch's confidences enters the average in place of their mean.
        ceiling: the average stays below 0.95.
    """

    def update(averages: SelfAdaptive, probabilities: Array, momentum: float) -> SelfAdaptive:
        new = update_self_adaptive(averages, probabilities, momentum)
        confidence = new.confidence
        if quantile:
            batch = jnp.quantile(jax.lax.stop_gradient(probabilities).max(-1), USB_QUANTILE)
            confidence = momentum * averages.confidence + (1 - momentum) * batch
        return new._replace(confidence=jnp.clip(confidence, 0, USB_CEILING if ceiling else None))

    return Override(freematch, "update_self_adaptive", update)


def _flexmatch(case: Case) -> flexmatch.FlexMatch:
    given = case.meta["hyperparameters"]
    return flexmatch.FlexMatch(
        threshold=given["p_cutoff"],
        threshold_warmup=given["thresh_warmup"],
        unlabeled_weight=given["ulb_loss_ratio"],
        hard_labels=given["hard_label"],
        temperature=given["T"] if _sharpens(case) else 1.0,
    )


def _sharpens(case: Case) -> bool:
    """USB as it is takes probabilities for its soft targets as they are: its T does nothing."""
    return (
        case.meta["variant"] != "reference as is" and not case.meta["hyperparameters"]["hard_label"]
    )


def _unsharpened_quantities(case: Case) -> Quantities:
    if not _sharpens(case):
        return QUANTITIES
    # The files of the corrected variant record the probabilities as they were before sharpening.
    return {**QUANTITIES, "pseudo_label": Argument("pseudo_label", 0, 0, jax.nn.softmax)}


def _flexmatch_memory(case: Case) -> flexmatch.Memory:
    labels = case["init_state/selected_label"]
    classes = case.meta["num_classes"]
    selected = make_rows(len(labels), label=jnp.int32(-1))
    rows = {"label": selected.rows["label"].at[: len(labels)].set(labels.astype(np.int32))}
    counts = jnp.asarray(np.bincount(labels[labels >= 0], minlength=classes), jnp.int32)
    memory = flexmatch.Memory(PerExample(rows), counts)
    effect = _flexmatch_states(case, memory)["classwise_acc"]
    if not np.allclose(effect, case["init_state/classwise_acc"]):
        raise UnknownCaseError("classwise_acc does not belong to selected_label")
    return memory


def _flexmatch_states(case: Case, memory: flexmatch.Memory) -> Mapping[str, Array]:
    count = len(case["init_state/selected_label"])
    warmup = case.meta["hyperparameters"]["thresh_warmup"]
    unselected = count - memory.counts.sum() if warmup else 0
    return {
        "selected_label": memory.selected.rows["label"][:count],
        "classwise_acc": learning_effect(memory.counts, unselected),
    }


def _flexmatch_overrides(case: Case) -> list[Override]:
    keys = [f"state/{name}" for name in case.names("state/") if name.endswith("/selected_label")]
    filled = [key for key in keys if case[key][0] >= 0 and np.ptp(case[key]) == 0]
    return [keep_effects_of_a_filled_memory(len(case[filled[0]]))] if filled else []


def _freematch(case: Case) -> freematch.FreeMatch:
    given = case.meta["hyperparameters"]
    return freematch.FreeMatch(
        momentum=given["ema_p"],
        unlabeled_weight=given["ulb_loss_ratio"],
        fairness_weight=given["ent_loss_ratio"],
        hard_labels=given["hard_label"],
        temperature=given["T"],
    )


def _freematch_overrides(case: Case) -> list[Override]:
    given = case.meta["hyperparameters"]
    quantile, ceiling = given["use_quantile"], given["clip_thresh"]
    return [usb_confidence(quantile, ceiling)] if quantile or ceiling else []


def _freematch_memory(case: Case) -> SelfAdaptive:
    names = ("time_p", "p_model", "label_hist")
    return SelfAdaptive(*(jnp.asarray(case[f"init_state/{name}"]) for name in names))


def _freematch_states(case: Case, memory: SelfAdaptive) -> Mapping[str, Array]:
    del case
    return {
        "time_p": memory.confidence,
        "p_model": memory.probabilities,
        "label_hist": memory.histogram,
    }


def _softmatch(case: Case) -> softmatch.SoftMatch:
    given = case.meta["hyperparameters"]
    if given["per_class"]:
        raise UnknownCaseError("a Gaussian for each class is not in the library")
    return softmatch.SoftMatch(
        deviations=given["n_sigma"],
        momentum=given["ema_p"],
        prior="uniform" if given["dist_uniform"] else "labeled",
        unlabeled_weight=given["ulb_loss_ratio"],
        hard_labels=given["hard_label"],
        temperature=given["T"],
    )


def _softmatch_memory(case: Case) -> softmatch.Memory:
    names = ("prob_max_mu_t", "prob_max_var_t")
    gaussian = Gaussian(*(jnp.asarray(case[f"init_state/{name}"]) for name in names))
    return softmatch.Memory(gaussian, _marginal(case, "da_p_model"), _marginal(case, "da_p_target"))


def _softmatch_states(case: Case, memory: softmatch.Memory) -> Mapping[str, Array]:
    del case
    return {
        "prob_max_mu_t": memory.gaussian.mean,
        "prob_max_var_t": memory.gaussian.variance,
        "da_p_model": memory.marginal.average,
        "da_p_target": memory.prior.average,
    }


def _adamatch(case: Case) -> adamatch.AdaMatch:
    given = case.meta["hyperparameters"]
    return adamatch.AdaMatch(
        threshold=given["p_cutoff"],
        momentum=given["ema_p"],
        unlabeled_weight=given["ulb_loss_ratio"],
        hard_labels=given["hard_label"],
        temperature=given["T"] if _sharpens(case) else 1.0,
    )


def _adamatch_memory(case: Case) -> adamatch.Memory:
    return adamatch.Memory(_marginal(case, "da_p_target"), _marginal(case, "da_p_model"))


def _adamatch_states(case: Case, memory: adamatch.Memory) -> Mapping[str, Array]:
    del case
    return {
        "da_p_target": memory.labeled.average,
        "da_p_model": memory.unlabeled.average,
    }


def _marginal(case: Case, name: str) -> Marginal:
    """The recorded average; without one the first batch's is it."""
    key = f"init_state/{name}"
    started = key in case
    average = case[key] if started else np.zeros(case.meta["num_classes"])
    return Marginal(jnp.asarray(average), jnp.full((), started))


def _views(case: Case) -> tuple[str, ...]:
    del case
    return ("x_ulb_w", "x_ulb_s")


FLEXMATCH = Replay(
    build=_flexmatch,
    views=_views,
    quantities=_unsharpened_quantities,
    memory=_flexmatch_memory,
    states=_flexmatch_states,
    overrides=_flexmatch_overrides,
)
FREEMATCH = Replay(
    build=_freematch,
    views=_views,
    quantities=lambda case: {**QUANTITIES, "ent_loss": "loss/fairness"},
    memory=_freematch_memory,
    states=_freematch_states,
    overrides=_freematch_overrides,
)
SOFTMATCH = Replay(
    build=_softmatch,
    views=_views,
    quantities=lambda case: {
        **QUANTITIES,
        "probs_aligned": Whole("align", 0, 0, jnp.exp),
        "util_ratio": Argument("weighted_cross_entropy", 0, 2, float32_mean),
    },
    memory=_softmatch_memory,
    states=_softmatch_states,
    overrides=lambda case: [align_with_epsilon(softmatch)],
)
ADAMATCH = Replay(
    build=_adamatch,
    views=_views,
    quantities=lambda case: {
        **_unsharpened_quantities(case),
        "probs_aligned": Whole("align", 0, 0, jnp.exp),
    },
    memory=_adamatch_memory,
    states=_adamatch_states,
    overrides=lambda case: [align_with_epsilon(adamatch)],
)
