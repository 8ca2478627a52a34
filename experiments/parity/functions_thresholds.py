"""Replays USB's thresholds and weights: sequences of calls on recorded predictions."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from experiments.parity.consistency_thresholds import usb_confidence
from experiments.parity.functions_common import REFERENCE_ONLY, tags
from experiments.parity.rows import Case, Comparison
from jaxmatch.algorithms import flexmatch
from jaxmatch.functional import thresholds
from jaxmatch.functional.per_example import make_rows
from jaxmatch.types import Array

# What USB's FlexMatch has where the file names no threshold.
USB_THRESHOLD = 0.95
KEEPS = "override: learning_effect"


def flexible(case: Case, comparison: Comparison) -> None:
    """FlexMatch: masks, remembered labels and learning effects of successive batches."""
    for tag in tags(case):
        probabilities = jnp.asarray(case[f"in/{tag}/probs"])
        cutoff = f"in/{tag}/p_cutoff"
        threshold = float(case[cutoff]) if cutoff in case else USB_THRESHOLD
        if f"in/{tag}/idx_ulb" in case:
            labels = case[f"out/{tag}/selected_label"]  # [calls n]
            filled = np.any((labels[:, :1] >= 0) & (labels == labels[:, :1]).all(1, keepdims=True))
            ours = flexible_calls(
                probabilities,  # [calls b C]
                jnp.asarray(case[f"in/{tag}/idx_ulb"], jnp.int32),
                count=int(case[f"in/{tag}/ulb_dest_len"]),
                threshold=threshold,
                warmup=not tag.startswith("nowarmup"),
                effect_of=effect_unless_filled if filled else None,
            )
            _add(comparison, case, tag, ours, KEEPS if filled else "library")
            continue
        count = len(probabilities)  # of [b C], one call on the whole pool
        ours = flexible_calls(
            probabilities[None],
            jnp.arange(count, dtype=jnp.int32)[None],
            count=count,
            threshold=threshold,
            warmup=True,
            effect_of=effect_unless_filled,
        )
        ours = {name: value[0] for name, value in ours.items()}
        _add(comparison, case, tag, ours, KEEPS)


def effect_unless_filled(old: Array, new: Array, counts: Array, pool: int) -> Array:
    """USB leaves the effects as they were while one class, or none at all, fills the pool."""
    filled = jnp.maximum(counts.max(), pool - counts.sum()) == pool
    return jnp.where(filled, old, new)


def flexible_calls(
    probabilities: Array,
    index: Array,
    *,
    count: int,
    threshold: float,
    warmup: bool,
    effect_of: Callable[[Array, Array, Array, int], Array] | None = None,
) -> dict[str, Array]:
    """Successive batches from an empty memory of ``count`` examples, by the names of the file.

    ``effect_of`` the old effects, the library's new ones, the counts and ``count`` stands for the
    new ones.
    """
    classes = probabilities.shape[-1]
    rows = make_rows(count, label=jnp.int32(-1))
    memory = flexmatch.Memory(rows, jnp.zeros(classes, jnp.int32))

    @jax.jit
    def call(
        memory: flexmatch.Memory, effect: Array, batch: Array, at: Array
    ) -> tuple[flexmatch.Memory, dict[str, Array]]:
        confidence, label = batch.max(-1), batch.argmax(-1)
        mask = confidence >= thresholds.flexible_thresholds(threshold, effect)[label]
        memory = flexmatch.remember(memory, at, label, confidence >= threshold)
        unselected = (count - memory.counts.sum()) * warmup
        new = thresholds.learning_effect(memory.counts, unselected)
        effect = effect_of(effect, new, memory.counts, count) if effect_of else new
        labels = memory.selected.rows["label"][:count]
        return memory, {"mask": mask, "selected_label": labels, "classwise_acc": effect}

    effect, calls = jnp.zeros(classes), []
    for batch, at in zip(probabilities, index, strict=True):
        memory, seen = call(memory, effect, batch, at)
        effect = seen["classwise_acc"]
        calls.append(seen)
    return _stacked(calls)


def self_adaptive(case: Case, comparison: Comparison) -> None:
    """FreeMatch: masks and averages of successive batches."""
    for tag in tags(case):
        quantile, ceiling = (
            bool(case[f"in/{tag}/{name}"]) for name in ("use_quantile", "clip_thresh")
        )
        update, source = thresholds.update_self_adaptive, "library"
        if quantile or ceiling:
            override = usb_confidence(quantile, ceiling)
            update, source = override.function, f"override: {override.name}"
        batches = jax.nn.softmax(jnp.asarray(case[f"in/{tag}/logits"]))  # [calls b C]
        averages, calls = thresholds.make_self_adaptive(batches.shape[-1]), []
        for batch in batches:
            averages = update(averages, batch, float(case[f"in/{tag}/momentum"]))
            limits = thresholds.self_adaptive_thresholds(averages)
            calls.append(
                {
                    "mask": batch.max(-1) >= limits[batch.argmax(-1)],
                    "time_p": averages.confidence,
                    "p_model": averages.probabilities,
                    "label_hist": averages.histogram,
                }
            )
        _add(comparison, case, tag, _stacked(calls), source)


def fairness(case: Case, comparison: Comparison) -> None:
    """FreeMatch's fairness term with its gradient."""
    term = jax.jit(jax.value_and_grad(thresholds.self_adaptive_fairness))
    for tag in tags(case):
        given = {name: jnp.asarray(value) for name, value in case.under(f"in/{tag}/").items()}
        selected = given["mask"] > 0
        averages = thresholds.SelfAdaptive(jnp.ones(()), given["prob_model"], given["label_hist"])
        value, gradient = term(given["logits_s"], selected, averages)
        comparison.add("out/loss", tag, value, case[f"out/{tag}/loss"])
        comparison.add("grad/logits_s", tag, gradient, case[f"grad/{tag}/logits_s"])
        # The shares of the classes sum to 1 whatever they are.
        share = 1 / len(given["label_hist"])
        comparison.add("out/hist_mean", tag, share, case[f"out/{tag}/hist_mean"], REFERENCE_ONLY)


