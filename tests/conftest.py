"""All tests see four simulated CPU devices, so that one and several can be compared anywhere."""

import os
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["NPROC"] = (
    "32"  # threads to wait in reductions, as jaxmatch/runtime/compilation.py explains
)
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
# Programs of tests run a few times: LLVM's optimisations, a fifth of the suite's time, do not pay.
os.environ["XLA_FLAGS"] = (
    f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0".strip()
)
# Tests leave nothing in the user's folders; what is compiled once (jaxmatch/onednn) stays here.
os.environ["XDG_CACHE_HOME"] = str(Path(__file__).parents[1] / ".pytest_cache" / "user")

import hypothesis
import jax
import pytest
from jaxtyping import install_import_hook

# In the tests, calls of jaxmatch.functional check the shapes and dtypes that its annotations state.
install_import_hook("jaxmatch.functional", "annotations.checked")

from tiny_runs import write_data  # noqa: E402

jax.config.update("jax_num_cpu_devices", 4)
# The first example of a test compiles, which may take a slow machine longer than a deadline.
hypothesis.settings.register_profile("jaxmatch", deadline=None)
hypothesis.settings.load_profile("jaxmatch")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A file of images that tiny runs are trained on; the modules of tests do not share it."""
    return write_data(tmp_path_factory.mktemp("data") / "colours.npz")
