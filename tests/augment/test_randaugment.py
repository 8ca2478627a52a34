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
from jaxmatch.augment.ops import OPS
from jaxmatch.augment.randaugment import TABLES, Draws, RandAugment
from jaxmatch.augment.weak import Weak
from jaxmatch.errors import InputError
from jaxmatch.runtime.mesh import make_mesh

GOLDEN = Path(__file__).parents[1] / "golden" / "augment"
NAMES = TABLES["torchssl"].names
SHAPE = (8, 16, 16, 3)
MANY = (4000, 32, 32, 3)


def images():
    return np.random.default_rng(0).integers(0, 256, SHAPE).astype(np.uint8)


DRAW = {table: quick_jit(RandAugment(table=table).draw, static_argnums=1) for table in TABLES}
APPLY = {table: quick_jit(RandAugment(table=table).apply) for table in TABLES}


def drawn(table, shape=MANY, seed=0):
    return jax.device_get(DRAW[table](jax.random.key(seed), shape))


def view(table, image, *ops, box=(0, 0, 0, 0)):
    """The view of one image [h w 3] after ``ops``, pairs (name, value)."""
    draws = Draws(
        jnp.array([[TABLES[table].names.index(name) for name, _ in ops]]),
        jnp.array([[value for _, value in ops]], jnp.float32),
        jnp.array([box]),
    )
    return np.asarray(APPLY[table](image[None], draws))[0]


def level_values(name, table):
    """The values of the op at the levels 1..9."""
    return [OPS[name].strength.levels[table](level) for level in range(1, 10)]


# The pipeline has the ops too.
@pytest.mark.parametrize(
    "file", [pytest.param("fixmatch_ra_ops.npz", marks=pytest.mark.slow), "usb_pipeline.npz"]
)
def test_recorded(file):
    rows = parity.replay(GOLDEN / file)
    assert not [row for row in rows if not row.passed]
    exact = [row for row in rows if "AutoContrast" not in row.quantity]
    assert min(row.equal for row in exact) > 0.9999


@pytest.mark.slow
@pytest.mark.parametrize("file", ["fixmatch_ra_ops.npz", "usb_pipeline.npz"])
def test_recorded_by_products(file, products):
    test_recorded(file)


