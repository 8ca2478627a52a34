"""What a step of each method costs relative to supervised, on MNIST-5k's batches of 16 labels.

python -m experiments.throughput.methods [--steps 8] [NAME ...]

Times are of the processor and not of the clock, on one CPU device, so that other work on the
machine hardly matters; on an accelerator, and of the compilation, they are of the clock. Arithmetic
is XLA's count of floating-point operations of the whole step before optimization, views included. A
method whose time is far above its arithmetic does something besides passing images through the
network.
"""

import argparse
import statistics
import time
from typing import Any, NamedTuple

import jax

from experiments.mnist5k.sweep import METHODS, VARIANTS
from jaxmatch import build
from jaxmatch.compilation import jit, prepare_process
from jaxmatch.config import from_flags, stages_of
from jaxmatch.data.resident import resident

BASES = ("supervised", "fixmatch")


class Cost(NamedTuple):
    """Of one step."""

    images: int  # forwarded through the networks
    operations: float
    seconds: float
    compilation: float  # seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", default=METHODS)
    parser.add_argument("--steps", type=int, default=8, help="timed steps")
    arguments = parser.parse_args()
    prepare_process()
    # A program out of the cache would be compiled in no time.
    jax.config.update("jax_enable_compilation_cache", False)
    print(
        "| method | images forwarded | arithmetic | time | time, of FixMatch | time / arithmetic "
        "| compile, s |"
    )
    print("|---|---|---|---|---|---|---|")
    found = {name: measure(name, arguments.steps) for name in BASES}
    base, fixmatch = (found[name] for name in BASES)
    for name in dict.fromkeys((*BASES, *arguments.names)):
        one = found.get(name) or measure(name, arguments.steps)
        time_ratio, arithmetic = one.seconds / base.seconds, one.operations / base.operations
        print(
            f"| {name} | {one.images} | {arithmetic:.1f} | {time_ratio:.1f} "
            f"| {one.seconds / fixmatch.seconds:.2f} | {time_ratio / arithmetic:.2f} "
            f"| {one.compilation:.1f} |",
            flush=True,
        )


def measure(name: str, steps: int) -> Cost:
    """What a step of the method costs on this machine."""
    recipe, changes = VARIANTS.get(name, (name, {}))
    flags = [f"--config.{key}={value}" for key, value in changes.items()]
    whole, _ = from_flags(f"{recipe}:mnist5k,labels=40", flags)
    *_, config = stages_of(whole).values()  # of SelfMatch its FixMatch
    config.devices, config.init_from = 1, ""
    data = build.load_data(config)
    parts = build.build_parts(config, data.facts())
    optimizer = parts.optim.build(config.steps, parts.model.layers)
    state = jax.jit(lambda: build.build_state(config, parts, optimizer))()
    images = jax.device_put(resident(data.source, data.split, config.data.include_labeled))
    step, examples_of = build.build_step(config, parts, optimizer), build.examples_of(parts)
    forwarded = build.forward_images(config, parts, optimizer, state, images)

    clock = time.process_time if jax.default_backend() == "cpu" else time.perf_counter
    start = time.perf_counter()
    call = jit(lambda state, images: step(state, examples_of(images, state))[0], donate_argnums=0)
    lowered = call.lower(state, images)
    operations: Any = lowered.cost_analysis()
    compiled = lowered.compile()
    compilation = time.perf_counter() - start
    times = []
    for _ in range(steps):
        start = clock()
        state = jax.block_until_ready(compiled(state, images))
        times.append(clock() - start)
    seconds = statistics.median(times)
    return Cost(forwarded, operations["flops"], seconds, compilation)


if __name__ == "__main__":
    main()
