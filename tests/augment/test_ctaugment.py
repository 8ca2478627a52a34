"""CTAugment: what is drawn, what is done to the images, and what is learned."""

import json
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_close, quick_jit
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from experiments.parity import augment as parity
from jaxmatch.augment.ctaugment import BINS, METHODS, NAMES, CTAugment, Draws, describe
from jaxmatch.augment.pixels.resize import zoom
from jaxmatch.errors import InputError

GOLDEN = Path(__file__).parents[1] / "golden" / "augment"
PARAMETERS = [(name, parameter) for name, bins in BINS.items() for parameter in bins]
MANY = (6000, 32, 32, 3)
DEFAULT = CTAugment()
DRAW = quick_jit(DEFAULT.draw, static_argnums=2)
APPLY = quick_jit(DEFAULT.apply)
UPDATE = quick_jit(DEFAULT.update)
ZOOM = quick_jit(partial(zoom, names=METHODS))


def images(*shape):
    return np.random.default_rng(0).integers(0, 256, (*shape, 3)).astype(np.uint8)


def drawn(policy=None, shape=MANY, seed=0):
    policy = DEFAULT.init() if policy is None else policy
    return jax.device_get(DRAW(policy, jax.random.key(seed), shape))


def made(ops, centre=(0, 0), box=(0, 0, 0, 0)):
    """Draws for one op on each image: ``ops`` are triples (name, first level, second level)."""
    n = len(ops)
    return Draws(
        jnp.array([[NAMES.index(name)] for name, *_ in ops], jnp.int32),
        jnp.array([[levels] for _, *levels in ops], jnp.float32),
        jnp.array([[centre]] * n, jnp.int32),
        jnp.array([box] * n, jnp.int32),
    )


class Weaker(CTAugment):
    def _layer(self, levels, op, level, centre):
        return super()._layer(levels, op, 0.9 * level, centre)


@pytest.mark.slow
def test_the_recorded_comparison_notices_a_change(monkeypatch):
    monkeypatch.setattr(parity, "_CTA_VIEW", quick_jit(Weaker().apply))
    rows = parity.replay(GOLDEN / "cta_ops.npz")
    passed = {row.quantity for row in rows if row.passed}
    assert passed == {"translate_x 32", "translate_y 32"}  # the identity at any level


def test_nineteen_ops_and_their_bins():
    assert len(NAMES) == 19
    counts = [BINS[name][parameter] for name, parameter in PARAMETERS]
    assert sorted(counts) == [6, 8, *[17] * 17]
    assert BINS["identity"] == {}
    assert BINS["rescale"] == {"crop": 17, "method": 6}
    policy = DEFAULT.init()
    assert [(name, parameter) for name in policy for parameter in policy[name]] == PARAMETERS
    assert all(np.all(leaf == 1) for leaf in jax.tree.leaves(policy))


def test_the_first_policy_is_uniform():
    draws = drawn()
    assert draws.op.shape == (6000, 2)
    share = np.stack([(draws.op == i).mean(0) for i in range(19)])
    assert np.abs(share - 1 / 19).max() < 5 * np.sqrt(1 / 19 / 6000)
    assert abs((draws.op[:, 0] == draws.op[:, 1]).mean() - 1 / 19) < 0.015
    for name in NAMES:
        level = draws.level[draws.op == NAMES.index(name)]
        assert level.min() >= 0
        assert level.max() <= 1
        # The largest distance between the distribution functions: 1.95 / sqrt(n) is one in 1000.
        for each in level.T:
            ranks = (np.arange(len(each)) + 0.5) / len(each)
            assert np.abs(np.sort(each) - ranks).max() < 2.3 / np.sqrt(len(each))
    assert abs(np.corrcoef(draws.level[:, 0].T)[0, 1]) < 0.06


@pytest.mark.slow
def test_learned_bins_are_drawn_by_their_rates():
    policy = DEFAULT.init()
    weights = np.linspace(0.9, 0.5, 17)
    policy["rotate"]["degrees"] = jnp.asarray(weights)
    policy["rescale"]["method"] = jnp.array([0.5, 0.0, 0.5, 0.45, 0.39, 0.5])
    draws = drawn(policy, (40000, 8, 8, 3))

    rate = (weights + 0.01) / (weights + 0.01).max()
    rate[rate < 0.8] = 0
    assert 0 < (rate == 0).sum() < 17
    level = draws.level[draws.op == NAMES.index("rotate")][:, 0]
    share = np.bincount((level * 17).astype(int), minlength=17) / len(level)
    assert (share[rate == 0] == 0).all()
    np.testing.assert_allclose(share, rate / rate.sum(), atol=0.02)
    within = level * 17 % 1
    assert abs(within.mean() - 0.5) < 0.02

    method = draws.level[draws.op == NAMES.index("rescale")][:, 1]
    rate = np.array([0.51, 0, 0.51, 0.46, 0, 0.51])  # 0.40 is below 0.8 * 0.51
    share = np.bincount((method * 6).astype(int), minlength=6) / len(method)
    np.testing.assert_allclose(share, rate / rate.sum(), atol=0.03)
    crop = draws.level[draws.op == NAMES.index("rescale")][:, 0]
    assert abs(crop.mean() - 0.5) < 0.02


