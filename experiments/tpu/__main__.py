"""What the compiler for TPUs or GPUs makes of a run's program, on a machine that has neither.

    python -m experiments.tpu --config=fixmatch:tfds:cifar10 --topology=v5e:2x4
    python -m experiments.tpu --config=fixmatch:tfds:cifar10 --topology=h100:8
    python -m experiments.tpu --config=... --what=augment --record

``--what`` is "step" (the call that a run takes, its steps in a loop), "augment" (the views of a
step alone) or "feed" (the order and the gather of the images alone). Prints one JSON line;
``--record`` adds it to ``results.jsonl`` beside this file. ``--json FILE`` writes the figures by
which programs are compared (:func:`experiments.tpu.report.summary`). The data set need not be here:
its size is all that matters. Times for TPUs are static: see :mod:`experiments.tpu.hlo`. For GPUs
there are none, but kernels and bytes: see :mod:`experiments.tpu.kernels`. ``--form`` moves the
pixels of views by "gathers" or by "products" whatever the platform: see
``jaxmatch/augment/pixels/source.py``.
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
FORMS = ("platform", "products", "gathers")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--config", required=True)
    parser.add_argument("--topology", default="v5e:1x1")
    parser.add_argument("--what", default="step", choices=WHAT)
    parser.add_argument("--form", default="platform", choices=FORMS)
    parser.add_argument("--record", action="store_true")
    parser.add_argument("--json", type=Path, metavar="FILE")
    chosen, overrides = parser.parse_known_args(arguments)
    found = measure(chosen.config, overrides, chosen.topology, chosen.what, chosen.form)
    line = json.dumps(found)
    print(line)
    if chosen.record:
        with RESULTS.open("a") as file:
            file.write(line + "\n")
    if chosen.json:
        from experiments.tpu.report import summary

        chosen.json.write_text(json.dumps(summary(found), indent=2) + "\n")


def measure(
    name: str,
    overrides: Sequence[str],
    where: str,
    what: str = "step",
    form: str = "platform",
) -> dict[str, Any]:
    """Compile what a configuration runs on a topology, and read the result."""
    devices = topology.devices(where)
    from experiments.gpu import augmentation
    from experiments.tpu import kernels, report
    from experiments.tpu.program import lower

    with augmentation.chosen(form):
        lowered, steps, batch = lower(name, overrides, devices, what)
    start = time.perf_counter()
    compiled = lowered.compile()
    seconds = time.perf_counter() - start
    if topology.is_gpu(where):
        read = kernels.report(compiled, steps)
    else:
        read = report.report(compiled, topology.HERTZ[topology.generation(where)], steps)
    return {
        "config": name,
        "overrides": list(overrides),
        "topology": where,
        "what": what,
        **({"form": form} if form != "platform" else {}),
        "commit": commit(),
        "batch": batch,
        "steps_per_program": steps,
        "compile_seconds": round(seconds, 1),
        **read,
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
