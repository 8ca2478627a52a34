"""Labeled and unlabeled images of unequal classes: counts against formulas, draws, and runs."""

import dataclasses
import json
from decimal import Decimal, getcontext

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict
from tiny_runs import settled_configuration, train_tiny, write_data

import jaxmatch
from jaxmatch.config.keys import defaults
from jaxmatch.data import splits, unequal
from jaxmatch.data.source import Source
from jaxmatch.data.unequal import Shares, draw, draw_unlabeled, long_tail, long_tail_of, restricted
from jaxmatch.errors import InputError
from jaxmatch.record import findings, run_data


def source_of(*sizes, unknown=0):
    """A source of that many images of each class, in a random order, in every second row."""
    labels = np.repeat(np.arange(len(sizes) + 1), [*sizes, unknown]).astype(np.int32)
    labels[labels == len(sizes)] = -1
    labels = np.random.default_rng(0).permutation(labels)
    return Source(
        name="small",
        classes=tuple("abcdefghij"[: len(sizes)]),
        images=np.zeros((len(labels), 1, 1, 3), np.uint8),
        labels=labels,
        rows=2 * np.arange(len(labels)),
        test_images=np.zeros((0, 1, 1, 3), np.uint8),
        test_labels=np.zeros(0, np.int32),
    )


def counts(source, rows):
    labels = source.labels[np.searchsorted(source.rows, rows)]
    return np.bincount(labels, minlength=len(source.classes)).tolist()


def exact_tail(largest, classes, gamma):
    """floor(N_1 gamma^(-k/(C-1))) in decimal numbers of 50 digits, and how near to a whole one."""
    getcontext().prec = 50
    numbers = [largest * Decimal(gamma) ** (Decimal(-k) / (classes - 1)) for k in range(1, classes)]
    near = [abs(number - round(number)) for number in numbers[:-1]]
    return [largest, *map(int, numbers[:-1]), largest // gamma], min(near, default=1)


# The counts of CIFAR-10-LT that papers print; USB's function gives the same.
@pytest.mark.parametrize(
    ("largest", "gamma", "expected"),
    [
        (1500, 100, [1500, 899, 539, 323, 193, 116, 69, 41, 25, 15]),
        (5000, 100, [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]),
        (500, -100, [5, 8, 13, 23, 38, 64, 107, 179, 299, 500]),
        (7, 1, [7] * 10),
    ],
)
def test_long_tails_of_the_literature(largest, gamma, expected):
    assert long_tail(largest, 10, gamma).tolist() == expected


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 10_000), st.integers(2, 100), st.integers(1, 300))
def test_long_tails_follow_the_formula(largest, classes, gamma):
    expected, distance = exact_tail(largest, classes, gamma)
    assume(distance > 1e-9)  # where rounding decides, USB's order of operations counts
    assert long_tail(largest, classes, gamma).tolist() == expected
    assert long_tail(largest, classes, -gamma).tolist() == expected[::-1]


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 2000), st.integers(2, 20), st.integers(1, 200))
def test_a_total_gives_the_tail_of_usb_and_a_rest(total, classes, gamma):
    shares = long_tail_of(total, classes, gamma)
    assert shares.sum() == total
    usb = long_tail(shares[0], classes, gamma)
    if usb.sum() > total:  # the first class has one of the rest
        usb = long_tail(shares[0] - 1, classes, gamma)
    assert set((shares - usb).tolist()) <= {0, 1}
    assert long_tail(usb[0] + 1, classes, gamma).sum() > total
    # The total of a tail of USB's is that tail.
    np.testing.assert_array_equal(long_tail_of(int(usb.sum()), classes, gamma), usb)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 300), min_size=2, max_size=12), st.integers(1, 100))
def test_the_largest_tail_that_fits(sizes, gamma):
    sizes = np.array(sizes)
    for signed in (gamma, -gamma):
        found = unequal.long_tail_within(sizes, signed)
        assert np.all(found <= sizes)
        assert np.any(long_tail(found.max() + 1, len(sizes), signed) > sizes)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=2, max_size=8), st.data(), st.integers(0, 2**32 - 1))
def test_proportional_labels(sizes, data, seed):
    source, total = source_of(*sizes), sum(sizes)
    labels = data.draw(st.integers(len(sizes), total))
    split = draw(source, labels, seed, Shares(balance="proportional"))
    found = np.array(counts(source, split.indices))
    assert found.sum() == labels == len(np.unique(split.indices))
    assert np.all(found >= 1)
    assert np.all(found <= sizes)
    exact = labels * np.array(sizes) / total
    if np.all(exact >= 1):  # nobody gave up an image for a rare class
        assert np.all(np.abs(found - exact) < 1)


