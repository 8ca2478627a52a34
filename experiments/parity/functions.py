"""Replays function cases: the library's schedules, averages and losses on recorded inputs."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from experiments.parity.rows import Case, Comparison, UnknownCaseError
from jaxmatch.losses import cross_entropy
from jaxmatch.optim import Ema
from jaxmatch.schedules import cosine_7_16
from jaxmatch.types import Array


def replay(case: Case, tolerance: float) -> Comparison:
    """Replay a case of kind "function"; raises UnknownCaseError if its functions are not ours."""
    function = next((REPLAYS[key] for key in REPLAYS if key in case.meta["case"]), None)
    if function is None:
        raise UnknownCaseError("its functions are not in the library")
    comparison = Comparison(case, tolerance)
    function(case, comparison)
    return comparison


def _cosine(case: Case, comparison: Comparison) -> None:
    for tag in _tags(case):
        step, steps, warmup = (
            case[f"in/{tag}/{name}"] for name in ("step", "num_training_steps", "num_warmup_steps")
        )
        ours = cosine_7_16(jnp.asarray(step), int(steps), int(warmup))
        comparison.add("out/factor", tag, ours, case[f"out/{tag}/factor"])


def _ema(case: Case, comparison: Comparison) -> None:
    ema = Ema(decay=float(case["in/decay"]), statistics="copied")

    def variables(prefix: str) -> dict[str, dict[str, Array]]:
        values = {name: jnp.asarray(value) for name, value in case.under(prefix).items()}
        stats = {name: value for name, value in values.items() if ".running_" in name}
        params = {name: value for name, value in values.items() if name not in stats}
        return {"params": params, "batch_stats": stats}

    teacher = variables("in/init/")
    for tag in sorted((tag for tag in _tags(case) if tag.isdecimal()), key=int):
        student = variables(f"in/{tag}/")
        teacher = ema.update(teacher, student["params"], student["batch_stats"])
        theirs = variables(f"out/{tag}/")
        for kind, values in theirs.items():
            named = {f"{tag}/{name}": value for name, value in values.items()}
            ours = {f"{tag}/{name}": value for name, value in teacher[kind].items()}
            comparison.add_each(f"out/{kind}", ours, named)


def _losses(case: Case, comparison: Comparison) -> None:
    for tag, loss in LOSSES.items():
        given = {name: jnp.asarray(value) for name, value in case.under(f"in/{tag}/").items()}
        logits, cotangent = given.pop("logits"), given.pop("cotangent")
        ours, backward = jax.vjp(partial(loss, **given), logits)
        comparison.add(f"out/{tag}", "loss", ours, case[f"out/{tag}/loss"])
        gradient = backward(cotangent.astype(ours.dtype))[0]
        comparison.add(f"grad/{tag}", "logits", gradient, case[f"grad/{tag}/logits"])


def _cross_entropy(logits: Array, targets: Array) -> Array:
    return cross_entropy(logits, targets)


def _mean_cross_entropy(logits: Array, targets: Array) -> Array:
    return cross_entropy(logits, targets).mean()


def _masked_cross_entropy(logits: Array, targets: Array, mask: Array) -> Array:
    return jnp.mean(cross_entropy(logits, targets) * mask)


def _tags(case: Case) -> list[str]:
    return sorted({name.split("/")[0] for name in case.names("in/")})


LOSSES: dict[str, Callable[..., Array]] = {
    "ce_hard_none": _cross_entropy,
    "ce_soft_none": _cross_entropy,
    "ce_hard_mean": _mean_cross_entropy,
    "consistency_ce_hard_mask": _masked_cross_entropy,
    "consistency_ce_soft_mask": _masked_cross_entropy,
}
REPLAYS: dict[str, Callable[[Case, Comparison], None]] = {
    "fn_cosine_7_16": _cosine,
    "fn_ema_hook": _ema,
    "fn_losses": _losses,
}
