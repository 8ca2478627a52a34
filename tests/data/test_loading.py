from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from jaxmatch.data import images as image_files
from jaxmatch.data import order
from jaxmatch.data.crops import HostCrop
from jaxmatch.data.lazy import Files
from jaxmatch.data.loading import SUBSTITUTES, Plan, Pool
from jaxmatch.errors import InputError

WORDS = np.asarray(order.words(jax.random.key(0)))
CENTRE = HostCrop(size=(4, 4))


def files(root, count=10):
    """Image number i has the grey level 20 i."""
    for number in range(count):
        Image.new("RGB", (9 + number, 12), (20 * number,) * 3).save(root / f"{number}.png")
    return Files(root=root, paths=tuple(f"{number}.png" for number in range(count)))


def pool(records, crops=(CENTRE,), **changes):
    labels = np.arange(len(records), dtype=np.int32) % 3
    defaults = {"batch": 8, "first": 0, "count": 8, "seeds": (0, 1)}
    rows = np.arange(len(records))
    return Pool(
        records=records,
        rows=rows,
        labels=labels,
        words=WORDS,
        crops=crops,
        **(defaults | changes),
    )


def test_a_step_has_the_examples_of_the_order(tmp_path):
    found = pool(files(tmp_path)).load(5)
    index = order.positions(WORDS, 5, 8, 10)
    np.testing.assert_array_equal(found["index"], index)
    np.testing.assert_array_equal(found["label"], index % 3)
    np.testing.assert_array_equal(found["views"][0][:, 0, 0, 0], 20 * index)
    assert found["views"][0].dtype == np.uint8
    assert len(found["unreadable"]) == 0


def test_processes_load_their_share_of_the_same_batch(tmp_path):
    crops = (HostCrop(size=(6, 6), area=(0.2, 1.0), flip=0.5), CENTRE)
    whole = pool(files(tmp_path), crops)
    parts = [replace(whole, first=first, count=4).load(2) for first in (0, 4)]
    together = whole.load(2)
    for name in ("index", "label"):
        np.testing.assert_array_equal(
            np.concatenate([part[name] for part in parts]), together[name]
        )
    for role in range(2):
        views = np.concatenate([part["views"][role] for part in parts])
        np.testing.assert_array_equal(views, together["views"][role])


def test_crops_differ_between_roles_steps_and_pools(tmp_path):
    levels = np.random.RandomState(0).randint(0, 256, (40, 40, 3)).astype(np.uint8)
    Image.fromarray(levels).save(tmp_path / "0.png")
    crop = HostCrop(size=(6, 6), area=(0.2, 0.5))
    one = pool(Files(root=tmp_path, paths=("0.png",)), (crop, crop), batch=1, count=1)
    first, second = one.load(0)["views"]
    later = one.load(1)["views"][0]
    other = replace(one, seeds=(0, 2)).load(0)["views"][0]
    for left, right in ((first, second), (first, later), (first, other)):
        assert not np.array_equal(left, right)


@pytest.mark.parametrize("damage", ["truncated", "empty", "missing", "bomb"])
def test_an_unreadable_image_is_replaced_by_the_next(tmp_path, monkeypatch, damage):
    records = files(tmp_path)
    for number in (3, 4):
        bad = tmp_path / f"{number}.png"
        if damage == "missing":
            bad.unlink()
        elif damage == "bomb":
            Image.new("RGB", (200, 200)).save(bad)
        else:
            bad.write_bytes(bad.read_bytes()[: 40 * (damage == "truncated")])
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    found = pool(records, batch=10, count=10).load(0)
    index = order.positions(WORDS, 0, 10, 10)
    expected = np.where((index == 3) | (index == 4), 5, index)
    np.testing.assert_array_equal(found["index"], expected)
    np.testing.assert_array_equal(found["label"], expected % 3)
    np.testing.assert_array_equal(found["views"][0][:, 0, 0, 0], 20 * expected)
    assert set(found["unreadable"].tolist()) == {3, 4}


def test_a_set_that_is_gone_ends_the_search():
    with pytest.raises(InputError, match=f"{SUBSTITUTES} images from .* on are not readable"):
        pool(Files(root=Path("/nowhere"), paths=("a.png", "b.png"))).load(0)


def test_a_step_decodes_each_image_once(tmp_path, monkeypatch):
    plan = Plan(pools={"unlabeled": pool(files(tmp_path), (CENTRE, CENTRE, CENTRE))})
    decoded, decode = [], image_files.decode
    monkeypatch.setattr(image_files, "decode", lambda *given: decoded.append(1) or decode(*given))
    assert len(plan.load(0)["unlabeled"]["views"]) == 3
    assert len(decoded) == 8
