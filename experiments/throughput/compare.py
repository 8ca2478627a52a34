"""The FixMatch step of this library beside PyTorch's, on one machine and device, in turns.

    pip install torch pillow numpy    # "bench" of this package, or an environment of its own
    python -m experiments.throughput.compare
    python -m experiments.throughput.compare --torch-python /path/to/environment/bin/python
    python -m experiments.throughput.compare --network mnist5k --rounds 5 --steps 10
    python -m experiments.throughput.compare --precision bfloat16 --steps 64 --warm-up 64 \\
        --workers 16                                                          # on a GPU
    python -m experiments.throughput.compare --contestants ours plain --measures step

Contestants: "ours", "plain" and "tuned" PyTorch (:mod:`experiments.throughput.torch_fixmatch`), and
with "_split" the same where weak views have a pass of their own without gradient, which computes
less and something else. "ours_xla" is "ours" without oneDNN on a CPU. "step" is the train step on
views that are ready on the device; "loop" also draws the images and augments them, ours on the
device as training does, PyTorch's with Pillow in ``--workers`` loader processes.

All start from the same weights and views, and those of one kind of pass must agree on the first
step: the loss, and how far parameters, BatchNorm statistics and teacher move. Else nothing is
timed and the exit code is 1. Each contestant is a process that rests while another works: a round
gives every one a turn of ``--warm-up`` steps that do not count, then ``--steps`` that do. The
loader processes live for one turn; they fill their queue during the warm-up, so where they are the
bottleneck the warm-up and the turn need many more steps than there are loaders. No contestant
fetches a loss before its turn ends. Other work on the machine slows PyTorch's OpenMP threads, which
wait for one another at every operation, several times as much as ours: compare on an idle one
("load_before" is the number of busy processes in the minute before).

Prints one JSON line a contestant, then a table of medians and of ratios in the same round: below 1
is faster than the base. Other flags ``--config.key=value`` change the configuration of all.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NETWORKS: dict[str, dict[str, Any]] = {
    # With the published batch of 64 + 448 a step takes a CPU most of a minute.
    "cifar10": {"config": "fixmatch:tfds:cifar10", "random_images": [32, 10], "cpu_batch": 8},
    "mnist5k": {"config": "fixmatch:mnist5k", "random_images": None, "cpu_batch": None},
}
MEASURES = ("step", "loop")
BASES = ("plain", "tuned")
BUSY = 0.5  # processes
# What the library asks of glibc by jaxmatch.runtime.compilation.keep_memory; PyTorch's tuning guide
# has other allocators for the same purpose.
KEEP_MEMORY = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1),
}
# Relative differences allowed at the first step, of the loss and of what moves. The latter are
# sums of far more terms: PyTorch adds them up in plain float32 in its channels_last BatchNorm on a
# CPU, which on the even background of digits costs three digits of the gradient.
LOSS_TOLERANCE = {"float32": 1e-4, "tf32": 5e-3, "bfloat16": 5e-2}
CHANGE_TOLERANCE = {"float32": 1e-2, "tf32": 5e-2, "bfloat16": 2e-1}


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """Who computes, how, and with which ``config.forward``."""

    torch: bool
    tuned: bool = False
    forward: str = "joint"
    onednn: bool = True  # of ours on a CPU; False leaves convolutions and sums to XLA


CONTESTANTS = {
    "ours": Contestant(torch=False),
    "ours_split": Contestant(torch=False, forward="split"),
    "ours_xla": Contestant(torch=False, onednn=False),
    "ours_split_xla": Contestant(torch=False, forward="split", onednn=False),
    "plain": Contestant(torch=True),
    "plain_split": Contestant(torch=True, forward="split"),
    "tuned": Contestant(torch=True, tuned=True),
    "tuned_split": Contestant(torch=True, tuned=True, forward="split"),
}
USUAL = ("ours", "plain", "tuned", "ours_split", "tuned_split")


class ComparisonError(Exception):
    """There is nothing to compare: a contestant failed, or they compute different things."""


class Worker:
    """A process that answers one JSON line with another; it ends with the ``with`` block."""

    def __init__(self, name: str, command: Sequence[str], environment: Mapping[str, str]):
        """Start ``command``, with ``environment`` beside what this process has."""
        self.name = name
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **environment},
            text=True,
        )

    def __enter__(self) -> "Worker":
        """The worker itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the process, whatever it does."""
        self.process.kill()
        self.process.communicate()

    def ask(self, request: str, **options: Any) -> dict[str, Any]:
        """The answer to ``{request: options}``; ComparisonError if the process ends instead."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps({request: options}) + "\n")
            self.process.stdin.flush()
            return json.loads(self.process.stdout.readline())
        except (BrokenPipeError, ValueError) as error:
            raise ComparisonError(f"{self.name} failed at {request!r}; see above.") from error


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--network", choices=NETWORKS, default="cifar10")
    parser.add_argument("--contestants", nargs="+", choices=CONTESTANTS, default=USUAL)
    parser.add_argument("--measures", nargs="+", choices=MEASURES, default=MEASURES)
    parser.add_argument("--precision", choices=LOSS_TOLERANCE, default="float32")
    parser.add_argument("--device", choices=("auto", "cpu", "gpu"), default="auto")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=5, help="timed steps of a turn")
    parser.add_argument("--warm-up", type=int, default=1, help="steps of a turn before those")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="of the loaders")
    parser.add_argument("--pause", type=float, default=0.5, help="seconds of rest between turns")
    parser.add_argument("--torch-python", default=sys.executable, metavar="PATH")
    arguments, overrides = parser.parse_known_args(words)
    strangers = [flag for flag in overrides if not flag.startswith("--config.")]
    if strangers:
        parser.error(f"unknown flags: {' '.join(strangers)}")
    if min(arguments.rounds, arguments.steps, arguments.warm_up) < 1:
        parser.error("--rounds, --steps and --warm-up must be at least 1.")
    if arguments.precision == "bfloat16":
        overrides.append("--config.dtype=bfloat16")
    try:
        results = compare(arguments, overrides)
    except ComparisonError as error:
        raise SystemExit(f"compare: {error}") from error
    for result in results:
        print(json.dumps(result))
    print()
    print(table(results))