def test_equal_shares_are_todays_labels():
    source = source_of(10, 10, 10, unknown=4)
    today = splits.balanced(source, 12, 3)
    for shares in (Shares(), Shares(balance="proportional"), Shares(largest=4)):
        np.testing.assert_array_equal(draw(source, 12, 3, shares).indices, today.indices)
    everything = draw(source, "all", 3, Shares(balance="as_given"))
    assert everything.hash == splits.balanced(source, "all", 3).hash


def test_labels_as_given_are_a_plain_draw():
    source = source_of(300, 100, unknown=50)
    drawn = [draw(source, 40, seed, Shares(balance="as_given")).indices for seed in range(50)]
    first = [counts(source, rows)[0] for rows in drawn]
    assert {sum(counts(source, rows)) for rows in drawn} == {40}
    assert len(set(first)) > 3  # not stratified
    # Hypergeometric: mean 30, standard deviation 2.6; of 50 means 0.37.
    assert abs(np.mean(first) - 30) < 1.5


def test_a_long_tail_of_labels_and_of_unlabeled_images():
    source = source_of(40, 40, 40)
    shares = Shares(imbalance=4, imbalance_unlabeled="reversed")
    split = draw_unlabeled(source, draw(source, 14, 0, shares), 0, shares)
    assert counts(source, split.indices) == [8, 4, 2]
    assert counts(source, split.unlabeled) == [9, 19, 38]
    assert not set(split.indices) & set(split.unlabeled)
    pool = restricted(source, split)
    assert set(pool.rows) == {*split.indices, *split.unlabeled}
    np.testing.assert_array_equal(
        pool.labels, source.labels[np.searchsorted(source.rows, pool.rows)]
    )
    other = draw_unlabeled(source, split, 1, shares)
    assert not np.array_equal(other.unlabeled, split.unlabeled)
    assert other.hash != split.hash

    exact = Shares(largest=8, imbalance=4, imbalance_unlabeled="4", largest_unlabeled=20)
    split = draw_unlabeled(source, draw(source, "all", 0, exact), 0, exact)
    assert counts(source, split.indices) == [8, 4, 2]
    assert counts(source, split.unlabeled) == [20, 10, 5]
    equal = draw_unlabeled(source, split, 0, Shares(imbalance_unlabeled="1"))
    assert counts(source, equal.unlabeled) == [32, 32, 32]
    assert restricted(source, splits.balanced(source, 3, 0)) is source


@pytest.mark.parametrize(
    ("shares", "labels", "message"),
    [
        ({"balance": "proportional"}, 2, "less than one for each"),
        ({"balance": "proportional"}, 64, "more than the 63 labeled"),
        ({"balance": "as_given"}, 3, "draws no image of class 'c'"),
        ({"balance": "as_given"}, 64, "more than the 63 labeled"),
        ({"imbalance": 50.0}, 40, "leaves class 'c' without a label"),
        ({"largest": 41}, "all", "asks for 41 labels of class 'a', which has 40"),
    ],
)
def test_shares_that_cannot_be_drawn(shares, labels, message):
    with pytest.raises(InputError, match=message):
        draw(source_of(40, 20, 3), labels, 0, Shares(**shares))


def test_unlabeled_images_that_cannot_be_drawn():
    source = source_of(10, 10, unknown=1)
    split = splits.balanced(source, 4, 0)
    with pytest.raises(InputError, match="which 1 of small lack"):
        draw_unlabeled(source, split, 0, Shares(imbalance_unlabeled="2"))
    source = source_of(10, 10)
    split = splits.balanced(source, 4, 0)
    with pytest.raises(InputError, match="asks for 9 images of class 'a', of which 8"):
        draw_unlabeled(source, split, 0, Shares(imbalance_unlabeled="2", largest_unlabeled=9))
    with pytest.raises(InputError, match="at least two classes"):
        draw_unlabeled(source_of(5), split, 0, Shares(imbalance_unlabeled="2"))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"balance": "proportional", "imbalance": 2.0}, "give only one of them"),
        ({"split": "a.json", "imbalance": 2.0}, "a.json names the labeled images"),
        ({"split": "a.json", "balance": "as_given"}, "a.json names the labeled images"),
        ({"largest": 5, "labels": "40"}, "labels=40 is the total, and largest=5"),
        ({"largest_unlabeled": 5}, "needs imbalance_unlabeled"),
        ({"imbalance_unlabeled": "reversed"}, "reverses the order of imbalance"),
        ({"imbalance_unlabeled": "many"}, "must be a number of at least 1"),
        ({"imbalance_unlabeled": "0.5"}, "must be a number of at least 1"),
        ({"imbalance_unlabeled": "nan"}, "must be a number of at least 1"),
    ],
)
def test_settings_that_contradict_each_other(values, message):
    data = ConfigDict({**defaults()["data"], **values})
    with pytest.raises(InputError, match=message):
        _ = Shares.of(data).unlabeled


