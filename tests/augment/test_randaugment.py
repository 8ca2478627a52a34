"""RandAugment against recorded views, its draws against their distributions."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import quick_jit
from jax.sharding import NamedSharding, PartitionSpec

from experiments.parity import augment as parity
from jaxmatch.augment.chain import Chain
from jaxmatch.augment.ops import WARPS
from jaxmatch.augment.randaugment import NAMES, TORCHSSL, Draws, RandAugment, google_value
from jaxmatch.augment.weak import Weak
from jaxmatch.errors import InputError
from jaxmatch.parallel import make_mesh

GOLDEN = Path(__file__).parents[1] / "golden" / "augment"
TABLES = ("torchssl", "google")
SHAPE = (8, 16, 16, 3)
MANY = (4000, 32, 32, 3)


def images():
    return np.random.default_rng(0).integers(0, 256, SHAPE).astype(np.uint8)


DRAW = {table: quick_jit(RandAugment(table=table).draw, static_argnums=1) for table in TABLES}
APPLY = {table: quick_jit(RandAugment(table=table).apply) for table in TABLES}


def drawn(table, shape=MANY, seed=0):
    return jax.device_get(DRAW[table](jax.random.key(seed), shape))


def google(image, *ops, box=(0, 0, 0, 0)):
    """The google view of one image [h w 3] after ``ops``, pairs (name, value)."""
    draws = Draws(
        jnp.array([[NAMES.index(name) for name, _ in ops]]),
        jnp.array([[value for _, value in ops]], jnp.float32),
        jnp.array([box]),
    )
    return np.asarray(APPLY["google"](image[None], draws))[0]


@pytest.mark.parametrize("file", ["fixmatch_ra_ops.npz", "usb_pipeline.npz"])
def test_recorded(file):
    rows = parity.replay(GOLDEN / file)
    assert not [row for row in rows if not row.passed]
    exact = [row for row in rows if "AutoContrast" not in row.quantity]
    assert min(row.equal for row in exact) > 0.9999


@pytest.mark.parametrize("table", TABLES)
def test_ops_are_drawn_equally_and_independently(table):
    op = drawn(table).op
    assert op.shape == (4000, {"torchssl": 3, "google": 2}[table])
    share = np.stack([(op == i).mean(0) for i in range(len(NAMES))])  # [ops layers]
    chance = np.full(len(NAMES), 1 / 14)
    if table == "google":  # half of the time nothing is applied
        chance = chance / 2 + 0.5 * (np.array(NAMES) == "identity")
    assert np.abs(share - chance[:, None]).max() < 5 * np.sqrt(chance.max() / 4000)
    same = (op[:, 0] == op[:, 1]).mean()
    assert abs(same - (chance**2).sum()) < 0.03


def test_torchssl_values():
    draws = drawn("torchssl")
    for name, (low, high) in TORCHSSL.items():
        value = draws.value[draws.op == NAMES.index(name)]
        scale = 32 if name.startswith("translate") else 1
        assert value.min() >= low * scale - 1e-5
        assert value.max() <= high * scale + 1e-5
        assert abs(value.mean() / scale - (low + high) / 2) <= 0.05 * (high - low)
        assert value.std() / scale >= 0.26 * (high - low)  # 0.289 if uniform
    # int() of it: 4, 5, 6 and 7 bits alike.
    bits = draws.value[draws.op == NAMES.index("posterize")].astype(int)
    np.testing.assert_allclose(np.bincount(bits)[4:8] / len(bits), 0.25, atol=0.06)


def test_google_values():
    draws = drawn("google")
    for name in NAMES:
        value = draws.value[draws.op == NAMES.index(name)]
        expected = {np.float32(google_value(name, level)) for level in range(1, 10)}
        assert set(np.abs(value)) == expected
        if name in WARPS:
            assert abs((value > 0).mean() - 0.5) < 0.15
    # The published table, by hand.
    assert [google_value("posterize", level) for level in (1, 2, 3, 9)] == [4, 4, 3, 1]
    assert [google_value("solarize", level) for level in (1, 9)] == [231, 26]
    assert google_value("rotate", 9) == 27
    assert google_value("brightness", 9) == pytest.approx(1.72)
    assert google_value("shear_x", 3) == pytest.approx(0.09)


@pytest.mark.parametrize(("table", "mean_area"), [("torchssl", 0.083), ("google", 0.191)])
def test_cutout_lies_in_the_image(table, mean_area):
    top, left, bottom, right = drawn(table).box.T
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (bottom <= 32).all()
    assert (right <= 32).all()
    height, width = bottom - top, right - left
    assert height.min() >= 0
    assert width.min() >= 0
    assert max(height.max(), width.max()) <= {"torchssl": 18, "google": 16}[table]
    # Of TorchSSL's one pixel more on each side the recorded mean knows nothing.
    area = (height * width).mean() / 1024
    assert mean_area - 0.01 < area < mean_area + 0.02


def test_what_a_move_uncovers_is_mid_grey_in_google():
    image = np.full((16, 16, 3), 200, np.uint8)
    moved = google(image, ("translate_x", 3.0), ("identity", 1.0))
    np.testing.assert_array_equal(moved[:, :13], 200)
    np.testing.assert_array_equal(moved[:, 13:], 127.5)
    assert (moved[:, 13:] / 127.5 - 1 == 0).all()
    # Enhancements keep the alpha, so the uncovered part stays grey ...
    brighter = google(image, ("translate_x", 3.0), ("brightness", 1.2))
    np.testing.assert_array_equal(brighter[:, :13], 240)
    np.testing.assert_array_equal(brighter[:, 13:], 127.5)
    # ... and others drop it: black, inverted or not.
    solarized = google(image, ("translate_x", 3.0), ("solarize", 0.0))
    np.testing.assert_array_equal(solarized[:, :13], 55)
    np.testing.assert_array_equal(solarized[:, 13:], 255)
    posterized = google(image, ("translate_x", 3.0), ("posterize", 4.0))
    np.testing.assert_array_equal(posterized[:, 13:], 0)
    # What is uncovered afterwards is grey all the same.
    last = google(image, ("solarize", 256.0), ("translate_y", -2.0), box=(10, 0, 12, 16))
    np.testing.assert_array_equal(last[:2], 127.5)
    np.testing.assert_array_equal(last[10:12], 127.5)
    np.testing.assert_array_equal(last[2:10], 200)


@pytest.mark.parametrize("table", TABLES)
def test_images_do_not_influence_each_other(table):
    draws = drawn(table, SHAPE)
    order = np.random.default_rng(1).permutation(SHAPE[0])
    apply = APPLY[table]
    permuted = apply(images()[order], jax.tree.map(lambda leaf: leaf[order], draws))
    np.testing.assert_array_equal(permuted, apply(images(), draws)[order])


@pytest.mark.parametrize("table", TABLES)
def test_four_devices_equal_one_without_talking(table):
    strong = Chain(transforms=(Weak(), RandAugment(table=table)))

    def view(key, images):
        return strong.apply(images, strong.draw(key, images.shape))

    mesh = make_mesh(4)
    shared = NamedSharding(mesh, PartitionSpec("data"))
    arguments = jax.random.key(5), jax.device_put(images(), shared)
    sharded = quick_jit(view, out_shardings=shared).lower(*arguments).compile()
    np.testing.assert_array_equal(sharded(*arguments), quick_jit(view)(arguments[0], images()))
    talk = ("all-gather", "all-reduce", "all-to-all", "collective-permute")
    assert not [word for word in talk if word in sharded.as_text()]


def test_a_chain_draws_apart_and_applies_in_order():
    chain = Chain(transforms=(RandAugment(), Weak(), Weak(flip=False)))
    draws = quick_jit(chain.draw, static_argnums=1)(jax.random.key(0), SHAPE)
    assert not np.array_equal(draws[1].offset, draws[2].offset)
    expected = APPLY["torchssl"](images(), draws[0])
    for transform, own in zip(chain.transforms[1:], draws[1:], strict=True):
        expected = transform.apply(expected, own)
    ours = quick_jit(chain.apply)(images(), draws)
    assert ours.dtype == jnp.float32
    np.testing.assert_array_equal(ours, expected)


def test_the_same_key_draws_the_same():
    for table in TABLES:
        first, again = drawn(table, SHAPE, seed=3), drawn(table, SHAPE, seed=3)
        other = drawn(table, SHAPE, seed=4)
        assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
        assert not np.array_equal(first.op, other.op)


def test_unknown_table():
    with pytest.raises(InputError, match=r"unknown RandAugment table 'googel'.*'google'"):
        RandAugment(table="googel")
