"""The library's convolution is Flax's: parameters, value and both derivatives, on any devices."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxmatch.models.convolution import Conv
from jaxmatch.runtime.mesh import make_mesh, over_batch, replicated


def pair(side, stride, padding):
    options = {"use_bias": True, "param_dtype": jnp.float64}
    around = "SAME" if padding == "same" else ((side // 2, side // 2),) * 2
    flax = nn.Conv(5, (side, side), (stride, stride), padding=around, **options)
    return Conv(5, side, stride, padding, **options), flax


@pytest.mark.parametrize(
    ("height", "stride", "side", "padding"),  # by height: sums over pixels in stages, or at once
    [
        (8, 1, 3, "torch"),
        pytest.param(7, 2, 3, "same", marks=pytest.mark.slow),
        pytest.param(8, 2, 3, "torch", marks=pytest.mark.slow),
        pytest.param(7, 2, 1, "same", marks=pytest.mark.slow),
    ],
)
def test_parameters_value_and_derivatives_are_those_of_flax(height, stride, side, padding):
    with jax.enable_x64(True):
        images = np.random.default_rng(0).normal(size=(4, height, height - 1, 3))
        ours, flax = pair(side, stride, padding)
        key = jax.random.key(0)
        variables = jax.jit(flax.init)(key, images)
        jax.tree.map(np.testing.assert_array_equal, jax.jit(ours.init)(key, images), variables)
        variables = jax.tree.map(lambda leaf: leaf + 0.1, variables)  # a bias too
        direction = jax.tree.map(jnp.cos, (variables, images))

        def value(module, variables, images):
            return jnp.sum(jnp.tanh(module.apply(variables, images)))

        for derive in (
            lambda f: f,
            lambda f: jax.grad(f, (0, 1)),
            lambda f: lambda *given: jax.jvp(f, given, direction)[1],
        ):
            mine, reference = (
                jax.jit(derive(partial(value, module)))(variables, images)
                for module in (ours, flax)
            )
            for a, b in zip(jax.tree.leaves(mine), jax.tree.leaves(reference), strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


def test_the_compute_dtype_is_the_one_asked_for():
    images = jnp.ones((2, 4, 4, 3))
    module = Conv(5, 3, use_bias=True, dtype=jnp.bfloat16)
    outputs, variables = jax.eval_shape(module.init_with_output, jax.random.key(0), images)
    assert variables["params"]["kernel"].dtype == jnp.float32
    assert outputs.dtype == jnp.bfloat16


def test_no_image_moves_between_devices():
    images = np.random.default_rng(0).normal(size=(8, 8, 8, 3)).astype(np.float32)
    module = Conv(5, 3, use_bias=True)
    variables = module.init(jax.random.key(0), images)

    def gradient(variables, images):
        return jax.grad(lambda v: jnp.sum(jnp.sin(module.apply(v, images))))(variables)

    mesh = make_mesh(4, 8)
    places = (replicated(mesh), over_batch(mesh))
    compiled = jax.jit(gradient, in_shardings=places).lower(variables, images).compile()
    text = compiled.as_text()
    for moved in ("all-to-all", "collective-permute", "all-gather"):
        assert moved not in text
    alone = jax.jit(gradient)(variables, images)
    for a, b in zip(
        jax.tree.leaves(compiled(*jax.device_put((variables, images), places))),
        jax.tree.leaves(alone),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
