"""SIGTERM and Ctrl-C (SIGINT) tell a run to save and stop."""

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxmatch.errors import Interrupted, Stopped, Terminated

# Called after each call of steps. Returns the error to raise once the state is saved, or None.
Stop = Callable[[], type[Stopped] | None]

ERROR_OF_SIGNAL: dict[int, type[Stopped]] = {
    signal.SIGTERM: Terminated,
    signal.SIGINT: Interrupted,
}
NOTE = b"jaxmatch: saving before the end; Ctrl-C again leaves at once.\n"


@contextlib.contextmanager
def termination_noted() -> Iterator[Stop]:
    """While the block runs, note signals; the block gets a function that tells whether to stop.

    All processes must call the function equally often. They stop after the same call, whichever of
    them received a signal. A second SIGINT has the effect that it had before the block.
    """
    several = jax.process_count() > 1
    noted: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        noted.append(number)
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, before[signal.SIGINT])
            os.write(2, NOTE)  # the signal may have interrupted a print, which cannot be re-entered
            if several:  # JAX listens for SIGTERM and tells the other processes
                os.kill(os.getpid(), signal.SIGTERM)

    def alone() -> type[Stopped] | None:
        return ERROR_OF_SIGNAL[noted[0]] if noted else None

    calls = 0

    def together() -> type[Stopped] | None:
        # JAX stops all processes at the call after the latest one that any of them has made.
        nonlocal calls
        calls += 1
        if not multihost_utils.reached_preemption_sync_point(calls):
            return None
        here = np.asarray(signal.SIGINT in noted)
        return Interrupted if np.any(multihost_utils.process_allgather(here)) else Terminated

    before: dict[int, Any] = {}
    try:
        for number in (signal.SIGINT,) if several else ERROR_OF_SIGNAL:
            # None stands for a handler written in C, which Python cannot restore.
            before[number] = signal.signal(number, note) or signal.SIG_DFL
    except ValueError:  # not the main thread: the caller handles signals
        yield together if several else lambda: None
        return
    try:
        yield together if several else alone
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
