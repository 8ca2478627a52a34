"""Stop small runs at random moments, continue them, and compare them with runs left alone.

    python -m experiments.survival --rounds 100 --output rounds.jsonl

A round draws a layout (processes x CPU devices of each), one to three events and, for each, whether
the run goes on in the same layout or another. An event comes at a random moment after the first
logged step:

    kill         SIGKILL to all processes at once, as a power failure does
    kill_saving  the same while a checkpoint is being written
    kill_one     SIGKILL to one process of two; JAX ends the other (80 seconds, so drawn seldom)
    terminate    SIGTERM to one process
    interrupt    SIGINT to one process

Checked after each event: exit codes; after SIGTERM and SIGINT that the newest checkpoint is that of
the step at which all processes stopped; after a kill that no more steps are gone than lie between
two saves, and that metrics.jsonl has every line up to the newest checkpoint. Checked in the end:
summary and metrics are those of a run left alone, and so is the final state, bitwise where the
layout stayed, else to a tolerance. No checkpoint may have been passed over as damaged.

Writes a JSON line a round and prints a table. Exit code 1 if any round failed.
"""

import argparse
import collections
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxmatch.evaluation.classifier import load
from jaxmatch.record.metrics import read

LAYOUTS = ("1x1", "1x2", "2x1", "2x2")
EVENTS = ("kill", "kill_saving", "terminate", "interrupt")
SELDOM, SHARE = "kill_one", 0.05
STRIDE, SAVE, STEPS = 5, 20, 240
CODES = {"terminate": 143, "interrupt": 130}
SIGNALS = {"terminate": signal.SIGTERM, "interrupt": signal.SIGINT}
OTHER_LAYOUT = 1e-3  # largest difference of an array, relative to its largest value
SETTINGS = {
    "model.depth": 4,
    "model.width": 1,
    "model.conv_bias": "none",  # before BatchNorm its gradient is only rounding
    "steps": STEPS,
    "steps_per_call": STRIDE,
    "log_every": STRIDE,
    "eval_every": SAVE,
    "save_every": SAVE,
    "keep": 3,
    "data.batch_size": 8,
    "data.ratio": 2,
    "optim.learning_rate": 0.003,
    "algorithm.threshold": 0.4,
}


def write_data(path: Path) -> None:
    """Noisy 8x8 images of four colours as an npz source."""
    random = np.random.default_rng(0)
    colours = np.array([[180, 90, 90], [90, 180, 90], [90, 90, 180], [140, 140, 90]])

    def images(count: int) -> tuple[np.ndarray, np.ndarray]:
        label = np.arange(count) % len(colours)
        levels = colours[label][:, None, None] + random.normal(0, 30, (count, 8, 8, 3))
        return np.clip(levels, 0, 255).astype(np.uint8), label

    (x_train, y_train), (x_test, y_test) = images(64), images(24)
    np.savez(path, x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)


