"""What a step of each method costs relative to supervised, on MNIST-5k's batches of 16 labels.

python -m experiments.throughput.methods [--steps 8] [NAME ...]

Seconds are of the processor and not of the clock, on one CPU device, so that other work on the
machine hardly matters; on an accelerator they are seconds of the clock.
"""

import argparse
import statistics
import time

import jax

from experiments.mnist5k.sweep import METHODS, VARIANTS
from jaxmatch import build
from jaxmatch.config import from_flags, stages_of
from jaxmatch.data.resident import resident


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", default=METHODS)
    parser.add_argument("--steps", type=int, default=8, help="timed steps")
    arguments = parser.parse_args()
    print("| method | images forwarded a step | step, relative to supervised | compile, s |")
    print("|---|---|---|---|")
    base = None
    for name in dict.fromkeys(("supervised", *arguments.names)):
        images, seconds, compilation = measure(name, arguments.steps)
        base = base or seconds
        print(f"| {name} | {images} | {seconds / base:.1f} | {compilation:.1f} |", flush=True)


def measure(name: str, steps: int) -> tuple[int, float, float]:
    """Images forwarded, median seconds of a step, and seconds of the compilation."""
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
    start = clock()
    call = jax.jit(
        lambda state, images: step(state, examples_of(images, state))[0], donate_argnums=0
    )
    compiled = call.lower(state, images).compile()
    compilation = clock() - start
    times = []
    for _ in range(steps):
        start = clock()
        state = jax.block_until_ready(compiled(state, images))
        times.append(clock() - start)
    return forwarded, statistics.median(times), compilation


if __name__ == "__main__":
    main()
