"""Baselines on pixels: scikit-learn's numbers, which images they use, and what is refused."""

import dataclasses
import io
import json
import math

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, balanced_accuracy_score, roc_auc_score
from sklearn.svm import SVC
from tiny_runs import LABELS, configuration, write_data

from jaxmatch.config.flags import from_flags
from jaxmatch.data import splits
from jaxmatch.data.lazy import LazyImages
from jaxmatch.errors import DiskError, InputError
from jaxmatch.evaluation import baselines, on_pixels
from jaxmatch.evaluation.baselines import add_missing, measure, of_config, of_run
from jaxmatch.evaluation.comparison import TITLES, best_of, compare, mean_of, verdict
from jaxmatch.evaluation.on_pixels import gather
from jaxmatch.record.folder import RunFolder
from jaxmatch.record.run_data import load_new
from jaxmatch.record.settled import settled
from jaxmatch.report.baselines import page

NAMES = ["logistic_regression", "svc", "knn", "label_spreading"]


def recipe(text, *overrides):
    return from_flags(text, [f"--config.{override}" for override in overrides])[0]


@pytest.fixture(scope="module")
def digits():
    """A data set with a validation set, and its baselines."""
    config = recipe("fixmatch:digits,labels=40,seed=1", "data.validation=50")
    return load_new(settled(config)[0]), of_config(config)


def test_numbers_are_those_of_scikit_learn_on_the_pixels(digits):
    data, found = digits
    source, at = data.source, splits.locate(data.source, data.split)

    def pixels(images):
        return images[..., 0].reshape(len(images), -1) / 255

    for name, model in (
        ("svc", SVC(C=10, gamma="scale")),
        ("logistic_regression", LogisticRegression(max_iter=300)),
    ):
        model.fit(pixels(source.images[at]), source.labels[at])
        for part, images, labels in (
            ("test", source.test_images, source.test_labels),
            ("validation", data.validation_images, data.validation_labels),
        ):
            answers = model.predict(pixels(images))
            ours = found["baselines"][name][part]
            allowed = 1.5 / len(labels)  # float32 may move one image over a border
            assert abs(ours["accuracy"] - accuracy_score(labels, answers)) < allowed
            expected = balanced_accuracy_score(labels, answers)
            assert abs(ours["balanced_accuracy"] - expected) < 10 * allowed


def test_the_result_says_what_was_used(digits):
    data, found = digits
    assert list(found["baselines"]) == NAMES == list(TITLES)[:4]
    assert found["network"] is None
    assert (found["data"], found["seed"], found["split"]) == ("digits", 1, data.split.hash)
    counts = {key: found[key] for key in ("labels", "unlabeled", "test", "validation")}
    assert counts == {"labels": 40, "unlabeled": 1442 - 40 - 50, "test": 355, "validation": 50}
    assert (found["pixels"], found["notes"]) == ([32, 32, 1], [])
    accuracies = {name: one["test"]["accuracy"] for name, one in found["baselines"].items()}
    assert accuracies[found["best"]] == max(accuracies.values())
    assert min(accuracies.values()) > 0.6
    # The unlabeled images help: this is what makes it a baseline for semi-supervised learning.
    assert accuracies["label_spreading"] > accuracies["logistic_regression"] + 0.03
    assert "k=4" in found["baselines"]["knn"]["settings"]  # no more than a class has
    json.dumps(found)


@pytest.mark.slow
def test_the_result_is_the_same_at_each_call(digits):
    config = recipe("fixmatch:digits,labels=40,seed=1", "data.validation=50")
    assert of_config(config) == digits[1]
    other = of_config(recipe("fixmatch:digits,labels=40,seed=2", "data.validation=50"))
    assert other["split"] != digits[1]["split"]
    assert other["baselines"] != digits[1]["baselines"]


@pytest.mark.parametrize(
    "method",
    [
        "selfmatch",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("supervised", "simmatch", "mixmatch")
        ),
    ],
)
def test_any_recipe_gives_data_and_labels(method, digits):
    """The method does not matter; of stages, the last one has the labels."""
    found = of_config(recipe(f"{method}:digits,labels=40,seed=1"))
    assert (found["labels"], found["validation"]) == (40, 0)
    assert found["baselines"]["svc"]["validation"] is None
    assert found["split"] == digits[1]["split"]


