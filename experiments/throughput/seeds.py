"""What training several seeds in one program saves: seconds of a step of one seed.

    python -m experiments.throughput.seeds
    python -m experiments.throughput.seeds --config=fixmatch:tfds:cifar10,labels=40 --calls 10 \\
        --seeds-list 1 4 16 --config.dtype=bfloat16

Rounds are interleaved: one call of the ordinary program of one run, then one of each program of
several seeds (:mod:`jaxmatch.training.together`), and so on, so that other work on the machine
meets all alike. Separate runs take N times the steps of one, so a seed's step costs there what it
costs alone. ``--at-once`` is how many seeds a device computes by one ``jax.vmap``. Prints a table
in Markdown and one JSON line.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from jaxmatch.config.flags import from_flags
from jaxmatch.runtime.checkpoint import Checkpoints
from jaxmatch.runtime.compilation import prepare_process
from jaxmatch.training import together
from jaxmatch.training.run import Run
from jaxmatch.training.shared import Shared
from jaxmatch.training.train import prepare

ALONE = "separate"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--config", default="fixmatch:mnist5k,labels=40")
    parser.add_argument("--calls", type=int, default=5, help="rounds, of steps_per_call steps each")
    parser.add_argument("--seeds-list", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--at-once", type=int, help="seeds of a vmap (default: as in training)")
    arguments, overrides = parser.parse_known_args()
    prepare_process()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(
            arguments.config,
            overrides,
            arguments.seeds_list,
            arguments.calls,
            arguments.at_once,
            Path(folder),
        )
    print(table(found["programs"]))
    print(json.dumps(found))


def measure(
    name: str,
    overrides: Sequence[str],
    counts: Sequence[int],
    calls: int,
    at_once: int | None,
    folder: Path,
) -> dict[str, Any]:
    """Seconds of a seed's step by program, each with its spread, and what ran them."""
    alone = runs_of(name, overrides, 1, folder, shared=None)
    programs = {ALONE: (alone, Turn(alone, ordinary(alone[0])))}
    shared = Shared()
    for count in counts:
        runs = runs_of(name, overrides, count, folder, shared)
        programs[str(count)] = (runs, Turn(runs, together.compile_calls(runs, at_once)))
    first = {label: turn() for label, (_, turn) in programs.items()}
    for _, turn in programs.values():  # the first call after a compilation is not like the others
        turn()
    times: dict[str, list[float]] = {label: [] for label in programs}
    for _ in range(calls):
        for label, (_, turn) in programs.items():
            times[label].append(turn())
    config, device = alone[0].config, jax.devices()[0]
    baseline = times[ALONE]
    return {
        "config": f"{config.recipe}:{config.data.name}",
        "dtype": config.dtype,
        "device": f"{alone[0].program.mesh.size} x {device.device_kind}",
        "jax": jax.__version__,
        "steps_per_call": config.steps_per_call,
        "at_once": at_once,
        "programs": {
            label: {
                "devices": runs[0].program.mesh.size,
                "seconds": spread([value / turn.steps for value in times[label]]),
                # Of times of the same round, which other work on the machine slows alike.
                "speed": spread(
                    [
                        len(runs) * one / several
                        for one, several in zip(baseline, times[label], strict=True)
                    ]
                ),
                "compile_seconds": first[label] - statistics.median(times[label]),
            }
            for label, (runs, turn) in programs.items()
        },
    }


class Turn:
    """Takes ``steps_per_call`` steps of each of some runs, again and again."""

    def __init__(self, runs: Sequence[Run], calls: together.Calls) -> None:
        """Begin all runs anew."""
        self.states = [run.init() for run in runs]
        self.calls = calls
        self.steps = len(runs) * runs[0].config.steps_per_call

    def __call__(self) -> float:
        """Seconds of the turn."""
        start = time.perf_counter()
        replies = jax.block_until_ready(self.calls(self.states))
        self.states = [state for state, _ in replies]
        return time.perf_counter() - start


def runs_of(
    name: str, overrides: Sequence[str], count: int, folder: Path, shared: Shared | None
) -> list[Run]:
    """Runs of the seeds from 0, on the devices of a group; on those of one run if not shared."""
    runs = []
    for seed in range(count):
        config, _ = from_flags(name, [*overrides, f"--config.seed={seed}"])
        devices = None if shared is None else together.seed_devices(config, count)
        checkpoints = Checkpoints(folder / str(seed))
        options = {"shared": shared, "devices": devices}
        runs.append(prepare(config, folder / "run", checkpoints, 0.0, **options))
    return runs


def ordinary(run: Run) -> Callable[..., Any]:
    """The program of one run in the form of :func:`jaxmatch.training.together.compile_calls`."""
    call = run.compile()
    return lambda states: [call(states[0], lambda: run.data)]


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def table(programs: dict[str, dict[str, Any]]) -> str:
    """The measurements in Markdown."""
    lines = [
        "| seeds in one program | devices | seconds of a seed's step (min, max) "
        "| speed against separate runs (min, max) | compile, s |",
        "|---|---|---|---|---|",
    ]
    for label, found in programs.items():
        seconds, speed = found["seconds"], found["speed"]
        lines.append(
            f"| {label} | {found['devices']} "
            f"| {seconds['median']:.4f} ({seconds['min']:.4f}, {seconds['max']:.4f}) "
            f"| {speed['median']:.2f} ({speed['min']:.2f}, {speed['max']:.2f}) "
            f"| {found['compile_seconds']:.1f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
