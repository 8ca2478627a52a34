"""How a run learns that it is to save and stop: by SIGTERM, or by Ctrl-C (SIGINT)."""

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxmatch.errors import Interrupted, Stopped, Terminated

# Asked once after each call of steps: what to raise once the state is saved, None to go on.
Stop = Callable[[], type[Stopped] | None]

KINDS: dict[int, type[Stopped]] = {signal.SIGTERM: Terminated, signal.SIGINT: Interrupted}
NOTE = b"jaxmatch: saving before the end; Ctrl-C again leaves at once.\n"


@contextlib.contextmanager
def termination_noted() -> Iterator[Stop]:
    """Whether the run is to stop, as a function, while the block runs.

    Several processes ask equally often and stop after the same call, whichever of them was sent a
    signal. A second SIGINT is handled as it was before the block.
    """
    several = jax.process_count() > 1
    noted: list[int] = []

    def note(number: int, frame: Any) -> None:
        del frame
        noted.append(number)
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, before[signal.SIGINT])
            os.write(2, NOTE)  # print may be what the signal came into
            if several:  # JAX listens for SIGTERM, and tells the other processes
                os.kill(os.getpid(), signal.SIGTERM)

    def alone() -> type[Stopped] | None:
        return KINDS[noted[0]] if noted else None

    calls = 0

    def together() -> type[Stopped] | None:
        # JAX takes the largest number that a process has asked with, and stops all at the next one.
        nonlocal calls
        calls += 1
        if not multihost_utils.reached_preemption_sync_point(calls):
            return None
        here = np.asarray(signal.SIGINT in noted)
        return Interrupted if np.any(multihost_utils.process_allgather(here)) else Terminated

    before: dict[int, Any] = {}
    try:
        for number in (signal.SIGINT,) if several else KINDS:
            # None stands for a handler of C's, which Python cannot put back.
            before[number] = signal.signal(number, note) or signal.SIG_DFL
    except ValueError:  # not the main thread: signals are the caller's
        yield together if several else lambda: None
        return
    try:
        yield together if several else alone
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
