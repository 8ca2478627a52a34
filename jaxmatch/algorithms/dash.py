"""Dash: an unlabeled image counts while its loss is below a threshold that decays.

Xu et al., "Dash: Semi-Supervised Learning with Dynamic Thresholding", ICML 2021,
https://arxiv.org/abs/2109.00650.
"""

from math import log
from typing import Annotated, Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxmatch.algorithms._consistency import weak_strong
from jaxmatch.errors import InputError
from jaxmatch.functional.diagnostics import pseudo_label_metrics
from jaxmatch.functional.losses import cross_entropy
from jaxmatch.settings import Count, NonNegative, Positive, Range, Whole, section
from jaxmatch.types import Algorithm, Array, Inputs, Ratio, Spec, TrainState, Update

SELECTED_FACTOR = 0.9  # of the authors' code


class Memory(NamedTuple):
    """The threshold, and the losses that its first value comes from."""

    measured: Array  # [] sum of the mean unlabeled losses of the measured batches, nats
    batches: Array  # [] int32, number of measured batches
    rho: Array  # [] threshold before the bound rho_min, nats; 0 during the warm-up


@section("algorithm")
class Dash(Algorithm):
    """The loss is supervised + unlabeled_weight * unsupervised.

    Attributes:
        rho_initial: the first threshold rho as a multiple of log C, the loss of a guess; 0 takes
            rho_hat / gamma, where rho_hat is the unlabeled loss at the end of the warm-up.
        rho_min: the least threshold in nats; targets are hard once rho reaches it.
        gamma: the factor that rho is divided by after each period.
        rho_period_steps: length of a period; periods begin after the warm-up.
        warmup_steps: first steps, in which all unlabeled images count.
        measure_steps: number of last steps of the warm-up that rho_hat is the mean over; 0 stands
            for one pass over the unlabeled images, at most the warm-up.
        temperature: T of the soft target softmax(z / T).
        unlabeled_weight: weight of the unsupervised loss, lambda_u.
        dash_norm: the unlabeled loss is a mean over the "batch", or as in the authors' code 0.9
            times the mean over the "selected" images.
    """

    rho_initial: NonNegative = 0.0
    rho_min: NonNegative = 0.05
    gamma: Annotated[float, Range(least=1)] = 1.27
    rho_period_steps: Count = 9 * 1024
    warmup_steps: Whole = 10 * 1024
    measure_steps: Whole = 0
    temperature: Positive = 0.5
    unlabeled_weight: NonNegative = 1.0
    dash_norm: Literal["batch", "selected"] = "batch"

    labeled = ("weak",)
    unlabeled = ("weak", "strong")

    def __post_init__(self) -> None:
        """Refuse a threshold that cannot start or cannot be measured."""
        if self.rho_initial == 0 and self.warmup_steps < 1:
            raise InputError(
                "without warm-up Dash has no loss to start its threshold from; give warmup_steps, "
                "or rho_initial."
            )
        if self.measure_steps > self.warmup_steps:
            raise InputError(
                f"the threshold cannot be measured over {self.measure_steps} of the warm-up's "
                f"{self.warmup_steps} steps; give measure_steps between 0 and that."
            )

    def init(self, key: Array, spec: Spec) -> Memory:
        """Nothing measured."""
        return Memory(jnp.zeros((), float), jnp.zeros((), jnp.int32), jnp.zeros((), float))

    def objective(self, given: Inputs) -> tuple[Array, Update]:
        """mean H(y, p(w(x))) + lambda_u mean 1[l < max(rho, rho_min)] H(q, p(s(u))).

        p = p(w(u)) has the logits z, and l = -log max p. The target q is softmax(z / T) during the
        warm-up and while rho > rho_min; then it is the argmax.
        """
        on, spec = weak_strong(given), given.spec
        warming = given.step < self.warmup_steps
        rho = self.threshold(given.step, given.memory, spec)
        soft = jax.nn.softmax(on.weak / self.temperature)
        hard = jax.nn.one_hot(on.weak.argmax(-1), spec.classes, dtype=soft.dtype)
        target = jnp.where(warming | (rho > self.rho_min), soft, hard)  # [b C]
        held = jnp.maximum(rho, self.rho_min)
        selected = warming | below(on.weak, held)  # [b]
        errors = cross_entropy(on.strong, target)
        total = jnp.where(selected, errors, 0.0).sum()
        unsupervised = total / len(errors)
        if self.dash_norm == "selected":
            unsupervised = SELECTED_FACTOR * total / jnp.maximum(1, selected.sum())
        loss = on.supervised + self.unlabeled_weight * unsupervised
        return loss, Update(
            on.stats,
            {
                "loss/supervised": on.supervised,
                "loss/unsupervised": unsupervised,
                "pseudo/rho": Ratio(jnp.where(warming, 0.0, held), ~warming),
                **pseudo_label_metrics(on.weak, selected, given.unlabeled.label, on.strong),
            },
            self.remember(given.state, errors, rho, spec),
        )

    def threshold(self, step: Array, memory: Memory, spec: Spec) -> Array:
        """The threshold rho [] of a step, before rho_min: rho_1 gamma^-floor((k - w) / period).

        In the warm-up of w steps it is 0. The authors' code divides by gamma at once, so its
        rho_1 = rho_hat / gamma.
        """
        if self.rho_initial:
            first = jnp.asarray(self.rho_initial * log(spec.classes), memory.rho.dtype)
        else:
            first = memory.measured / jnp.maximum(1, memory.batches) / self.gamma
        since = step - self.warmup_steps
        decayed = jnp.where(since % self.rho_period_steps == 0, memory.rho / self.gamma, memory.rho)
        return jnp.where(since == 0, first, decayed)

    def remember(self, state: TrainState, errors: Array, rho: Array, spec: Spec) -> Memory:
        """The memory after a step whose strong views cost ``errors`` [b]."""
        steps = self.measure_steps or -(-spec.unlabeled // spec.unlabeled_batch)
        left = self.warmup_steps - state.step
        measuring = (left > 0) & (left <= steps)
        error = jax.lax.stop_gradient(errors.mean())
        measured, batches, _ = state.memory
        return Memory(measured + jnp.where(measuring, error, 0.0), batches + measuring, rho)


def below(logits: Array, rho: Array) -> Array:
    """Which weak views [b], by their logits [b C], have -log max p < rho."""
    return -jax.nn.log_softmax(logits).max(-1) < rho
