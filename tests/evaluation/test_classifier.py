"""A run as a classifier: what it predicts, what it refuses, and that loading executes nothing."""

import pickle
import shutil

import numpy as np
import pytest
from helpers import assert_bitwise, on_host
from tiny_runs import STEPS, arguments, state_of, without_extras, without_learning, write_data

import jaxmatch
from jaxmatch.config import flags
from jaxmatch.errors import InputError
from jaxmatch.record.metrics import read

CONFIG = """
from jaxmatch.config.recipe import make


def get_config(argument):
    return make("mine", argument, algorithm={"name": "pseudo_label"})
"""


@pytest.fixture(scope="module", autouse=True)
def only_steps():
    with without_extras():
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(workdir, test images, test labels) of a finished run whose config file is gone."""
    folder = tmp_path_factory.mktemp("classifier")
    data = write_data(folder / "x.npz")
    (folder / "mine.py").write_text(CONFIG)
    words = arguments(data, method=folder / "mine.py")
    config, _ = flags.from_flags(words[0].removeprefix("--config="), words[1:])
    with without_learning():
        jaxmatch.train(config, folder / "run")
    (folder / "mine.py").unlink()
    arrays = np.load(data)
    return folder / "run", arrays["x_test"], arrays["y_test"]


def test_it_predicts_what_the_run_evaluated(run):
    workdir, images, labels = run
    found = jaxmatch.load(workdir)
    assert (found.step, found.image_shape) == (STEPS, (8, 8, 3))
    assert found.classes == ("0", "1", "2", "3")
    for network in ("teacher", "student"):
        accuracy = np.mean(found.predict(images, network).label == labels)
        assert accuracy == read(workdir)[-1][f"test/{network}/accuracy"]
    default, teacher = found.predict(images), found.predict(images, "teacher")
    np.testing.assert_array_equal(default.probabilities, teacher.probabilities)
    student = found.predict(images, "student").probabilities
    assert not np.array_equal(default.probabilities, student)


def test_predictions_are_probabilities(run):
    workdir, images, _ = run
    label, confidence, probabilities = jaxmatch.load(workdir).predict(images)
    assert probabilities.shape == (24, 4)
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-5)
    np.testing.assert_array_equal(label, probabilities.argmax(1))
    np.testing.assert_array_equal(confidence, probabilities.max(1))
    assert (label.dtype, probabilities.dtype) == (np.int64, np.float32)


def test_a_number_of_images_that_does_not_divide(run):
    workdir, images, _ = run
    found = jaxmatch.load(workdir)
    whole = found.predict(images).probabilities
    for count in (1, 7):
        np.testing.assert_allclose(
            found.predict(images[:count]).probabilities, whole[:count], rtol=1e-5
        )


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((2, 8, 8, 3), np.float32),
        np.zeros((2, 9, 8, 3), np.uint8),
        np.zeros((2, 8, 8, 1), np.uint8),
        np.zeros((8, 8, 3), np.uint8),
    ],
)
def test_other_images_are_refused(run, images):
    with pytest.raises(InputError, match=r"predict takes uint8 images of shape \(n, 8, 8, 3\)"):
        jaxmatch.load(run[0]).predict(images)


def test_no_images_are_refused(run):
    with pytest.raises(InputError, match="no images"):
        jaxmatch.load(run[0]).predict(np.zeros((0, 8, 8, 3), np.uint8))
    with pytest.raises(InputError, match="no images"):
        jaxmatch.load(run[0]).predict([])


def test_arrays_of_several_sizes_are_refused(run):
    images = [np.zeros((8, 8, 3), np.uint8), np.zeros((9, 8, 3), np.uint8)]
    with pytest.raises(InputError, match="the images have different sizes; give arrays of one"):
        jaxmatch.load(run[0]).predict(images)


def test_an_unknown_network_is_refused(run):
    with pytest.raises(InputError, match="did you mean 'teacher'"):
        jaxmatch.load(run[0]).predict(run[1], "techer")


def test_an_earlier_step_can_be_loaded(run):
    found = jaxmatch.load(run[0], 10)
    assert found.step == int(found.state.step) == 10
    assert_bitwise(on_host(found.state), state_of(run[0], 10))
    with pytest.raises(InputError, match=r"no checkpoint of step 7 .*present: 5, 10, 15, 20"):
        jaxmatch.load(run[0], 7)


def test_folders_that_are_no_runs(run, tmp_path):
    with pytest.raises(InputError, match="no run folder"):
        jaxmatch.load(tmp_path / "nowhere")
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(InputError, match=r"config\.json is damaged"):
        jaxmatch.load(tmp_path)
    shutil.copy(run[0] / "config.json", tmp_path)
    with pytest.raises(InputError, match="no checkpoint yet"):
        jaxmatch.load(tmp_path)


def test_a_damaged_checkpoint_is_passed_over(run, tmp_path, caplog):
    shutil.copytree(run[0], tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "20" / "manifest.json").write_text("{")
    assert jaxmatch.load(tmp_path / "run").step == 15
    assert "damaged" in caplog.text


def test_loading_executes_no_config_file_and_unpickles_nothing(run, monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError("unpickled")

    monkeypatch.setattr(flags, "load_module", refuse)
    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    assert jaxmatch.load(run[0]).step == STEPS
