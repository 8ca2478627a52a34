import dataclasses
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxmatch.data import splits
from jaxmatch.data.source import Source
from jaxmatch.errors import DiskError, InputError

GOLDEN = Path(__file__).parents[1] / "golden" / "splits"


def small_source(labels, rows=None):
    labels = np.array(labels, np.int32)
    return Source(
        name="small",
        classes=tuple("abcdefghij"[: labels.max() + 1]),
        images=np.arange(len(labels), dtype=np.uint8).reshape(-1, 1, 1, 1).repeat(3, axis=3),
        labels=labels,
        rows=np.arange(len(labels)) if rows is None else np.array(rows),
        test_images=np.zeros((0, 1, 1, 3), np.uint8),
        test_labels=np.zeros(0, np.int32),
    )


SMALL = small_source([0, 1, 2, -1, 0, 1, 2, 0, 1, -1], rows=[0, 2, 4, 6, 8, 10, 12, 14, 16, 18])


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(("labels", "suffix"), [(40, ""), (10, "10")])
def test_the_published_label_sets(mnist5k, labels, suffix, seed):
    anchor = splits.read(GOLDEN / f"mnist5k_labels{suffix}_seed{seed}.json")
    drawn = splits.balanced(mnist5k, labels, seed)
    np.testing.assert_array_equal(drawn.indices, anchor.indices)
    assert drawn.hash == anchor.hash
    content = json.loads((GOLDEN / f"mnist5k_labels{suffix}_seed{seed}.json").read_text())
    np.testing.assert_array_equal(splits.locate(mnist5k, anchor), content["pool_positions"])
    np.testing.assert_array_equal(mnist5k.labels[splits.locate(mnist5k, drawn)], anchor.labels)


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 6), st.integers(1, 5), st.integers(5, 12), st.integers(0, 2**32 - 1))
def test_balanced_splits_are_balanced_and_nested(classes, share, each, seed):
    source = small_source(np.random.default_rng(0).permutation(np.arange(classes * each) % classes))
    split = splits.balanced(source, classes * share, seed)
    labels = source.labels[splits.locate(source, split)]
    np.testing.assert_array_equal(labels, np.repeat(np.arange(classes), share))
    fewer = splits.balanced(source, classes, seed)
    np.testing.assert_array_equal(fewer.indices, split.indices[::share])


def test_all_takes_every_known_label():
    split = splits.balanced(SMALL, "all", seed=0)
    np.testing.assert_array_equal(split.indices, [0, 2, 4, 8, 10, 12, 14, 16])


@pytest.mark.parametrize(
    ("labels", "message"),
    [(2, "less than one for each"), (7, "multiple of 3"), (9, "class 'c' of small has 2")],
)
def test_numbers_that_cannot_be_drawn(labels, message):
    with pytest.raises(InputError, match=message):
        splits.balanced(SMALL, labels, seed=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"indices": [0, 2, 0]}, "image 0 more than once"),
        ({"indices": [0, 1]}, "image 1, which is not a training image"),
        ({"indices": [0, 19]}, "image 19, which is not a training image"),
        ({"indices": [0, -1]}, "image -1, which is not a training image"),
        ({"indices": [0, 6]}, "image 6, whose label is not known"),
        ({"indices": [0, 2], "labels": np.array([0, 2])}, "image 2 label 2, but in small it has 1"),
        ({"indices": [0], "source": "mnist5k"}, "drawn from mnist5k, not from small"),
    ],
)
def test_splits_that_do_not_fit_the_source(changes, message):
    indices = np.array(changes.pop("indices"))
    with pytest.raises(InputError, match=message):
        splits.locate(SMALL, splits.Split(indices=indices, **changes))


def test_locate_does_not_need_sorted_rows():
    order = [3, 0, 8, 5, 1, 7, 9, 2, 6, 4]
    source = dataclasses.replace(SMALL, labels=SMALL.labels[order], rows=SMALL.rows[order])
    split = splits.balanced(SMALL, "all", seed=0)
    np.testing.assert_array_equal(source.rows[splits.locate(source, split)], split.indices)


def test_written_splits_read_back(tmp_path):
    split = splits.balanced(SMALL, 6, seed=3)
    splits.write(tmp_path / "split.json", split)
    again = splits.read(tmp_path / "split.json")
    assert (again.hash, again.source, again.seed) == (split.hash, "small", 3)
    np.testing.assert_array_equal(again.indices, split.indices)
    content = json.loads((tmp_path / "split.json").read_text())
    assert set(content) == {"indices", "hash", "source", "seed"}
    assert [path.name for path in tmp_path.iterdir()] == ["split.json"]


def test_a_split_may_be_empty(tmp_path):
    empty = splits.Split(indices=np.zeros(0, np.int64), source="small")
    splits.write(tmp_path / "split.json", empty)
    again = splits.read(tmp_path / "split.json")
    assert again.hash == empty.hash
    assert splits.locate(SMALL, again).shape == (0,)


def test_hash_is_of_little_endian_int64():
    split = splits.Split(indices=np.array([1, 256]))
    content = b"\x01" + bytes(7) + b"\x00\x01" + bytes(6)
    assert split.hash == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize(
    "content",
    ["", "[1, 2]", "{}", '{"indices": 3}', '{"indices": [1.5]}', '{"indices": ["a"]}',
     '{"indices": [[1], [2, 3]]}', '{"indices": [1, 2], "labels": [0]}'],
)  # fmt: skip
def test_files_that_are_no_splits(tmp_path, content):
    (tmp_path / "split.json").write_text(content)
    with pytest.raises(InputError, match=r"split\.json"):
        splits.read(tmp_path / "split.json")


