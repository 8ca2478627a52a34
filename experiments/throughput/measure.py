"""Speed and memory of any config on the device at hand: step, augmentation share, compile time.

    python -m experiments.throughput.measure --config=fixmatch:mnist5k
    python -m experiments.throughput.measure --config=fixmatch:tfds:cifar10 --random-images 32 10 \\
        --config.dtype=bfloat16

``--random-images SIDE CLASSES`` stands in for a data set that is not on this machine: speed does
not depend on what the images show. Prints one JSON line.
"""

import argparse
import json
import resource
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from jaxmatch.config.flags import from_flags
from jaxmatch.data.resident import resident
from jaxmatch.data.source import Source
from jaxmatch.data.splits import balanced
from jaxmatch.program import Program
from jaxmatch.record import run_data
from jaxmatch.record.choice import labels_number
from jaxmatch.record.data import Data
from jaxmatch.runtime.compilation import prepare_process
from jaxmatch.runtime.mesh import over_batch, replicated
from jaxmatch.step import Step
from jaxmatch.types import TrainState

WATCHED = ("loss/total", "optim/gradient_norm")  # metrics that every step has


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--config", required=True)
    parser.add_argument("--calls", type=int, default=20, help="timed calls of steps_per_call steps")
    parser.add_argument("--random-images", nargs=2, type=int, metavar=("SIDE", "CLASSES"))
    arguments, overrides = parser.parse_known_args()
    config, _ = from_flags(arguments.config, overrides)
    print(json.dumps(measure(config, arguments.calls, arguments.random_images)))


def measure(config: ConfigDict, calls: int, random_images: list[int] | None) -> dict[str, Any]:
    """Median seconds of a step, with the spread, and what goes into it."""
    prepare_process()
    jax.config.update("jax_enable_compilation_cache", False)  # so that the compilation is timed
    data = random_data(config, *random_images) if random_images else run_data.load_new(config)
    program = Program.build(config, data.facts())
    everywhere = replicated(program.mesh)
    state = jax.jit(program.init, out_shardings=program.shardings)()
    images = jax.device_put(resident(data.source, data.split), everywhere)
    call = program.compile()

    start = time.perf_counter()
    state, _ = jax.block_until_ready(call(state, lambda: images))
    first = time.perf_counter() - start
    times = []
    for _ in range(calls):
        start = time.perf_counter()
        state, _ = jax.block_until_ready(call(state, lambda: images))
        times.append((time.perf_counter() - start) / config.steps_per_call)
    examples = jax.jit(program.examples, out_shardings=over_batch(program.mesh))(images, state)
    augment = time_augment(program, state.policy, examples, calls)
    dispatch = time_dispatch(Idle.build(config, data.facts()), state, images)
    median = statistics.median(times)
    drawn = program.spec.labeled_batch + program.spec.unlabeled_batch
    device = jax.devices()[0]
    memory = device.memory_stats()
    return {
        "config": f"{config.recipe}:{config.data.name}",
        "dtype": config.dtype,
        "batch": [program.spec.labeled_batch, program.spec.unlabeled_batch],
        "device": f"{program.mesh.size} x {device.device_kind}",
        "jax": jax.__version__,
        "steps_per_second": 1 / median,
        "step_seconds": {"median": median, "min": min(times), "max": max(times)},
        "images_per_second": drawn / median,
        "compile_seconds": first - median * config.steps_per_call,
        "augment_share": augment / median,
        "dispatch_share": dispatch / median,
        "peak_bytes": memory["peak_bytes_in_use"]
        if memory
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "peak_bytes_of": "device" if memory else "process",
    }


def time_augment(program: Program, policy: Any, examples: Any, calls: int) -> float:
    """Median seconds of the views of one batch alone."""
    key = jax.random.key(0)
    apply = jax.jit(lambda key, batch: program.augment.apply(policy, key, batch)[0])
    jax.block_until_ready(apply(key, examples))
    times = []
    for _ in range(max(calls, 10)):
        start = time.perf_counter()
        jax.block_until_ready(apply(key, examples))
        times.append(time.perf_counter() - start)
    return statistics.median(times)


class Idle(Program):
    """The program with steps that count and do nothing else."""

    @property
    def step(self) -> Step:
        """A step of no work."""
        return lambda state, _: (
            state.replace(step=state.step + 1),
            dict.fromkeys(WATCHED, jnp.zeros(())),
        )

    def examples(self, data: Any, state: TrainState) -> Any:
        """None."""


def time_dispatch(program: Idle, state: TrainState, images: Any) -> float:
    """Median seconds of an idle step."""
    call, steps = program.compile(), program.config.steps_per_call
    state, _ = jax.block_until_ready(call(state, lambda: images))
    times = []
    for _ in range(20):
        start = time.perf_counter()
        state, _ = jax.block_until_ready(call(state, lambda: images))
        times.append((time.perf_counter() - start) / steps)
    return statistics.median(times)


def random_data(config: ConfigDict, side: int, classes: int, count: int = 10_000) -> Data:
    """A pool of ``count`` random images under the config's data name."""
    random = np.random.default_rng(0)
    source = Source(
        name=config.data.name,
        classes=tuple(map(str, range(classes))),
        images=random.integers(0, 256, (count, side, side, 3), np.uint8),
        labels=np.arange(count, dtype=np.int32) % classes,
        rows=np.arange(count),
        test_images=np.zeros((1, side, side, 3), np.uint8),
        test_labels=np.zeros(1, np.int32),
    )
    labels = labels_number(config.data.labels)
    return Data(source=source, split=balanced(source, labels, config.seed))


if __name__ == "__main__":
    main()
