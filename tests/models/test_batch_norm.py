"""BatchNorm against NumPy: values, running statistics, precision, gradients, devices."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import quick_jit

from jaxmatch.models.batch_norm import BatchNorm
from jaxmatch.runtime.mesh import make_mesh, over_batch, replicated

SHAPE = (6, 5, 4, 3)


def variables(dtype=np.float32, mean=0.0, var=1.0):
    random = np.random.default_rng(7)
    channels = SHAPE[-1]
    return {
        "params": {
            "scale": random.uniform(0.5, 2, channels).astype(dtype),
            "bias": random.normal(size=channels).astype(dtype),
        },
        "batch_stats": {
            "mean": np.full(channels, mean, dtype),
            "var": np.full(channels, var, dtype),
        },
    }


def inputs(dtype=np.float32, mean=0.0, deviation=1.0):
    return np.random.default_rng(3).normal(mean, deviation, SHAPE).astype(dtype)


def reference(x, params, epsilon):
    wide = x.astype(np.float64)
    axes = tuple(range(x.ndim - 1))
    normal = (wide - wide.mean(axes)) / np.sqrt(wide.var(axes) + epsilon)
    return normal * params["scale"] + params["bias"]


@pytest.mark.parametrize("unbiased", [True, False])
def test_train_mode_normalises_and_keeps_statistics(unbiased):
    layer = BatchNorm(decay=0.9, epsilon=1e-2, unbiased=unbiased)
    x, given = inputs(mean=0.5), variables(mean=0.2, var=3.0)
    y, updated = layer.apply(given, x, True, mutable=["batch_stats"])
    np.testing.assert_allclose(y, reference(x, given["params"], 1e-2), atol=1e-5)
    stats = updated["batch_stats"]
    mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2), ddof=1 if unbiased else 0)
    np.testing.assert_allclose(stats["mean"], 0.9 * 0.2 + 0.1 * mean, rtol=1e-5)
    np.testing.assert_allclose(stats["var"], 0.9 * 3.0 + 0.1 * var, rtol=1e-6)


def test_one_value_a_channel_has_no_unbiased_variance():
    layer = BatchNorm(decay=0.5)
    _, updated = layer.apply(variables(), np.ones((1, 3), np.float32), True, mutable="batch_stats")
    np.testing.assert_array_equal(updated["batch_stats"]["var"], 0.5)


def test_eval_mode_uses_the_running_statistics():
    layer, x = BatchNorm(epsilon=1e-2), inputs()
    given = variables(mean=0.5, var=4.0)
    y = layer.apply(given, x, False)
    params = given["params"]
    expected = (x - 0.5) / np.sqrt(4.01) * params["scale"] + params["bias"]
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)
    alone = layer.apply(given, x[:1], False)
    np.testing.assert_allclose(alone, y[:1], rtol=1e-5, atol=1e-6)


def test_initialising_does_not_count_as_a_batch():
    stats = BatchNorm().init(jax.random.key(0), inputs(mean=9.0), True)["batch_stats"]
    np.testing.assert_array_equal(stats["mean"], 0)
    np.testing.assert_array_equal(stats["var"], 1)


def test_large_mean_and_small_variance_survive_float32():
    x = inputs(mean=1000.0, deviation=0.02)
    given = variables(mean=1000.0, var=4e-4)
    y, updated = BatchNorm(epsilon=1e-6, decay=0.0).apply(given, x, True, mutable="batch_stats")
    np.testing.assert_allclose(y, reference(x, given["params"], 1e-6), atol=5e-3)
    var = x.astype(np.float64).var((0, 1, 2), ddof=1)
    np.testing.assert_allclose(updated["batch_stats"]["var"], var, rtol=1e-4)

    naive = np.square(x).mean((0, 1, 2)) - np.square(x.mean((0, 1, 2)))
    assert np.abs(naive / var - 1).max() > 0.5  # what float32 makes of E[x^2] - E[x]^2


def test_gradient_is_that_of_the_plain_formula():
    layer = BatchNorm(epsilon=1e-3, param_dtype=jnp.float64)

    def ours(params, x, weights):
        stats = variables(np.float64, mean=0.7, var=2.0)["batch_stats"]
        given = {"params": params, "batch_stats": stats}
        y, _ = layer.apply(given, x, True, mutable=["batch_stats"])
        return jnp.sum(y * weights)

    def plain(params, x, weights):
        mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
        y = (x - mean) / jnp.sqrt(var + 1e-3) * params["scale"] + params["bias"]
        return jnp.sum(y * weights)

    with jax.enable_x64(True):
        x = inputs(np.float64, mean=0.3)
        weights = np.random.default_rng(5).normal(size=SHAPE)
        params = variables(np.float64)["params"]
        left, right = (
            quick_jit(jax.grad(loss, (0, 1)))(params, x, weights) for loss in (ours, plain)
        )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12), left, right)


def test_statistics_carry_no_gradient_from_step_to_step():
    def loss(x, mean):
        given = variables()
        given["batch_stats"]["mean"] = mean
        y, updated = BatchNorm().apply(given, x, True, mutable=["batch_stats"])
        return jnp.square(y).sum(), jnp.sum(updated["batch_stats"]["var"])

    x, mean = inputs(), np.zeros(3, np.float32)
    assert not np.any(quick_jit(jax.grad(lambda mean: loss(x, mean)[0]))(mean))
    assert not np.any(quick_jit(jax.grad(lambda x: loss(x, mean)[1]))(x))


@pytest.mark.parametrize("dtype", [None, jnp.bfloat16])
def test_bfloat16_in_and_out_with_float32_statistics(dtype):
    x, given = jnp.asarray(inputs(), jnp.bfloat16), variables()
    y, updated = BatchNorm(dtype=dtype).apply(given, x, True, mutable=["batch_stats"])
    wide, expected = BatchNorm().apply(given, x.astype(jnp.float32), True, mutable=["batch_stats"])
    assert y.dtype == jnp.bfloat16
    np.testing.assert_array_equal(y, wide.astype(jnp.bfloat16))
    for name, leaf in updated["batch_stats"].items():
        assert leaf.dtype == jnp.float32
        np.testing.assert_array_equal(leaf, expected["batch_stats"][name])


def test_four_devices_share_one_batch_in_one_message():
    mesh = make_mesh(4, 8)
    x = np.random.default_rng(0).normal(size=(8, 4, 4, 3)).astype(np.float32)
    x[:2] += 5  # the devices' shares differ
    given = variables()

    def run(given, x):
        return BatchNorm(decay=0.9).apply(given, x, True, mutable=["batch_stats"])

    shardings = (replicated(mesh), over_batch(mesh))
    compiled = quick_jit(run, in_shardings=shardings).lower(given, x).compile()
    y, updated = compiled(*jax.device_put((given, x), shardings))
    np.testing.assert_allclose(y, reference(x, given["params"], 1e-3), atol=1e-5)
    np.testing.assert_allclose(
        updated["batch_stats"]["mean"], 0.1 * x.mean((0, 1, 2)), rtol=1e-5, atol=1e-7
    )
    assert len(re.findall(r" all-reduce(?:-start)?\(", compiled.as_text())) == 1
