"""Predictions for files: equal to the evaluation, streamed, with a reason for each other file."""

import csv
import json
import os
import shutil
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import toy_images
from ml_collections import ConfigDict
from PIL import Image
from tiny_runs import configuration, without_extras, without_learning

import jaxmatch
from jaxmatch.errors import DiskError, InputError
from jaxmatch.evaluation import predict as writer
from jaxmatch.evaluation import predictions
from jaxmatch.evaluation.classifier import Classifier
from jaxmatch.evaluation.forward import Answers
from jaxmatch.evaluation.metrics import evaluation
from jaxmatch.record.run_data import load_recorded

SIDE = 8


@pytest.fixture(scope="module", autouse=True)
def only_steps():
    with without_extras():
        yield


def save_pictures(folder, count, seed, kind="png"):
    """Pictures of several sizes with a transparent corner, in folders of the four classes."""
    images, labels = toy_images(count, seed)
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        (folder / f"c{label}").mkdir(parents=True, exist_ok=True)
        alpha = np.full((SIDE, SIDE, 1), 255, np.uint8)
        alpha[:3, :4] = 40 * (number % 4)
        picture = Image.fromarray(np.concatenate([image, alpha], -1))
        picture.resize((10 + number % 5, 12)).save(folder / f"c{label}" / f"{number:04d}.{kind}")


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("predicted")
    save_pictures(folder / "train", 32, 0)
    save_pictures(folder / "test", 520, 1)  # more than a block
    (folder / "test" / "c0" / "empty.png").write_bytes(b"")
    (folder / "test" / "c3" / "page.png").write_bytes(b"<html></html>")
    return folder


@pytest.fixture(scope="module")
def run(photographs, tmp_path_factory):
    """A run on pictures that are cropped, and whose background is not the default one."""
    workdir = tmp_path_factory.mktemp("run") / "run"
    with without_learning():
        jaxmatch.train(settings(photographs, data__background=(10, 200, 90)), workdir)
    return workdir


def settings(photographs, **options):
    options |= {"steps": 5, "data__image_size": SIDE, "data__center_crop": 0.8, "devices": 1}
    return configuration(f"folder:{photographs}", method="supervised", **options)


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_it_equals_the_evaluation_to_the_last_digit(run, photographs, tmp_path):
    classifier = jaxmatch.load(run)
    source = load_recorded(classifier.config, classifier.folder, needed="held").source
    evaluated = classifier.predict(source.test_images)
    rows = [row for row in source.listed.test if row not in source.listed.unused]
    found = classifier.predict(photographs / "test")
    assert len(found) == 520
    assert found.paths == tuple(str(photographs / source.names[row]) for row in rows)
    np.testing.assert_array_equal(found.probabilities, evaluated.probabilities)
    assert classifier.score(source.test_images, source.test_labels) == evaluation(
        Answers(found.probabilities, np.ones(520, bool)), source.test_labels, found.classes
    )
    writer.predict(classifier, [photographs / "test"], tmp_path / "p.csv", probabilities=True)
    written = rows_of(tmp_path / "p.csv")
    shares = np.float32([[row[f"p:{name}"] for name in found.classes] for row in written])
    np.testing.assert_array_equal(shares, evaluated.probabilities)
    np.testing.assert_array_equal(np.float32([row["confidence"] for row in written]), shares.max(1))


def test_the_background_and_the_crop_of_the_run_count(run, photographs, monkeypatch):
    classifier = jaxmatch.load(run)
    file = photographs / "test" / "c1" / "0001.png"
    mine = classifier.predict(file).probabilities
    for key, value in (("background", (255,)), ("center_crop", 1.0)):
        other = jaxmatch.load(run)
        other.config.data[key] = value
        assert not np.array_equal(other.predict(file).probabilities, mine)


def test_a_run_that_is_older_than_the_background_keeps_its_images(run, photographs, tmp_path):
    old = tmp_path / "old"
    shutil.copytree(run, old)
    values = json.loads((old / "config.json").read_text())
    del values["data"]["background"]
    (old / "config.json").write_text(json.dumps(values))
    ignoring = jaxmatch.load(run)
    ignoring.config.data.background = ()
    file = photographs / "test" / "c1" / "0001.png"
    expected = ignoring.predict(file).probabilities
    np.testing.assert_array_equal(jaxmatch.load(old).predict(file).probabilities, expected)
    assert not np.array_equal(jaxmatch.load(run).predict(file).probabilities, expected)
    summary = json.loads((old / "summary.json").read_text())
    assert jaxmatch.train(settings(photographs), old) == summary  # the same run, which is complete
    (old / "summary.json").unlink()
    with pytest.raises(InputError, match=r"data\.background: \[\] -> \[0\]"):
        jaxmatch.train(settings(photographs, data__background=0), old)


