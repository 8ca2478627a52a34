"""The gallery of a real run: which images it shows, what it keeps, its size, and lost data."""

import json
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from helpers import toy_images
from PIL import Image
from tiny_runs import train_tiny, without_learning

import jaxmatch
from jaxmatch.cli.main import main
from jaxmatch.data.thumbnails import thumbnail
from jaxmatch.evaluation import examples as module
from jaxmatch.evaluation.examples import CLASSES, OF_CLASS, SHOWN, SIDE, examples
from jaxmatch.record.folder import RunFolder
from jaxmatch.report import gallery as galleries
from jaxmatch.report.gallery import MOST_GALLERIES, gallery
from jaxmatch.report.page import report

NAMES = ("apple", '<b>&"', "fig's", "plum")
MOST_BYTES = 2_000_000  # of the gallery of a group


def write_photos(folder, part, count, seed):
    """Noisy photographs of four classes; a name has letters that HTML reads as its own."""
    images, labels = toy_images(count, seed)
    noise = np.random.default_rng(seed).integers(0, 256, images.shape)
    for number, (image, label) in enumerate(zip(images * 0.3 + noise * 0.7, labels, strict=True)):
        place = folder / part / (NAMES[label] if part != "unlabeled" else "")
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.astype(np.uint8)).save(place / f'{number} <i>&"{part}".png')


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of few steps on a folder of photographs, and that folder."""
    place = tmp_path_factory.mktemp("gallery")
    for seed, (part, count) in enumerate((("train", 32), ("test", 40), ("unlabeled", 12))):
        write_photos(place / "photos", part, count, seed)
    options = {"chosen": ",labels=8", "steps": 5, "data__image_size": 8, "devices": 1}
    options["method"] = "pseudo_label"
    with without_learning():
        train_tiny(f"folder:{place / 'photos'}", place / "run", **options)
    return place / "run", place / "photos"


@pytest.fixture
def run(trained, tmp_path):
    """A copy of the run that has not been reported yet."""
    shutil.copytree(trained[0], tmp_path / "run")
    return tmp_path / "run"


def truth_of(name):
    return Path(name).parent.name


def test_the_gallery_holds_what_predict_says_of_the_files(run, trained):
    found = examples(run)
    predicted = jaxmatch.load(run).predict(trained[1] / "test")
    rows = [
        (f"test/{Path(path).relative_to(trained[1] / 'test')}", name, float(confidence))
        for path, name, confidence in zip(
            predicted.paths, predicted.names, predicted.confidence, strict=True
        )
    ]
    wrong = [row for row in rows if truth_of(row[0]) != row[1]]
    assert wrong  # else the test compares nothing
    for kind, expected in (
        ("mistakes", sorted(wrong, key=lambda row: -row[2])),
        ("uncertain", sorted(rows, key=lambda row: row[2])),
    ):
        assert [(one["name"], one["prediction"]) for one in found[kind]] == [
            row[:2] for row in expected[:SHOWN]
        ]
        for one, (name, _, confidence) in zip(found[kind], expected, strict=False):
            assert one["truth"] == truth_of(name)
            assert one["confidence"] == pytest.approx(confidence, abs=1e-4)


def test_wrong_pseudo_labels_are_of_unlabeled_images_with_a_known_class(run):
    found = examples(run)
    split = json.loads((run / "split.json").read_text())
    labeled = {str(name) for name in split.get("names", [])}
    for one in found["wrong_pseudo_labels"]:
        assert one["name"].startswith("train/")
        assert one["name"] not in labeled
        assert one["truth"] == truth_of(one["name"]) != one["prediction"]
    assert found["unlabeled"] == [24 + 12, 24 + 12]
    by_class = found["by_class"]
    assert sum(each["count"] for each in by_class.values()) == 36
    for name, each in by_class.items():
        assert {one["prediction"] for one in each["examples"]} == {name}
        shares = [one["confidence"] for one in each["examples"]]
        assert shares == sorted(shares, reverse=True)


class Parts(HTMLParser):
    """The images' texts and the tags of a page."""

    def __init__(self, text):
        super().__init__()
        self.alternatives, self.tags, self.text = [], set(), []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        if tag == "img":
            self.alternatives.append(dict(attributes)["alt"])

    def handle_data(self, data):
        self.text.append(data)


@pytest.mark.usefixtures("undrawn")
def test_odd_names_of_classes_and_files_are_shown_as_they_are(run, tmp_path):
    (page, *_) = report([run], tmp_path / "page.html")
    text = page.read_text()
    parts = Parts(text)
    assert '<b>&"' in parts.text  # a class
    assert any('<i>&"' in name for name in parts.alternatives)
    assert "<i>&" not in text
    assert len(text) < MOST_BYTES


@pytest.mark.slow
def test_a_second_report_needs_neither_data_nor_network(run, tmp_path, monkeypatch):
    (first, *_) = report([run], tmp_path / "first.html")
    loaded = []
    monkeypatch.setattr(module, "load", lambda *_: loaded.append(1) or jaxmatch.load(run))
    (second, *_) = report([run], tmp_path / "second.html", place="/nowhere")
    assert second.read_text() == first.read_text()
    assert not loaded
    kept = RunFolder(run).examples_file
    kept.write_text(kept.read_text().replace('"step": 5', '"step": 4', 1))  # as after training on
    report([run], tmp_path / "third.html")
    assert loaded


