"""Holds a pure function on four devices, its batch split over them, against the same on one."""

import jax
from helpers import assert_close, quick_jit

from jaxmatch.runtime.mesh import make_mesh, over_batch, replicated


def assert_same_on_four(function, batch, whole=(), tolerance=1e-6):
    """function(batch, whole) agrees, and no rows of the batch go from device to device for it."""
    mesh = make_mesh(4)
    shardings = (over_batch(mesh), replicated(mesh))
    compiled = quick_jit(function, in_shardings=shardings).lower(batch, whole).compile()
    assert "all-to-all" not in compiled.as_text()
    assert "collective-permute" not in compiled.as_text()
    four = jax.device_get(compiled(*map(jax.device_put, (batch, whole), shardings)))
    assert_close(four, jax.device_get(quick_jit(function)(batch, whole)), tolerance)