@pytest.mark.parametrize(
    ("table", "side"),
    [
        *(
            pytest.param(table, side, marks=pytest.mark.slow)
            for table, side in [
                ("google", 32),
                ("torchssl", 28),
                ("torchssl", 32),
                ("torchssl", 96),
                ("torchssl", 224),
            ]
            + [(table, side) for table in ("google", "simmatch", "eman") for side in (28, 96)]
            + [("simmatch", 32), ("eman", 32)]
        ),
    ],
)
def test_products_give_the_same_views(table, side, use_form):
    count = 4 if side > 96 else 64
    rng = np.random.default_rng(side)
    images = rng.integers(0, 256, (count, side, side, 3), np.uint8)
    images[::3] = np.sort(images[::3] // 3 + 40, 1)  # something to stretch
    chain = Chain(transforms=(Weak(), RandAugment(table=table)))
    draws = chain.draw(jax.random.key(side), images.shape)
    views = {}
    for form in ("gathers", "products"):
        use_form(form)
        views[form] = np.asarray(quick_jit(chain.apply)(images, draws))
    np.testing.assert_array_equal(views["products"], views["gathers"])


@pytest.mark.parametrize(
    ("table", "ops", "layers", "applied"),
    [
        ("torchssl", 14, 3, 1),
        ("google", 14, 2, 0.5),
        pytest.param("simmatch", 14, 2, 0.5, marks=pytest.mark.slow),
        pytest.param("eman", 16, 2, 1, marks=pytest.mark.slow),
    ],
)
def test_ops_are_drawn_equally_and_independently(table, ops, layers, applied):
    op, names = drawn(table).op, np.array(TABLES[table].names)
    assert op.shape == (4000, layers)
    assert len(names) == ops
    share = np.stack([(op == i).mean(0) for i in range(ops)])  # [ops layers]
    chance = applied / ops + (1 - applied) * (names == "identity")
    assert np.abs(share - chance[:, None]).max() < 5 * np.sqrt(chance.max() / 4000)
    same = (op[:, 0] == op[:, 1]).mean()
    assert abs(same - (chance**2).sum()) < 0.03


def test_torchssl_values():
    draws = drawn("torchssl")
    for name in NAMES:
        low, high = OPS[name].strength.torchssl
        value = draws.value[draws.op == NAMES.index(name)]
        scale = 32 if name.startswith("translate") else 1
        assert value.min() >= low * scale - 1e-5
        assert value.max() <= high * scale + 1e-5
        assert abs(value.mean() / scale - (low + high) / 2) <= 0.05 * (high - low)
        assert value.std() / scale >= 0.26 * (high - low)  # 0.289 if uniform
    # int() of it: 4, 5, 6 and 7 bits alike.
    bits = draws.value[draws.op == NAMES.index("posterize")].astype(int)
    np.testing.assert_allclose(np.bincount(bits)[4:8] / len(bits), 0.25, atol=0.06)


@pytest.mark.parametrize("table", ["google", "simmatch", "eman"])
def test_levels_and_signs_are_drawn_equally(table):
    draws = drawn(table)
    for i, name in enumerate(TABLES[table].names):
        value = draws.value[draws.op == i]
        levels = level_values(name, table)
        if table == "eman" and name.startswith("translate"):
            levels = [int(share * 32) for share in levels]
        expected, times = np.unique(np.float32(levels), return_counts=True)
        found, count = np.unique(np.abs(value), return_counts=True)
        np.testing.assert_array_equal(found, expected)
        chance = times / 9
        error = np.sqrt(chance * (1 - chance) / len(value))
        assert (np.abs(count / len(value) - chance) <= 5 * error).all()
        if OPS[name].kind == "warp":
            assert abs((value > 0).mean() - 0.5) < 2.5 / np.sqrt(len(value))
        else:
            assert (value >= 0).all()


def test_levels_by_hand():
    assert level_values("posterize", "google") == [4, 4, 3, 3, 2, 2, 2, 1, 1]
    assert level_values("solarize", "google")[::8] == [231, 26]
    assert level_values("rotate", "google")[8] == 27
    assert level_values("brightness", "google")[8] == pytest.approx(1.72)
    assert level_values("shear_x", "google")[2] == pytest.approx(0.09)
    for name in NAMES:
        if name in ("brightness", "color", "contrast", "sharpness"):
            expected = [0.14, 0.23, 0.32, 0.41, 0.5, 0.59, 0.68, 0.77, 0.86]
            assert level_values(name, "simmatch") == pytest.approx(expected)
            expected = [0.28, 0.46, 0.64, 0.82, 1, 1.18, 1.36, 1.54, 1.72]
            assert level_values(name, "eman") == pytest.approx(expected)
        else:
            assert level_values(name, "simmatch") == level_values(name, "google")
    assert level_values("posterize", "eman") == [4, 4, 5, 5, 6, 6, 6, 7, 7]
    assert level_values("solarize", "eman") == level_values("solarize", "google")
    assert level_values("solarize_add", "eman") == [11, 22, 33, 44, 55, 66, 77, 88, 99]
    assert level_values("invert", "eman") == [1] * 9
    moves = drawn("eman", (2000, 224, 112, 3))
    found = {
        name: sorted(set(np.abs(moves.value[moves.op == NAMES.index(name)])))
        for name in ("translate_x", "translate_y")
    }
    # Shares .045 to .405 of the width and of the height, cut towards 0.
    assert found["translate_x"] == [5, 10, 15, 20, 25, 30, 35, 40, 45]
    assert found["translate_y"] == [10, 20, 30, 40, 50, 60, 70, 80, 90]


@pytest.mark.parametrize(
    ("table", "mean_area"), [("torchssl", 0.083), ("google", 0.191), ("simmatch", 0.191)]
)
def test_cutout_lies_in_the_image(table, mean_area):
    top, left, bottom, right = drawn(table).box.T
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (bottom <= 32).all()
    assert (right <= 32).all()
    height, width = bottom - top, right - left
    assert height.min() >= 0
    assert width.min() >= 0
    assert max(height.max(), width.max()) <= (18 if table == "torchssl" else 16)
    # Of TorchSSL's one pixel more on each side the recorded mean knows nothing.
    area = (height * width).mean() / 1024
    assert mean_area - 0.01 < area < mean_area + 0.02


def test_simmatch_cuts_out_a_grey_square():
    image = np.full((16, 16, 3), 200, np.uint8)
    cut = view("simmatch", image, ("identity", 1.0), ("identity", 1.0), box=(2, 3, 10, 16))
    expected = image.astype(float)
    expected[2:10, 3:16] = 127
    np.testing.assert_array_equal(cut, expected)


def test_eman_cuts_nothing_out():
    assert not drawn("eman").box.any()
    image = np.full((16, 16, 3), 200, np.uint8)
    kept = view("eman", image, ("identity", 1.0), ("identity", 1.0), box=(2, 3, 10, 16))
    np.testing.assert_array_equal(kept, 200)


@pytest.mark.parametrize("table", ["torchssl", "simmatch", "eman"])
def test_what_a_move_uncovers_is_black(table):
    image = np.full((16, 16, 3), 200, np.uint8)
    moved = view(table, image, ("translate_x", 3.0), ("identity", 1.0))
    np.testing.assert_array_equal(moved[:, :13], 200)
    np.testing.assert_array_equal(moved[:, 13:], 0)


def test_eman_has_the_two_ops_more():
    image = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, 2)
    found = view("eman", image, ("solarize_add", 99.0), ("invert", 1.0))
    levels = image.astype(int)
    np.testing.assert_array_equal(found, 255 - np.where(levels < 128, levels + 99, levels))


