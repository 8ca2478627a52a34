"""How a run learns that it is to save and stop."""

import contextlib
import signal
from collections.abc import Callable, Iterator

import jax
from jax.experimental import multihost_utils


@contextlib.contextmanager
def termination_noted() -> Iterator[Callable[[int], bool]]:
    """Whether the run stops at a step since SIGTERM came, as a function, while the block runs.

    Several processes all ask at the same steps and are all told the same, whichever of them was
    sent the signal: JAX has a handler that lets them agree on a step.
    """
    if jax.process_count() > 1:
        yield multihost_utils.reached_preemption_sync_point
        return
    noted: list[bool] = []
    try:
        before = signal.signal(signal.SIGTERM, lambda number, frame: noted.append(True))
    except ValueError:  # not the main thread: signals are the caller's
        yield lambda step: False
        return
    try:
        yield lambda step: bool(noted)
    finally:
        signal.signal(signal.SIGTERM, before)