def test_values_by_hand():
    level = jnp.array([0.0, 0.5, 1.0])
    expected = {
        "autocontrast": (0, 0.5, 1),
        "brightness": (0.1, 1.05, 2.0),
        "sharpness": (0.1, 1.05, 2.0),
        "posterize": (1, 4, 8),
        "rotate": (-45, 0, 45),
        "shear_x": (-0.3, 0, 0.3),
        "solarize": (0, 127, 255),
        "translate_x": (-0.3, 0, 0.3),
    }
    for name, values in expected.items():
        found = DEFAULT.value(name, level, (20, 40))
        np.testing.assert_allclose(found, values, rtol=1e-6, atol=1e-7)
    fraction = CTAugment(cta_translate="fraction")
    assert fraction.value("translate_x", jnp.ones(()), (20, 40)) == pytest.approx(12)
    assert fraction.value("translate_y", jnp.ones(()), (20, 40)) == pytest.approx(6)
    assert DEFAULT.value("rotate", jnp.float32(0.51), (8, 8)) == 1  # whole degrees


@pytest.mark.slow
def test_translations_are_the_identity_unless_asked_for():
    image = images(24, 32)
    ops = [(f"translate_{axis}", level, 0.0) for axis in "xy" for level in (0.0, 0.3, 1.0)]
    batch, draws = np.stack([image] * len(ops)), made(ops)
    np.testing.assert_array_equal(APPLY(batch, draws), batch)
    moved = quick_jit(CTAugment(cta_translate="fraction").apply)(batch, draws)
    # Of 32 columns and 24 rows, 9.6 and 7.2 to either side, and 40 percent of those.
    for ours, (down, right) in zip(
        moved, [(0, 10), (0, 4), (0, -10), (7, 0), (3, 0), (-7, 0)], strict=True
    ):
        expected = np.zeros_like(image)
        to, origin = (
            tuple(slice(max(sign * each, 0), size + min(sign * each, 0)) for each, size in sides)
            for sign, sides in (
                (1, [(down, 24), (right, 32)]),
                (-1, [(down, 24), (right, 32)]),
            )
        )
        expected[to] = image[origin]
        np.testing.assert_array_equal(ours, expected)


def pillow_rescale(image, crop, method):
    """FixMatch's op in Pillow: a share of ``crop`` / 4 cut off every side, then resized back."""
    height, width = image.shape[:2]
    share = crop / 4
    box = (share * width, share * height, width * (1 - share), height * (1 - share))
    resample = Image.Resampling[METHODS[int(5.99 * method)].upper()]
    return np.asarray(Image.fromarray(image).crop(box).resize((width, height), resample))


@pytest.mark.slow
@pytest.mark.parametrize("size", [(32, 16), (20, 28)])
def test_zoom_equals_pillow_with_a_method_of_each_image(size):
    random = np.random.default_rng(2)
    batch, crop, method = images(120, *size), *random.uniform(0, 1, (2, 120))
    margin = np.rint(crop[:, None] / 4 * np.array(size)).astype(np.int32)
    index = (5.99 * method).astype(np.int32)
    planes = np.moveaxis(batch, -1, 0).astype(np.int32)
    ours = ZOOM(planes, margin, index)
    assert ours.dtype == jnp.int32
    theirs = [pillow_rescale(*one) for one in zip(batch, crop, method, strict=True)]
    difference = np.abs(np.moveaxis(np.asarray(ours), 0, -1) - np.stack(theirs).astype(int))
    assert np.mean(difference == 0) > 0.9999
    assert difference.max() <= 1
    still = ZOOM(planes, np.zeros_like(margin), index)
    np.testing.assert_array_equal(still, planes)


def cut_out(image, top, left, bottom, right):
    image = image.copy()
    image[max(top, 0) : bottom, max(left, 0) : right] = 127
    return image


def by_hand(image, draws):
    """The view of one image [h w 3], op after op, with Pillow's resizing."""
    for op, (first, second), centre in zip(draws.op, draws.level, draws.centre, strict=True):
        if NAMES[op] == "rescale":
            image = pillow_rescale(image, float(first), float(second))
        elif NAMES[op] == "cutout":
            half = (1 + int(first * min(image.shape[:2]) * 0.499)) // 2
            image = cut_out(image, *centre - half, *centre + half)
        elif NAMES[op] == "posterize":
            dropped = 7 - int(7.999 * first)
            image = image >> dropped << dropped
    return cut_out(image, *draws.box)


def test_a_whole_view_is_its_ops_one_after_another():
    wanted = [NAMES.index(name) for name in ("rescale", "cutout", "identity", "posterize")]
    op = np.random.default_rng(3).choice(wanted, (40, 2)).astype(np.int32)
    draws = drawn(shape=(40, 16, 32, 3), seed=1)._replace(op=op)
    batch = images(40, 16, 32)
    ours = np.asarray(APPLY(batch, draws))
    assert ours.dtype == np.float32
    for i in range(40):
        expected = by_hand(batch[i], jax.tree.map(lambda leaf, i=i: leaf[i], draws))
        assert np.mean(ours[i] == expected) > 0.999, [NAMES[each] for each in op[i]]


