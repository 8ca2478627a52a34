"""The supervised baseline against plain NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
from helpers import (
    SPEC,
    TinyNetwork,
    numpy_cross_entropy,
    numpy_logits,
    one_hot,
    quick_jit,
    toy_state,
    toy_views,
)

from jaxmatch.algorithms.supervised import Supervised
from jaxmatch.models.network import make_network


def test_loss_is_that_of_the_equation():
    with jax.enable_x64(True):
        algorithm = Supervised()
        state, batch = toy_state(algorithm, jnp.float64), toy_views(algorithm)
        network = make_network(TinyNetwork(param_dtype=jnp.float64))
        loss, update = quick_jit(
            lambda params: algorithm.loss(network, params, state, batch, (), SPEC)
        )(state.params)
    (x,), label = batch.labeled.views, batch.labeled.label
    expected = numpy_cross_entropy(numpy_logits(state.params, x), one_hot(label)).mean()
    np.testing.assert_allclose(loss, expected, rtol=1e-12)
    assert update.metrics == {"loss/supervised": loss}
    assert update.memory == ()


def test_asks_for_labeled_images_only():
    assert Supervised().labeled == ("weak",)
    assert Supervised().unlabeled == ()
