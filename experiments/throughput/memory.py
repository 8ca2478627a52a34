"""What a FixMatch step of WRN-28-2 keeps in memory, whole, in microbatches and with remat.

    python -m experiments.throughput.memory [--batch 64] [--config.key=value ...]

Only compiled, not run. "kept" are the bytes that the network's backward pass reads, besides
parameters and images, for each image that it passes with gradient; it does not depend on the
device, and XLA keeps less, as it computes cheap things again. "plan" are the temporary arrays of
the whole step, besides state and images, as XLA lays them out for the device at hand. Microbatches
are a loop here, as accelerators have it; a CPU's programs do not, for speed.
"""

import argparse
from collections.abc import Mapping
from dataclasses import replace

import jax
import jax.numpy as jnp

from experiments.scaling.program import facts
from jaxmatch.config.flags import from_flags
from jaxmatch.models.network import make_network
from jaxmatch.program import Program
from jaxmatch.runtime.mesh import tree_bytes
from jaxmatch.types import Array, PyTree

SIDE = 32
SETTINGS = (
    {},
    {"forward": "split"},
    {"remat": True},
    {"microbatches": 2},
    {"microbatches": 4},
    {"microbatches": 8},
    {"microbatches": 8, "remat": True},
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--batch", type=int, default=64, help="labeled images of a step")
    arguments, flags = parser.parse_known_args()
    jax.config.update("jax_enable_compilation_cache", False)
    print("| setting | images passed | kept for each, MB | plan, GB |\n|---|---|---|---|")
    for setting in SETTINGS:
        changes = {"data.batch_size": arguments.batch, "devices": 1, **setting}
        changed = [f"--config.{key}={value}" for key, value in changes.items()]
        passed, kept, plan = measure([*changed, *flags])
        name = ", ".join(f"{key}={value}" for key, value in setting.items()) or "default"
        print(f"| {name} | {passed} | {kept / 1e6:.3f} | {plan / 1e9:.2f} |", flush=True)


def measure(flags: list[str]) -> tuple[int, float, int]:
    """Images passed with gradient in a step, bytes kept for each, bytes of the step's plan."""
    config, _ = from_flags("fixmatch:tfds:cifar10,labels=40", flags)
    program = Program.build(config, facts(side=SIDE))
    looped = make_network(program.model, 1, config.forward, config.microbatches)
    compiled = replace(program, network=looped).trace(1).lower().compile()
    analysis = compiled.memory_analysis()
    assert analysis is not None
    spec = program.spec
    passed = spec.labeled_batch + spec.unlabeled_batch * (1 if config.forward == "split" else 2)
    return passed, kept(program, passed), analysis.temp_size_in_bytes


def kept(program: Program, count: int) -> float:
    """Bytes that the backward pass of ``count`` images reads of each, besides parameters."""
    state = program.state
    views = jax.ShapeDtypeStruct((count, SIDE, SIDE, 3), jnp.float32)

    def pull_back(variables: Mapping[str, PyTree], views: Array) -> PyTree:
        def logits(params: PyTree) -> Array:
            return program.network({**variables, "params": params}, views)[0].logits

        return jax.vjp(logits, variables["params"])[1]

    found = tree_bytes(jax.eval_shape(pull_back, state.student(), views))
    return (found - tree_bytes(state.params) - tree_bytes(views)) / count


if __name__ == "__main__":
    main()