def truncated_gaussian(case: Case, comparison: Comparison) -> None:
    """SoftMatch: weights and averages of successive batches."""
    for tag in tags(case):
        calls_of, source = (
            (class_gaussian_calls, REFERENCE_ONLY)
            if case[f"out/{tag}/mu"].ndim > 1
            else (gaussian_calls, "library")
        )
        ours = calls_of(
            jnp.asarray(case[f"in/{tag}/probs"]),
            float(case[f"in/{tag}/n_sigma"]),
            float(case[f"in/{tag}/momentum"]),
        )
        _add(comparison, case, tag, ours, source)


def gaussian_calls(probabilities: Array, deviations: float, momentum: float) -> dict[str, Array]:
    """Successive batches [calls b C], by the names of the file."""
    gaussian, calls = thresholds.make_gaussian(probabilities.shape[-1]), []
    for batch in probabilities:
        confidence = batch.max(-1)
        gaussian = thresholds.update_gaussian(gaussian, confidence, momentum)
        weight = thresholds.truncated_gaussian_weight(confidence, gaussian, deviations)
        calls.append({"mask": weight, "mu": gaussian.mean, "var": gaussian.variance})
    return _stacked(calls)


def class_gaussian_calls(
    probabilities: Array, deviations: float, momentum: float
) -> dict[str, Array]:
    """The same with a Gaussian for each predicted class; classes seen less than twice count as 0.

    Their variance counts as 1.
    """
    classes = probabilities.shape[-1]
    means, variances, calls = jnp.full(classes, 1 / classes), jnp.ones(classes), []
    for batch in probabilities:
        confidence, member = batch.max(-1), jax.nn.one_hot(batch.argmax(-1), classes)
        count = member.sum(0)
        mean = confidence @ member / jnp.maximum(count, 1)
        squares = jnp.square(confidence[:, None] - mean) * member
        variance = squares.sum(0) / jnp.maximum(count - 1, 1)
        means = momentum * means + (1 - momentum) * jnp.where(count > 1, mean, 0.0)
        variances = momentum * variances + (1 - momentum) * jnp.where(count > 1, variance, 1.0)
        own = thresholds.Gaussian(member @ means, member @ variances)
        weight = thresholds.truncated_gaussian_weight(confidence, own, deviations)
        calls.append({"mask": weight, "mu": means, "var": variances})
    return _stacked(calls)


def _stacked(calls: list[dict[str, Array]]) -> dict[str, Array]:
    return {name: jnp.stack([call[name] for call in calls]) for name in calls[0]}


def _add(comparison: Comparison, case: Case, tag: str, ours: dict[str, Array], source: str) -> None:
    for name, theirs in case.under(f"out/{tag}/").items():
        kind = "" if source == "library" else f" ({tag})"
        comparison.add(f"out/{name}{kind}", tag, ours[name], theirs, source)


REPLAYS: dict[str, Callable[[Case, Comparison], None]] = {
    "fn_flexmatch_threshold": flexible,
    "fn_freematch_threshold": self_adaptive,
    "fn_freematch_entropy_loss": fairness,
    "fn_softmatch_weight": truncated_gaussian,
}