def test_python_takes_what_the_command_takes(run, photographs, monkeypatch):
    classifier = jaxmatch.load(run)
    monkeypatch.chdir(photographs / "test")
    folder = Path("c1")
    whole = classifier.predict("c1")
    files = sorted(folder.glob("*.png"))
    assert whole.paths == tuple(map(str, files))
    for given in (
        folder,
        [folder],
        ("c1", "c1/0001.png"),  # a folder and a file in it
        [str(file) for file in files],
        files[::-1],
        folder.glob("*.png"),
        np.array([str(file) for file in files]),
        np.array(files, object),
        set(files),
    ):
        found = classifier.predict(given)
        assert found.paths == whole.paths
        np.testing.assert_array_equal(found.probabilities, whole.probabilities)
    label, confidence, probabilities = whole
    assert whole.classes == ("c0", "c1", "c2", "c3")
    assert whole.names == tuple(whole.classes[number] for number in label)
    np.testing.assert_array_equal(confidence, probabilities.max(1))
    student = classifier.predict(folder, "student").probabilities
    assert not np.array_equal(student, probabilities)


def test_what_has_no_prediction_is_told(run, photographs):
    found = jaxmatch.load(run).predict([photographs / "test"])
    assert found.left_out == {
        "empty file": (str(photographs / "test" / "c0" / "empty.png"),),
        "not an image": (str(photographs / "test" / "c3" / "page.png"),),
    }


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        ("nowhere", "no file or folder nowhere"),
        (["test/c0/empty.png", "test/c3/page.png"], "empty file: .*not an image: .*page.png"),
        ("empty", "no readable images"),
    ],
)
def test_paths_without_images_are_refused(run, photographs, monkeypatch, paths, message):
    monkeypatch.chdir(photographs)
    Path("empty").mkdir(exist_ok=True)
    with pytest.raises(InputError, match=message):
        jaxmatch.load(run).predict(paths)


class Alive:
    """The blocks of images that a stand-in network has seen."""

    def __init__(self):
        self.shapes = []

    def __call__(self, variables, images):
        self.shapes.append(images.shape)
        shares = np.zeros((len(images), 2))
        shares[:, 0] = images[:, 0, 0, 0] / 256
        shares[:, 1] = 1 - shares[:, 0]
        with np.errstate(divide="ignore"):
            return Answers((np.log(shares), None), np.ones(len(images), bool))


def stand_in():
    """A classifier that reads files, with a network that costs nothing."""
    data = {"name": "folder:x", "center_crop": 1.0, "background": (255,), "white_level": None}
    found = Classifier(
        folder=Path("run"),
        config=ConfigDict({"data": data}),
        classes=("dark", "bright"),
        image_shape=(32, 32, 3),
        step=1,
        state=SimpleNamespace(teacher={}),
        program=SimpleNamespace(algorithm=SimpleNamespace(labeled=("weak",), evaluated="teacher")),
    )
    vars(found)["_network"] = Alive()
    return found


def grays(folder, count):
    folder.mkdir()
    for number in range(count):
        Image.new("L", (1, 1), number % 256).save(folder / f"{number:05d}.png")
    return folder


def peak(action):
    tracemalloc.start()
    try:
        action()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.slow
def test_the_memory_does_not_grow_with_the_number_of_files(tmp_path, monkeypatch):
    monkeypatch.setattr(predictions, "BATCH", 50)
    few, many = grays(tmp_path / "few", 150), grays(tmp_path / "many", 700)
    images = (700 - 150) * 32 * 32 * 3  # bytes

    def run(folder):
        writer.predict(stand_in(), [folder], tmp_path / "p.csv")

    counts = []
    writer.predict(stand_in(), [few], tmp_path / "p.csv", tell=counts.append)
    assert counts == [50, 100, 150]
    first = peak(lambda: run(few))
    more = peak(lambda: run(many)) - first
    assert len(rows_of(tmp_path / "p.csv")) == 700
    assert more < images / 4  # what remains are the names of the files
    monkeypatch.setattr(predictions, "BATCH", 2000)  # the test sees images that are kept
    assert peak(lambda: run(many)) - first > images