def test_a_split_names_its_pool(tmp_path):
    source = source_of(20, 20)
    shares = Shares(imbalance_unlabeled="3")
    split = draw_unlabeled(source, splits.balanced(source, 4, 0), 0, shares)
    splits.write(tmp_path / "split.json", split)
    again = splits.read(tmp_path / "split.json")
    np.testing.assert_array_equal(again.unlabeled, split.unlabeled)
    assert again.hash == split.hash != dataclasses.replace(split, unlabeled=None).hash
    content = json.loads((tmp_path / "split.json").read_text())
    content["unlabeled"].pop()
    (tmp_path / "split.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="was changed"):
        splits.read(tmp_path / "split.json")
    (tmp_path / "split.json").write_text('{"indices": [1], "unlabeled": ["a"]}')
    with pytest.raises(InputError, match="unlabeled must be a list of whole numbers"):
        splits.read(tmp_path / "split.json")


CHOSEN = ",labels=14,imbalance=4,imbalance_unlabeled=reversed,largest_unlabeled=8"


def test_the_argument_and_its_keys():
    config = jaxmatch.config(f"fixmatch:mnist5k{CHOSEN}")
    assert config.data.labels == "14"
    assert (config.data.imbalance, config.data.imbalance_unlabeled) == (4.0, "reversed")
    config = jaxmatch.config("fixmatch:mnist5k", largest=50, imbalance=10, balance="equal")
    assert (config.data.labels, config.data.largest) == ("all", 50)
    assert jaxmatch.config("fixmatch:mnist5k,largest=0").data.labels == "40"  # none is given
    with pytest.raises(InputError, match="imbalance=much is not a number"):
        jaxmatch.config("fixmatch:mnist5k,imbalance=much")
    with pytest.raises(InputError, match="largest=-3 is not a whole number"):
        jaxmatch.config("fixmatch:mnist5k,largest=-3")
    with pytest.raises(InputError, match="reads no labels; leave balance"):
        jaxmatch.config("simclr:mnist5k,balance=proportional")
    stages = jaxmatch.config(f"simclr+finetune:mnist5k{CHOSEN}").stages
    assert stages.simclr.data.imbalance_unlabeled == "reversed"
    assert stages.simclr.data.labels == "none"
    assert stages.finetune.data.labels == "14"


@pytest.mark.parametrize("method", ["fixmatch", "simclr"])
def test_the_pool_of_a_run_is_what_it_says(tmp_path, method):
    chosen = CHOSEN if method == "fixmatch" else CHOSEN.replace(",labels=14", "")
    data = write_data(tmp_path / "data.npz")
    options = {"chosen": chosen, "method": method}
    if method == "simclr":
        options |= {"views__contrast__size": 8}
    config = settled_configuration(data, **options)
    found = run_data.load_new(config)
    facts = findings.find(found)
    assert [facts["counts"][name]["unlabeled"] for name in facts["classes"]] == [2, 3, 5, 8]
    labeled = 14 if method == "fixmatch" else 0
    assert found.facts().unlabeled == len(found.source.images) == 18 + labeled
    assert facts["notes"][-1].startswith(f"{64 - 18 - labeled} training images are not used")
    assert found.unused == 64 - 18 - labeled


@pytest.mark.slow
def test_a_run_goes_on_with_its_pool(tmp_path):
    data = write_data(tmp_path / "data.npz")
    train_tiny(data, tmp_path / "run", chosen=CHOSEN, steps=5)
    written = json.loads((tmp_path / "run" / "split.json").read_text())
    assert len(written["unlabeled"]) == 18
    config = settled_configuration(data, chosen=CHOSEN, steps=5)
    for needed in ("all", "known", "held"):
        again = run_data.load_recorded(config, tmp_path / "run", needed=needed)
        assert again.split.unlabeled.tolist() == written["unlabeled"]
        assert len(again.source.rows) == 14 + 18
    result = jaxmatch.load(tmp_path / "run")
    assert result.program.spec.unlabeled == 14 + 18
