"""Predictions are per image: whatever the batch size, the padding and the number of devices."""

import logging
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import SIDE, TinyNetwork, quick_jit, randomized, toy_images
from ml_collections import ConfigDict
from PIL import Image

from jaxmatch.data.lazy import SUBSTITUTES, Files, LazyImages
from jaxmatch.errors import InputError
from jaxmatch.evaluation import forward
from jaxmatch.evaluation.forward import make_embed, make_features, make_logits
from jaxmatch.evaluation.metrics import score
from jaxmatch.models.heads import Linear
from jaxmatch.models.network import make_network
from jaxmatch.runtime.mesh import make_mesh, over_batch

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
NETWORK = make_network(TinyNetwork(), shards=4)


def nightly(*cases):
    """Cases of one program that is compiled anew for each of them."""
    return [pytest.param(*case, marks=pytest.mark.slow) for case in cases]


def program(network=NETWORK, devices=4, strict=False):
    """What of a Program the functions read."""
    return SimpleNamespace(
        network=network,
        mean=MEAN,
        std=STD,
        mesh=make_mesh(devices),
        config=ConfigDict({"data": {"strict": strict}}),
    )


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


def make_predict(of, batch=forward.BATCH):
    logits = make_logits(of, batch)
    return lambda variables, images: forward.probabilities(logits(variables, images))


def expected(variables, images):
    inputs = ((images / 255 - np.array(MEAN)) / np.array(STD)).astype(np.float32)
    return jax.nn.softmax(TinyNetwork().apply(variables, inputs, False).logits)


@pytest.mark.parametrize(("count", "batch"), [(10, 4), *nightly((8, 4), (3, 512), (1, 2), (13, 6))])
def test_every_image_once_in_order(variables, count, batch):
    images = toy_images(count, 3)[0]
    predict = make_predict(program(), batch)
    probabilities, readable = predict(variables, images)
    assert readable.all()
    assert probabilities.shape == (count, 4)
    np.testing.assert_allclose(probabilities, expected(variables, images), atol=1e-5)


def test_one_device_agrees(variables):
    images = toy_images(10, 3)[0]
    predict = make_predict(program(make_network(TinyNetwork()), 1), 4)
    np.testing.assert_allclose(
        predict(variables, images).values, expected(variables, images), atol=1e-5
    )


def test_accuracy_counts_each_image_once(variables):
    images = toy_images(10, 3)[0]
    predict = make_predict(program(), 4)
    right = np.asarray(expected(variables, images).argmax(-1))
    assert score(predict(variables, images), right, ["accuracy"]) == {"accuracy": 1.0}
    wrong = right.copy()
    wrong[[0, 4, 9]] += 1  # the first image fills up the last batch, and counts once
    assert score(predict(variables, images), wrong, ["accuracy"]) == {"accuracy": 0.7}


@pytest.mark.parametrize(("devices", "count"), [(4, 10), *nightly((1, 10), (4, 8), (4, 3))])
def test_heads_of_every_image_once_in_order(devices, count):
    model = TinyNetwork(heads={"projection": Linear(5), "other": Linear(2)})
    variables = quick_jit(lambda key: model.init(key, jnp.zeros((1, SIDE, SIDE, 3)), False))(
        jax.random.key(0)
    )
    images = toy_images(count, 3)[0]
    embed = make_embed(program(make_network(model, devices), devices), 4)
    inputs = ((images / 255 - np.array(MEAN)) / np.array(STD)).astype(np.float32)
    heads = model.apply(variables, inputs, False).heads
    found = embed(variables, images)
    assert {name: rows.shape for name, rows in found.items()} == {
        "projection": (count, 5),
        "other": (count, 2),
    }
    for name, rows in found.items():
        np.testing.assert_allclose(rows, heads[name], atol=1e-5)


