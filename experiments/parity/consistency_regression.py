"""How USB's Π-Model and Mean Teacher map onto the library's."""

import jax.numpy as jnp

from experiments.parity.entries import Override, Replay
from experiments.parity.rows import Case
from jaxmatch.algorithms import mean_teacher
from jaxmatch.algorithms.mean_teacher import MeanTeacher
from jaxmatch.algorithms.pi_model import PiModel
from jaxmatch.functional.losses import squared_difference
from jaxmatch.types import Array

VIEWS = ("x_ulb_w", "x_ulb_s")


def _pi_model(case: Case) -> PiModel:
    given = case.meta["hyperparameters"]
    return PiModel(unlabeled_weight=given["ulb_loss_ratio"], ramp=given["unsup_warm_up"])


def _mean_teacher(case: Case) -> MeanTeacher:
    given = case.meta["hyperparameters"]
    return MeanTeacher(unlabeled_weight=given["ulb_loss_ratio"], ramp=given["unsup_warm_up"])


def teacher_against_itself() -> Override:
    """USB reads the student's prediction from the teacher's output: a loss of 0, no gradient."""

    def difference(logits: Array, target: Array) -> Array:
        del logits
        return jnp.zeros(len(target), target.dtype)

    return Override(mean_teacher, "squared_difference", difference)


def _mean_teacher_overrides(case: Case) -> list[Override]:
    return [teacher_against_itself()] if case.meta["variant"] == "reference as is" else []


def mean_squared_difference(logits: Array, targets: Array, mask: Array | float = 1.0) -> Array:
    """USB's consistency loss of kind "mse": masked examples count as 0."""
    return jnp.mean(squared_difference(logits, targets) * mask)


PI_MODEL = Replay(build=_pi_model, views=lambda case: VIEWS)
MEAN_TEACHER = Replay(
    build=_mean_teacher, views=lambda case: VIEWS, overrides=_mean_teacher_overrides
)
