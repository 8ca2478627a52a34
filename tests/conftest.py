"""All tests see four simulated CPU devices, so that one and several can be compared anywhere."""

import atexit
import gc
import os
import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["NPROC"] = (
    "32"  # threads to wait in reductions, as jaxmatch/runtime/compilation.py explains
)
# Programs of tests run a few times, so that what optimises them does not pay. With it, the compiler
# takes three times as long.
# Newer versions do not know the second flag, and XLA ends a process that gives it such a one.
os.environ["XLA_FLAGS"] = (
    f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0"
    + " --xla_cpu_use_fusion_emitters=false" * version("jaxlib").startswith("0.10.")
).strip()
# Tests leave nothing in the user's folders; what is compiled once (jaxmatch/onednn) stays here.
os.environ["XDG_CACHE_HOME"] = str(Path(__file__).parents[1] / ".pytest_cache" / "user")

# Equal programs are compiled once. Each worker has a folder of its own, since JAX writes no file
# in one piece; a small program is compiled sooner than it is found again.
os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="jaxmatch-tests-")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

import hypothesis
import jax
import pytest
from jaxtyping import install_import_hook

# In the tests, calls of jaxmatch.functional check the shapes and dtypes that its annotations state.
install_import_hook("jaxmatch.functional", "annotations.checked")

from tiny_runs import write_data  # noqa: E402

atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
jax.config.update("jax_num_cpu_devices", 4)
# What was traced lives as long as the process: looking through all of it for garbage as often as
# Python does takes a tenth of the time.
gc.set_threshold(200_000, 50, 1000)
# The first example of a test compiles, which may take a slow machine longer than a deadline. The
# examples are the same in each run, so that a failure tells of the change and not of luck.
hypothesis.settings.register_profile("jaxmatch", deadline=None, derandomize=True)
hypothesis.settings.register_profile("random", deadline=None)
hypothesis.settings.load_profile("jaxmatch")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Each file of tests stays on one worker, so that what its tests share is made once."""
    from xdist.scheduler import LoadFileScheduling

    return LoadFileScheduling(config, log)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A file of images that tiny runs are trained on; the modules of tests do not share it."""
    return write_data(tmp_path_factory.mktemp("data") / "colours.npz")
