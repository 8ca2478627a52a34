"""The step of two checkouts in turns, so that a change's ratio does not hang on the machine's mood.

    git worktree add ../before HEAD~1
    python -m experiments.throughput.turns ../before . --config=fixmatch:mnist5k

Each checkout runs in a process of its own, and both wait while the other works. The process that
starts first is slower, by 2 to 5% where this was measured, so both orders are taken. Prints one
JSON line: the ratio after / before (geometric mean of those of the starts), and for each start
the seconds of a step of both and the ratio of each pair of calls.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax

from jaxmatch.config.flags import from_flags
from jaxmatch.data.resident import resident
from jaxmatch.program import Program
from jaxmatch.record import run_data
from jaxmatch.runtime.compilation import prepare_process
from jaxmatch.runtime.mesh import replicated


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("before", type=Path, help="a checkout that has jaxmatch.program")
    parser.add_argument("after", type=Path, help="another one")
    parser.add_argument("--config", required=True)
    parser.add_argument("--starts", type=int, default=2, help="in either order by turns")
    parser.add_argument("--rounds", type=int, default=10, help="timed calls of each in a start")
    parser.add_argument("--steps", type=int, default=10, help="steps of a call")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    arguments, overrides = parser.parse_known_args()
    if arguments.serve:
        serve(arguments.config, overrides, arguments.steps)
    else:
        print(json.dumps(compare(arguments, overrides)))


def compare(arguments: argparse.Namespace, overrides: list[str]) -> dict[str, Any]:
    """The ratio of a step's seconds in both checkouts, and what it comes from."""
    rest = [f"--config={arguments.config}", f"--steps={arguments.steps}", *overrides]
    checkouts = (arguments.before, arguments.after)
    starts = []
    for number in range(arguments.starts):
        order = (0, 1) if number % 2 == 0 else (1, 0)
        servers = {which: start(checkouts[which], rest) for which in order}
        times: dict[int, list[float]] = {0: [], 1: []}
        for turn in range(arguments.rounds):
            for which in order if turn % 2 else order[::-1]:
                times[which].append(ask(servers[which]) / arguments.steps)
        for server in servers.values():
            server.communicate()
        pairs = [after / before for before, after in zip(times[0], times[1], strict=True)]
        starts.append(
            {
                "first": ("before", "after")[order[0]],
                "before": statistics.median(times[0]),
                "after": statistics.median(times[1]),
                "pairs": [round(pair, 3) for pair in pairs],
            }
        )
    ratio = statistics.geometric_mean(each["after"] / each["before"] for each in starts)
    return {"config": arguments.config, "overrides": overrides, "ratio": ratio, "starts": starts}


def start(checkout: Path, rest: list[str]) -> subprocess.Popen:
    """A process that takes one step call for each line that it is sent; returns when it is ready.

    It runs this very file, so that a checkout from before the file can take part.
    """
    command = [sys.executable, __file__, ".", ".", "--serve", *rest]
    environment = os.environ | {"PYTHONPATH": str(checkout.resolve())}
    server = subprocess.Popen(
        command,
        cwd=checkout,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    ask(server)
    return server


def ask(server: subprocess.Popen) -> float:
    """Seconds of one call."""
    assert server.stdin is not None
    assert server.stdout is not None
    server.stdin.write("\n")
    server.stdin.flush()
    line = server.stdout.readline()
    if not line:
        raise SystemExit("A checkout's process ended; its message is above.")
    return float(line)


def serve(name: str, overrides: list[str], steps: int) -> None:
    """Answer each line of the standard input with the seconds of one call."""
    prepare_process()
    config, _ = from_flags(name, overrides)
    data = run_data.load_new(config)
    program = Program.build(config, data.facts())
    state = jax.jit(program.init, out_shardings=program.shardings)()
    images = jax.device_put(resident(data.source, data.split), replicated(program.mesh))
    call = program.compile(steps_per_call=steps)
    for _ in sys.stdin:
        began = time.perf_counter()
        state, _ = jax.block_until_ready(call(state, lambda: images))
        print(time.perf_counter() - began, flush=True)


if __name__ == "__main__":
    main()
