"""SimCLR v2 against its equation in NumPy, with a head of three normalised layers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from embeddings import slope_along, unit
from helpers import SPEC, TinyNetwork, numpy_logits, quick_jit, randomized, toy_state, toy_views

from jaxmatch.algorithms.simclr_v2 import SimCLRv2
from jaxmatch.errors import InputError
from jaxmatch.models.network import make_network

ALGORITHM = SimCLRv2(temperature=0.3, projection=5)


def standardised(x):
    return (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5)


def embeddings(params, views):
    """The unit projections [2b d] of both views, which share every BatchNorm batch."""
    width = len(params["classifier"]["kernel"])
    identity = {"kernel": np.eye(width), "bias": np.zeros(width)}
    x = numpy_logits({**params, "classifier": identity}, np.concatenate(views))
    head = params["projection"]
    for layer in ("hidden1", "hidden2"):
        norm = head[f"{layer}_norm"]
        x = standardised(x @ head[layer]["kernel"]) * norm["scale"] + norm["bias"]
        x = np.maximum(x, 0)
    return unit(standardised(x @ head["output"]["kernel"]) * head["output_norm"]["scale"])


def oracle(z, temperature):
    """Mean cross-entropy of finding each view's other one among all that are not itself."""
    similarity = np.exp(z @ z.T / temperature)
    np.fill_diagonal(similarity, 0)
    other = np.roll(np.arange(len(z)), len(z) // 2)
    return -np.log(similarity[np.arange(len(z)), other] / similarity.sum(1)).mean()


def test_value_and_gradient_are_those_of_the_equation():
    with jax.enable_x64(True):
        state, batch = toy_state(ALGORITHM, jnp.float64), toy_views(ALGORITHM)
        model = TinyNetwork(heads=ALGORITHM.heads, param_dtype=jnp.float64)
        network = make_network(model, shards=2)
        (loss, update), gradient = quick_jit(
            jax.value_and_grad(
                lambda params: ALGORITHM.loss(network, params, state, batch, (), SPEC), has_aux=True
            )
        )(state.params)

    def value(params):
        return oracle(embeddings(params, batch.unlabeled.views), 0.3)

    np.testing.assert_allclose(loss, value(state.params), rtol=1e-10)
    assert update.metrics["loss/contrastive"] == loss
    assert set(state.params["projection"]["output"]) == {"kernel"}
    direction = randomized(jax.tree.map(np.zeros_like, state.params), seed=3, scale=1e-6)
    slope = sum(map(np.vdot, jax.tree.leaves(gradient), jax.tree.leaves(direction)))
    np.testing.assert_allclose(slope, slope_along(value, state.params, direction), rtol=1e-4)
    assert np.any(gradient["projection"]["hidden1"]["kernel"])
    assert not np.any(gradient["classifier"]["kernel"])


def test_a_temperature_of_zero_is_refused():
    with pytest.raises(InputError, match=r"algorithm.temperature=0 must be above 0"):
        SimCLRv2(temperature=0)


def test_it_reads_no_labels_and_reports_the_student():
    assert ALGORITHM.labeled == ()
    assert ALGORITHM.evaluated == "student"
    assert toy_views(ALGORITHM).labeled is None
