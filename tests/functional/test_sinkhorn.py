"""Sinkhorn's assignments against plain NumPy, recorded values and their marginals."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import quick_jit
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from on_devices import assert_same_on_four

from jaxmatch.errors import InputError
from jaxmatch.functional.sinkhorn import sinkhorn

BATCH, PROTOTYPES, EARLIER = 8, 5, 6
GOLDEN = Path(__file__).parents[1] / "golden" / "solo_swav.npz"
jit_sinkhorn = quick_jit(sinkhorn, static_argnums=(1, 2))


def scores_of(seed, rows=BATCH, scale=0.3):
    return np.random.default_rng(seed).normal(0, scale, (rows, PROTOTYPES)).astype(np.float32)


def numpy_sinkhorn(scores, epsilon, iterations):
    """SwAV's listing 1 in float64, prototypes by columns."""
    shares = np.exp((scores - scores.max()).astype(np.float64) / epsilon)
    for _ in range(iterations):
        shares = shares / shares.sum(0)
        shares = shares / shares.sum(1, keepdims=True)
    return shares


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), shift=st.sampled_from((0.0, 3.0, -40.0)))
def test_it_is_the_iteration_of_the_paper(seed, shift):
    scores = scores_of(seed)
    found = jit_sinkhorn(scores + np.float32(shift), 0.25, 3)
    np.testing.assert_allclose(found, numpy_sinkhorn(scores, 0.25, 3), rtol=2e-3, atol=1e-5)
    np.testing.assert_allclose(found.sum(1), 1, rtol=1e-5)


def test_recorded_assignments():
    case = np.load(GOLDEN)
    with jax.enable_x64(True):
        for tag in ("0", "1", "2"):
            scores, epsilon, iterations = (
                case[f"in/sinkhorn/{tag}/{name}"] for name in ("scores", "epsilon", "num_iters")
            )
            found = jit_sinkhorn(scores, float(epsilon), int(iterations))
            np.testing.assert_allclose(
                found, case[f"out/sinkhorn/{tag}/assignment"], rtol=1e-10, atol=1e-14
            )


@pytest.mark.slow
def test_columns_sum_alike_in_the_end():
    found = jit_sinkhorn(scores_of(0), 0.25, 60)
    np.testing.assert_allclose(found.sum(0), BATCH / PROTOTYPES, rtol=1e-4)
    np.testing.assert_allclose(found.sum(1), 1, rtol=1e-5)


@pytest.mark.parametrize("scale", [1e3, 1e6])
def test_large_scores_stay_finite(scale):
    found = jit_sinkhorn(scores_of(1, scale=scale), 0.05, 3)
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found.sum(1), 1, rtol=1e-5)


def test_equal_scores_mean_equal_shares():
    found = jit_sinkhorn(np.full((BATCH, PROTOTYPES), 1e4, np.float32), 0.05, 3)
    np.testing.assert_allclose(found, 1 / PROTOTYPES, rtol=1e-6)


def test_the_valid_rows_of_a_queue_count_as_if_they_were_in_the_batch():
    batch, queue = scores_of(2), scores_of(3, EARLIER)
    valid = np.arange(EARLIER) != 1
    together = jit_sinkhorn(np.concatenate([batch, queue[valid]]), 0.05, 3)
    apart = jit_sinkhorn(batch, 0.05, 3, queue, valid)
    np.testing.assert_allclose(apart, together[:BATCH], rtol=1e-4, atol=1e-7)
    alone = jit_sinkhorn(batch, 0.05, 3)
    np.testing.assert_allclose(jit_sinkhorn(batch, 0.05, 3, queue, False), alone, rtol=1e-6)
    assert np.abs(apart - alone).max() > 0.01


@pytest.mark.parametrize(
    "earlier",
    [
        *(pytest.param(rows, marks=pytest.mark.slow) for rows in (1, BATCH - 1, BATCH, 2 * BATCH)),
        2 * BATCH + 3,
    ],
)
def test_a_queue_of_any_length_counts_whole(earlier):
    batch, queue = scores_of(2), scores_of(3, earlier)
    together = jit_sinkhorn(np.concatenate([batch, queue]), 0.05, 3)
    apart = jit_sinkhorn(batch, 0.05, 3, queue)
    np.testing.assert_allclose(apart, together[:BATCH], rtol=1e-4, atol=1e-7)


def test_devices_share_the_rows_of_a_queue():
    mesh = jax.make_mesh((4,), ("data",), (AxisType.Auto,))
    split, whole = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
    earlier = 16 * BATCH
    call = jax.jit(sinkhorn, static_argnums=(1, 2), in_shardings=(split, whole))
    shapes = [jax.ShapeDtypeStruct((rows, PROTOTYPES), jnp.float32) for rows in (BATCH, earlier)]
    text = call.lower(shapes[0], 0.05, 3, shapes[1]).compile().as_text()
    assert f"f32[{BATCH // 4},16,{PROTOTYPES}]" in text
    assert f"f32[{BATCH},16,{PROTOTYPES}]" not in text


def test_half_precision_is_computed_in_single_and_no_gradient_passes():
    scores = jnp.asarray(scores_of(4), jnp.bfloat16)
    assert sinkhorn(scores).dtype == jnp.float32
    assert not jax.grad(lambda scores: jnp.square(sinkhorn(scores)).sum())(scores).any()


def test_device_count():
    def assignments(batch, queue):
        return sinkhorn(batch, 0.05, 3, queue)

    assert_same_on_four(assignments, scores_of(5), scores_of(6, EARLIER), tolerance=1e-5)


@pytest.mark.parametrize("bad", [{"epsilon": 0.0}, {"epsilon": -1.0}, {"iterations": 0}])
def test_bad_settings_are_refused(bad):
    with pytest.raises(InputError, match="positive epsilon and at least 1 iteration"):
        sinkhorn(jnp.zeros((2, 2)), **bad)
