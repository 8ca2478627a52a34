"""Options for compilers, and the preparation of a process that runs the library's programs."""

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
from jax.stages import Traced, Wrapped

# By default XLA:CPU computes convolutions and matrix products by a library (YNNPACK) that takes
# several times as long as the older path for the gradients of kernels. It uses one thread a device.
CPU_OPTIONS = {"xla_cpu_experimental_ynn_fusion_type": ""}
# By default XLA:GPU combines gradients into all-reduces of 30 MB, most of which wait for the end of
# the backward pass. More of the smaller ones start during it (experiments/tpu/README.md).
GPU_OPTIONS = {"xla_gpu_all_reduce_combine_threshold_bytes": str(4 * 2**20)}
# A CPU device that waits for another in a reduction occupies a thread of XLA's pool, which has one
# thread for each core by default. If all threads wait, the other device gets none: a deadlock.
THREADS_PER_CORE = 8
# glibc's malloc.h: one heap for all threads, no blocks with pages of their own, no memory returned.
MALLOC_OPTIONS = {
    "M_ARENA_MAX": (-8, 1),
    "M_MMAP_MAX": (-4, 0),
    "M_TRIM_THRESHOLD": (-1, 2**31 - 1),
}


def jit(function: Callable[..., Any], mesh: Mesh | None = None, **options: Any) -> Wrapped:
    """``jax.jit(function, **options)`` with the library's compiler options for the platform.

    The platform is that of ``mesh``, or JAX's default.
    """
    platform = mesh.devices.flat[0].platform if mesh is not None else jax.default_backend()
    return jax.jit(function, compiler_options=compiler_options(platform), **options)


@lru_cache
def compiler_options(platform: str = "cpu") -> dict[str, str]:
    """The options for a platform, without those that its compiler does not know.

    An option that the user sets in ``XLA_FLAGS`` is left out.
    """
    known = {"cpu": CPU_OPTIONS, "gpu": GPU_OPTIONS}
    given = os.environ.get("XLA_FLAGS", "")
    options = {key: value for key, value in known.get(platform, {}).items() if key not in given}
    try:
        if options:
            jax.jit(lambda: 0, compiler_options=options).lower().compile()
    except jax.errors.JaxRuntimeError:  # this version of XLA does not know an option
        return {}
    return options


def operations(traced: Traced) -> float | None:
    """Floating-point operations of ``jax.jit(f).trace(...)``, as XLA counts before optimization.

    They are counted in the program for a TPU, because XLA counts nothing in calls of other
    libraries, and only this program has none. None if XLA returns no count.
    """
    cost: Any = traced.lower(lowering_platforms=("tpu",)).cost_analysis() or {}
    return cost.get("flops")


def prepare_process() -> None:
    """Keep freed memory for the next step, and compiled programs for the next process.

    It changes the whole process, so only the command line and scripts call it, not the library.
    Call it before JAX computes anything; later it only affects the cache of compiled programs. The
    cache is in ``~/.cache/jaxmatch``, unless the user names another place
    (``JAX_COMPILATION_CACHE_DIR``) or wants none (``JAX_ENABLE_COMPILATION_CACHE=false``).
    """
    keep_memory()
    devices = jax.config.jax_num_cpu_devices  # pyright: ignore[reportAttributeAccessIssue]
    if devices > 1 or "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        os.environ.setdefault("NPROC", str(THREADS_PER_CORE * (os.cpu_count() or 1)))
    if jax.config.jax_compilation_cache_dir is None:  # pyright: ignore[reportAttributeAccessIssue]
        jax.config.update("jax_compilation_cache_dir", str(cache_folder()))
    # Programs for several GPUs contain the address of a function (models/contraction.py). It
    # differs in each process, so it must not be part of the cache's key.
    without_address = "jax_remove_custom_partitioning_ptr_from_cache_key"
    if hasattr(jax.config, without_address):  # some versions of JAX do not have it
        jax.config.update(without_address, True)


def keep_memory() -> None:
    """Make glibc reuse the memory that a step frees; other C libraries stay as they are.

    XLA:CPU allocates the activations anew in each step. By default large blocks are new pages,
    which the system clears: a fifth of the time of a FixMatch step.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        for parameter, value in MALLOC_OPTIONS.values():
            mallopt(parameter, value)


def cache_folder() -> Path:
    """The folder of compiled programs for this kind of processor.

    Machines may share a home folder, but a program for one CPU may not run on another.
    """
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = [platform.processor()]
    features = sorted({line for line in lines if line.startswith(("flags", "Features", "model"))})
    kind = hashlib.sha256("\n".join([platform.machine(), *features]).encode()).hexdigest()[:12]
    return base / "jaxmatch" / "programs" / kind