@pytest.mark.slow
def test_mnist5k_with_40_labels():
    found = of_config(recipe("fixmatch:mnist5k,labels=40"))
    accuracies = {name: one["test"]["accuracy"] for name, one in found["baselines"].items()}
    assert accuracies == pytest.approx(
        {"logistic_regression": 0.662, "svc": 0.667, "knn": 0.613, "label_spreading": 0.821},
        abs=0.02,
    )


def data_of(tmp_path, chosen=",labels=16", **changed):
    path = write_data(tmp_path / "x.npz", **changed)
    return load_new(settled(configuration(path, chosen=chosen))[0])


def test_colours_and_truly_unlabeled_images_count(tmp_path):
    arrays = np.load(write_data(tmp_path / "all.npz"))
    hidden = np.where(np.arange(64) < 20, arrays["y_train"], -1)
    sets = gather(data_of(tmp_path, ",labels=all", y_train=hidden), 0)
    assert sets.shape == (8, 8, 3)
    known = hidden >= 0
    np.testing.assert_array_equal(
        sets.labeled.pixels, arrays["x_train"][known].reshape(known.sum(), -1)
    )
    np.testing.assert_array_equal(sets.labeled.labels, hidden[known])
    np.testing.assert_array_equal(
        sets.unlabeled.pixels, arrays["x_train"][~known].reshape((~known).sum(), -1)
    )
    np.testing.assert_array_equal(sets.unlabeled.labels, -1)


def test_labels_that_the_run_does_not_see_stay_hidden(tmp_path):
    """Whatever they are, the result is the same."""
    arrays = np.load(write_data(tmp_path / "all.npz"))
    data = data_of(tmp_path)
    at = splits.locate(data.source, data.split)
    wrong = (arrays["y_train"] + 1) % 4
    wrong[at] = arrays["y_train"][at]
    other = dataclasses.replace(data, source=dataclasses.replace(data.source, labels=wrong))
    assert measure(other, 0) == measure(data, 0)


def test_one_label_a_class_and_no_unlabeled_images(tmp_path):
    few = measure(data_of(tmp_path, ",labels=4"), 0)
    assert (few["labels"], few["unlabeled"]) == (4, 60)
    assert "k=1" in few["baselines"]["knn"]["settings"]
    every = measure(data_of(tmp_path, ",labels=all"), 0)
    assert (every["labels"], every["unlabeled"]) == (64, 0)
    for found in (few, every):
        assert all(one["test"]["accuracy"] > 0.25 for one in found["baselines"].values())


def test_too_many_images_are_thinned_and_large_ones_made_smaller(tmp_path, monkeypatch):
    data = data_of(tmp_path)
    for name, most in (("LABELED", 12), ("UNLABELED", 30), ("TEST", 20), ("SIDE", 4)):
        monkeypatch.setattr(on_pixels, f"MOST_{name}", most)
    found = measure(data, 0)
    assert {key: found[key] for key in ("labels", "unlabeled", "test")} == {
        "labels": 12, "unlabeled": 30, "test": 20
    }  # fmt: skip
    assert found["pixels"] == [4, 4, 3]
    assert found["notes"] == [
        "12 of 16 labeled images are used, drawn by the seed.",
        "30 of 48 unlabeled images are used, drawn by the seed.",
        "20 of 24 test images are used, drawn by the seed.",
        "The images of 8x8 are averaged down to 4x4.",
    ]
    sets = gather(data, 0)
    boxes = data.source.test_images.reshape(24, 4, 2, 4, 2, 3).mean((2, 4))
    one = sets.held_out["test"].pixels[0].reshape(4, 4, 3)
    assert min(np.abs(boxes - one).max((1, 2, 3))) <= 1


