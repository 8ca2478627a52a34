"""The convolution is XLA's: value and every derivative, under every transformation of JAX."""

import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jax import lax
from on_devices import assert_same_on_four

from jaxmatch.models import onednn
from jaxmatch.models.contraction import _gradient_apart, convolve

PADDINGS = ("SAME", "VALID", ((0, 0), (0, 0)), ((1, 1), (1, 1)), ((0, 1), (0, 1)), ((3, 3), (3, 3)))
# The relative rounding of a sum of a thousand terms; bfloat16 keeps 8 bits of each result.
TOLERANCE = {jnp.float32: 2e-5, jnp.bfloat16: 2e-2, jnp.float64: 1e-12}


def by_xla(images, kernel, stride, padding):
    return lax.conv_general_dilated(
        images, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def arrays(batch, height, width, before, after, side, dtype=jnp.float32, seed=0):
    random = np.random.default_rng(seed)
    images = random.normal(size=(batch, height, width, before))
    kernel = random.normal(size=(side, side, before, after)) / side
    return jnp.asarray(images, dtype), jnp.asarray(kernel, dtype)


def curved(convolution, stride, padding):
    """Something that is not linear in images and kernel."""
    return lambda x, k: jnp.sum(jnp.sin(convolution(x, k, stride, padding).astype(jnp.float32)))


def assert_close(found, expected, dtype=jnp.float32):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        scale = max(np.abs(b).max(initial=0), 1e-3)
        np.testing.assert_allclose(a / scale, b / scale, rtol=0, atol=TOLERANCE[dtype])


shapes = st.tuples(
    st.integers(1, 5),
    st.integers(1, 17),
    st.integers(1, 17),
    st.integers(1, 35),
    st.integers(1, 35),
)


@settings(max_examples=3)
@given(shapes, st.sampled_from([1, 2, 3, 5, 7]), st.integers(1, 3), st.sampled_from(PADDINGS))
@example((2, 33, 32, 3, 64), 7, 2, ((3, 3), (3, 3)))  # a stem
@example((1, 2, 2, 3, 4), 5, 1, "VALID")  # no result at all
def test_value_and_gradients_are_those_of_xla(shape, side, stride, padding):
    check_value_and_gradients(shape, side, stride, padding)


@pytest.mark.slow
@settings(max_examples=10)
@given(shapes, st.sampled_from([1, 2, 3, 5, 7]), st.integers(1, 3), st.sampled_from(PADDINGS))
@example((2, 32, 32, 3, 16), 3, 1, ((1, 1), (1, 1)))  # a stem
@example((2, 16, 16, 64, 256), 1, 1, "VALID")  # ResNet-50
@example((2, 16, 16, 256, 512), 1, 2, "VALID")
@example((2, 14, 14, 128, 128), 3, 2, ((1, 1), (1, 1)))
def test_value_and_gradients_of_many_shapes_are_those_of_xla(shape, side, stride, padding):
    check_value_and_gradients(shape, side, stride, padding)


def check_value_and_gradients(shape, side, stride, padding):
    images, kernel = arrays(*shape, side)
    if padding == "VALID" and side > min(shape[1:3]):
        assert convolve(images, kernel, stride, padding).size == 0
        return
    # XLA:CPU's own gradient is wrong where a window lies in the border alone, and its compiler may
    # abort where the kernel is larger than the images.
    border = 0 if isinstance(padding, str) else max(map(max, padding))
    if side > min(shape[1:3]) or side <= border:
        return
    bias = jnp.cos(jnp.arange(kernel.shape[-1], dtype=jnp.float32))

    def value(function):
        curve = lambda x, k, b: jnp.sum(jnp.sin(function(x, k, b)))  # noqa: E731
        return jax.jit(lambda *given: (function(*given), *jax.grad(curve, (0, 1, 2))(*given)))(
            images, kernel, bias
        )

    found = value(lambda x, k, b: convolve(x, k, stride, padding, b))
    expected = value(lambda x, k, b: by_xla(x, k, stride, padding) + b)
    assert_close(found, expected)
    assert_close(convolve(images, kernel, stride, padding), by_xla(images, kernel, stride, padding))


def derivative(name, function):
    """Derivatives of all kinds as functions of (images, kernel)."""
    gradient = jax.grad(function, (0, 1))

    def forward(f):
        return lambda x, k: jax.jvp(f, (x, k), (jnp.cos(x), jnp.cos(k)))[1]

    return {
        "jvp": forward(function),
        "gradient": gradient,
        "jvp of gradient": forward(gradient),
        "gradient of jvp": jax.grad(forward(function), (0, 1)),
        "gradient of gradient": jax.grad(
            lambda x, k: sum(jnp.sum(jnp.sin(leaf)) for leaf in gradient(x, k)), (0, 1)
        ),
        "remat": jax.grad(jax.checkpoint(function), (0, 1)),
        "images": jax.vmap(gradient, (0, None)),
        "kernels": jax.vmap(gradient, (None, 0)),
        "seeds": jax.vmap(gradient),
        "axes": jax.vmap(function, (-2, -2)),
        "jvp of seeds": jax.vmap(forward(gradient)),
    }[name]


ONCE = ("jvp", "gradient", "remat", "images", "kernels", "seeds", "axes")
TWICE = ("jvp of gradient", "gradient of jvp", "gradient of gradient", "jvp of seeds")


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *((name, jnp.float32) for name in (*ONCE, *TWICE[2:])),
        *(pytest.param(name, jnp.float32, marks=pytest.mark.slow) for name in TWICE[:2]),
        *(pytest.param(name, jnp.float64, marks=pytest.mark.slow) for name in TWICE),
        # Of bfloat16 no derivative of a derivative: one rounding to 8 bits upon another.
        ("gradient", jnp.bfloat16),
        *(pytest.param(name, jnp.bfloat16, marks=pytest.mark.slow) for name in ("jvp", "seeds")),
    ],
)
def test_every_derivative_and_map_is_that_of_xla(name, dtype):
    with jax.enable_x64(dtype == jnp.float64):
        images, kernel = arrays(3, 7, 6, 4, 5, 3, dtype)
        if name == "axes":
            images, kernel = (jnp.stack([one, 2 * one], -2) for one in (images, kernel))
        images, kernel = (
            jnp.stack([one, 2 * one])
            if name in ("seeds", "jvp of seeds") or name == mapped
            else one
            for one, mapped in ((images, "images"), (kernel, "kernels"))
        )
        found, expected = (
            jax.jit(derivative(name, curved(f, 2, "SAME")))(images, kernel)
            for f in (convolve, by_xla)
        )
        assert_close(found, expected, dtype)