def start(data: Path, workdir: Path, layout: str) -> list[subprocess.Popen[str]]:
    """The processes that train, or continue, the run in ``workdir``."""
    processes, devices = map(int, layout.split("x"))
    words = [f"--config=fixmatch:npz:{data},labels=16", f"--workdir={workdir}"]
    words += [f"--config.{key}={value}" for key, value in SETTINGS.items()]
    with socket.socket() as free:
        free.bind(("localhost", 0))
        where = [f"--coordinator=localhost:{free.getsockname()[1]}", f"--processes={processes}"]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}
    return [
        subprocess.Popen(
            [sys.executable, "-m", "jaxmatch.cli", "train", *words]
            + ([*where, f"--process={number}"] if processes > 1 else []),
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(processes)
    ]


def finish(programs: Sequence[subprocess.Popen[str]]) -> tuple[list[int], str]:
    """Exit codes and what was written to stderr, once all have ended."""
    said = [program.communicate(timeout=300)[1] for program in programs]
    return [program.returncode for program in programs], "\n".join(said)


def saved(workdir: Path) -> list[int]:
    """The steps of the checkpoints."""
    folder = workdir / "checkpoints"
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return sorted(int(name) for name in names if name.isdigit())


def disturb(
    programs: Sequence[subprocess.Popen[str]], workdir: Path, event: str, draws: random.Random
) -> tuple[bool, list[str]]:
    """Let ``event`` happen: whether it came before the end, and what is wrong after it."""
    lines = len(read(workdir))
    while all(program.poll() is None for program in programs) and len(read(workdir)) <= lines:
        time.sleep(0.002)
    if event == "kill_saving":
        checkpoints = workdir / "checkpoints"
        while all(program.poll() is None for program in programs):
            if checkpoints.is_dir() and any(checkpoints.glob("saving-*")):
                break
        time.sleep(draws.uniform(0, 0.03))
    else:
        time.sleep(draws.uniform(0, 1.0))
    hit = [draws.choice(programs)] if event in (SELDOM, *SIGNALS) else programs
    for program in hit:
        program.send_signal(SIGNALS.get(event, signal.SIGKILL))
    codes, said = finish(programs)
    if set(codes) == {0}:
        return False, []
    wrong = []
    logged = [line["step"] for line in read(workdir)]
    newest = max(saved(workdir), default=0)
    if event in SIGNALS:
        stopped = {int(step) for step in re.findall(r"at step (\d+) after saving", said)}
        if set(codes) != {CODES[event]}:
            wrong.append(f"exit codes {codes}: {said[-500:]}")
        if stopped != {newest}:
            wrong.append(f"stopped at {sorted(stopped)} but saved {newest}")
    elif 0 in codes:
        wrong.append(f"exit codes {codes}")
    elif max(logged, default=0) - newest > 2 * SAVE:  # one save may be under way
        wrong.append(f"logged {max(logged)} but saved {newest}")
    if [step for step in logged if step <= newest] != list(range(STRIDE, newest + 1, STRIDE)):
        wrong.append(f"lines of metrics are missing before step {newest}")
    return True, wrong


def difference(workdir: Path, reference: Path) -> float:
    """Largest difference of two final states, relative to the largest value of each array."""
    states = [jax.tree.leaves(_arrays(folder)) for folder in (workdir, reference)]
    worst = 0.0
    for ours, theirs in zip(*states, strict=True):
        if not np.array_equal(ours, theirs):
            gap = np.abs(np.asarray(ours, float) - np.asarray(theirs, float)).max()
            worst = max(worst, float(gap / max(1e-6, np.abs(theirs).max())))
    return worst


def _arrays(workdir: Path) -> Any:
    state = load(workdir).state
    return jax.device_get(state.replace(key=jax.random.key_data(state.key)))


def results(workdir: Path) -> tuple[list[Any], dict[str, Any]]:
    """Metrics and summary without clock times."""
    lines = [{k: v for k, v in line.items() if k != "time/seconds"} for line in read(workdir)]
    summary = json.loads((workdir / "summary.json").read_text())
    return lines, {key: value for key, value in summary.items() if key != "seconds"}


def play(
    data: Path, workdir: Path, references: Mapping[str, Path], draws: random.Random
) -> dict[str, Any]:
    """One round, and what was found."""
    layout = begun = draws.choice(LAYOUTS)
    events, wrong, same = [], [], True
    for _ in range(draws.randint(1, 3)):
        event = SELDOM if draws.random() < SHARE else draws.choice(EVENTS)
        if event == SELDOM and layout.startswith("1"):
            event = "kill"
        happened, found = disturb(start(data, workdir, layout), workdir, event, draws)
        if not happened:
            break
        events.append(f"{event} {layout}")
        wrong += found
        if draws.random() < 0.25:
            layout = draws.choice([other for other in LAYOUTS if other != layout])
            same = False
    codes, said = finish(start(data, workdir, layout))
    if set(codes) != {0}:
        wrong.append(f"the end: exit codes {codes}: {said[-500:]}")
        return {"begun": begun, "events": events, "ended": layout, "wrong": wrong}
    if "damaged" in said:
        wrong.append("a checkpoint was damaged")
    gap = difference(workdir, references[layout])
    if gap > (0 if same else OTHER_LAYOUT):
        wrong.append(f"the state differs by {gap:.1e}")
    if same and results(workdir) != results(references[layout]):
        wrong.append("metrics or summary differ")
    return {
        "begun": begun,
        "events": events,
        "ended": layout,
        "bitwise": gap == 0,
        "difference": gap,
        "wrong": wrong,
    }


def main() -> None:
    """Play the rounds and tell what came of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("survival.jsonl"))
    arguments = parser.parse_args()
    base = Path(tempfile.mkdtemp(prefix="survival-"))
    data = base / "colours.npz"
    write_data(data)
    references = {layout: base / f"alone-{layout}" for layout in LAYOUTS}
    for layout, folder in references.items():
        codes, said = finish(start(data, folder, layout))
        if set(codes) != {0}:
            raise SystemExit(f"a run left alone failed: {said}")
    found = []
    with arguments.output.open("w") as output:
        for number in range(arguments.rounds):
            workdir = base / f"round-{number}"
            draws = random.Random(f"{arguments.seed} {number}")
            line = {"round": number, **play(data, workdir, references, draws)}
            found.append(line)
            print(json.dumps(line), file=output, flush=True)
            print(json.dumps(line), flush=True)
            if not line["wrong"]:
                shutil.rmtree(workdir)
    events = collections.Counter(event for line in found for event in line["events"])
    print("event, processes x devices: times")
    for event, count in sorted(events.items()):
        print(f"  {event}: {count}")
    failed = [line["round"] for line in found if line["wrong"]]
    stayed = [line for line in found if all(line["ended"] in e.split() for e in line["events"])]
    print(f"{len(found)} rounds, {len(stayed)} in one layout, failed: {failed or 'none'}")
    raise SystemExit(bool(failed))


if __name__ == "__main__":
    main()