def test_streamed_images_are_read_and_unreadable_ones_left_out(tmp_path):
    data = data_of(tmp_path)
    images = data.source.images
    missing = int(splits.locate(data.source, data.split)[0])

    class Pixels:
        def __len__(self):
            return len(images)

        def read(self, row):
            if row == missing:
                return b"no image"
            content = io.BytesIO()
            Image.fromarray(images[row]).save(content, "PNG")
            return content.getvalue()

        def name(self, row):
            return str(row)

    lazy = LazyImages(records=Pixels(), rows=np.arange(len(images)), size=(8, 8))
    streamed = dataclasses.replace(data, source=dataclasses.replace(data.source, images=lazy))
    sets, whole = gather(streamed, 0), gather(data, 0)
    np.testing.assert_array_equal(sets.labeled.pixels, whole.labeled.pixels[1:])
    np.testing.assert_array_equal(sets.labeled.labels, whole.labeled.labels[1:])
    np.testing.assert_array_equal(sets.unlabeled.pixels, whole.unlabeled.pixels)


def test_what_has_no_baselines_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"simclr reads no labels, .* --config=supervised:DATA"):
        of_config(recipe("simclr:digits"))
    data = data_of(tmp_path)
    source = data.source
    same = dataclasses.replace(source, labels=np.zeros_like(source.labels))
    with pytest.raises(InputError, match=r"are all of class '0': a baseline needs two classes"):
        measure(dataclasses.replace(data, source=same), 0)
    untold = dataclasses.replace(source, test_labels=np.full_like(source.test_labels, -1))
    with pytest.raises(InputError, match="no test images with known labels"):
        measure(dataclasses.replace(data, source=untold), 0)
    many = dataclasses.replace(source, classes=tuple(map(str, range(1000))))
    with pytest.raises(InputError, match=r"has 1000 classes.*at most 200"):
        measure(dataclasses.replace(data, source=many), 0)


@pytest.fixture
def run(tmp_path):
    """The folder of a run before its first step, as `Run.record` writes it."""

    def write(method="fixmatch", chosen=f",labels={LABELS}", name="", **options):
        data = write_data(tmp_path / "x.npz")
        config, _ = settled(configuration(data, method=method, chosen=chosen, **options))
        loaded = load_new(config)
        folder = RunFolder(tmp_path / (name or method))
        folder.write_config(json.loads(config.to_json_best_effort()), loaded.facts())
        folder.write_record(loaded.record)
        folder.write_split(loaded.split)
        return folder, loaded

    return write


def test_a_run_keeps_its_baselines(run):
    folder, data = run()
    assert folder.read_baselines() is None
    found = of_run(folder.path)
    assert found == measure(data, 0) == folder.read_baselines()
    other = splits.Split(indices=data.split.indices[:-1])
    folder.write_split(other)
    assert folder.read_baselines() is None  # they are for other labels
    folder.write_split(data.split)
    del found["baselines"]["svc"]["test"]["accuracy"]
    folder.write_baselines(found)
    with pytest.raises(InputError, match=r"baselines\.json is damaged .*jaxmatch baseline"):
        folder.read_baselines()


def test_a_folder_that_cannot_be_written_loses_no_result(run, monkeypatch, caplog):
    folder, data = run()

    def full(*_):
        raise DiskError("no space.")

    monkeypatch.setattr(RunFolder, "write_baselines", full)
    assert of_run(folder.path) == measure(data, 0)
    assert "no space. The result is not kept." in caplog.text


def test_missing_baselines_of_data_that_has_moved(run, tmp_path):
    folder, _ = run()
    place = tmp_path / "elsewhere"
    place.mkdir()
    (tmp_path / "x.npz").rename(place / "x.npz")
    with pytest.raises(InputError, match="--data"):
        add_missing([folder.path])
    add_missing([folder.path], str(place / "x.npz"))
    assert folder.read_baselines() is not None


def test_only_missing_baselines_are_measured(run, monkeypatch):
    folder, _ = run()
    label_free, _ = run("simclr", "")
    add_missing([folder.path, label_free.path])
    assert folder.read_baselines() is not None
    assert not label_free.baselines_file.exists()
    monkeypatch.setattr(baselines, "measure", None)  # a call would fail
    add_missing([folder.path])
    others = [run("supervised", data__ratio=0)[0], run(name="same", data__batch_size=4)[0]]
    add_missing([folder.path, *(other.path for other in others)])  # of the same labels
    for other in others:
        assert other.read_baselines() == folder.read_baselines()
    for name, more in (("seed", {"seed": 1}), ("size", {"data__image_size": 4})):
        other, _ = run(name=name, **more)
        with pytest.raises(TypeError):
            add_missing([folder.path, other.path])
    with pytest.raises(InputError, match="was trained without labels"):
        of_run(label_free.path)
    with pytest.raises(InputError, match="is no run folder"):
        of_run(folder.path / "nowhere")


