"""Real loader processes give the examples of each step, also after one of them was killed."""

import logging
import multiprocessing
import os
import signal

import jax
import numpy as np
import pytest
from absl import flags

from jaxmatch.data import sources, splits, streaming
from jaxmatch.data.crops import HostCrop
from jaxmatch.data.resident import resident
from jaxmatch.data.source import Reading
from jaxmatch.errors import InputError, JaxmatchError
from jaxmatch.runtime.mesh import make_mesh, over_batch
from jaxmatch.types import Spec

STEPS = 40  # more than the loader has ready at any time


SPEC = Spec(
    classes=2,
    steps=STEPS,
    labels=(0, 0, 1, 1),
    unlabeled=24,
    labeled_batch=4,
    unlabeled_batch=8,
)
WEAK = HostCrop(size=(16, 16), area=(0.2, 1.0), flip=0.5)
CROPS = {"labeled": (WEAK,), "unlabeled": (WEAK, HostCrop(size=(8, 8), area=(0.1, 0.3)))}


@pytest.fixture(scope="module")
def parts(photographs):
    """A mesh of two devices and the plan of a small streamed set."""
    source = sources.load(f"folder:{photographs}", Reading(image_size=16, stream=True))
    data = resident(source, splits.balanced(source, 4, 0))
    mesh = make_mesh(2, 4, 8)
    return streaming.plan(data, jax.random.key(3), SPEC, CROPS, 5, mesh), mesh


def feed(parts, first=0):
    return streaming.Feed(*parts, first, STEPS, workers=2)


def check(batch, plan, mesh, step):
    for name, expected in plan.load(step).items():
        examples = getattr(batch, name)
        for view, host in zip(examples.views, expected["views"], strict=True):
            assert view.sharding == over_batch(mesh)
            np.testing.assert_array_equal(view, host)
        np.testing.assert_array_equal(examples.label, expected["label"])
        np.testing.assert_array_equal(examples.index, expected["index"])


@pytest.fixture(scope="module")
def taken(parts):
    """The examples of nine steps from step 3 on, and whether flags are parsed afterwards.

    Loader processes take seconds to begin.
    """
    flags.FLAGS.unparse_flags()
    with feed(parts, first=3) as examples:
        found = [examples() for _ in range(9)]
    return found, flags.FLAGS.is_parsed()


@pytest.mark.slow
def test_the_flags_of_the_process_stay_as_they_are(taken):
    assert not taken[1]


def test_it_goes_on_from_any_step(parts, taken):
    for step, examples in enumerate(taken[0], start=3):
        check(examples, *parts, step)


def test_shapes_are_those_of_the_examples(parts, taken):
    _, mesh = parts
    found = taken[0][0]
    expected = streaming.shapes(SPEC, CROPS, mesh)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for leaf, shape in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert (leaf.shape, leaf.dtype, leaf.sharding) == (shape.shape, shape.dtype, shape.sharding)


@pytest.mark.slow
def test_a_killed_worker_is_replaced_and_nothing_is_lost(parts, caplog):
    plan, mesh = parts
    with feed(parts) as examples:
        check(examples(), plan, mesh, 0)
        for worker in multiprocessing.active_children():
            os.kill(worker.pid, signal.SIGKILL)
        with caplog.at_level(logging.WARNING):
            for step in range(1, STEPS):
                check(examples(), plan, mesh, step)
    assert "starts anew" in caplog.text


@pytest.mark.slow
def test_a_loader_that_always_fails_is_given_up(parts, monkeypatch):
    plan, mesh = parts
    made = streaming.Feed(plan, mesh, 0, STEPS, workers=1)
    made.close()

    def broken(self):
        raise OSError("no more memory")
        yield

    monkeypatch.setattr(streaming.Feed, "_start", broken)
    made.loader = broken(made)
    with pytest.raises(JaxmatchError, match=r"failed 4 times at step 0: no more memory"), made:
        made()


def test_unreadable_images_are_named_once_or_refused(parts, caplog, monkeypatch):
    plan, mesh = parts
    monkeypatch.setattr(streaming.Feed, "_start", lambda feed: iter(()))  # needs no loader
    made = streaming.Feed(plan, mesh, 0, STEPS, workers=1)
    pool = plan.pools["unlabeled"]
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            made._tell(pool, np.array([0, 1, 0]))
    assert caplog.text.count(pool.records.name(0)) == 1
    made.strict = True
    with pytest.raises(InputError, match=r"Not readable as images \(.*: .*jpg\)"):
        made._tell(pool, np.array([2]))


def test_labels_can_be_balanced(photographs):
    source = sources.load(f"folder:{photographs}", Reading(image_size=16, stream=True))
    data = resident(source, splits.balanced(source, 6, 0))
    data = data._replace(labeled_labels=np.array([0, 0, 0, 0, 0, 1]))
    plan = streaming.plan(
        data, jax.random.key(3), SPEC, CROPS, 5, make_mesh(1, 4, 8), balanced=True
    )
    for step in range(5):
        loaded = plan.load(step)
        np.testing.assert_array_equal(np.bincount(loaded["labeled"]["label"]), [2, 2])
    assert plan.pools["unlabeled"].balanced == 0