@pytest.mark.parametrize(
    "name",
    [
        "jvp of gradient",
        "seeds",
        *(pytest.param(each, marks=pytest.mark.slow) for each in ("jvp", "gradient", "images")),
    ],
)
def test_derivatives_with_a_bias_are_those_of_xla(name):
    images, kernel = arrays(3, 7, 6, 4, 5, 3)
    if name in ("images", "seeds"):
        images = jnp.stack([images, 2 * images])
    if name == "seeds":
        kernel = jnp.stack([kernel, -kernel])

    def with_bias(function):
        """The bias is a part of the kernel, so that it has derivatives too."""

        def call(x, k, stride, padding):
            return function(x, k, stride, padding, jnp.tanh(k.sum((0, 1, 2))))

        return call

    def plain(x, k, stride, padding, bias):
        return by_xla(x, k, stride, padding) + bias

    found, expected = (
        jax.jit(derivative(name, curved(with_bias(f), 1, "SAME")))(images, kernel)
        for f in (convolve, plain)
    )
    assert_close(found, expected)


def test_nested_maps_keep_their_order():
    images, kernel = arrays(2, 5, 5, 3, 4, 3)
    many = jnp.stack([jnp.stack([images, 2 * images]), jnp.stack([3 * images, 4 * images])])
    kernels = jnp.stack([kernel, -kernel])

    def twice(function):
        inner = jax.vmap(jax.grad(curved(function, 1, "SAME"), (0, 1)), (0, None))
        return jax.jit(jax.vmap(inner))(many, kernels)

    assert_close(twice(convolve), twice(by_xla))


def test_a_scan_over_steps_and_a_loop_over_kernels():
    images, kernel = arrays(2, 6, 6, 3, 3, 3)

    def steps(function):
        def step(x, scale):
            return jnp.tanh(function(x, scale * kernel, 1, "SAME")), x.sum()

        return jax.jit(jax.grad(lambda x: lax.scan(step, x, jnp.arange(1.0, 4))[1].sum()))(images)

    assert_close(steps(convolve), steps(by_xla))


@pytest.mark.parametrize("offset", [1, 3, 7, 13])
def test_arrays_that_begin_anywhere_in_memory(offset):
    images, kernel = arrays(3, 6, 6, 3, 4, 3)
    flat = np.zeros(images.size + offset + 16, np.float32)
    flat[offset : offset + images.size] = np.asarray(images).reshape(-1)
    view = flat[offset : offset + images.size].reshape(images.shape)
    found = jax.jit(lambda x, k: convolve(x, k, 1, "SAME"))(view, kernel)
    assert_close(found, by_xla(images, kernel, 1, "SAME"))