@pytest.mark.parametrize(
    ("devices", "count", "batch"), [*nightly((1, 10, 4), (4, 10, 4)), (4, 13, 8)]
)
def test_features_stay_on_the_devices_in_order(variables, devices, count, batch):
    images, of = toy_images(count, 3)[0], program(make_network(TinyNetwork(), devices), devices)
    found = make_features(of, batch, spread=True)(variables, images).values
    assert found.sharding.is_equivalent_to(over_batch(of.mesh), 2)
    assert len(found) == -(-count // devices) * devices
    whole = make_features(of, batch)(variables, images).values
    np.testing.assert_allclose(found[:count], whole, atol=1e-5)


DAMAGED = (2, 3, 9)


@pytest.fixture
def files(tmp_path):
    """Ten images as files, of which some are damaged, missing or empty; and all of them intact."""
    levels = toy_images(10, 3)[0]
    for number, image in enumerate(levels):
        Image.fromarray(image).save(tmp_path / f"{number}.png")
    (tmp_path / "2.png").write_bytes((tmp_path / "2.png").read_bytes()[:60])
    (tmp_path / "3.png").unlink()
    (tmp_path / "9.png").write_bytes(b"")
    records = Files(root=tmp_path, paths=tuple(f"{number}.png" for number in range(10)))
    return LazyImages(records=records, rows=np.arange(10), size=(SIDE, SIDE)), levels


@pytest.mark.parametrize("batch", [4, 500])
def test_unreadable_images_do_not_count_and_are_named_once(variables, files, caplog, batch):
    lazy, levels = files
    predict = make_predict(program(), batch)
    right = np.asarray(expected(variables, levels).argmax(-1))
    labels = right.copy()
    labels[[0, 2]] += 1  # of the seven readable ones the first is wrong
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert score(predict(variables, lazy), labels, ["accuracy"]) == {"accuracy": 6 / 7}
    found = predict(variables, lazy)
    assert np.flatnonzero(~found.readable).tolist() == list(DAMAGED)
    whole = np.asarray(expected(variables, levels))
    np.testing.assert_allclose(found.values[found.readable], whole[found.readable], atol=1e-5)
    for number in DAMAGED:
        assert caplog.text.count(lazy.records.name(number)) == 1
    assert caplog.text.count("Left out, not readable as images") == 1


def test_unreadable_images_are_refused_where_strict(variables, files):
    lazy, _ = files
    for make in (make_logits, make_features, make_embed):
        compute = make(program(strict=True), 4)
        with pytest.raises(
            InputError, match=r"Not readable .*truncated: .*2\.png; .*3\.png; empty file: .*9\.png"
        ):
            compute(variables, lazy)
        compute(variables, lazy[np.array([0, 1, 4])])


def test_a_set_that_is_gone_is_an_error(variables, tmp_path):
    records = Files(root=tmp_path, paths=tuple(f"{number}.png" for number in range(5)))
    lazy = LazyImages(records=records, rows=np.arange(5), size=(SIDE, SIDE))
    with pytest.raises(InputError, match=r"All 5 images are not readable; is the data set still"):
        make_predict(program())(variables, lazy)
    with pytest.raises(InputError, match=rf"{SUBSTITUTES} images from .*0\.png on are not"):
        make_embed(program())(variables, lazy)


def test_embeddings_of_unreadable_images_are_those_of_the_next(files, caplog):
    lazy, levels = files
    model = TinyNetwork(heads={"projection": Linear(5)})
    variables = quick_jit(lambda key: model.init(key, jnp.zeros((1, SIDE, SIDE, 3)), False))(
        jax.random.key(0)
    )
    embed = make_embed(program(make_network(model, 4)), 4)
    with caplog.at_level(logging.WARNING):
        found, _ = (embed(variables, lazy)["projection"] for _ in range(2))
    whole = embed(variables, levels)["projection"]
    np.testing.assert_allclose(found, whole[[0, 1, 4, 4, 4, 5, 6, 7, 8, 0]], atol=1e-5)
    assert caplog.text.count("Replaced by the next ones") == 1
    for number in DAMAGED:
        assert caplog.text.count(lazy.records.name(number)) == 1
