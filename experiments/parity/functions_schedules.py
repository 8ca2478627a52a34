"""Replays learning rates step by step: USB's, and those of SimMatch's and CoMatch's authors."""

import re

import jax
import jax.numpy as jnp
import numpy as np

from experiments.parity.functions_common import REFERENCE_ONLY, tags
from experiments.parity.rows import Case, Comparison, UnknownCaseError
from jaxmatch.optim import schedules


def cosine_7_16(case: Case, comparison: Comparison) -> None:
    """Factors at recorded steps."""
    for tag in tags(case):
        step, steps, warmup = (
            case[f"in/{tag}/{name}"] for name in ("step", "num_training_steps", "num_warmup_steps")
        )
        ours = schedules.cosine_7_16(jnp.asarray(step), int(steps), int(warmup))
        comparison.add("out/factor", tag, ours, case[f"out/{tag}/factor"])


def simmatch(case: Case, comparison: Comparison) -> None:
    """Half a cosine that changes once an epoch, after a warm-up step by step."""
    base = _said(case, r"base lr ([\d.e-]+)")
    for tag in tags(case):
        epochs, warmup, period = (
            int(case[f"in/{tag}/{name}"]) for name in ("epochs", "warmup_epoch", "steps_per_epoch")
        )
        theirs = case[f"out/{tag}/lr"]
        rate = jax.jit(
            schedules.learning_rate("cosine", base, epochs * period, warmup * period, period=period)
        )
        comparison.add("out/lr", tag, rate(jnp.arange(len(theirs))), theirs)


def comatch(case: Case, comparison: Comparison) -> None:
    """The 7/16 cosine; its warm-ups start at a share of the rate, which ours do not."""
    base, start = _said(case, r"base lr ([\d.e-]+)"), _said(case, r"warmup_ratio ([\d.e-]+)")
    for tag in tags(case):
        steps, warmup, exponential = (
            int(case[f"in/{tag}/{name}"]) for name in ("max_iter", "warmup_iter", "warmup_is_exp")
        )
        theirs = case[f"out/{tag}/lr"]
        rate = jax.jit(schedules.learning_rate("cosine_7_16", base, steps, warmup))
        step = np.arange(warmup, len(theirs))
        # Theirs goes on below 0, long after the run.
        progress = (step - warmup) / max(1, steps - warmup)
        after = 7 / 16 * progress > 1 / 2
        ours = np.asarray(rate(jnp.asarray(step)))
        comparison.add("out/lr", tag, ours[~after], theirs[warmup:][~after])
        if after.any():
            late = base * np.cos(np.pi * 7 / 16 * progress[after])
            comparison.add("out/lr (below 0)", tag, late, theirs[warmup:][after], REFERENCE_ONLY)
        if warmup:
            share = np.arange(warmup) / warmup
            factor = start ** (1 - share) if exponential else start + (1 - start) * share
            comparison.add("out/lr (warm-up)", tag, base * factor, theirs[:warmup], REFERENCE_ONLY)


def _said(case: Case, pattern: str) -> float:
    """The number that the notes of the file give."""
    found = re.search(pattern, " ".join(case.meta["notes"]))
    if found is None:
        raise UnknownCaseError(f"its notes do not say {pattern!r}")
    return float(found[1])
