"""MixMatch against plain NumPy: value, gradient, ramp, guesses, BatchNorm of mixed images."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    CLASSES,
    SPEC,
    TinyNetwork,
    numpy_cross_entropy,
    numpy_logits,
    numpy_softmax,
    one_hot,
    quick_jit,
    randomized,
    toy_state,
    toy_views,
)
from on_devices import assert_same_on_four
from pools import numpy_mix, numpy_mixing

from jaxmatch.algorithms.mixmatch import MixMatch, mixed_logits
from jaxmatch.errors import InputError
from jaxmatch.models.network import make_network
from jaxmatch.types import Inputs


def numpy_joint(params, views):
    """Logits of views that share their batch statistics."""
    ends = np.cumsum([len(view) for view in views])[:-1]
    return np.split(numpy_logits(params, np.concatenate(views)), ends)


def numpy_interleaved(params, views):
    """Logits of views in passes of 8: x, and every third row of u and of u' from rows 0, 1, 2.

    With one row of each pass but two of the last going to or coming from x's.
    """
    x, u, other = views
    chunks = [x, *(view[number::3] for view in (u, other) for number in range(3))]
    rows = [[0], [1], [2], [3], [4], [5], [6, 7]]

    def exchanged(arrays):
        arrays = [array.copy() for array in arrays]
        for number in range(1, 7):
            at = rows[number]
            arrays[0][at], arrays[number][at] = arrays[number][at], arrays[0][at].copy()
        return arrays

    on_x, *others = exchanged([numpy_logits(params, chunk) for chunk in exchanged(chunks)])
    joined = [np.stack(others[start : start + 3], 1).reshape(24, -1) for start in (0, 3)]
    return [on_x, *joined]


def oracle(params, fixed, batch, mixing, *, weight, forward, temperature=0.5):
    """The loss from its equations; ``fixed`` are the parameters that the guesses come from."""
    views = (*batch.labeled.views, *batch.unlabeled.views)
    guess = np.mean([numpy_softmax(numpy_logits(fixed, view)) for view in views[1:]], 0)
    q = guess ** (1 / temperature)
    q /= q.sum(1, keepdims=True)
    y, *targets = numpy_mix([one_hot(batch.labeled.label), q, q], mixing)
    on_x, *on_u = forward(params, numpy_mix(views, mixing))
    supervised = numpy_cross_entropy(on_x, y).mean()
    difference = numpy_softmax(np.concatenate(on_u)) - np.concatenate(targets)
    return supervised + weight * np.mean(difference**2)


@pytest.mark.parametrize(
    ("batch_norm", "forward", "step", "ramp"),
    [
        ("joint", numpy_joint, 10, 0.5),
        pytest.param("interleave", numpy_interleaved, 90, 1.0, marks=pytest.mark.slow),
    ],
)
def test_value_and_gradient_are_those_of_the_equations(batch_norm, forward, step, ramp):
    with jax.enable_x64(True):
        algorithm = MixMatch(unlabeled_weight=20.0, ramp=0.2, batch_norm=batch_norm)
        state, batch = toy_state(algorithm, jnp.float64, step), toy_views(algorithm)
        draws = numpy_mixing(batch)
        network = make_network(TinyNetwork(param_dtype=jnp.float64))
        (loss, update), gradient = quick_jit(
            jax.value_and_grad(
                lambda params: algorithm.loss(network, params, state, batch, draws, SPEC),
                has_aux=True,
            )
        )(state.params)

    value = partial(
        oracle,
        fixed=state.params,
        batch=batch,
        mixing=draws,
        weight=20 * ramp,
        forward=forward,
    )
    np.testing.assert_allclose(update.metrics["optim/ramp"], ramp, rtol=1e-12)
    np.testing.assert_allclose(loss, value(state.params), rtol=1e-12)

    direction = randomized(jax.tree.map(np.zeros_like, state.params), seed=3, scale=1e-6)
    ahead = value(jax.tree.map(np.add, state.params, direction))
    behind = value(jax.tree.map(np.subtract, state.params, direction))
    slope = sum(map(np.vdot, jax.tree.leaves(gradient), jax.tree.leaves(direction)))
    np.testing.assert_allclose(slope, (ahead - behind) / 2, rtol=1e-4)


def test_running_statistics_are_those_of_the_mixed_images():
    algorithm, network = MixMatch(), make_network(TinyNetwork())
    state, batch = toy_state(algorithm), toy_views(algorithm)
    draws = numpy_mixing(batch)
    loss = quick_jit(partial(algorithm.loss, network, spec=SPEC))
    stats = loss(state.params, state, batch, draws)[1].stats
    views = numpy_mix((*batch.labeled.views, *batch.unlabeled.views), draws)
    _, expected = quick_jit(network)(state.student(), tuple(map(np.float32, views)))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5), stats, expected)


@pytest.mark.slow
def test_guesses_are_sharper_than_predictions():
    algorithm, network = MixMatch(temperature=0.5), make_network(TinyNetwork())
    state, batch = toy_state(algorithm), toy_views(algorithm)
    plain = MixMatch(temperature=1.0)
    sharp, unsharpened = (
        quick_jit(
            lambda state, batch, method=method: method.guess(
                Inputs(network, state.params, state, batch, (), SPEC)
            )
        )(state, batch)
        for method in (algorithm, plain)
    )
    np.testing.assert_allclose(sharp.sum(1), 1, rtol=1e-6)
    np.testing.assert_array_equal(sharp.argmax(1), unsharpened.argmax(1))
    assert (sharp.max(1) >= unsharpened.max(1)).all()


def test_interleaved_passes_on_several_devices():
    algorithm, network = MixMatch(), make_network(TinyNetwork())
    state = toy_state(algorithm)
    batch = toy_views(algorithm)
    views = [np.float32(view) for view in (*batch.labeled.views, *batch.unlabeled.views)]

    def logits(views, state):
        given = Inputs(network, state.params, state, batch, (), SPEC)
        return mixed_logits(given, views, "interleave")

    assert_same_on_four(logits, views, state, tolerance=1e-5)


@pytest.mark.slow
def test_weights_are_drawn_for_each_example():
    algorithm = MixMatch()
    batch = toy_views(algorithm)
    draws = quick_jit(algorithm.draw)(jax.random.key(0), batch)
    assert [len(weight) for weight in draws.weight] == [8, 24, 24]
    assert len(np.unique(np.concatenate(draws.weight))) == 56
    assert sorted(np.concatenate(draws.partner)) == list(range(56))


@pytest.mark.slow
def test_one_hot_guesses_stay_finite():
    algorithm = MixMatch(temperature=0.01)
    state, batch = toy_state(algorithm, step=90), toy_views(algorithm)
    params = jax.tree.map(lambda leaf: 1e3 * leaf, state.params)
    draws = numpy_mixing(batch)
    network = make_network(TinyNetwork())
    loss = lambda params: algorithm.loss(network, params, state, batch, draws, SPEC)[0]  # noqa: E731
    value, gradient = quick_jit(jax.value_and_grad(loss))(params)
    assert np.isfinite(value)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    assert batch.labeled.label.max() < CLASSES


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"alpha": 0.0}, "algorithm.alpha=0.0 must be above 0"),
        ({"temperature": 0.0}, "algorithm.temperature=0.0 must be above 0"),
        ({"batch_norm": "interleaved"}, "unknown algorithm.batch_norm 'interleaved'; did you mean"),
    ],
)
def test_bad_settings(options, reason):
    with pytest.raises(InputError, match=reason):
        MixMatch(**options)
