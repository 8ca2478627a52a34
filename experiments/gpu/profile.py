"""Which kernels take the time of a step.

    python -m experiments.gpu.profile --folder=runs/profile --config=fixmatch:tfds:cifar10

Random images stand in for the data set. A few calls of four steps are traced, without Python's own
calls. Leaves the trace in ``--folder`` (for ``xprof`` or Perfetto), and prints one JSON line and a
table of the kernels that took longest.
"""

import argparse
import collections
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from experiments.throughput.measure import random_data
from jaxmatch.config.flags import from_flags
from jaxmatch.data.resident import resident
from jaxmatch.program import Program
from jaxmatch.runtime.compilation import prepare_process
from jaxmatch.runtime.mesh import replicated

IMAGES = (32, 10)  # side, classes
STEPS = 4  # of a call
SHOWN = 40


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--config", required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--calls", type=int, default=2, help="that are traced")
    arguments, overrides = parser.parse_known_args()
    config, _ = from_flags(arguments.config, [*overrides, f"--config.steps_per_call={STEPS}"])
    seconds = trace(config, arguments.folder, arguments.calls)
    kernels = summary(arguments.folder)
    steps = STEPS * arguments.calls
    busy = sum(kernel["seconds"] for kernel in kernels)
    shown = kernels[:SHOWN]
    print(
        json.dumps(
            {
                "device": jax.devices()[0].device_kind,
                "step_seconds": seconds / steps,
                "kernel_seconds_of_a_step": busy / steps,
                "kernels_of_a_step": sum(kernel["count"] for kernel in kernels) / steps,
                "steps": steps,
                "kernels": shown,
            }
        )
    )
    print("| kernel | share of all kernels | ms a step | calls a step |\n|---|---|---|---|")
    for kernel in shown:
        share, each = kernel["seconds"] / busy, 1e3 * kernel["seconds"] / steps
        print(f"| {kernel['name']} | {share:.3f} | {each:.3f} | {kernel['count'] / steps:.1f} |")


def trace(config: ConfigDict, folder: Path, calls: int) -> float:
    """Trace ``calls`` calls into ``folder``; their seconds by the clock."""
    prepare_process()
    data = random_data(config, *IMAGES)
    program = Program.build(config, data.facts())
    everywhere = replicated(program.mesh)
    state = jax.jit(program.init, out_shardings=everywhere)()
    images = jax.device_put(resident(data.source, data.split), everywhere)
    call = program.compile(steps_per_call=STEPS)
    for _ in range(2):  # the first call compiles
        state, _ = jax.block_until_ready(call(state, lambda: images))
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    with jax.profiler.trace(str(folder), profiler_options=options):
        start = time.perf_counter()
        for _ in range(calls):
            state, _ = jax.block_until_ready(call(state, lambda: images))
        return time.perf_counter() - start


def summary(folder: Path) -> list[dict[str, Any]]:
    """Seconds and count of each kernel of the newest trace in ``folder``, the longest first."""
    newest = max(folder.glob("**/*.xplane.pb"), key=lambda path: path.stat().st_mtime)
    seconds: dict[str, float] = collections.defaultdict(float)
    count: dict[str, int] = collections.defaultdict(int)
    for name, nanoseconds in kernels_of(jax.profiler.ProfileData.from_file(str(newest))):
        seconds[name] += nanoseconds / 1e9
        count[name] += 1
    return [
        {"name": name, "seconds": taken, "count": count[name]}
        for name, taken in sorted(seconds.items(), key=lambda item: -item[1])
    ]


def kernels_of(profile: Any) -> Iterator[tuple[str, float]]:
    """Name and nanoseconds of what ran on a GPU's streams, or on a CPU as an operation of XLA."""
    devices = [plane for plane in profile.planes if plane.name.startswith("/device:GPU")]
    for plane in devices or profile.planes:
        for line in plane.lines:
            for event in line.events:
                on_stream = bool(devices) and line.name.startswith("Stream")
                if on_stream or (not devices and "hlo_op" in dict(event.stats)):
                    yield event.name, event.duration_ns


if __name__ == "__main__":
    main()