def compare(arguments: argparse.Namespace, overrides: Sequence[str]) -> list[dict[str, Any]]:
    """What each contestant did, in the form that :func:`table` reads."""
    names = list(dict.fromkeys(arguments.contestants))
    load, *_ = os.getloadavg()
    if load > BUSY:
        say(f"{load:.1f} other processes are busy: the ratios are not to be trusted")
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        path = str(Path(folder) / "start.npz")
        with start("ours", arguments) as exporter:
            network = NETWORKS[arguments.network]
            common = exporter.ask("export", path=path, overrides=list(overrides), **network)
        workers = {name: stack.enter_context(start(name, arguments)) for name in names}
        prepared = {}
        for name, worker in workers.items():
            begun = time.perf_counter()
            prepared[name] = worker.ask(
                "prepare",
                path=path,
                **common,
                forward=CONTESTANTS[name].forward,
                tuned=CONTESTANTS[name].tuned,
                **{
                    key: getattr(arguments, key)
                    for key in ("precision", "device", "measures", "workers", "warm_up", "steps")
                },
            )
            prepared[name]["prepare_seconds"] = taken = time.perf_counter() - begun
            say(f"{name}: ready after {taken:.0f} s")
        check(prepared, arguments.precision)
        seconds = take_turns(
            workers, arguments.measures, arguments.rounds, arguments.steps, arguments.pause
        )
        ends = {name: worker.ask("finish") for name, worker in workers.items()}
    data = common["settings"]["data"]
    return [
        {
            "contestant": name,
            "forward": CONTESTANTS[name].forward,
            "config": network["config"],
            "precision": arguments.precision,
            "batch": [data["batch_size"], data["batch_size"] * data["ratio"]],
            "load_before": load,
            "workers": arguments.workers if CONTESTANTS[name].torch else 0,
            **prepared[name],
            "seconds": {measure: spread(times[name]) for measure, times in seconds.items()},
            **ends[name],
        }
        for name in names
    ]


