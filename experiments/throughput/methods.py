"""What a step of each method costs relative to supervised, on MNIST-5k's batches.

python -m experiments.throughput.methods [--steps 8] [NAME ...]

A method takes its steps in turns with supervised and FixMatch. Times are of the processor and not
of the clock, on one CPU device, so that other work on the machine matters little; on an
accelerator, and of the compilation, they are of the clock. Arithmetic is XLA's count of
floating-point operations of the whole step before optimization, views included. A method whose time
is far above its arithmetic does something besides passing images through the network. What a method
does between steps (PCL's clusters) is not in it.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from experiments.mnist5k.sweep import METHODS, VARIANTS
from experiments.mnist5k_pretraining.sweep import METHODS as PRETRAININGS
from jaxmatch.config.flags import from_flags
from jaxmatch.config.stages import stages_of
from jaxmatch.data.resident import resident
from jaxmatch.program import Program
from jaxmatch.record import run_data
from jaxmatch.runtime.compilation import jit, operations, prepare_process

BASES = ("supervised", "fixmatch")
ALL = (*METHODS, "distillation", *PRETRAININGS)


class Prepared(NamedTuple):
    """A method's step, compiled."""

    images: int  # forwarded through the networks
    operations: float
    compilation: float  # seconds
    advance: Callable[[], float]  # takes the next step; its seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", default=ALL)
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
    bases = {name: prepare(name) for name in BASES}
    for name in dict.fromkeys((*BASES, *arguments.names)):
        one = bases.get(name) or prepare(name)
        # In turns, since the machine's speed changes.
        rounds = [
            [prepared.advance() for prepared in (one, *bases.values())]
            for _ in range(1 + arguments.steps)
        ]
        seconds, base, fixmatch = (
            statistics.median(times) for times in zip(*rounds[1:], strict=True)
        )
        arithmetic = one.operations / bases["supervised"].operations
        print(
            f"| {name} | {one.images} | {arithmetic:.1f} | {seconds / base:.1f} "
            f"| {seconds / fixmatch:.2f} | {seconds / base / arithmetic:.2f} "
            f"| {one.compilation:.1f} |",
            flush=True,
        )


def prepare(name: str) -> Prepared:
    """The step of the method, and its first state."""
    recipe, changes = VARIANTS.get(name, (name, {}))
    flags = [f"--config.{key}={value}" for key, value in changes.items()]
    labels = "" if name in PRETRAININGS else ",labels=40"
    whole, _ = from_flags(f"{recipe}:mnist5k{labels}", flags)
    *_, config = stages_of(whole).values()  # of SelfMatch its FixMatch
    config.devices, config.init_from = 1, ""
    data = run_data.load_new(config)
    program = Program.build(config, data.facts()).with_stand_ins()
    state = jax.jit(program.init)()
    images = jax.device_put(resident(data.source, data.split, config.data.include_labeled))
    # Copies, since the state is donated to the step.
    frozen = jax.tree.map(jnp.copy, dict.fromkeys(program.frozen, state.student())) or None
    images = images._replace(frozen=frozen)
    forwarded = program.forward_images(images)

    start = time.perf_counter()
    call = jit(
        lambda state, images: program.step(state, program.examples(images, state))[0],
        donate_argnums=0,
    )
    traced = call.trace(state, images)
    compiled = traced.lower().compile()
    compilation = time.perf_counter() - start
    clock = time.process_time if jax.default_backend() == "cpu" else time.perf_counter

    def advance() -> float:
        nonlocal state
        start = clock()
        state = jax.block_until_ready(compiled(state, images))
        return clock() - start

    return Prepared(forwarded, operations(traced) or 0.0, compilation, advance)


if __name__ == "__main__":
    main()
