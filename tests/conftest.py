"""All tests see four simulated CPU devices, so that one and several can be compared anywhere."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["NPROC"] = "32"  # threads to wait in reductions, as jaxmatch/compilation.py explains
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"  # tests leave nothing in the user's folders

import hypothesis
import jax

jax.config.update("jax_num_cpu_devices", 4)
# The first example of a test compiles, which may take a slow machine longer than a deadline.
hypothesis.settings.register_profile("jaxmatch", deadline=None)
hypothesis.settings.load_profile("jaxmatch")