@pytest.mark.parametrize("count", [3, 50, 51, 120])
def test_blocks_have_one_shape(tmp_path, monkeypatch, count):
    monkeypatch.setattr(predictions, "BATCH", 50)
    folder, classifier = grays(tmp_path / "f", count), stand_in()
    found = classifier.predict(folder)
    shapes = classifier._network.shapes
    assert shapes == [(min(count, 50), 32, 32, 3)] * -(-count // 50)
    np.testing.assert_array_equal(found.probabilities[:, 0], np.arange(count) % 256 / 256)


def test_rows_are_written_as_they_come_and_appear_together(tmp_path, monkeypatch):
    monkeypatch.setattr(predictions, "BATCH", 50)
    folder, output = grays(tmp_path / "f", 120), tmp_path / "p.csv"
    output.write_text("mine")
    seen = []

    def blocks(paths, unknown):
        assert not unknown
        yield from (seen.append(texts(tmp_path, output)) or block for block in given(paths))
        raise InputError("the last block fails")

    classifier = stand_in()
    given = classifier.predict_files
    monkeypatch.setattr(
        Classifier, "predict_files", lambda self, paths, **more: blocks(paths, **more)
    )
    with pytest.raises(InputError, match="the last block fails"):
        writer.predict(classifier, [folder], output, left_out=tmp_path / "l.csv")
    assert output.read_text() == "mine"
    assert sorted(os.listdir(tmp_path)) == ["f", "p.csv"]
    assert [whole for whole, _ in seen] == ["mine"] * 3


def texts(folder, output):
    others = [path for path in folder.iterdir() if path.is_file() and path != output]
    return output.read_text(), [path.read_text() for path in others]


def test_links_pipes_and_devices_as_outputs(tmp_path):
    folder = grays(tmp_path / "f", 3)
    (tmp_path / "real.csv").write_text("old")
    (tmp_path / "link.csv").symlink_to("real.csv")
    writer.predict(stand_in(), [folder], tmp_path / "link.csv")
    assert (tmp_path / "link.csv").is_symlink()
    assert len(rows_of(tmp_path / "real.csv")) == 3
    writer.predict(stand_in(), [folder], Path("/dev/null"))
    with pytest.raises(DiskError, match=r"/dev/full could not be written \(No space left"):
        writer.predict(stand_in(), [folder], Path("/dev/full"))


def test_a_method_without_a_classifier_is_refused_before_a_file_is_read(tmp_path):
    classifier = stand_in()
    classifier.program.algorithm.labeled = ()
    with pytest.raises(InputError, match="has no classifier"):
        classifier.predict(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["p.tsv", "p.xlsx", "p.parquet", "p.json"])
def test_a_table_of_another_format_is_refused(tmp_path, name):
    with pytest.raises(InputError, match=r"a table is written as \.csv, or as \.jsonl"):
        writer.check_outputs(tmp_path / name)


@pytest.mark.parametrize("name", ["labels.csv"])
def test_predictions_do_not_become_a_table_of_labels(tmp_path, name):
    with pytest.raises(InputError, match="would be taken for labels; give another --output"):
        writer.check_outputs(tmp_path / name)


@pytest.mark.parametrize(
    "content",
    [b"path,label,prediction,confidence\na.png,ant,bee,0.9\n", b"\x00model", b"path,class\n"],
)
def test_a_file_that_is_no_table_of_predictions_is_kept(tmp_path, content):
    (tmp_path / "p.csv").write_bytes(content)
    with pytest.raises(InputError, match="is no file of predictions, and would be lost"):
        writer.check_outputs(tmp_path / "p.csv")


def test_own_tables_are_replaced_and_odd_names_can_be_read_back(tmp_path):
    folder = tmp_path / "f"
    folder.mkdir()
    names = {"a\rb.png", "c\nd.png", 'e"f.png', "g,h.png"}
    for name in names:
        Image.new("L", (1, 1)).save(folder / name)
    outputs = (folder / "p.csv", folder / "l.csv")
    for _ in range(2):
        writer.check_outputs(*outputs)
        left_out = writer.predict(stand_in(), [folder], outputs[0], left_out=outputs[1])
        assert not any("hidden" in reason for reason in left_out)  # no temporary file
    assert {Path(row["path"]).name for row in rows_of(outputs[0])} == names


def test_a_single_path_and_an_empty_one(tmp_path):
    folder = grays(tmp_path / "f", 2)
    (block,) = stand_in().predict_files(str(folder / "00001.png"))
    assert block.paths == (str(folder / "00001.png"),)
    for given in ("", [""]):
        with pytest.raises(InputError, match="a path is empty"):
            stand_in().predict(given)


@pytest.mark.parametrize("labels", [[0], [0, 2], [0.0, 1.0], [0, -1]])
def test_labels_are_positions_of_classes(labels):
    images = np.zeros((2, 32, 32, 3), np.uint8)
    with pytest.raises(InputError, match=r"^labels must be"):
        stand_in().score(images, labels)
    assert stand_in().score(images, [0, 1])["accuracy"] == 0.5
