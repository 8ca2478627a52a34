"""Chooses the steps of a run that may take some minutes, from the speed of its own program."""

import logging
import time

from jaxmatch.config.own import EVALUATIONS, round_steps
from jaxmatch.errors import InputError
from jaxmatch.training.run import Run

MEASURED = 3  # steps, after one that also prepares the convolutions
PLANNED = 0.9  # the share of the time that is planned
FORWARD = 1 / 3  # the time of an image's forward pass, as a share of a training step's
NETWORKS = 2  # that are evaluated: teacher and student

log = logging.getLogger(__name__)


def steps(run: Run, seconds: float) -> int:
    """The number of steps that a run like ``run`` can take in ``seconds``.

    The program is compiled and runs a few steps, whose results are dropped. The run itself is
    compiled again, since its schedules depend on its steps.

    Raises:
        InputError: if there is no time for :data:`EVALUATIONS` steps.
    """
    begun = time.monotonic()
    call = run.compile()
    compiled = time.monotonic() - begun
    one = run.measure(call, MEASURED)
    spec, held_out = run.program.spec, run.held_out
    images = spec.labeled_batch + spec.unlabeled_batch
    evaluated = NETWORKS * sum(len(labels) for _, labels in held_out.usual.values())
    evaluation = FORWARD * one * evaluated / images
    left = PLANNED * (seconds - (time.monotonic() - begun) - compiled) - EVALUATIONS * evaluation
    found = int(left / one)
    if found < EVALUATIONS:
        raise InputError(
            f"a step takes {one:.2g} s, an evaluation about {evaluation:.2g} s and compiling "
            f"{compiled:.0f} s, which is too long for these minutes; give more minutes, a smaller "
            "data.image_size or a smaller size."
        )
    found = round_steps(found)
    log.warning(
        "a step takes %.2g s and an evaluation about %.2g s: %d steps in the minutes given.",
        one,
        evaluation,
        found,
    )
    return found