@pytest.mark.slow
def test_cutouts():
    ops = [("cutout", 1.0, 0.0), ("cutout", 0.0, 0.0), ("identity", 1.0, 0.0)]
    image = images(32, 48)
    large, none, _ = APPLY(np.stack([image] * 3), made(ops, centre=(16, 40)))
    np.testing.assert_array_equal(large, cut_out(image, 8, 32, 24, 48))
    np.testing.assert_array_equal(none, image)  # a side of 1, halved
    last = APPLY(np.stack([image] * 3), made(ops, box=(8, 16, 24, 32)))[2]
    np.testing.assert_array_equal(last, cut_out(image, 8, 16, 24, 32))
    top, left, bottom, right = drawn().box.T
    assert (bottom - top).max() == (right - left).max() == 16
    assert min(top.min(), left.min()) == 0
    assert max(bottom.max(), right.max()) == 32
    assert abs(((bottom - top) * (right - left)).mean() / 1024 - 0.191) < 0.01
    large = drawn(shape=(500, 96, 96, 3)).box
    assert (large[:, 2] - large[:, 0]).max() == 48


def test_without_a_last_cutout_all_else_is_drawn_as_with_it():
    uncut = CTAugment(cutout=False).draw(DEFAULT.init(), jax.random.key(0), MANY)
    assert not uncut.box.any()
    jax.tree.map(np.testing.assert_array_equal, uncut._replace(box=drawn().box), drawn())


def sequential(policy, draws, truth, decay=0.99):
    """The bins after one hit at a time, in the order of the batch."""
    policy = {
        name: {parameter: np.array(weights, float) for parameter, weights in parameters.items()}
        for name, parameters in jax.device_get(policy).items()
    }
    for ops, levels, omega in zip(draws.op, draws.level, truth, strict=True):
        for op, level in zip(ops, levels, strict=True):
            for parameter, one in zip(BINS[NAMES[op]], level, strict=False):
                weights = policy[NAMES[op]][parameter]
                hit = int(one * len(weights) * 0.999)
                weights[hit] = decay * weights[hit] + (1 - decay) * omega
    return policy


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**16), ops=st.integers(1, 19))
def test_learning_equals_one_hit_at_a_time(seed, ops):
    random = np.random.default_rng(seed)
    with jax.enable_x64(True):
        policy = jax.tree.map(lambda leaf: random.uniform(0, 1, leaf.shape), DEFAULT.init())
        draws = Draws(
            random.choice(19, ops, replace=False)[random.integers(0, ops, (96, 2))],
            random.uniform(0, 1, (96, 2, 2)).astype(np.float32),
            None,
            None,
        )
        truth = random.uniform(0, 1, 96)
        ours = UPDATE(policy, draws, truth)
        assert {leaf.dtype for leaf in jax.tree.leaves(ours)} == {jnp.dtype(float)}
    assert_close(ours, sequential(policy, draws, truth), 1e-13)


def test_only_the_bins_that_were_hit_change_and_the_order_counts():
    policy = DEFAULT.init()
    draws = Draws(
        np.array([[NAMES.index("rescale"), NAMES.index("identity")]] * 2),
        np.array([[[0.999, 0.2], [0.5, 0.5]]] * 2, np.float32),
        None,
        None,
    )
    once = UPDATE(policy, jax.tree.map(lambda leaf: leaf[:1], draws), np.zeros(1))
    changed = {
        (name, parameter): np.flatnonzero(once[name][parameter] != 1).tolist()
        for name, parameter in PARAMETERS
        if np.any(once[name][parameter] != 1)
    }
    assert changed == {("rescale", "crop"): [16], ("rescale", "method"): [1]}
    assert once["rescale"]["crop"][16] == pytest.approx(0.99)
    later, earlier = (
        UPDATE(policy, draws, np.array(truth))["rescale"]["crop"][16]
        for truth in ([0.0, 1.0], [1.0, 0.0])
    )
    assert later == pytest.approx(0.99**2 + 0.01)
    assert earlier == pytest.approx(0.99**2 + 0.99 * 0.01)


def test_weights_as_json():
    policy = DEFAULT.init()
    policy["rescale"]["method"] = jnp.arange(6) / 4
    found = json.loads(json.dumps(describe(policy)))
    assert list(found) == [name for name in NAMES if name != "identity"]
    assert found["rescale"]["method"] == [0, 0.25, 0.5, 0.75, 1, 1.25]
    assert found["posterize"] == {"bits": [1.0] * 8}


@pytest.mark.parametrize(
    "change",
    [
        {"depth": 0},
        {"decay": 1.0},
        {"decay": -0.1},
        {"threshold": 1.5},
        {"cta_translate": "fractoin"},
    ],
)
def test_settings_that_cannot_work(change):
    pattern = r"views\.ctaugment\.(\w+=\S+ must|cta_translate 'fra.*'fraction')"
    with pytest.raises(InputError, match=pattern):
        CTAugment(**change)
