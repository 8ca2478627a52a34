"""Schedules as pure functions of the number of optimizer steps already taken."""

from collections.abc import Callable

import jax.numpy as jnp

from jaxmatch.errors import InputError, suggest
from jaxmatch.types import Array

SCHEDULES = ("cosine_7_16", "constant")


def cosine_7_16(step: Array, steps: int, warmup_steps: int = 0) -> Array:
    """FixMatch's learning-rate factor cos(7 pi k / 16 K), which ends at 0.195 and not at 0.

    With warm-up over w steps: k / w, then the cosine over the remaining K - w; never below 0.
    Sohn et al., "FixMatch", NeurIPS 2020, section 2.4.
    """
    step = jnp.asarray(step, float)  # an int32 count would divide in float32 even under x64
    warmup = step / max(1, warmup_steps)
    progress = (step - warmup_steps) / max(1, steps - warmup_steps)
    cosine = jnp.maximum(0.0, jnp.cos(jnp.pi * 7 / 16 * progress))
    return jnp.where(step < warmup_steps, warmup, cosine)


def learning_rate(
    name: str, base: float, steps: int, warmup_steps: int = 0
) -> Callable[[Array], Array]:
    """The learning rate as a function of the step; raises InputError on an unknown ``name``."""
    if name not in SCHEDULES:
        raise InputError(f"unknown schedule {name!r}; {suggest(name, SCHEDULES)}")

    def rate(step: Array) -> Array:
        if name == "cosine_7_16":
            return base * cosine_7_16(step, steps, warmup_steps)
        warmup = jnp.asarray(step, float) / max(1, warmup_steps)
        return base * jnp.where(step < warmup_steps, warmup, 1.0)

    return rate


def linear_ramp(step: Array, steps: int, share: float) -> Array:
    """Weight of an unsupervised term: from 0 to 1 over the first ``share`` of ``steps``."""
    return jnp.clip(jnp.asarray(step, float) / (share * steps), 0, 1) if share > 0 else jnp.ones(())