@pytest.mark.parametrize(
    ("batch", "before", "after"),
    [(0, 3, 4), (2, 0, 4), pytest.param(2, 3, 0, marks=pytest.mark.slow)],
)
def test_nothing_gives_nothing_or_zeros(batch, before, after):
    images, kernel = arrays(batch, 6, 6, before, after, 3)
    for function in (convolve, by_xla):
        value = jax.jit(lambda x, k, f=function: f(x, k, 1, "SAME"))(images, kernel)
        assert value.shape == (batch, 6, 6, after)
        assert not np.any(value)
        slopes = jax.jit(jax.grad(curved(function, 1, "SAME"), (0, 1)))(images, kernel)
        assert [slope.shape for slope in slopes] == [images.shape, kernel.shape]
        assert not np.any(slopes[1])


@pytest.mark.slow
def test_ten_threads_at_once():
    works = [arrays(2, 8, 8, 4 + n, 8, 3, seed=n) for n in range(3)]
    alone = [np.asarray(by_xla(*work, 1, "SAME")) for work in works]
    function = jax.jit(lambda x, k: convolve(x, k, 1, "SAME"))
    wrong = []

    def repeat(number):
        for _ in range(20):
            found = np.asarray(function(*works[number % 3]))
            if not np.allclose(found, alone[number % 3], atol=1e-4):
                wrong.append(number)

    threads = [threading.Thread(target=repeat, args=(number,)) for number in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_wrong_shapes_are_refused_before_anything_runs():
    images, kernel = arrays(2, 6, 6, 3, 4, 3)
    with pytest.raises(TypeError, match="last axis"):
        convolve(images[..., :2], kernel, 1, "SAME")


def lowered(*, devices=1, dtype=jnp.float32):
    images, kernel = arrays(4, 6, 6, 3, 4, 3, dtype)
    mesh = jax.make_mesh((devices,), ("data",), (jax.sharding.AxisType.Auto,))
    places = jax.NamedSharding(mesh, jax.P("data")), jax.NamedSharding(mesh, jax.P())
    gradient = jax.grad(curved(convolve, 1, "SAME"), (0, 1))
    return jax.jit(gradient, in_shardings=places).lower(images, kernel)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_library_computes_on_one_device_where_it_is_there(dtype):
    calls = lowered(dtype=dtype).as_text().count("jaxmatch_contract")
    assert (calls >= 3) == (jnp.dtype(dtype).name in onednn.library().dtypes)


def test_xla_computes_on_several_devices_and_in_float64():
    assert "jaxmatch_contract" not in lowered(devices=4).as_text()
    with jax.enable_x64(True):
        assert "jaxmatch_contract" not in lowered(dtype=jnp.float64).as_text()


def test_a_program_for_another_platform_has_no_call():
    images, kernel = arrays(4, 6, 6, 3, 4, 1)
    traced = jax.jit(lambda x, k: convolve(x, k, 1, "SAME")).trace(images, kernel)
    text = traced.lower(lowering_platforms=("tpu",)).as_text()
    assert "jaxmatch_contract" not in text
    assert "stablehlo.convolution" in text


def test_four_devices_agree_with_one():
    images, kernel = arrays(8, 6, 6, 3, 4, 3)

    def gradient(x, _):
        return jax.grad(curved(convolve, 1, "SAME"), (0, 1))(x, kernel)

    assert_same_on_four(gradient, np.asarray(images), tolerance=1e-5)


def wide_gradient(x, k, b):
    curve = lambda k, b: jnp.sum(jnp.sin(convolve(x, k, 2, "SAME", b).astype(jnp.float32)))  # noqa: E731
    return jax.grad(curve, (0, 1))(k, b)


def test_a_wider_kernel_is_rounded_and_its_gradient_is_not():
    images, kernel = arrays(3, 7, 6, 4, 5, 3)
    images, bias = images.astype(jnp.bfloat16), jnp.cos(jnp.arange(5.0))
    narrow = convolve(images, kernel.astype(jnp.bfloat16), 2, "SAME", bias.astype(jnp.bfloat16))
    wide = convolve(images, kernel, 2, "SAME", bias)
    assert wide.dtype == jnp.bfloat16
    np.testing.assert_array_equal(narrow, wide)
    found = jax.jit(wide_gradient)(images, kernel, bias)
    assert [slope.dtype for slope in found] == [jnp.float32, jnp.float32]
    cotangent = jnp.cos(wide.astype(jnp.float32)).astype(jnp.bfloat16).astype(jnp.float32)
    plain = lambda k: by_xla(images.astype(jnp.float32), k, 2, "SAME")  # noqa: E731
    assert_close(found[0], jax.vjp(plain, kernel)[1](cotangent)[0], jnp.bfloat16)
    assert_close(found[1], cotangent.sum((0, 1, 2)))


def test_the_wide_form_of_a_kernels_gradient_is_that_of_xla():
    from jaxmatch.models.contraction import KERNEL, _contract_by_xla

    for size, stride, padding in ((7, 2, "SAME"), (8, 1, "VALID"), (8, 2, ((1, 1), (1, 1)))):
        images, kernel = arrays(3, size, size, 4, 5, 3)
        images = images.astype(jnp.bfloat16)
        wide = lambda k, x=images, s=stride, p=padding: by_xla(x.astype(jnp.float32), k, s, p)  # noqa: E731
        out, pull = jax.vjp(wide, kernel)
        results = jnp.sin(out).astype(jnp.bfloat16)
        around = padding
        if isinstance(padding, str):
            around = lax.padtype_to_pads((size, size), (3, 3), (stride, stride), padding)
        static = {"wanted": KERNEL, "strides": (stride,) * 2, "padding": tuple(around)}
        static |= {"spatial": (3, 3), "precision": None, "dtype": jnp.dtype(jnp.float32)}
        found = _contract_by_xla(images[None], results[None], wide=True, **static)[0]
        assert_close(found, pull(results.astype(jnp.float32))[0])


def test_a_tpu_sums_a_wider_kernels_gradient_in_its_dtype_and_asked_precision():
    images, kernel = arrays(3, 7, 6, 4, 5, 3)
    given = images.astype(jnp.bfloat16), kernel, jnp.ones(5)
    traced = jax.jit(wide_gradient).trace(*given)
    text = traced.lower(lowering_platforms=("tpu",)).as_text()
    assert any(
        "convolution" in line and "-> tensor<3x3x4x5xf32>" in line for line in text.split("\n")
    )
    with jax.default_matmul_precision("highest"):
        traced = jax.jit(jax.grad(curved(convolve, 1, "SAME"), (0, 1))).trace(images, kernel)
    text = traced.lower(lowering_platforms=("tpu",)).as_text()
    lines = [line for line in text.split("\n") if "stablehlo.convolution" in line]
    assert len(lines) == 3
    assert all(line.count("HIGHEST") == 2 for line in lines)


@pytest.mark.slow
def test_gpus_add_a_wider_kernels_gradients_in_its_dtype(monkeypatch):
    images, kernel = arrays(8, 7, 6, 4, 5, 3)
    given = images.astype(jnp.bfloat16), kernel, jnp.ones(5)
    mesh = jax.make_mesh((4,), ("data",), (jax.sharding.AxisType.Auto,))
    places = jax.NamedSharding(mesh, jax.P("data")), *[jax.NamedSharding(mesh, jax.P())] * 2

    def gradients(*given):
        kernels = jnp.stack([given[1], 2 * given[1]])
        return jax.vmap(lambda kernel: wide_gradient(given[0], kernel, given[2])[0])(kernels)

    found = []
    for form in ("cuda", "default"):
        _gradient_apart.cache_clear()
        monkeypatch.setattr(lax, "platform_dependent", lambda *given, **to: to[form](*given))  # noqa: B023
        # Functions of their own, since JAX keeps what it traced.
        for function in (lambda *a: wide_gradient(*a)[0], lambda *a: gradients(*a)):
            lowered = jax.jit(function, in_shardings=places).trace(*given).lower()
            assert ("CustomSPMDPartitioning" in lowered.as_text()) == (form == "cuda")
            compiled = lowered.compile()
            assert ("psum" in str(compiled.as_text())) == (form == "cuda")
            found.append(compiled(*jax.device_put(given, places)))
    _gradient_apart.cache_clear()
    for apart, whole in zip(found[:2], found[2:], strict=True):
        assert apart.dtype == jnp.float32
        assert_close(apart / 10, whole / 10, jnp.bfloat16)
    # On one GPU there is nothing to add.
    traced = jax.jit(wide_gradient).trace(*given)
    assert "CustomSPMDPartitioning" not in traced.lower(lowering_platforms=("cuda",)).as_text()