def start(name: str, arguments: argparse.Namespace) -> Worker:
    """The worker process of a contestant, before it has been asked anything."""
    if CONTESTANTS[name].torch:
        file = Path(__file__).with_name("torch_fixmatch.py")
        environment = KEEP_MEMORY if CONTESTANTS[name].tuned else {}
        return Worker(name, [arguments.torch_python, str(file)], environment)
    # Several processes share the memory of a GPU.
    environment = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    if not CONTESTANTS[name].onednn:
        environment["JAXMATCH_ONEDNN"] = "off"
    if arguments.device != "auto":
        environment["JAX_PLATFORMS"] = {"cpu": "cpu", "gpu": "cuda"}[arguments.device]
    return Worker(name, [sys.executable, "-m", "experiments.throughput.ours"], environment)


def check(prepared: Mapping[str, Mapping[str, Any]], precision: str) -> None:
    """Refuse contestants that are on different devices or disagree on the first step."""
    platforms = {name: answer["platform"] for name, answer in prepared.items()}
    if len(set(platforms.values())) > 1:
        raise ComparisonError(f"the devices differ: {platforms}; choose one by --device.")
    for forward in dict.fromkeys(CONTESTANTS[name].forward for name in prepared):
        group = {
            name: answer["first"]
            for name, answer in prepared.items()
            if CONTESTANTS[name].forward == forward
        }
        if len(group) == 1:
            say(f"{next(iter(group))}: no other contestant to check its first step against")
        if problems := disagreements(group, precision):
            raise ComparisonError("; ".join(problems) + ".")


def disagreements(firsts: Mapping[str, Mapping[str, float]], precision: str) -> list[str]:
    """Which quantities of the first step differ by more than their relative tolerance."""
    problems = []
    for quantity in next(iter(firsts.values())):
        limits = LOSS_TOLERANCE if quantity == "loss" else CHANGE_TOLERANCE
        values = {name: first[quantity] for name, first in firsts.items()}
        scale = max(map(abs, values.values()))
        difference = max(values.values()) - min(values.values())
        finite = all(map(math.isfinite, values.values()))
        if not finite or difference > limits[precision] * scale:
            listed = ", ".join(f"{name} {value!r}" for name, value in values.items())
            problems.append(f"the first step's {quantity} differs: {listed}")
    return problems


def take_turns(
    workers: Mapping[str, Worker],
    measures: Sequence[str],
    rounds: int,
    steps: int,
    pause: float,
) -> dict[str, dict[str, list[float]]]:
    """Seconds a step by measure and contestant, one for each round; another begins each round."""
    names = list(workers)
    seconds = {measure: {name: [] for name in names} for measure in measures}
    for number in range(rounds):
        begin = number % len(names)
        for measure in measures:
            for name in names[begin:] + names[:begin]:
                time.sleep(pause)  # threads of the one before still spin for a while
                answer = workers[name].ask("run", measure=measure, steps=steps)
                seconds[measure][name].append(answer["seconds"])
            taken = {name: f"{times[-1]:.4g}" for name, times in seconds[measure].items()}
            say(f"round {number + 1}, {measure}: {taken}")
    return seconds


def spread(times: Sequence[float]) -> dict[str, Any]:
    """Median, least and most of some times beside themselves, in the order of the rounds."""
    return {
        "median": statistics.median(times),
        "min": min(times),
        "max": max(times),
        "rounds": list(times),
    }


def ratio(times: Sequence[float], base: Sequence[float]) -> str:
    """The median of ``times`` over ``base`` round by round, with the least and the most."""
    ratios = [one / other for one, other in zip(times, base, strict=True)]
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f}..{max(ratios):.2f})"


def table(results: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: a row a contestant, with its ratios to the bases that took part."""
    by_name = {result["contestant"]: result for result in results}
    bases = [base for base in BASES if base in by_name]
    measures = list(results[0]["seconds"])
    head = ["contestant"]
    for measure in measures:
        head += [f"{measure}, s", *(f"{measure} / {base}" for base in bases)]
    rows = [[*head, "peak memory, GiB"], ["---"] * (len(head) + 1)]
    for result in results:
        row = [result["contestant"]]
        for measure in measures:
            seconds = result["seconds"][measure]
            row.append(f"{seconds['median']:.4g}")
            row += [
                "1"
                if base == result["contestant"]
                else ratio(seconds["rounds"], by_name[base]["seconds"][measure]["rounds"])
                for base in bases
            ]
        rows.append([*row, f"{result['peak_bytes'] / 2**30:.1f}"])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
