"""Schedules as pure functions of the number of optimizer steps already taken."""

from collections.abc import Callable, Sequence
from typing import Literal, get_args

import jax.numpy as jnp

from jaxmatch.errors import InputError, suggest
from jaxmatch.types import Array

Schedule = Literal["cosine_7_16", "cosine", "steps", "constant"]
Signal = Literal["none", "linear", "exp", "log"]


def cosine_7_16(step: Array, steps: int, warmup_steps: int = 0) -> Array:
    """FixMatch's learning-rate factor cos(7 pi k / 16 K), which ends at 0.195 and not at 0.

    With warm-up over w steps: k / w, then the cosine over the remaining K - w; never below 0.
    Sohn et al., "FixMatch", NeurIPS 2020, section 2.4.
    """
    step = jnp.asarray(step, float)  # int32 would divide in float32 even under x64
    warmup = step / max(1, warmup_steps)
    progress = (step - warmup_steps) / max(1, steps - warmup_steps)
    cosine = jnp.maximum(0.0, jnp.cos(jnp.pi * 7 / 16 * progress))
    return jnp.where(step < warmup_steps, warmup, cosine)


def cosine(step: Array, steps: int, warmup_steps: int = 0) -> Array:
    """The factor (1 + cos(pi k / K)) / 2, which ends at 0 and stays there.

    With warm-up over w steps: (k + 1) / w, so the rate of the first step is not 0 (SimMatch's and
    EMAN's form), then the cosine over the remaining K - w.
    Loshchilov & Hutter, "SGDR", ICLR 2017, eq. 5, https://arxiv.org/abs/1608.03983.
    """
    step = jnp.asarray(step, float)
    warmup = (step + 1) / max(1, warmup_steps)
    progress = (step - warmup_steps) / max(1, steps - warmup_steps)
    half = (1 + jnp.cos(jnp.pi * jnp.minimum(progress, 1.0))) / 2
    return jnp.where(step < warmup_steps, warmup, half)


def drop(
    step: Array,
    steps: int,
    drops: Sequence[float],
    warmup_steps: int = 0,
    factor: float = 0.1,
) -> Array:
    """The product of ``factor`` over all ``drops``, shares of ``steps``, that are passed.

    With warm-up over w steps: (k + 1) / w times that, at most 1 times. FixMatch-EMAN: Cai et al.,
    CVPR 2021, https://arxiv.org/abs/2101.08482, with shares 0.6 and 0.8.
    """
    step = jnp.asarray(step, float)
    passed = sum((step >= round(share * steps) for share in drops), jnp.zeros(step.shape, int))
    return jnp.minimum(1.0, (step + 1) / max(1, warmup_steps)) * factor**passed


def learning_rate(
    name: Schedule,
    base: float,
    steps: int,
    warmup_steps: int = 0,
    *,
    period: int = 1,
    drops: Sequence[float] = (),
    drop_factor: float = 0.1,
) -> Callable[[Array], Array]:
    """The learning rate as a function of the number of steps taken.

    Args:
        name: "cosine_7_16", "cosine", "steps" (lower at each of ``drops``) or "constant".
        base: the rate after the warm-up.
        steps: of the whole run, where the schedule ends.
        warmup_steps: steps of linear warm-up; they count among ``steps``.
        period: after the warm-up the rate changes only every ``period`` steps (the authors of
            SimMatch, CoMatch and MoCo change it once an epoch).
        drops: shares of the run in (0, 1); for "steps" only.
        drop_factor: multiplies the rate at each of ``drops``.

    Raises:
        InputError: on an unknown name, or a setting that the schedule does not take.
    """
    if name not in get_args(Schedule):
        raise InputError(f"unknown schedule {name!r}; {suggest(name, get_args(Schedule))}")
    if period < 1:
        raise InputError(f"a rate cannot be held for {period} steps; give a period of 1 or more.")
    if bool(drops) != (name == "steps") or not all(0 < share < 1 for share in drops):
        raise InputError(
            f"schedule {name!r} with drops={tuple(drops)}; give drops as shares of the run between "
            '0 and 1 with the schedule "steps", such as (0.6, 0.8), and with no other.'
        )

    def rate(step: Array) -> Array:
        step = jnp.asarray(step)
        held = warmup_steps + (step - warmup_steps) // period * period
        step = jnp.where(step < warmup_steps, step, held)
        if name == "cosine_7_16":
            return base * cosine_7_16(step, steps, warmup_steps)
        if name == "cosine":
            return base * cosine(step, steps, warmup_steps)
        if name == "steps":
            return base * drop(step, steps, drops, warmup_steps, drop_factor)
        warmup = jnp.asarray(step, float) / max(1, warmup_steps)
        return base * jnp.where(step < warmup_steps, warmup, 1.0)

    return rate


def linear_ramp(step: Array, steps: int, share: float) -> Array:
    """The weight of an unsupervised term: from 0 to 1 over the first ``share`` of ``steps``.

    A share of 0 gives 1 from the start; at the end of a share of 2 the run has 1/2.

    Raises:
        InputError: if the share is negative.
    """
    if share < 0:
        raise InputError(f"a ramp of {share} is no share of the run; give 0 or more.")
    return jnp.clip(jnp.asarray(step, float) / (share * steps), 0, 1) if share > 0 else jnp.ones(())


def training_signal(name: str, step: Array, steps: int, classes: int) -> Array:
    """UDA's threshold that releases labeled examples: from about 1 / C to about 1 over K steps.

    eta = a (1 - 1 / C) + 1 / C with a = k / K ("linear"), exp(5 (k / K - 1)) ("exp") or
    1 - exp(-5 k / K) ("log"); "none" is 1 throughout. Training signal annealing of Xie et al.,
    "Unsupervised Data Augmentation for Consistency Training", NeurIPS 2020,
    https://arxiv.org/abs/1904.12848.

    Args:
        name: "none", "linear", "exp" or "log".
        step: k, of any shape.
        steps: K; afterwards the signal does not change.
        classes: C.

    Raises:
        InputError: on an unknown name.
    """
    if name not in get_args(Signal):
        raise InputError(f"unknown training signal {name!r}; {suggest(name, get_args(Signal))}")
    if name == "none":
        return jnp.ones(jnp.shape(step))
    progress = jnp.clip(jnp.asarray(step, float) / steps, 0, 1)
    shares = {
        "linear": progress,
        "exp": jnp.exp(5 * (progress - 1)),
        "log": 1 - jnp.exp(-5 * progress),
    }
    return shares[name] * (1 - 1 / classes) + 1 / classes
