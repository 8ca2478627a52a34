"""Several processes as one run: they join, agree on what they do, and one of them writes."""

import hashlib
import io
import json
import os
import sys
import threading
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar, cast

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxmatch.errors import DiskError, InputError, JaxmatchError
from jaxmatch.runtime.paths import as_os_errors, in_bucket, make_folder, reason

T = TypeVar("T")


def join(
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    seconds: int = 300,
) -> None:
    """Join the processes of a run; call it before JAX sees its devices.

    On TPU pods and under Slurm, Open MPI and Kubernetes JAX finds the arguments itself
    (https://docs.jax.dev/en/latest/multi_process.html).

    If a process does not join in time, this one prints a sentence and exits with code 2. JAX would
    abort it from C++ with a stack trace, which no exception handler can catch.

    Args:
        coordinator: "HOST:PORT" of process 0.
        processes: the number of processes.
        process: the number of this process, from 0.
        seconds: how long to wait for the others.

    Raises:
        InputError: if arguments are missing or contradict each other, or if there is no cluster.
    """
    given = [value is not None for value in (coordinator, processes, process)]
    if any(given) and not all(given):
        raise InputError(
            "--coordinator=HOST:PORT, --processes=N and --process=I belong together; give all or "
            "none."
        )
    if processes is not None and process is not None and not 0 <= process < processes:
        raise InputError(f"--process={process} must be one of 0 to {processes - 1}.")
    late = threading.Timer(seconds, _give_up, [coordinator, processes, seconds])
    late.daemon = True
    late.start()
    try:
        jax.distributed.initialize(
            coordinator, processes, process, initialization_timeout=seconds + 60
        )
    except ValueError as error:
        raise InputError(
            "no cluster was found in the environment; give --coordinator=HOST:PORT, --processes=N "
            "and --process=I."
        ) from error
    except RuntimeError as error:
        raise InputError(f"the processes could not be joined: {error}.") from error
    finally:
        late.cancel()


def _give_up(coordinator: str | None, processes: int | None, seconds: int) -> None:
    print(
        f"jaxmatch: not all {processes or ''} processes joined at "
        f"{coordinator or 'the coordinator'} within {seconds} s; start the same command on every "
        "host, each with its own --process.",
        file=sys.stderr,
        flush=True,
    )
    os._exit(InputError.exit_code)


def leader() -> bool:
    """Whether this process is the one that writes logs and results."""
    return jax.process_index() == 0