def test_what_a_move_uncovers_is_mid_grey_in_google():
    image = np.full((16, 16, 3), 200, np.uint8)
    moved = view("google", image, ("translate_x", 3.0), ("identity", 1.0))
    np.testing.assert_array_equal(moved[:, :13], 200)
    np.testing.assert_array_equal(moved[:, 13:], 127.5)
    assert (moved[:, 13:] / 127.5 - 1 == 0).all()
    # Enhancements keep the alpha, so the uncovered part stays grey ...
    brighter = view("google", image, ("translate_x", 3.0), ("brightness", 1.2))
    np.testing.assert_array_equal(brighter[:, :13], 240)
    np.testing.assert_array_equal(brighter[:, 13:], 127.5)
    # ... and others drop it: black, inverted or not.
    solarized = view("google", image, ("translate_x", 3.0), ("solarize", 0.0))
    np.testing.assert_array_equal(solarized[:, :13], 55)
    np.testing.assert_array_equal(solarized[:, 13:], 255)
    posterized = view("google", image, ("translate_x", 3.0), ("posterize", 4.0))
    np.testing.assert_array_equal(posterized[:, 13:], 0)
    # What is uncovered afterwards is grey all the same.
    last = view("google", image, ("solarize", 256.0), ("translate_y", -2.0), box=(10, 0, 12, 16))
    np.testing.assert_array_equal(last[:2], 127.5)
    np.testing.assert_array_equal(last[10:12], 127.5)
    np.testing.assert_array_equal(last[2:10], 200)


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.slow
def test_images_do_not_influence_each_other(table):
    draws = drawn(table, SHAPE)
    order = np.random.default_rng(1).permutation(SHAPE[0])
    apply = APPLY[table]
    permuted = apply(images()[order], jax.tree.map(lambda leaf: leaf[order], draws))
    np.testing.assert_array_equal(permuted, apply(images(), draws)[order])


@pytest.mark.slow
@pytest.mark.parametrize(
    "table",
    [pytest.param(each, marks=() if each == "torchssl" else pytest.mark.slow) for each in TABLES],
)
def test_four_devices_equal_one_without_talking(table):
    strong = Chain(transforms=(Weak(), RandAugment(table=table)))

    def strong_view(key, images):
        return strong.apply(images, strong.draw(key, images.shape))

    mesh = make_mesh(4)
    shared = NamedSharding(mesh, PartitionSpec("data"))
    arguments = jax.random.key(5), jax.device_put(images(), shared)
    sharded = quick_jit(strong_view, out_shardings=shared).lower(*arguments).compile()
    np.testing.assert_array_equal(
        sharded(*arguments), quick_jit(strong_view)(arguments[0], images())
    )
    talk = ("all-gather", "all-reduce", "all-to-all", "collective-permute")
    assert not [word for word in talk if word in sharded.as_text()]


def test_a_chain_draws_apart_and_applies_in_order():
    strong = RandAugment(ops=("rotate", "invert"))
    chain = Chain(transforms=(strong, Weak(), Weak(flip=False)))
    draws = quick_jit(chain.draw, static_argnums=1)(jax.random.key(0), SHAPE)
    assert not np.array_equal(draws[1].offset, draws[2].offset)
    expected = images()
    for transform, own in zip(chain.transforms, draws, strict=True):
        expected = quick_jit(transform.apply)(expected, own)
    ours = quick_jit(chain.apply)(images(), draws)
    assert ours.dtype == jnp.float32
    np.testing.assert_array_equal(ours, expected)


@pytest.mark.slow
def test_the_same_key_draws_the_same():
    for table in TABLES:
        first, again, other = (drawn(table, seed=seed) for seed in (3, 3, 4))
        assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
        assert not np.array_equal(first.op, other.op)


def test_unknown_table():
    with pytest.raises(InputError, match=r"unknown views\.strong\.table 'googel'.*'google'"):
        RandAugment(table="googel")
