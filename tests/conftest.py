"""All tests see four simulated CPU devices, so that one and several can be compared anywhere."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"

import jax

jax.config.update("jax_num_cpu_devices", 4)