def synchronize(name: str) -> None:
    """Wait until every process has called this with the same ``name``."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def raise_together(error: JaxmatchError | None) -> None:
    """Raise in all processes if one of them has an error.

    A process that raised alone would leave the others waiting for it.

    Args:
        error: of this process, if any; the others raise an error with the same exit code.
    """
    codes = [0 if error is None else error.exit_code]
    if jax.process_count() > 1:
        codes = np.ravel(multihost_utils.process_allgather(np.asarray(codes[0]))).tolist()
    if error is not None:
        raise error
    for process, code in enumerate(codes):
        if code:
            raise _kind(code)(f"process {process} could not go on; its message tells why.")


def agreed(compute: Callable[[], T]) -> T:
    """Call ``compute`` in every process; if it raises JaxmatchError in one, all raise.

    ``compute`` itself must not wait for another process.

    Returns:
        The result in this process.
    """
    result, error = None, None
    try:
        result = compute()
    except JaxmatchError as problem:
        error = problem
    raise_together(error)
    return cast(T, result)


def _kind(exit_code: int) -> type[JaxmatchError]:
    kinds = {kind.exit_code: kind for kind in (InputError, DiskError)}
    return kinds.get(exit_code, JaxmatchError)


def from_leader(compute: Callable[[], T]) -> T:
    """Call ``compute`` in process 0 only; if it raises, every process does.

    Returns:
        The result of process 0, in every process. It must be a value that JSON keeps unchanged.
    """
    if jax.process_count() == 1:
        return compute()
    value, error = None, None
    if leader():
        try:
            value = compute()
        except Exception as problem:  # raised below, after the others know of it
            error = problem
    failed = None if error is None else (getattr(error, "exit_code", 1), str(error))
    content = np.frombuffer(json.dumps([failed, value]).encode(), np.uint8).astype(np.int32)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(content.size)))
    content = content if leader() else np.zeros(size, np.int32)
    content = np.asarray(multihost_utils.broadcast_one_to_all(content)).astype(np.uint8)
    failed, value = json.loads(content.tobytes())
    if error is not None:
        raise error
    if failed is not None:
        raise _kind(failed[0])(f"process 0: {failed[1]}")
    return value


def first_problem(problem: str | None) -> str | None:
    """A problem that any process has, in every process; None if no process has one.

    Unlike :func:`raise_together` it does not raise, so that all processes can go on together.

    Args:
        problem: of this process, if any.
    """
    if jax.process_count() == 1:
        return problem
    wrong = np.ravel(multihost_utils.process_allgather(np.asarray(problem is not None)))
    if not wrong.any():
        return None
    first = int(np.flatnonzero(wrong)[0])
    return problem or f"process {first} cannot read it; its message tells why"


def check_same(name: str, text: str) -> None:
    """Check that all processes have the same ``text``; ``name`` says what it describes.

    Raises:
        InputError: in every process, if one differs.
    """
    if jax.process_count() == 1:
        return
    digest = np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8).astype(np.int32)
    digests = np.asarray(multihost_utils.process_allgather(digest))
    if different := np.flatnonzero((digests != digests[0]).any(1)).tolist():
        raise InputError(
            f"processes {', '.join(map(str, different))} have another {name} than process 0; "
            "start the same command, with the same files, on every host."
        )


def check_shared(folder: Path) -> None:
    """Check that all processes see the files that process 0 writes to ``folder``.

    Process 0 writes a file for this check and removes it.

    Raises:
        InputError: in every process, if one does not see the file.
        DiskError: if ``folder`` cannot be written.
    """
    if jax.process_count() == 1:
        return
    word = np.frombuffer(uuid.uuid4().bytes, np.uint8).astype(np.int32)
    word = np.asarray(multihost_utils.broadcast_one_to_all(word)).astype(np.uint8).tobytes().hex()
    file, error = folder / f".shared-{word}", None
    if leader():
        try:
            with as_os_errors(folder):
                make_folder(folder)
                file.write_bytes(b"")
        except OSError as problem:
            error = DiskError(f"{folder} cannot be written ({reason(problem)}).")
    raise_together(error)
    if not in_bucket(folder) and folder.is_dir():
        os.listdir(folder)  # makes a network file system refresh its cache
    seen = np.ravel(multihost_utils.process_allgather(np.asarray(file.exists())))
    if leader():
        file.unlink(missing_ok=True)
    if not seen.all():
        raise InputError(
            f"processes {', '.join(map(str, np.flatnonzero(~seen)))} do not see {folder} of "
            "process 0; give a --workdir on a file system that all hosts share, or in a bucket."
        )


def leaders_arrays(read: Callable[[], list[np.ndarray]]) -> list[np.ndarray]:
    """Call ``read`` in process 0 only; if it raises JaxmatchError, every process does.

    Returns:
        The arrays of process 0, in every process. They may have any size, but no object dtype.
    """
    if jax.process_count() == 1:
        return read()
    content, error = io.BytesIO(), None
    if leader():
        try:
            np.savez(content, *read())
        except JaxmatchError as problem:
            error = problem
    raise_together(error)
    size = int(multihost_utils.broadcast_one_to_all(np.asarray(len(content.getvalue()))))
    given = np.zeros(size, np.uint8)
    if leader():
        given = np.frombuffer(content.getvalue(), np.uint8)
    sent = np.asarray(multihost_utils.broadcast_one_to_all(given), np.uint8)
    with np.load(io.BytesIO(sent.tobytes()), allow_pickle=False) as arrays:
        return [arrays[f"arr_{number}"] for number in range(len(arrays.files))]


def gather(numbers: np.ndarray) -> np.ndarray:
    """The ``numbers`` [n] int of all processes, concatenated; n may differ between processes."""
    if jax.process_count() == 1:
        return numbers
    counts = np.ravel(multihost_utils.process_allgather(np.asarray(len(numbers))))
    if not counts.any():
        return numbers
    padded = np.pad(numbers.astype(np.int32), (0, counts.max() - len(numbers)))
    rows = np.asarray(multihost_utils.process_allgather(padded)).reshape(len(counts), -1)
    return np.concatenate([row[:count] for row, count in zip(rows, counts, strict=True)])
