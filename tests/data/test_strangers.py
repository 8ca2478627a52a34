"""Experiments in which images of some classes are strangers."""

import numpy as np
import pytest
from helpers import toy_images
from tiny_runs import settled_configuration, write_data

from jaxmatch.config import saved
from jaxmatch.data import sources
from jaxmatch.data.resident import resident
from jaxmatch.data.source import Reading
from jaxmatch.errors import InputError
from jaxmatch.evaluation import features
from jaxmatch.record import findings, run_data
from jaxmatch.types import STRANGER

KNOWN = ("3", "1")  # classes of the toy problem, not in its order


@pytest.fixture
def data(tmp_path):
    held = dict(zip(("x_validation", "y_validation"), toy_images(12, 3), strict=True))
    return write_data(tmp_path / "data.npz", **held)


def load(data, **options):
    return sources.load(f"npz:{data}", Reading(**options))


def test_labels_and_held_out_images_are_of_the_known_classes(data):
    whole, found = load(data), load(data, known_classes=KNOWN)
    assert found.classes == ("1", "3")
    np.testing.assert_array_equal(found.images, whole.images)
    expected = [{1: 0, 3: 1}.get(label, STRANGER) for label in whole.labels.tolist()]
    np.testing.assert_array_equal(found.labels, expected)
    assert found.labels.dtype == np.int32
    known = np.isin(whole.test_labels, [1, 3])
    np.testing.assert_array_equal(found.test_images, whole.test_images[known])
    np.testing.assert_array_equal(found.test_labels, whole.test_labels[known] // 2)
    known = np.isin(whole.validation_labels, [1, 3])
    np.testing.assert_array_equal(found.validation_images, whole.validation_images[known])
    np.testing.assert_array_equal(found.validation_labels, whole.validation_labels[known] // 2)


def test_strangers_can_be_left_out_of_the_pool(data):
    whole, found = load(data), load(data, known_classes=KNOWN, strangers=False)
    known = np.isin(whole.labels, [1, 3])
    np.testing.assert_array_equal(found.rows, whole.rows[known])
    np.testing.assert_array_equal(found.images, whole.images[known])
    assert found.labels.tolist() == (whole.labels[known] // 2).tolist()
    assert "32 training images of other classes (0, 2) are left out." in found.survey.notes


def test_images_without_a_label_stay_unknown(tmp_path):
    labels = toy_images(64, 0)[1].astype(int)
    labels[:8] = -1
    found = load(write_data(tmp_path / "data.npz", y_train=labels), known_classes=KNOWN)
    np.testing.assert_array_equal(found.labels[:8], -1)
    assert (found.labels[8:] == STRANGER).sum() == 28


@pytest.mark.parametrize(
    ("known", "message"),
    [
        (("1", "4"), "names '4', which is no class of npz"),
        (("1", "3", "1"), "names '1' twice"),
        (("1",), "at least two classes"),
    ],
)
def test_names_that_do_not_fit_are_refused(data, known, message):
    with pytest.raises(InputError, match=message):
        load(data, known_classes=known)


def test_a_folder_has_its_strangers_among_the_unlabeled_images(photographs):
    with pytest.raises(InputError, match="move the images of other classes to unlabeled/"):
        sources.load(f"folder:{photographs}", Reading(known_classes=KNOWN))


def config_of(data, **options):
    return settled_configuration(data, chosen=",labels=8", **options)


def test_a_run_knows_the_classes_and_counts_the_rest_as_unknown(data):
    config = config_of(data, data__known_classes="('1','3')")
    found = run_data.load_new(config)
    assert found.facts().classes == ("1", "3")
    assert sorted(found.facts().labels) == [0] * 4 + [1] * 4
    facts = findings.find(found)
    assert facts["unlabeled"] == 56
    assert facts["unknown"] == 32
    assert facts["counts"] == {
        name: {"labeled": 4, "unlabeled": 12, "validation": 3, "test": 6} for name in ("1", "3")
    }
    assert "32 training images of other classes (0, 2) are unlabeled images." in facts["notes"]
    pool = resident(found.source, found.split).unlabeled_labels
    assert (pool == STRANGER).sum() == 32
    assert (pool == -1).sum() == 8


def test_runs_with_other_strangers_are_other_runs(data):
    plain = config_of(data)
    alone = config_of(data, data__strangers=False)
    some = config_of(data, data__known_classes="('1','3')")
    dropped = config_of(data, data__known_classes="('1','3')", data__strangers=False)
    names = {saved.run_name(config) for config in (plain, some, dropped)}
    assert len(names) == 3
    assert saved.run_name(alone) == saved.run_name(plain)  # it has no effect
    # Features of other images are other caches.
    images = {features.identity(run_data.load_new(each)) for each in (plain, some, dropped)}
    assert len(images) == 3


def test_a_run_finds_its_data_again(data, tmp_path):
    config = config_of(data, data__known_classes="('1','3')")
    found = run_data.load_new(config)
    folder = run_data.RunFolder(tmp_path)
    folder.write_split(found.split)
    folder.write_record(found.record)
    again = run_data.load_recorded(config, folder.path)
    np.testing.assert_array_equal(again.source.labels, found.source.labels)
    np.testing.assert_array_equal(again.source.test_images, found.source.test_images)
    other = config_of(data, data__known_classes="('0','3')")
    with pytest.raises(InputError, match="has the classes 0, 3 now, but the run was trained on 1"):
        run_data.load_recorded(other, folder.path)
