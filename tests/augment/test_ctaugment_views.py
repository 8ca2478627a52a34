"""CTAugment's views: which of them follow the policy, and how the probes teach it."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import CLASSES, assert_close, quick_jit

from jaxmatch.augment.ctaugment_views import CTAugmentViews
from jaxmatch.augment.views import Views
from jaxmatch.augment.weak import Weak
from jaxmatch.errors import InputError
from jaxmatch.runtime.mesh import make_mesh, over_batch, replicated
from jaxmatch.types import Batch, Examples

ROLES = {"labeled": ("weak",), "unlabeled": ("weak", "strong", "strong")}


def images(count, side):
    return np.random.default_rng(0).integers(0, 256, (count, side, side, 3)).astype(np.uint8)


def views(weak=None, roles=ROLES, **changes):
    transforms = {"weak": weak or Weak(), "strong": Weak()}
    return CTAugmentViews(views=Views(transforms=transforms, **roles), **changes)


AUGMENT = views()
VIEWS = quick_jit(AUGMENT.apply)
KEY = jax.random.key(0)


def examples(size=12):
    half = Examples((images(size, 16),), np.arange(size, dtype=np.int32) % CLASSES)
    return Batch(half, half)


@pytest.mark.slow
def test_only_strong_views_follow_the_policy():
    batch, record = VIEWS(AUGMENT.init(), KEY, examples())
    plain, _ = quick_jit(AUGMENT.views.apply)((), KEY, examples())
    np.testing.assert_array_equal(batch.labeled.views[0], plain.labeled.views[0])
    np.testing.assert_array_equal(batch.unlabeled.views[0], plain.unlabeled.views[0])
    first, second = batch.unlabeled.views[1:]
    assert (first != second).any((1, 2, 3)).all()  # drawn independently

    # A policy that knows but one level of each op reaches the strong views, not the probes.
    learned = jax.tree.map(lambda leaf: np.eye(len(leaf), dtype=leaf.dtype)[0], AUGMENT.init())
    other, again = VIEWS(learned, KEY, examples())
    assert (other.unlabeled.views[1] != first).any()
    np.testing.assert_array_equal(other.unlabeled.views[0], batch.unlabeled.views[0])
    jax.tree.map(np.testing.assert_array_equal, again, record)
    np.testing.assert_array_equal(record.label, examples().labeled.label)


class White:
    """A weak view of which nothing is left but white."""

    def draw(self, key, shape):
        return ()

    def apply(self, images, draws):
        return jnp.full(images.shape, 255.0)


@pytest.mark.slow
@pytest.mark.parametrize("ops_first", [False, True])
def test_ops_come_after_the_weak_view_or_before(ops_first):
    roles = {"labeled": ("weak",), "unlabeled": ("strong",)}
    augment = views(White(), roles, ops_first=ops_first)
    batch, _ = quick_jit(augment.apply)(augment.init(), KEY, examples())
    changed = (np.asarray(batch.unlabeled.views[0]) != 1).any((1, 2, 3))
    assert (changed != ops_first).all()  # at least cut out


@pytest.mark.slow
def test_probes_have_no_last_cutout_and_teach_by_the_true_class():
    _, record = VIEWS(AUGMENT.init(), KEY, examples())
    assert not np.asarray(record.draws.box).any()
    assert record.views.shape == (12, 16, 16, 3)
    assert np.abs(record.views).max() <= 1
    probabilities = np.random.default_rng(0).dirichlet(np.ones(CLASSES), 12)
    seen = []

    def predict(probes):
        seen.append(probes)
        return jnp.asarray(probabilities)

    learned = AUGMENT.update(AUGMENT.init(), record, predict)
    assert seen[0] is record.views
    truth = probabilities[np.arange(12), np.arange(12) % CLASSES]
    expected = AUGMENT.ctaugment.update(AUGMENT.init(), record.draws, jnp.asarray(truth))
    assert_close(jax.device_get(learned), expected, 1e-6)
    assert min(np.min(leaf) for leaf in jax.tree.leaves(learned)) < 1


def learned(devices, steps=3):
    """The last views and policy of a few steps in float64, and the compiled text."""
    kernel = np.random.default_rng(1).normal(size=(8 * 8 * 3, CLASSES))
    augment = views(roles={"labeled": ("weak",), "unlabeled": ("strong",)})

    def step(policy, key, examples):
        batch, record = augment.apply(policy, key, examples)
        predict = lambda probes: jax.nn.softmax(probes.reshape(len(probes), -1) @ kernel)  # noqa: E731
        return batch, augment.update(policy, record, predict)

    labeled = Examples((images(16, 8),), np.arange(16, dtype=np.int32) % CLASSES)
    mesh = make_mesh(devices)
    batch = jax.device_put(Batch(labeled, labeled), over_batch(mesh))
    policy, key = jax.device_put((augment.init(), KEY), replicated(mesh))
    compiled = quick_jit(step, out_shardings=(over_batch(mesh), replicated(mesh)))
    compiled = compiled.lower(policy, key, batch).compile()
    for _ in range(steps):
        views_now, policy = compiled(policy, key, batch)
    return jax.device_get((views_now, policy)), compiled.as_text()


@pytest.mark.slow
def test_four_devices_learn_what_one_does():
    with jax.enable_x64(True):
        (one, _), (four, text) = learned(1), learned(4)
    batch, policy = one
    assert_close(four[0], batch, 1e-6)  # images are of float32
    assert_close(four[1], policy, 1e-7)  # it learns from predictions on them
    assert sum(int(np.sum(leaf != 1)) for leaf in jax.tree.leaves(policy)) > 20
    assert not np.array_equal(batch.labeled.views[0], batch.unlabeled.views[0])
    assert "all-to-all" not in text
    assert "collective-permute" not in text
    gathered = re.findall(r"= \w+\[([\d,]*)\]\S* all-gather", text)
    assert [shape for shape in gathered if shape.count(",") >= 3] == []


def test_what_ctaugment_cannot_learn_from():
    with pytest.raises(InputError, match=r"reads none: choose another config\.augment"):
        views(roles={"labeled": (), "unlabeled": ("strong", "strong")})
    grey = Examples((np.zeros((4, 8, 8, 1), np.uint8),), np.zeros(4, np.int32))
    with pytest.raises(InputError, match="images of 3 channels, not 1"):
        jax.eval_shape(AUGMENT.apply, AUGMENT.init(), KEY, Batch(grey, grey))
