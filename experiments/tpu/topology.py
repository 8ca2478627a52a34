"""Devices that need not exist, TPUs and GPUs: they compile, and do not run."""

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

# The compiler looks for a TPU and for the cloud that it would be in, unless it is told not to.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
}
HERTZ = {"v4": 1.05e9, "v5e": 1.5e9, "v5p": 1.75e9, "v6e": 1.75e9}  # of the matrix units' clock
# GPUs by name: what the compiler asks of one, as it writes it where it finds one.
GPUS = {"h100": Path(__file__).with_name("h100.txt")}


def generation(topology: str) -> str:
    """The kind of chip of a topology such as "v5e:2x4"."""
    return topology.partition(":")[0]


def is_gpu(topology: str) -> bool:
    """Whether its chips are GPUs."""
    return generation(topology) in GPUS


def devices(topology: str) -> Sequence[Any]:
    """The chips of a topology: TPUs such as "v5e:2x4", or GPUs of one host such as "h100:8".

    Raises:
        SystemExit: where the compiler is not installed or does not know the topology.
    """
    kind, _, shape = topology.partition(":")
    options: dict[str, Any] = {}
    try:
        chips = math.prod(int(side) for side in shape.split("x"))
    except ValueError:
        raise SystemExit(f"{topology!r} is not a topology such as v5e:2x4 or h100:8.") from None
    os.environ.update({key: os.environ.get(key, value) for key, value in ENVIRONMENT.items()})
    jax.config.update("jax_platforms", os.environ["JAX_PLATFORMS"])  # JAX was imported before
    from jax.experimental import topologies

    if chips == 1:
        options["chips_per_host_bounds"] = (1, 1, 1)
    if kind == "v4":
        options["chip_config_name"] = "megacore"
    platform, name, extra = "tpu", topology, "tpu-compile"
    if is_gpu(topology):
        platform, name, extra = "cuda", "", "gpu-compile"
        options = {"target_config": GPUS[kind].read_text(), "topology": f"1x1x{chips}"}
    # A program for a described device can be written to the cache, but not read from it.
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        described = topologies.get_topology_desc(platform=platform, topology_name=name, **options)
    except Exception as error:  # of several kinds, by what is missing
        raise SystemExit(
            f"no program can be compiled for {topology} ({error}); install the extra {extra}."
        ) from error
    return described.devices
