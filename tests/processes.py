"""Several real processes of localhost that are one run."""

import socket

from tiny_runs import start_program


def start(processes, devices, *words, before=("",), environments=({},)):
    """Every process of a run, each with ``devices`` CPU devices and its own words, if given.

    Of several ``before``, which is run first, and ``environments`` each has its own.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    where = [f"--coordinator=localhost:{port}", f"--processes={processes}"]
    return [
        start_program(
            [*words[number % len(words)], *where, f"--process={number}"],
            devices,
            before[number % len(before)],
            **environments[number % len(environments)],
        )
        for number in range(processes)
    ]


def finish(programs, code=0):
    """Wait for all; the summary each printed, if any, and what it wrote to stderr."""
    said = [program.communicate(timeout=500) for program in programs]
    assert [program.returncode for program in programs] == [code] * len(programs), said
    # Gloo's threads print to stdout too, into each other's lines, but never a brace.
    return [(out[out.find("{") : out.rfind("}") + 1], errors) for out, errors in said]
