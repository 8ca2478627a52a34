"""What the TPU compiler makes of a run's program, on a machine without a TPU.

    python -m experiments.tpu --config=fixmatch:tfds:cifar10 --topology=v5e:2x4
    python -m experiments.tpu --config=... --what=augment --record

``--what`` is "step" (the call that a run takes, its steps in a loop), "augment" (the views of a
step alone) or "feed" (the order and the gather of the images alone). Prints one JSON line;
``--record`` adds it to ``results.jsonl`` beside this file. The data set need not be here: its size
is all that matters. Times are static: see :mod:`experiments.tpu.hlo`.
"""

import argparse
import json
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.tpu import topology

RESULTS = Path(__file__).with_name("results.jsonl")
WHAT = ("step", "augment", "feed")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--config", required=True)
    parser.add_argument("--topology", default="v5e:1x1")
    parser.add_argument("--what", default="step", choices=WHAT)
    parser.add_argument("--record", action="store_true")
    chosen, overrides = parser.parse_known_args(arguments)
    found = measure(chosen.config, overrides, chosen.topology, chosen.what)
    line = json.dumps(found)
    print(line)
    if chosen.record:
        with RESULTS.open("a") as file:
            file.write(line + "\n")


def measure(name: str, overrides: Sequence[str], where: str, what: str = "step") -> dict[str, Any]:
    """Compile what a configuration runs on a topology, and read the result."""
    devices = topology.devices(where)
    from experiments.tpu.program import lower
    from experiments.tpu.report import report

    lowered, steps, batch = lower(name, overrides, devices, what)
    start = time.perf_counter()
    compiled = lowered.compile()
    seconds = time.perf_counter() - start
    return {
        "config": name,
        "overrides": list(overrides),
        "topology": where,
        "what": what,
        "commit": commit(),
        "batch": batch,
        "steps_per_program": steps,
        "compile_seconds": round(seconds, 1),
        **report(compiled, topology.HERTZ[topology.generation(where)], steps),
    }


def commit() -> str:
    """The commit that the program is of; "-dirty" where code differs, not what was recorded."""
    folder = Path(__file__).parent

    def git(*command: str) -> str:
        line = ["git", "-C", str(folder), *command]
        return subprocess.run(line, capture_output=True, text=True, check=False).stdout.strip()

    changed = git("status", "--porcelain", "--", ":/", ":(top,exclude)*.jsonl")
    return git("describe", "--always") + ("-dirty" if changed else "")


if __name__ == "__main__":
    main()
