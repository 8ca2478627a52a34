"""How the library's programs are compiled, and what a process does before it runs them."""

import ctypes
import hashlib
import os
import platform
import sys
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

# XLA:CPU hands convolutions and matrix products to a library (YNNPACK) that takes several times as
# long as the older path for the gradients of kernels, and runs on one thread a device.
CPU_OPTIONS = {"xla_cpu_experimental_ynn_fusion_type": ""}
# XLA:GPU joins gradients to sums of 30 MB, most of which wait for the whole backward pass. More of
# the smaller ones begin while it goes on (experiments/tpu/README.md).
GPU_OPTIONS = {"xla_gpu_all_reduce_combine_threshold_bytes": str(4 * 2**20)}
# A CPU device that waits for another in a reduction keeps a thread of XLA's pool, by default one a
# core. With a few such waits the other device finds no thread, and the program stands still.
THREADS_A_CORE = 8
# glibc's malloc.h: one heap for all threads, no blocks with pages of their own, nothing given back.
HEAPS = {"M_ARENA_MAX": (-8, 1), "M_MMAP_MAX": (-4, 0), "M_TRIM_THRESHOLD": (-1, 2**31 - 1)}


def jit(function: Callable[..., Any], mesh: Mesh | None = None, **options: Any) -> Any:
    """``jax.jit(function, **options)`` with what the library asks of the platform's compiler.

    The platform is that of ``mesh``, or the default one.
    """
    platform = mesh.devices.flat[0].platform if mesh is not None else jax.default_backend()
    return jax.jit(function, compiler_options=compiler_options(platform), **options)


@lru_cache
def compiler_options(platform: str = "cpu") -> dict[str, str]:
    """The options for a platform, as far as its compiler knows them and the user sets no other.

    An option that the variable ``XLA_FLAGS`` names is left to it.
    """
    known = {"cpu": CPU_OPTIONS, "gpu": GPU_OPTIONS}
    given = os.environ.get("XLA_FLAGS", "")
    options = {key: value for key, value in known.get(platform, {}).items() if key not in given}
    try:
        if options:
            jax.jit(lambda: 0, compiler_options=options).lower().compile()
    except jax.errors.JaxRuntimeError:  # a version of XLA without it
        return {}
    return options


def operations(traced: Any) -> float | None:
    """Floating-point operations of ``jax.jit(f).trace(...)``, as XLA counts them, unoptimized.

    The count is that of the program for a TPU, which calls no other library: XLA does not see into
    calls. None where XLA gives none.
    """
    cost: Any = traced.lower(lowering_platforms=("tpu",)).cost_analysis() or {}
    return cost.get("flops")


def prepare_process() -> None:
    """Keep freed memory for the next step, and compiled programs for the next process.

    This changes the whole process, so the command line and scripts call it; the library never
    does. All but the programs takes effect only if JAX has computed nothing in the process yet.
    Programs are kept in ``~/.cache/jaxmatch``, unless the user gave JAX a place
    (``JAX_COMPILATION_CACHE_DIR``) or wants none (``JAX_ENABLE_COMPILATION_CACHE=false``).
    """
    keep_memory()
    devices = jax.config.jax_num_cpu_devices  # pyright: ignore[reportAttributeAccessIssue]
    if devices > 1 or "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        os.environ.setdefault("NPROC", str(THREADS_A_CORE * (os.cpu_count() or 1)))
    if jax.config.jax_compilation_cache_dir is None:  # pyright: ignore[reportAttributeAccessIssue]
        jax.config.update("jax_compilation_cache_dir", str(cache_folder()))
    # Programs for several GPUs name a function by its address (models/contraction.py), by which
    # the next process would not find them.
    by_content = "jax_remove_custom_partitioning_ptr_from_cache_key"
    if hasattr(jax.config, by_content):
        jax.config.update(by_content, True)


def keep_memory() -> None:
    """Let the C library reuse what a step frees, where it can be told so (glibc).

    XLA:CPU allocates a step's activations anew each time. By default large blocks are pages fresh
    from the system, which clears them: a fifth of the time of a FixMatch step.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        for parameter, value in HEAPS.values():
            mallopt(parameter, value)


def cache_folder() -> Path:
    """Where compiled programs are kept: a folder for each kind of processor.

    Home folders are shared by machines, and a program for one CPU may not run on another.
    """
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = [platform.processor()]
    features = sorted({line for line in lines if line.startswith(("flags", "Features", "model"))})
    kind = hashlib.sha256("\n".join([platform.machine(), *features]).encode()).hexdigest()[:12]
    return base / "jaxmatch" / "programs" / kind
