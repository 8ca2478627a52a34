"""Predictions are per image: whatever the batch size, the padding and the number of devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import SIDE, TinyNetwork, quick_jit, randomized, toy_images

from jaxmatch.evaluate import accuracy, make_embed, make_predict
from jaxmatch.models.heads import Linear
from jaxmatch.models.network import make_network
from jaxmatch.parallel import make_mesh

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
NETWORK = make_network(TinyNetwork(), shards=4)


@pytest.fixture(scope="module")
def variables():
    made = quick_jit(lambda key: TinyNetwork().init(key, jnp.zeros((1, SIDE, SIDE, 3)), False))(
        jax.random.key(0)
    )
    # One that its training could have left: batch statistics would give other answers.
    var = np.full_like(made["batch_stats"]["norm"]["var"], 2.5)
    return {
        "params": randomized(made["params"], 1),
        "batch_stats": {"norm": {"mean": np.linspace(-1, 1, 6, dtype=np.float32), "var": var}},
    }


def expected(variables, images):
    inputs = ((images / 255 - np.array(MEAN)) / np.array(STD)).astype(np.float32)
    return jax.nn.softmax(TinyNetwork().apply(variables, inputs, False).logits)


@pytest.mark.parametrize(("count", "batch"), [(10, 4), (8, 4), (3, 512), (1, 2), (13, 6)])
def test_every_image_once_in_order(variables, count, batch):
    images = toy_images(count, 3)[0]
    predict = make_predict(NETWORK, MEAN, STD, make_mesh(4), batch)
    probabilities = predict(variables, images)
    assert probabilities.shape == (count, 4)
    np.testing.assert_allclose(probabilities, expected(variables, images), atol=1e-5)


def test_one_device_agrees(variables):
    images = toy_images(10, 3)[0]
    predict = make_predict(make_network(TinyNetwork()), MEAN, STD, make_mesh(1), 4)
    np.testing.assert_allclose(predict(variables, images), expected(variables, images), atol=1e-5)


def test_accuracy_counts_each_image_once(variables):
    images = toy_images(10, 3)[0]
    predict = make_predict(NETWORK, MEAN, STD, make_mesh(4), 4)
    right = np.asarray(expected(variables, images).argmax(-1))
    assert accuracy(predict, variables, images, right) == 1.0
    wrong = right.copy()
    wrong[[0, 4, 9]] += 1  # the first image fills up the last batch, and counts once
    assert accuracy(predict, variables, images, wrong) == 0.7


@pytest.mark.parametrize(("devices", "count"), [(1, 10), (4, 10), (4, 8), (4, 3)])
def test_heads_of_every_image_once_in_order(devices, count):
    model = TinyNetwork(heads={"projection": Linear(5), "other": Linear(2)})
    variables = quick_jit(lambda key: model.init(key, jnp.zeros((1, SIDE, SIDE, 3)), False))(
        jax.random.key(0)
    )
    images = toy_images(count, 3)[0]
    embed = make_embed(make_network(model, devices), MEAN, STD, make_mesh(devices), 4)
    inputs = ((images / 255 - np.array(MEAN)) / np.array(STD)).astype(np.float32)
    heads = model.apply(variables, inputs, False).heads
    found = embed(variables, images)
    assert {name: rows.shape for name, rows in found.items()} == {
        "projection": (count, 5),
        "other": (count, 2),
    }
    for name, rows in found.items():
        np.testing.assert_allclose(rows, heads[name], atol=1e-5)
