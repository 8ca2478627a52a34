"""What a step of each method costs, beside FixMatch's on the same machine.

    python -m experiments.mnist5k.cost [METHOD ...]

Each method of one stage, of this folder's sweep and of pre-training, trains for 60 steps with its
settings for ``mnist5k``, and 40 labels if it takes any. The fastest ten steps count, so that other
programs of the machine count little and neither does compiling. ``cost.json`` beside this file
keeps them.
"""

import argparse
import itertools
import json
import platform
import tempfile
from pathlib import Path
from typing import Any

import jax

import jaxmatch
from experiments.mnist5k.sweep import METHODS, VARIANTS
from experiments.mnist5k_pretraining.sweep import METHODS as PRETRAINING
from jaxmatch.record.metrics import read
from jaxmatch.runtime.json_files import write_json

RECORDED = Path(__file__).with_name("cost.json")
STEPS, EVERY = 60, 10
ONE_STAGE = tuple(method for method in METHODS if method != "selfmatch")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("methods", nargs="*", default=(*ONE_STAGE, *PRETRAINING))
    parser.add_argument("-o", "--output", type=Path, default=RECORDED)
    arguments = parser.parse_args()
    found = json.loads(arguments.output.read_text()) if arguments.output.exists() else {}
    for method in arguments.methods:
        found[method] = measured(method)
        write_json(arguments.output, found)
    print(table(found))


def measured(method: str) -> dict[str, Any]:
    """Seconds of a step, and the images that it passes through the network."""
    recipe, changes = VARIANTS.get(method, (method, {}))
    settings = {
        **changes,
        "steps": STEPS,
        "steps_per_call": EVERY,
        "log_every": EVERY,
        "eval_every": STEPS,
        "save_every": STEPS,
    }
    with tempfile.TemporaryDirectory() as folder:
        labels = None if method in PRETRAINING else 40
        config = jaxmatch.config(f"{recipe}:mnist5k", labels=labels, **settings)
        summary = jaxmatch.train(config, folder)
        seconds = [line["time/seconds"] for line in read(folder)]
    return {
        "seconds": min(b - a for a, b in itertools.pairwise(seconds[:-1])) / EVERY,
        "forward_images": summary["forward_images"] / STEPS,
        "devices": f"{jax.devices()[0].device_kind}, {platform.machine()}, jax {jax.__version__}",
    }


def table(found: dict[str, dict[str, Any]]) -> str:
    """Markdown: the cost of each method as multiples of FixMatch's."""
    unit = found["fixmatch"]["seconds"] if "fixmatch" in found else float("nan")
    rows = [
        "| method | images through the network a step | time of a step, FixMatch's is 1 |",
        "|---|---|---|",
    ]
    for method, cost in found.items():
        images, share = round(cost["forward_images"]), cost["seconds"] / unit
        rows.append(f"| {method} | {images:,} | {share:.2f} |")
    return "\n".join(rows)


if __name__ == "__main__":
    main()