@pytest.mark.usefixtures("undrawn")
def test_without_its_data_the_page_says_so_and_has_all_else(trained, run, tmp_path):
    folder, moved = trained[1], trained[1].with_name("moved")
    folder.rename(moved)
    try:
        text = report([run], tmp_path / "gone.html")[0].read_text()
        assert "No images of pseudo_label are shown: There is no" in text
        assert "Images: pseudo_label" not in text
        assert "<h2>Classes, at step 5, the last</h2>" in text
        assert "<h2>Confusions, at step 5, the last</h2>" in text
        assert not RunFolder(run).examples_file.exists()
        text = report([run], tmp_path / "moved.html", place=str(moved))[0].read_text()
        assert "Images: pseudo_label" in text
    finally:
        moved.rename(folder)


@pytest.mark.slow
def test_the_flags_of_the_command(run, tmp_path):
    main(["report", str(run), "-o", str(tmp_path / "without.html"), "--no-gallery"])
    assert "Images: pseudo_label" not in (tmp_path / "without.html").read_text()
    assert not RunFolder(run).examples_file.exists()
    main(["report", str(run), "-o", str(tmp_path / "with.html"), "--gallery"])
    assert "Images: pseudo_label" in (tmp_path / "with.html").read_text()


def test_a_picture_is_the_image_and_small():
    random = np.random.default_rng(0)
    picture = thumbnail(Image.fromarray(random.integers(0, 256, (300, 200, 3), np.uint8)), SIDE)
    assert len(picture) < 12_000
    image = np.full((8, 8, 3), (10, 200, 30), np.uint8)
    shown = galleries.thumbnail(thumbnail(Image.fromarray(image), SIDE), "x")
    assert 'class="sharp"' in shown
    assert "data:image/png" in shown
    assert 'class="sharp"' not in galleries.thumbnail(picture, "x")


def test_the_heading_tells_the_step_and_which_one_it_is(run, monkeypatch):
    from jaxmatch.report.results import group, read

    (one,) = group([read(run)])
    monkeypatch.setattr(galleries, "gallery", lambda found: "")
    for step, chosen, expected in (
        (5, "", "at step 5, the last"),
        (4, "validation/accuracy", "at step 4, the selected one"),
        (4, "", "at step 4"),  # of a run that goes on
    ):
        one.counted[0].settings["select"] = chosen
        monkeypatch.setattr(module, "examples", lambda folder, place, step=step: {"step": step})
        assert galleries.sections([one]) == f"<h2>Images: pseudo_label, {expected}</h2>\n"


def test_a_class_without_images_has_neither_recall_nor_f1():
    rows = {"a": {"precision": 0.5, "recall": 0.0, "f1": 0.0, "support": 0}}
    bounds = {"a": {"precision": [0.4, 0.6], "recall": None, "f1": [0.0, 0.0]}}
    text = galleries.figures(
        {
            "metrics": {"accuracy": 0.5, "per_class": rows},
            "intervals": {"accuracy": [0.4, 0.6], "per_class": bounds},
        }
    )
    cells = "<td>a</td><td>0</td><td>-</td><td>0.500 (0.400 to 0.600)</td><td>-</td>"
    assert cells in text


def test_the_largest_gallery_is_bounded():
    random = np.random.default_rng(0)
    worst = module.base64.b64encode(
        thumbnail(Image.fromarray(random.integers(0, 256, (96, 96, 3), np.uint8)), SIDE)
    ).decode()
    one = {
        "picture": worst,
        "name": "n" * 255,
        "truth": "t" * 100,
        "prediction": "p" * 100,
        "confidence": 0.5,
    }
    shares = {"recall": 0.5, "precision": 0.5, "f1": 0.5}
    classes = {f"class {number}": {**shares, "support": 9} for number in range(1000)}
    bounds = {name: {key: [0.4, 0.6] for key in shares} for name in classes}
    kinds = ("mistakes", "uncertain", "wrong_pseudo_labels")
    found = {
        **{kind: [one] * SHOWN for kind in kinds},
        "by_class": {
            f"class {number}": {"count": 9, "examples": [one] * OF_CLASS}
            for number in range(CLASSES)
        },
        "metrics": {"accuracy": 0.5, "per_class": classes},
        "intervals": {"accuracy": [0.4, 0.6], "per_class": bounds},
    }
    assert len(gallery(found)) < MOST_BYTES


def test_a_page_has_galleries_of_so_many_groups(run, monkeypatch):
    from jaxmatch.report.results import group, read

    (one,) = group([read(run)])
    drawn = []
    monkeypatch.setattr(
        module, "examples", lambda folder, place: drawn.append(folder) or {"step": 5}
    )
    monkeypatch.setattr(galleries, "gallery", lambda found: "")
    text = galleries.sections([one] * (MOST_GALLERIES + 2))
    assert len(drawn) == MOST_GALLERIES
    assert "Images of the first 7 of 9 groups are shown." in text
