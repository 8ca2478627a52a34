"""What large memories take on each device, and what reading and writing them sends each step.

    python -m experiments.scaling.memory

SimMatch's bank of 128,000 labeled images, and what FlexMatch and Temporal Ensembling keep of each
image of ImageNet, on every device or spread over them. The memory is really allocated, alone, where
all devices together need at most ``MOST_BYTES`` of this host; what is larger is computed from
shapes. Bytes sent are those of the compiled step of a small network but for the parameters' and
BatchNorm's. Prints a table; each number of devices is simulated in a process of its own.
"""

import argparse
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from typing import Any

import jax

from experiments.scaling.program import collectives, compile_quickly, facts
from jaxmatch.config.flags import from_flags
from jaxmatch.config.presets import IMAGENET_IMAGES
from jaxmatch.program import Program
from jaxmatch.runtime.mesh import Placement, device_bytes, state_shardings, tree_bytes

MOST_BYTES = 2 * 2**30
CLASSES, LABELED = 1000, 128_000
METHODS = ("simmatch", "flexmatch", "temporal_ensembling")
PLACEMENTS: tuple[Placement, ...] = ("replicated", "sharded")
DEVICES = (1, 2, 4, 8)
SMALL = ("model.depth=4", "model.width=1", "data.batch_size=64", "data.ratio=5")


def program_of(method: str, placement: str, devices: int) -> Program:
    """One step of a small network with the method's memory at full size."""
    values = (*SMALL, f"devices={devices}", f"memory_placement={placement}")
    config, _ = from_flags(f"{method}:tfds:cifar10", [f"--config.{value}" for value in values])
    data = facts(side=16, classes=CLASSES, labels=LABELED, unlabeled=IMAGENET_IMAGES)
    return Program.build(config, data)


def allocated(program: Program, placement: Placement) -> int:
    """Bytes that the memory takes on the fullest device, after it was made there."""

    def make() -> Any:
        return program.algorithm.init(jax.random.key(0), program.spec)

    places = state_shardings(program.state.memory, program.mesh, placement)
    memory = jax.block_until_ready(jax.jit(make, out_shardings=places)())
    found: Counter[Any] = Counter()
    for leaf in jax.tree.leaves(memory):
        for shard in leaf.addressable_shards:
            found[shard.device] += shard.data.nbytes
    return max(found.values())


def sent(program: Program) -> int:
    """Bytes of a device's results in one step, but for the gradient's and BatchNorm's."""
    found = collectives(compile_quickly(program).as_text())
    others = tree_bytes(program.state.params) + tree_bytes(program.state.stats)
    return max(0, sum(one.bytes for one in found) - others)


def measure(devices: int) -> list[dict[str, Any]]:
    """A row for each method and placement."""
    rows = []
    for method in METHODS:
        for placement in PLACEMENTS:
            program = program_of(method, placement, devices)
            by_shape = device_bytes(program.state.memory, program.mesh, placement)
            fits = by_shape * devices <= MOST_BYTES
            row = {
                "method": method,
                "placement": placement,
                "devices": devices,
                "bytes": allocated(program, placement) if fits else by_shape,
                "allocated": fits,
                "sent": sent(program),
            }
            print(row, file=sys.stderr, flush=True)
            rows.append(row)
    return rows


def apart(devices: int) -> list[dict[str, Any]]:
    """:func:`measure` in a process that sees so many devices."""
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}
    command = [sys.executable, "-m", "experiments.scaling.memory", "--one", str(devices)]
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown; a star marks what was computed from shapes."""
    counts = sorted({row["devices"] for row in rows})
    lines = [
        "| memory, on this many devices | placement | " + " | ".join(map(str, counts)) + " |",
        "|---|---|" + "---|" * len(counts),
    ]
    for method in METHODS:
        for placement in PLACEMENTS:
            cells = [
                f"{row['bytes'] / 1e6:,.1f}{'' if row['allocated'] else '*'} MB, "
                f"{row['sent'] / 1e3:,.0f} kB"
                for row in rows
                if (row["method"], row["placement"]) == (method, placement)
            ]
            lines.append(f"| {method} | {placement} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--one", type=int, metavar="DEVICES", help=argparse.SUPPRESS)
    one = parser.parse_args(arguments).one
    if one:
        print(json.dumps(measure(one)))
    else:
        print(table([row for devices in DEVICES for row in apart(devices)]))


if __name__ == "__main__":
    main()
