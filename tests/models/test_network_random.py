"""Draws of a network in training: one for each image, whatever else sees the batch with it."""

import re
from functools import partial
from itertools import combinations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_close, quick_jit

from jaxmatch.errors import InputError
from jaxmatch.models.network import make_network
from jaxmatch.models.vit import ViT
from jaxmatch.runtime.mesh import make_mesh, over_batch, replicated
from jaxmatch.step import with_keys
from jaxmatch.types import Target

MODEL = ViT(classes=3, patch=4, width=8, depth=3, heads=2, drop_path=0.7)
IMAGES = np.random.default_rng(0).normal(size=(8, 8, 8, 3)).astype(np.float32)
VIEWS = (IMAGES, IMAGES, IMAGES[:4])
KEY = jax.random.key(5)


@pytest.fixture(scope="module")
def given():
    """Variables none of which is near 0; nothing is compiled for them."""
    noise = np.random.default_rng(1)

    def value(path, leaf):
        start = 1.0 if path[-1].key == "scale" else 0.0
        return (start + 0.3 * noise.normal(size=leaf.shape)).astype(np.float32)

    shapes = jax.eval_shape(lambda: MODEL.init(KEY, IMAGES[:1], train=False)["params"])
    return {"params": jax.tree_util.tree_map_with_path(value, shapes), "batch_stats": {}}


def logits(network, given, views=VIEWS, train=True, key=KEY):
    def run(given, views, key):
        outputs, stats = network(given, views, train, key)
        assert stats == {}
        return [output.logits for output in outputs]

    return quick_jit(run)(given, views, key)


def test_each_view_and_each_image_has_its_own(given):
    first, second, short = logits(make_network(MODEL), given)
    evaluated = logits(make_network(MODEL), given, train=False)
    np.testing.assert_allclose(evaluated[0], evaluated[1], atol=1e-6)
    for one, other in ((first, second), (first[:4], short), (second[:4], short)):
        assert (np.abs(one - other).max(1) > 1e-4).any()
    alike = np.broadcast_to(IMAGES[:1], IMAGES.shape)
    (seen,) = logits(make_network(MODEL), given, (alike,))
    assert len(np.unique(np.round(seen, 4), axis=0)) > 3


def test_the_draws_are_those_of_the_model_for_each_view(given):
    (ours,) = logits(make_network(MODEL), given, (IMAGES,))
    draws = MODEL.draw(jax.random.fold_in(KEY, 0), len(IMAGES))
    theirs = quick_jit(
        lambda params: MODEL.apply({"params": params}, IMAGES, train=True, draws=draws).logits
    )(given["params"])
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"shards": 4}, marks=pytest.mark.slow),
        pytest.param({"microbatches": 2}, marks=pytest.mark.slow),
        {"shards": 2, "microbatches": 2},
        pytest.param({"microbatches": 4, "unroll": True}, marks=pytest.mark.slow),
        pytest.param({"forward": "split"}, marks=pytest.mark.slow),
        pytest.param({"forward": "separate"}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_how_the_batch_passes_changes_no_draw(given, options):
    views = (VIEWS[0], Target(VIEWS[1]), VIEWS[2])
    expected = logits(make_network(MODEL), given, views)
    assert_close(logits(make_network(MODEL, **options), given, views), expected, 1e-5)


# With the gradient it takes twice as long.
@pytest.mark.parametrize("derive", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_devices_draw_the_same_and_exchange_no_images(given, derive):
    found = []
    for devices in (1, 4):
        mesh, network = make_mesh(devices, 4), make_network(MODEL, devices)

        def loss(params, views, key, network=network):
            outputs, _ = network({**given, "params": params}, views, True, key)
            return sum(jnp.square(output.logits).sum() for output in outputs)

        places = (replicated(mesh), over_batch(mesh), replicated(mesh))
        function = jax.value_and_grad(loss) if derive else loss
        lowered = quick_jit(function, in_shardings=places).lower(given["params"], VIEWS, KEY)
        compiled = lowered.compile()
        text = compiled.as_text()
        assert not re.search(r" (?:all-to-all|collective-permute|all-gather)(?:-start)?\(", text)
        placed = map(jax.device_put, (given["params"], VIEWS, KEY), places)
        found.append(jax.device_get(compiled(*placed)))
    assert_close(found[1], found[0], 1e-5)


@pytest.mark.slow
def test_a_map_over_keys_gives_what_each_key_gives(given):
    network, keys = make_network(MODEL), jax.random.split(KEY, 2)

    def run(key):
        return network(given, IMAGES, True, key)[0].logits

    together = quick_jit(jax.vmap(run))(keys)
    alone = quick_jit(run)
    assert_close(list(together), [alone(key) for key in keys], 1e-5)
    assert np.abs(together[0] - together[1]).max() > 1e-3


def test_each_call_of_a_step_is_given_its_own_key():
    network = with_keys(lambda variables, views, train, key: (key, {}), KEY)
    keys = [network({}, IMAGES, train)[0] for train in (True, False, True)]
    assert keys[1] is None
    for number, key in enumerate(keys[::2]):
        assert key == jax.random.fold_in(KEY, number)


@pytest.mark.slow
def test_each_call_of_a_step_has_its_own_draws(given):
    def run(key):
        network = with_keys(make_network(MODEL), key)
        first, evaluated, second = (
            network(given, IMAGES, train)[0].logits for train in (True, False, True)
        )
        return first, second, evaluated

    once = quick_jit(run)
    found, again = once(KEY), once(KEY)
    assert_close(found, again, 0)
    for one, other in combinations(found, 2):
        assert np.abs(one - other).max() > 1e-3
    alone = quick_jit(partial(make_network(MODEL), train=True))
    for number, output in enumerate(found[:2]):
        key = jax.random.fold_in(KEY, number)
        assert_close(output, alone(given, IMAGES, key=key)[0].logits, 1e-5)


def test_training_without_a_key_is_refused(given):
    with pytest.raises(InputError, match="draws random numbers in training"):
        make_network(MODEL)(given, IMAGES)
    without = make_network(MODEL.clone(drop_path=0.0))
    trained, evaluated = (logits(without, given, VIEWS[:1], train, None) for train in (True, False))
    np.testing.assert_allclose(trained[0], evaluated[0], atol=1e-6)
