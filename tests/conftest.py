"""All tests see four simulated CPU devices, so that one and several can be compared anywhere."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["NPROC"] = "32"  # threads to wait in reductions, as parallel.use_all_cores explains

import jax

jax.config.update("jax_num_cpu_devices", 4)