def result(accuracy, balanced=None, evaluated="teacher"):
    metrics = {} if balanced is None else {"metrics": {"balanced_accuracy": balanced}}
    other = "student" if evaluated == "teacher" else "teacher"
    return {
        "algorithm": "fixmatch",
        "evaluated": evaluated,
        evaluated: {"last": accuracy, **metrics},
        other: {"last": 1.0},
    }


def measured(**accuracies):
    return {
        "baselines": {
            name: {"title": TITLES[name], "test": {"accuracy": a, "balanced_accuracy": b}}
            for name, (a, b) in accuracies.items()
        }
    }


@pytest.mark.parametrize(
    ("summary", "text"),
    [
        (result(0.665), "fixmatch does not beat SVC on pixels: test accuracy 66.5% against 75.4%."),
        (result(0.754), "fixmatch does not beat SVC on pixels: test accuracy 75.4% against 75.4%."),
        (result(0.76), None),
        (result(0.76, 0.72), None),
        (
            result(0.76, 0.69, "student"),
            "fixmatch does not beat k-NN on pixels: balanced accuracy 69.0% against 71.0%.",
        ),
        (
            result(0.5, 0.5),
            "fixmatch does not beat SVC on pixels and k-NN on pixels: test accuracy 50.0% against "
            "75.4%, balanced accuracy 50.0% against 71.0%.",
        ),
        ({"algorithm": "simclr", "evaluated": "student", "student": None}, None),
    ],
)
def test_a_run_that_does_not_win_is_told_so(summary, text):
    assert compare(summary, measured(svc=(0.754, 0.7), knn=(0.7, 0.71))) == text


def test_several_runs_are_compared_by_their_means():
    pair = [measured(svc=(0.7, 0.7)), measured(svc=(0.8, 0.6), knn=(0.9, 0.9))]
    assert mean_of(pair, "accuracy") == {"svc": pytest.approx(0.75)}
    title, mean = best_of(pair, "accuracy") or ("", math.nan)
    assert (title, mean) == ("SVC on pixels", pytest.approx(0.75))
    assert best_of([], "accuracy") is None
    assert verdict("x", [result(1.0, 1.0)], [measured(svc=(1.0, 1.0))]) is None  # nothing is above
    assert verdict("x", [result(0.74), result(0.78)], pair) is None
    text = verdict("x", [result(0.72), result(0.76)], pair)
    assert text == "x does not beat SVC on pixels: test accuracy 74.0% against 75.0%."


def test_two_classes_have_an_area_under_roc(tmp_path):
    images, labels = load_digits(return_X_y=True)
    some = np.isin(labels, (3, 8))
    x = (16 * images[some] - 1).clip(0).astype(np.uint8).reshape(-1, 8, 8)
    y = (labels[some] == 8).astype(np.int64)
    np.savez(tmp_path / "x.npz", x_train=x[:200], y_train=y[:200], x_test=x[200:], y_test=y[200:])
    config = recipe(f"supervised:npz:{tmp_path / 'x.npz'},labels=6")
    found = of_config(config)
    data = load_new(settled(config)[0])
    at = splits.locate(data.source, data.split)
    pixels = x.reshape(len(x), -1) / 255
    model = SVC(C=10, gamma="scale").fit(pixels[at], y[at])
    expected = roc_auc_score(y[200:], model.decision_function(pixels[200:]))
    areas = {name: one["test"]["roc_auc"] for name, one in found["baselines"].items()}
    assert list(areas) == NAMES
    assert abs(areas["svc"] - expected) < 1e-3  # float32 may exchange neighbors
    assert all(0.5 < area < 1 for area in areas.values()), areas
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(page(found))
    text = console.export_text()
    assert "area under ROC" in text
    assert f"{areas['svc']:.3f}" in text
