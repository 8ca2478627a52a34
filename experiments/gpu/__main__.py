"""All measurements that need a GPU, by one command, each saved as it ends.

    python -m experiments.gpu --out runs/gpu
    python -m experiments.gpu --out runs/gpu --minutes 9.5      # again and again, on a short lease
    python -m experiments.gpu --out runs/gpu --parts seeds,memory --again
    python -m experiments.gpu --out runs/small --small          # tiny sizes, on a CPU

Each part (:mod:`experiments.gpu.parts`, in order of worth) is a process of its own, with a time
limit, and leaves ``PART.json``: the command, the commit, the seeds, the hardware, and what the
command printed. Whoever stops this command loses the part that is under way, and nothing else. A
part that ended well is skipped when the command is given again; one that failed or ran out of time
is tried again after all others. A part begins only if its whole limit fits into ``--minutes``.

Prints what the parts printed for people. Exit code 1 if a part failed or was left out.
"""

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from experiments.gpu.parts import PARTS, Part

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "torch")
DONE, FAILED, LATE = "done", "failed", "time limit"
KEPT = 20_000  # characters of what a part said on standard error, the last ones
ROOT = Path(__file__).parents[2]


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"), metavar="FOLDER")
    parser.add_argument("--parts", type=names, default=list(PARTS), metavar="A,B")
    parser.add_argument("--minutes", type=float, default=25.0)
    parser.add_argument("--again", action="store_true", help="also parts that ended well before")
    parser.add_argument("--small", action="store_true", help="tiny sizes, on a CPU")
    parser.add_argument("--commit", help="where git cannot tell it")
    arguments = parser.parse_args(words)
    end = time.monotonic() + 60 * arguments.minutes
    arguments.out.mkdir(parents=True, exist_ok=True)
    about = {"commit": arguments.commit or commit(), "small": arguments.small, **machine()}
    saved = {name: read(arguments.out, name) for name in arguments.parts}
    outcomes = {}
    for name in order(saved, arguments.again):
        left = end - time.monotonic()
        if left < PARTS[name].seconds:
            say(f"{name}: no time left; give the command again")
            outcomes[name] = "left out"
            continue
        say(f"{name}: {PARTS[name].tells}")
        record = run(name, PARTS[name], arguments.out, arguments.small) | about
        write(arguments.out, name, record)
        say(f"{name}: {record['outcome']} after {record['seconds']:.0f} s")
        outcomes[name] = record["outcome"]
    for name in arguments.parts:
        if record := read(arguments.out, name):
            print(f"\n## {name}: {record['outcome']}, {record['seconds']:.0f} s\n")
            print(record["text"] or json.dumps(record["results"], indent=1))
    if set(outcomes.values()) - {DONE}:
        sys.exit(1)


def names(text: str) -> list[str]:
    """The parts of ``A,B``, each once; ArgumentTypeError on an unknown one."""
    chosen = list(dict.fromkeys(text.split(",")))
    if unknown := set(chosen) - set(PARTS):
        known = ", ".join(PARTS)
        raise argparse.ArgumentTypeError(f"unknown parts {', '.join(sorted(unknown))}; of {known}")
    return chosen


def order(saved: Mapping[str, Mapping[str, Any] | None], again: bool) -> list[str]:
    """The parts to run, from what is saved of each: first those that were never tried."""
    left = [name for name, record in saved.items() if again or not is_done(record)]
    return sorted(left, key=lambda name: saved[name] is not None)


def is_done(record: Mapping[str, Any] | None) -> bool:
    """Whether a part need not be run again."""
    return record is not None and record["outcome"] == DONE


def run(name: str, part: Part, out: Path, small: bool) -> dict[str, Any]:
    """Run a part: its command, how it ended, and what it printed.

    Lines of JSON on standard output are results, the others text for people. Both are kept of a
    part that failed or was stopped, too.
    """
    folder = out / name
    folder.mkdir(exist_ok=True)
    words = [word.format(folder=folder) for word in (part.small if small else part.words)]
    command = ["-m", part.module, *words]
    # A GPU that JAX does not see shall be an error, not a run on the CPU.
    environment = os.environ | {"JAX_PLATFORMS": "cpu" if small else "cuda"}
    started = time.time()
    with (folder / "stdout.txt").open("w") as stdout, (folder / "stderr.txt").open("w") as stderr:
        process = subprocess.Popen(
            [sys.executable, *command],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,  # so that its own processes end with it
        )
        try:
            outcome = DONE if process.wait(part.seconds) == 0 else FAILED
        except subprocess.TimeoutExpired:
            outcome = LATE
        finally:
            end(process)
    results, text = split((folder / "stdout.txt").read_text(errors="replace"))
    return {
        "part": name,
        "tells": part.tells,
        "command": " ".join(["python", *command]),
        "seeds": list(part.seeds),
        "outcome": outcome,
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started)),
        "seconds": time.time() - started,
        "results": results,
        "text": text,
        "errors": "" if outcome == DONE else (folder / "stderr.txt").read_text()[-KEPT:],
    }


def end(process: subprocess.Popen[Any]) -> None:
    """End a process and all that it started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    finally:
        process.wait()


def split(printed: str) -> tuple[list[dict[str, Any]], str]:
    """The JSON objects, a line each, and the other lines."""
    results, text = [], []
    for line in printed.splitlines():
        try:
            value = json.loads(line) if line.startswith("{") else None
        except ValueError:  # cut off by the time limit
            value = None
        if value is None:
            text.append(line)
        else:
            results.append(value)
    return results, "\n".join(text).strip()


def read(out: Path, name: str) -> dict[str, Any] | None:
    """What is saved of a part."""
    try:
        return json.loads((out / f"{name}.json").read_text())
    except FileNotFoundError:
        return None


def write(out: Path, name: str, record: Mapping[str, Any]) -> None:
    """Save a part, whole or not at all."""
    unfinished = out / f"{name}.json.new"
    unfinished.write_text(json.dumps(record, indent=1) + "\n")
    unfinished.replace(out / f"{name}.json")


def commit() -> str:
    """The commit of this tree, with a "+" where files were changed since."""
    head = ask("git", "rev-parse", "HEAD")
    changed = ask("git", "status", "--porcelain", "--untracked-files=no")
    return f"{head}{'+' * bool(changed)}" if head else "unknown"


def machine() -> dict[str, Any]:
    """Hardware and versions, found without taking memory of the GPU."""
    query = "--query-gpu=name,memory.total,driver_version"
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "hardware": {
            "gpu": ask("nvidia-smi", query, "--format=csv,noheader"),
            "cores": os.cpu_count(),
            "machine": platform.machine(),
        },
        "versions": {"python": platform.python_version(), **versions},
    }


def ask(*command: str) -> str:
    """What a command prints; nothing where it does not exist or fails."""
    try:
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=30
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def say(message: str) -> None:
    print(f"experiments.gpu: {message}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
