"""What the devices of a step send each other, counted in its compiled program, and a small run.

    python -m experiments.scaling.measure

writes ``measured.json`` beside this file. Every figure comes from a process of its own with so many
simulated CPU devices. The published recipes are only compiled. The small network is also run, at
one global batch: as all devices share the cores of this machine, its seconds show what dividing a
step costs, not what it gains.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from experiments.scaling.program import collectives, compile_quickly, facts
from experiments.throughput.measure import measure as throughput
from experiments.tpu.hlo import COLLECTIVES
from jaxmatch.config.flags import from_flags
from jaxmatch.config.presets import IMAGENET_IMAGES, TENTH
from jaxmatch.program import Program
from jaxmatch.runtime.mesh import tree_bytes

MEASURED = Path(__file__).with_name("measured.json")
CIFAR = facts()
IMAGENET = facts(side=224, classes=1000, labels=TENTH, unlabeled=IMAGENET_IMAGES - TENTH)
# Recipe, its data, and for how many devices it is compiled.
RECIPES = {
    "fixmatch:tfds:cifar10": (CIFAR, (1, 2, 4, 8)),
    "fixmatch_eman:tfds:imagenet2012": (IMAGENET, (8,)),
    "simmatch:tfds:imagenet2012": (IMAGENET, (8, 16)),
}
SMALL = "fixmatch:tfds:cifar10"
SMALL_DEVICES = (1, 2, 4, 8)
SMALL_NETWORK = (
    "model.depth=10",
    "model.width=1",
    "data.batch_size=16",
    "data.ratio=3",
    "steps_per_call=4",
)


def exchanges(recipe: str, devices: int) -> dict[str, Any]:
    """Operations and bytes by kind of a compiled step, with sizes that the plan needs."""
    config, _ = from_flags(recipe, [f"--config.devices={devices}"])
    program = Program.build(config, RECIPES[recipe][0])
    found = collectives(compile_quickly(program).as_text())
    spec, state = program.spec, program.state
    return {
        "recipe": recipe,
        "devices": devices,
        "batch": [spec.labeled_batch, spec.unlabeled_batch],
        "groups": program.model.bn_groups,
        "parameter_bytes": tree_bytes(state.params),
        "batch_norms": len(jax.tree.leaves(state.stats)) // 2,
        "collectives": {
            kind: {"count": len(those), "bytes": sum(one.bytes for one in those)}
            for kind in COLLECTIVES
            if (those := [one for one in found if one.kind == kind])
        },
    }


def seconds(devices: int) -> dict[str, Any]:
    """A step of the small network, really run."""
    flags = [f"--config.{value}" for value in (*SMALL_NETWORK, f"devices={devices}")]
    config, _ = from_flags(SMALL, flags)
    found = throughput(config, 5, [16, 10])
    return {"devices": devices, "batch": found["batch"], "step_seconds": found["step_seconds"]}


def apart(devices: int, *words: str) -> dict[str, Any]:
    """What this program prints in a process that sees ``devices`` of them."""
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}
    command = [sys.executable, "-m", "experiments.scaling.measure", "--one", *words, str(devices)]
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    print(found := done.stdout.splitlines()[-1], flush=True)
    return json.loads(found)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--one", nargs="+", metavar=("WHAT", "DEVICES"), help=argparse.SUPPRESS)
    one = parser.parse_args(arguments).one
    if one:
        devices = int(one[-1])
        found = exchanges(one[0], devices) if len(one) > 1 else seconds(devices)
        print(json.dumps(found))
        return
    measured = {
        "jax": jax.__version__,
        "compiled": [
            apart(devices, recipe) for recipe, (_, counts) in RECIPES.items() for devices in counts
        ],
        "small": [apart(devices) for devices in SMALL_DEVICES],
    }
    MEASURED.write_text(json.dumps(measured, indent=1) + "\n")


if __name__ == "__main__":
    main()