def test_changed_and_missing_files(tmp_path):
    path = tmp_path / "split.json"
    splits.write(path, splits.balanced(SMALL, 6, seed=3))
    path.write_text(path.read_text().replace('"indices": [', '"indices": [18, '))
    with pytest.raises(InputError, match="was changed"):
        splits.read(path)
    with pytest.raises(InputError, match="No such file"):
        splits.read(tmp_path / "other.json")
    with pytest.raises(DiskError, match="Cannot write"):
        splits.write(tmp_path / "none" / "split.json", splits.balanced(SMALL, 6, seed=3))


@pytest.mark.parametrize(("count", "shares"), [(3, [1, 1, 1]), (7, [3, 2, 2]), (8, [3, 3, 2])])
def test_validation_moves_images_evenly(count, shares):
    rest, images, labels = splits.validation(SMALL, count, seed=0, draw="balanced")
    np.testing.assert_array_equal(np.bincount(labels), shares)
    assert len(rest.images) == len(rest.labels) == len(rest.rows) == 10 - count
    together = np.concatenate([images[:, 0, 0, 0], rest.images[:, 0, 0, 0]])
    np.testing.assert_array_equal(np.sort(together), np.arange(10))
    np.testing.assert_array_equal(rest.rows, 2 * rest.images[:, 0, 0, 0].astype(int))
    np.testing.assert_array_equal(labels, SMALL.labels[images[:, 0, 0, 0]])


@pytest.mark.parametrize(
    ("sizes", "available", "count", "shares"),
    [
        ([50, 30, 20], [50, 30, 20], 10, [5, 3, 2]),
        ([50, 30, 20], [50, 30, 20], 1, [1, 0, 0]),
        ([50, 30, 20], [50, 30, 20], 2, [1, 1, 0]),  # quotas 1, .6 and .4
        ([10, 10, 10], [10, 10, 10], 4, [2, 1, 1]),  # equal remainders: the first class
        ([900, 90, 10], [900, 90, 10], 100, [90, 9, 1]),
        ([900, 90, 10], [900, 90, 10], 1000, [900, 90, 10]),
        ([60, 40], [3, 40], 20, [3, 17]),  # what one class lacks goes to the other
        ([60, 40], [0, 40], 5, [0, 5]),
        ([1, 1, 1, 97], [1, 1, 1, 97], 10, [0, 0, 0, 10]),  # quotas .1, .1, .1 and 9.7
    ],
)
def test_a_stratified_draw_follows_the_class_sizes(sizes, available, count, shares):
    found = splits.stratified(np.array(sizes), np.array(available), count)
    np.testing.assert_array_equal(found, shares)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(0, 40)), min_size=1, max_size=6), st.data()
)
def test_a_stratified_draw_takes_the_number_asked_for(classes, data):
    sizes = np.array([max(pair) for pair in classes])
    available = np.array([pair[1] for pair in classes])
    count = data.draw(st.integers(0, int(available.sum())))
    shares = splits.stratified(sizes, available, count)
    assert shares.sum() == count
    assert (shares <= available).all()
    if (count * sizes <= sizes.sum() * available).all():  # no class lacks images
        assert (np.abs(shares - count * sizes / sizes.sum()) < 1).all()


def test_validation_is_stratified_by_all_labeled_images():
    labels = np.repeat([0, 1], [60, 20])
    source = small_source(labels)
    split = splits.Split(indices=np.arange(40))  # of class 0, which stays the larger one
    rest, _, held = splits.validation(source, 12, seed=0, keep=split)
    np.testing.assert_array_equal(np.bincount(held), [9, 3])
    assert len(splits.locate(rest, split)) == 40


def test_validation_depends_on_the_seed_and_keeps_labeled_examples(mnist5k):
    split = splits.balanced(mnist5k, 40, seed=0)
    rest, _, labels = splits.validation(mnist5k, 500, seed=0, keep=split)
    np.testing.assert_array_equal(np.bincount(labels), [50] * 10)
    assert len(splits.locate(rest, split)) == 40
    other = splits.validation(mnist5k, 500, seed=1, keep=split)[0]
    assert not np.array_equal(rest.rows, other.rows)


@pytest.mark.parametrize("wrong", [{"source": 5}, {"seed": "0"}, {"hash": 5}])
def test_a_split_file_with_a_value_of_another_kind_is_refused(tmp_path, wrong):
    path = tmp_path / "split.json"
    path.write_text(json.dumps({"indices": [0, 2], **wrong}))
    (key,) = wrong
    with pytest.raises(InputError, match=rf"split\.json: {key} must be (text|a number)\."):
        splits.read(path)


@pytest.mark.parametrize("count", [0, 9])
def test_validation_sets_that_cannot_be_drawn(count):
    with pytest.raises(InputError, match="between 1 and the 8"):
        splits.validation(SMALL, count, seed=0)
    with pytest.raises(InputError, match="between 1 and the 0"):
        splits.validation(SMALL, 1, seed=0, keep=splits.balanced(SMALL, "all", seed=0))
    with pytest.raises(InputError, match=r"between 1 and the 5 .* of which each class keeps 1"):
        splits.validation(SMALL, 6, seed=0, spare=1)


@pytest.mark.parametrize("draw", ["stratified", "balanced"])
def test_a_validation_set_spares_the_last_labels_of_a_class(draw):
    source = small_source([0] * 20 + [1] * 20 + [2])
    for count in (1, 17, 25, 38):
        rest, _, labels = splits.validation(source, count, seed=0, draw=draw, spare=1)
        assert len(labels) == count
        assert set(rest.labels) == {0, 1, 2}
