"""Validation sets: drawn from the training images, or the data's own, and the same ever after."""

import shutil

import numpy as np
import pytest
from helpers import toy_images
from PIL import Image
from tiny_runs import configuration

from jaxmatch.data.record import Listed
from jaxmatch.errors import InputError
from jaxmatch.record import run_data
from jaxmatch.record.findings import find
from jaxmatch.record.folder import RunFolder
from jaxmatch.record.settled import settled

PARTS = {"train/a": 12, "train/b": 6, "val/a": 3, "val/b": 2, "test/a": 2, "test/b": 2}


@pytest.fixture
def pets(tmp_path):
    """A folder of images with a training, a validation and a test set."""
    for seed, (part, count) in enumerate(PARTS.items()):
        (tmp_path / "pets" / part).mkdir(parents=True)
        for number, image in enumerate(toy_images(count, seed)[0]):
            Image.fromarray(image).save(tmp_path / "pets" / part / f"{number}.png")
    return tmp_path / "pets"


def config_of(folder, method="fixmatch", **options):
    chosen = "" if method == "simclr" else ",labels=4"
    name = f"folder:{folder}"
    config = configuration(name, method=method, chosen=chosen, data__image_size=8, **options)
    return settled(config)[0]


def begun(config, folder):
    """The data of a new run, whose record is written to ``folder``."""
    data = run_data.load_new(config)
    RunFolder(folder).write_record(data.record)
    RunFolder(folder).write_split(data.split)
    return data


@pytest.mark.parametrize("stream", [False, True])
def test_a_validation_folder_is_the_validation_set(pets, tmp_path, stream):
    config = config_of(pets, data__stream=stream)
    data = begun(config, tmp_path / "run")
    found = find(data)
    assert (found["labeled"], found["unlabeled"], found["validation"]) == (4, 14, 5)
    assert [found["counts"][name]["validation"] for name in "ab"] == [3, 2]
    names = [data.record.listed.names[row] for row in data.record.listed.validation]
    assert names == ["val/a/0.png", "val/a/1.png", "val/a/2.png", "val/b/0.png", "val/b/1.png"]
    for needed in ("held", "known", "all"):
        again = run_data.load_recorded(config, tmp_path / "run", needed=needed)
        np.testing.assert_array_equal(again.validation_labels, data.validation_labels)
        np.testing.assert_array_equal(
            np.asarray(again.validation_images), np.asarray(data.validation_images)
        )
        assert len(again.source.rows) == 18
    (pets / "val" / "b" / "1.png").write_bytes((pets / "val" / "a" / "1.png").read_bytes())
    with pytest.raises(InputError, match=r"val/b/1.png, a validation image of the run, has chang"):
        run_data.load_recorded(config, tmp_path / "run", needed="held")


def test_a_validation_folder_and_a_drawn_set_contradict_each_other(pets):
    with pytest.raises(InputError, match="has a validation set of 5 images; leave"):
        run_data.load_new(config_of(pets, data__validation=4))


def test_a_method_without_labels_leaves_the_validation_folder_alone(pets, tmp_path):
    config = config_of(pets, "simclr")
    data = begun(config, tmp_path / "run")
    assert data.validation_images is None
    again = run_data.load_recorded(config, tmp_path / "run")
    np.testing.assert_array_equal(again.source.rows, data.source.rows)


@pytest.mark.parametrize(("draw", "shares"), [("stratified", [4, 2]), ("balanced", [3, 3])])
def test_the_files_of_a_drawn_set_are_recorded(pets, tmp_path, draw, shares):
    shutil.rmtree(pets / "val")
    config = config_of(pets, data__validation=6, data__validation_draw=draw)
    data = begun(config, tmp_path / "run")
    assert np.bincount(data.validation_labels).tolist() == shares
    listed = data.record.listed
    assert isinstance(listed, Listed)
    assert [listed.labels[row] for row in listed.validation] == sorted(data.validation_labels)
    assert not set(listed.validation) & {*data.source.rows, *data.split.indices, *listed.test}
    again = run_data.load_recorded(config, tmp_path / "run")
    np.testing.assert_array_equal(again.validation_images, data.validation_images)


def test_another_draw_is_another_set(pets):
    shutil.rmtree(pets / "val")
    one, other = (
        run_data.load_new(config_of(pets, data__validation=6, seed=seed)) for seed in (0, 1)
    )
    assert one.validation_rows != other.validation_rows


def test_an_unknown_draw_is_refused(pets):
    with pytest.raises(InputError, match=r"unknown data.validation_draw 'random'"):
        run_data.load_new(config_of(pets, data__validation=6, data__validation_draw="random"))
