"""The bytes that a FixMatch step takes of the device, beside the compiler's figure.

    python -m experiments.gpu.memory --config.dtype=bfloat16

The figure is that of the compiled step: its arguments (state and images), results that do not
overwrite them, and temporary arrays. What the device counts is its peak while the step runs. Each
setting has two processes, since the compiler tries kernels out on the device and the peak of a
process never falls: one compiles and keeps the program, the other finds it and runs it. Random
images stand in for the data set. Prints a JSON line a setting and a table.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from experiments.scaling.program import facts
from jaxmatch.config.flags import from_flags
from jaxmatch.program import Program
from jaxmatch.runtime.mesh import tree_bytes

SETTINGS = ("", "forward=split", "remat=True", "microbatches=4")
STEPS = 3
POOL = 10_000  # unlabeled images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--settings", type=int, default=len(SETTINGS), help="only the first ones")
    parser.add_argument("--one", choices=("compile", "run"), help=argparse.SUPPRESS)
    arguments, flags = parser.parse_known_args()
    if arguments.one:
        print(json.dumps(measure(flags, run=arguments.one == "run")))
        return
    rows = ["| setting | compiler, MB | device's peak, MB | ratio |", "|---|---|---|---|"]
    for setting in SETTINGS[: arguments.settings]:
        changed = [*flags, *([f"--config.{setting}"] if setting else [])]
        with tempfile.TemporaryDirectory() as cache:
            expected = apart("compile", changed, cache)["compiler"]
            found = apart("run", changed, cache)["device"]
        print(json.dumps({"setting": setting, "compiler": expected, "device": found}), flush=True)
        whole, peak = expected["whole"], (found or {}).get("peak_bytes_in_use")
        rows.append(
            f"| {setting or 'default'} | {whole / 1e6:.0f} "
            f"| {f'{peak / 1e6:.0f} | {peak / whole:.2f}' if peak else 'not told |'} |"
        )
    print("\n".join(rows))


def apart(what: str, flags: Sequence[str], cache: str) -> dict[str, Any]:
    """What a process prints that compiles, or runs, with the programs kept in ``cache``."""
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": cache,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    command = [sys.executable, "-m", "experiments.gpu.memory", f"--one={what}", *flags]
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure(flags: Sequence[str], run: bool) -> dict[str, Any]:
    """Bytes of a step as the compiler has them, and, once it ran, as the device has counted."""
    config, _ = from_flags("fixmatch:tfds:cifar10,labels=40", ["--config.devices=1", *flags])
    program = Program.build(config, facts(labels=40, unlabeled=POOL))
    compiled = program.trace(1).lower().compile()
    if not run:
        return {"compiler": figures(compiled.memory_analysis())}
    state = jax.jit(program.init, out_shardings=program.shardings)()
    images = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), program.data)
    held = tree_bytes(state) + tree_bytes(images)
    for _ in range(STEPS):
        state, meter = compiled(state, images)
        jax.block_until_ready(meter)
    counted = jax.devices()[0].memory_stats()
    return {"device": counted and {"held": held, **counted}}


def figures(analysis: Any) -> dict[str, int]:
    """The parts of the compiler's figure, and their sum as they lie in memory at once."""
    kinds = ("argument", "output", "alias", "temp", "generated_code")
    sizes = {kind: getattr(analysis, f"{kind}_size_in_bytes") for kind in kinds}
    whole = sizes["argument"] + sizes["output"] - sizes["alias"] + sizes["temp"]
    return {**sizes, "whole": whole, "peak": getattr(analysis, "peak_memory_in_bytes", 0)}


if __name__ == "__main__":
    main()
