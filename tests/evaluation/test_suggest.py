"""Suggestions: which images may be chosen, the table, and the command's page and messages."""

import base64
import csv
import io
import json
import re
import shlex
import shutil

import jax
import numpy as np
import pytest
from helpers import toy_images
from PIL import Image
from tiny_runs import configuration, train_tiny, write_data

from jaxmatch import load
from jaxmatch.cli.main import main
from jaxmatch.config.saved import to_json
from jaxmatch.data.levels import DEFAULT
from jaxmatch.data.table import takes
from jaxmatch.errors import InputError
from jaxmatch.evaluation import classifier as classifiers
from jaxmatch.evaluation import suggest
from jaxmatch.evaluation.acquisition import RULES
from jaxmatch.evaluation.classifier import Classifier
from jaxmatch.program import Program
from jaxmatch.record import run_data
from jaxmatch.record.folder import RunFolder
from jaxmatch.record.settled import settled, standardized
from jaxmatch.report import suggestions

CLASSES = ("ant", "bee", "cat, wild", "d<b>og")
ODD = b'caf\xe9 "x", y.png'.decode("utf-8", "surrogateescape")  # no UTF-8, quotes, a comma
COPIES = ("copy of 40.png", "copy of a test image.png", "copy of a labeled image.png")


def put(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).resize((30, 20), Image.Resampling.NEAREST).save(path)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Class folders, a test set, unlabeled images with an odd name, copies, and a broken file."""
    root = tmp_path_factory.mktemp("photos")
    images, labels = toy_images(64, 0)
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        part = "train" if number < 24 else "test"
        folder = f"{part}/{CLASSES[label]}" if number < 40 else "unlabeled"
        put(root / folder / (ODD if number == 41 else f"{number:02d}.png"), image)
    unlabeled = root / "unlabeled"
    first = {part: next((root / part).rglob("*.png")) for part in ("train", "test")}
    for source, name in zip((unlabeled / "40.png", first["test"], first["train"]), COPIES,
                            strict=True):  # fmt: skip
        shutil.copy(source, unlabeled / name)
    (unlabeled / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    return root


def untrained(source, folder, **options):
    """A classifier with random weights of a run that has begun, and the run's data."""
    config = settled(configuration(source, **({"data__image_size": 8} | options)))[0]
    data = run_data.load_new(config)
    config = standardized(config, data.source.images)
    run = RunFolder(folder)
    run.write_config(to_json(config), data.facts())
    run.write_split(data.split)
    run.write_record(data.record)
    program = Program.build(config, data.facts())
    state = jax.jit(program.init, out_shardings=program.shardings)()
    return Classifier(
        folder=folder,
        config=config,
        classes=data.source.classes,
        image_shape=program.image_shape,
        step=0,
        state=state,
        program=program,
    ), data


@pytest.fixture(scope="module")
def own(photos, tmp_path_factory):
    """A run on the folder, with a validation set."""
    folder = tmp_path_factory.mktemp("runs") / "own"
    return untrained(
        f"folder:{photos}", folder, chosen=",labels=16", data__validation=4, method="supervised"
    )


def test_labeled_held_out_copied_and_unreadable_images_are_never_chosen(own, photos):
    classifier, data = own
    found = suggest.choose(classifier, 1000)
    listed = data.record.listed
    held = {*data.split.indices.tolist(), *listed.test, *listed.validation}
    labels_of_16 = 24 - 4 - 16  # of 24 training images with a label
    assert len(found) == found.pool == labels_of_16 + 24
    assert not {listed.names[row] for row in held} & {*found.names}
    assert not {f"unlabeled/{name}" for name in COPIES[1:]} & {*found.names}
    assert len({"unlabeled/40.png", f"unlabeled/{COPIES[0]}"} & {*found.names}) == 1
    assert "unlabeled/broken.png" not in found.names
    assert f"unlabeled/{ODD}" in found.names
    assert found.left_out == {"exact copies of others": 3}


@pytest.mark.parametrize(
    "rule",
    [pytest.param(rule, marks=() if rule == "margin" else pytest.mark.slow) for rule in RULES],
)
def test_predictions_are_those_of_the_classifier(own, photos, rule):
    classifier, _ = own
    found = suggest.choose(classifier, 6, rule=rule, seed=2)
    again = suggest.choose(classifier, 6, rule=rule, seed=2)
    assert found.names == again.names
    assert len(set(found.names)) == 6
    files = [str(photos / name) for name in found.names]
    expected = classifier.predict(files)
    of = dict(zip(expected.paths, expected.probabilities, strict=True))
    np.testing.assert_allclose(found.probabilities, [of[name] for name in files], atol=1e-5)
    assert found.predictions == tuple(CLASSES[of[name].argmax()] for name in files)


def test_streamed_images_are_chosen_as_others_are(photos, own, tmp_path):
    options = {"chosen": ",labels=16", "data__validation": 4, "method": "supervised"}
    streamed, _ = untrained(f"folder:{photos}", tmp_path / "run", data__stream=True, **options)
    found, other = suggest.choose(streamed, 1000), suggest.choose(own[0], 1000)
    # Which images are not readable is not known before; it is told.
    assert found.left_out == {"exact copies of others": 3, "not readable": 1}
    assert {*found.names} == {*other.names}


def test_images_of_arrays_are_named_by_their_place(tmp_path):
    x_train, y_train = toy_images(64, 0)
    x_train[50], x_train[51] = x_train[49], x_train[0]
    known = np.where(np.arange(64) < 32, y_train, -1)
    data = write_data(tmp_path / "a.npz", x_train=x_train, y_train=known)
    classifier, loaded = untrained(data, tmp_path / "run", chosen=",labels=all")
    found = suggest.choose(classifier, 1000)
    assert found.key == "index"
    places = {*map(str, range(32, 64))} - {"50", "51"}
    assert {*found.names} == places
    assert found.left_out == {"exact copies of others": 2}
    images = loaded.source.images[[int(name) for name in found.names]]
    np.testing.assert_array_equal(found.source.images[found.positions], images)


def test_many_images_are_thinned_at_random(own, monkeypatch):
    monkeypatch.setattr(suggest, "MOST", 10)
    found, other = (suggest.choose(own[0], 1000, seed=seed) for seed in (0, 1))
    assert len(found) == found.pool == 10
    assert found.left_out["not drawn"] == 18
    assert {*found.names} != {*other.names}


@pytest.mark.parametrize("seed", ["-1", str(2**32)])
def test_a_seed_that_no_generator_takes_is_refused(own, seed, tmp_path, capsys):
    words = ["suggest", f"--workdir={own[0].folder}", f"--seed={seed}", "-o", tmp_path / "n.csv"]
    with pytest.raises(SystemExit, match="2"):
        main(list(map(str, words)))
    assert f"seed={seed}" in capsys.readouterr().err


def test_what_cannot_be_suggested_is_refused(own, data, tmp_path):
    classifier, _ = own
    for count in (0, -3, suggest.MOST_CHOSEN + 1):
        with pytest.raises(InputError, match="ask for 1 to 5,000 images"):
            suggest.choose(classifier, count)
    with pytest.raises(InputError, match=r"unknown rule --by=clues; did you mean 'clue'\?"):
        suggest.choose(classifier, 1, rule="clues")
    whole, _ = untrained(data, tmp_path / "whole", method="supervised", chosen=",labels=all")
    with pytest.raises(InputError, match="has no unlabeled images left"):
        suggest.choose(whole, 1)
    alone, _ = untrained(data, tmp_path / "alone", method="simclr", chosen="")
    with pytest.raises(InputError, match="trained without labels and has no classifier"):
        suggest.choose(alone, 1)


def test_the_table_keeps_the_bytes_of_names_and_is_never_overwritten_with_labels(own, tmp_path):
    found = suggest.choose(own[0], 1000)
    file = tmp_path / "next.csv"
    suggest.write_table(file, found)
    with file.open(encoding="utf-8", errors="surrogateescape", newline="") as lines:
        head, *rows = csv.reader(lines)
    assert head == ["path", "label", "prediction", "confidence"]
    assert [row[0] for row in rows] == list(found.names)
    assert b'unlabeled/caf\xe9 ""x"", y.png' in file.read_bytes()
    assert {row[1] for row in rows} == {""}
    assert [row[2] for row in rows] == list(found.predictions)
    np.testing.assert_allclose([float(row[3]) for row in rows], found.confidence, atol=5e-5)
    suggest.check_table(file)  # empty labels may be replaced
    file.write_bytes(file.read_bytes().replace(b"png,,", b"png,ant,", 1))
    with pytest.raises(InputError, match="has 1 label that would be lost"):
        suggest.check_table(file)
    with pytest.raises(InputError, match=r"is a \.csv"):
        suggest.check_table(tmp_path / "next.xlsx")


@pytest.mark.parametrize(
    "content",
    [
        "\ufeffpath;label;prediction\r\na.png;ant;bee\r\n".encode(),
        "path,label\na.png,ant\n".encode("utf-16"),
        b"Path,Label\na.png,ant\n",
        b"index,label\n3,ant\n",
        b"path\tlabel\na.png\tant\n",
    ],
)
def test_a_table_with_labels_is_kept_whatever_program_has_saved_it(tmp_path, content):
    file = tmp_path / "next.csv"
    file.write_bytes(content)
    with pytest.raises(InputError, match="has 1 label that would be lost"):
        suggest.check_table(file)
    file.write_bytes(content.replace(b"ant", b"").replace("ant".encode("utf-16-le"), b""))
    suggest.check_table(file)


@pytest.mark.parametrize(
    "content", ["my notes", "file,class\na.png,\n", "path,label,camera,taken\na.png,,left,noon\n"]
)
def test_a_file_of_another_kind_is_kept(tmp_path, content):
    (tmp_path / "next.csv").write_text(content)
    with pytest.raises(InputError, match="is no table that suggest has written, and would be lost"):
        suggest.check_table(tmp_path / "next.csv")


def filled(page, chosen):
    """The table that the page saves if some places have some classes, by the rule of its script."""
    about = json.loads(re.search(r'id="rows">(.*?)</script>', page, re.DOTALL)[1])
    parts = [about["header"]]
    for place, (before, after) in enumerate(zip(about["before"], about["after"], strict=True)):
        label = [about["classes"][chosen[place]]] if place in chosen else []
        parts += [before, *label, after]
    return b"".join(map(base64.b64decode, parts))


def test_the_page_is_alone_small_and_saves_the_table(own, tmp_path):
    found = suggest.choose(own[0], 8)
    page = suggestions.page(found, "next.csv", "runs/<a>", DEFAULT, "jaxmatch train --x='<b>'")
    suggest.write_table(tmp_path / "next.csv", found)
    assert filled(page, {}) == (tmp_path / "next.csv").read_bytes()
    rows = list(csv.DictReader(
        filled(page, {0: 2, 5: 3}).decode("utf-8", "surrogateescape").splitlines()
    ))  # fmt: skip
    assert {n: row["label"] for n, row in enumerate(rows) if row["label"]} == {
        0: "cat, wild",
        5: "d<b>og",
    }
    assert page.count("data:image/png;base64,") == 8  # 30 x 20 pixels
    assert "http" not in page
    assert "<b>" not in page
    assert "d&lt;b&gt;og" in page
    assert len(page) < 60_000


def test_pictures_are_whole_files_and_their_size_is_bounded(own, photos, monkeypatch):
    found = suggest.choose(own[0], 4)
    pictures = suggestions.thumbnails(found, DEFAULT)
    for name, picture in zip(found.names, pictures, strict=True):
        with Image.open(photos / name) as image:
            shown = Image.open(io.BytesIO(picture))
            np.testing.assert_array_equal(np.asarray(shown), np.asarray(image.convert("RGB")))
    noise = np.random.default_rng(0).integers(0, 256, (400, 300, 3), np.uint8)
    monkeypatch.setattr(suggestions, "_picture", lambda *_: Image.fromarray(noise))
    assert {Image.open(io.BytesIO(each)).size
            for each in suggestions.thumbnails(found, DEFAULT)} == {(192, 256)}  # fmt: skip
    monkeypatch.setattr(suggestions, "MOST_BYTES", 30_000)
    small = suggestions.thumbnails(found, DEFAULT)
    assert sum(map(len, small)) <= 30_000


def test_the_reason_names_likely_classes_and_similar_images(own):
    found = suggest.choose(own[0], 3)
    values = np.array([[0.6, 0.37, 0.03, 0.0], [0.25] * 4, [1.0, 0, 0, 0]])
    fixed = dict(vars(found)) | {"probabilities": values, "similar": np.array([7, 1, 12])}
    texts = [suggestions.why(suggest.Suggestions(**fixed), place) for place in range(3)]
    assert texts == [
        "Predicted: ant 60%; bee 37%. Stands for 7 similar images.",
        "Predicted: ant 25%; bee 25%; cat, wild 25%.",
        "Predicted: ant 100%. Stands for 12 similar images.",
    ]


def test_the_command_writes_both_files_and_tells_how_to_go_on(own, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(classifiers, "load", lambda workdir, step: own[0])
    main(["suggest", f"--workdir={own[0].folder}", "-n", "5"])
    printed = capsys.readouterr().out
    assert "wrote next.csv and next.html: 5 of 28 unlabeled images, by typiclust" in printed
    assert "left out: 3 images, exact copies of others" in printed
    commands = [line.strip() for line in printed.splitlines() if line.startswith("  jaxmatch")]
    assert f"--config.init_from={own[0].folder}" in commands[0]
    assert "--config.data.added_labels=next.csv" in commands[0]
    assert commands[0].endswith(f"--workdir={own[0].folder}-2")
    assert commands[1] == f"jaxmatch suggest --workdir {own[0].folder}-2 -n 5 -o next-2.csv"
    page = (tmp_path / "next.html").read_text()
    assert filled(page, {}) == (tmp_path / "next.csv").read_bytes()
    (tmp_path / "next.csv").write_text("path,label\na.png,ant\n")
    with pytest.raises(SystemExit) as ended:
        main(["suggest", f"--workdir={own[0].folder}", "-n", "5"])
    assert ended.value.code == 2
    assert "has 1 label that would be lost" in capsys.readouterr().err


@pytest.mark.slow
def test_two_rounds_of_labels(photos, tmp_path, monkeypatch, capsys):
    """Train, suggest, fill in the table, run the printed command; and again."""
    monkeypatch.chdir(tmp_path)
    truth = {}
    for number, label in enumerate(toy_images(64, 0)[1]):
        truth[f"unlabeled/{ODD if number == 41 else f'{number:02d}.png'}"] = CLASSES[label]
    truth[f"unlabeled/{COPIES[0]}"] = truth["unlabeled/40.png"]
    train_tiny(f"folder:{photos}", tmp_path / "run", chosen=",labels=all", data__image_size=8)
    numbers = [len(RunFolder(tmp_path / "run").read_split().indices)]
    workdir, table, chosen = "run", "next.csv", []
    for round_ in (2, 3):
        capsys.readouterr()
        main(["suggest", f"--workdir={workdir}", "-n", "5", "-o", table])
        commands = [line for line in capsys.readouterr().out.splitlines() if "  jaxmatch" in line]
        content = (tmp_path / table).read_bytes().decode("utf-8", "surrogateescape")
        head, *rows = csv.reader(content.splitlines())
        with (tmp_path / table).open("w", newline="", encoding="utf-8",
                                     errors="surrogateescape") as file:  # fmt: skip
            csv.writer(file).writerows([head, *([r[0], truth[r[0]], *r[2:]] for r in rows)])
        chosen += [row[0] for row in rows]
        main(shlex.split(commands[0])[1:])
        workdir, table = f"run-{round_}", f"next-{round_}.csv"
        assert shlex.split(commands[1])[1:] == (
            ["suggest", "--workdir", workdir, "-n", "5", "-o", table]
        )
        numbers.append(len(RunFolder(tmp_path / workdir).read_split().indices))
        main(["evaluate", f"--workdir={workdir}", "--json"])
        assert json.loads(capsys.readouterr().out.splitlines()[-1])["teacher"]["accuracy"] > 0
    assert np.diff(numbers).tolist() == [5, 5]
    assert len(set(chosen)) == 10
    assert len(load(workdir).predict(str(photos / "unlabeled" / "42.png"))) == 1


@pytest.mark.parametrize("label", ["-1", "nan", "?", "n/a", "unlabeled"])
def test_labels_that_look_like_none_are_kept_too(tmp_path, label):
    file = tmp_path / "next.csv"
    file.write_text(f"path,label,prediction,confidence\na.png,{label},{label},0.9\n")
    with pytest.raises(InputError, match="has 1 label that would be lost"):
        suggest.check_table(file)


def test_files_whose_names_no_table_gives_back_are_left_out(photos, tmp_path):
    folder = shutil.copytree(photos, tmp_path / "photos")
    image = toy_images(80, 0)[0]
    for number, name in enumerate(("two\nlines.png", "return\r.png")):
        put(folder / "unlabeled" / name, image[70 + number])
    options = {"chosen": ",labels=16", "data__validation": 4, "method": "supervised"}
    found = suggest.choose(untrained(f"folder:{folder}", tmp_path / "run", **options)[0], 1000)
    assert not [name for name in found.names if "lines" in name or "return" in name]
    assert found.left_out["with a line break in their names, or a blank at an end"] == 2
    assert not takes(" lead.png")


def test_images_that_differ_in_the_middle_alone_are_no_copies(tmp_path):
    image = np.full((256, 256, 3), 255, np.uint8)  # a white border, in a file without compression
    for number in range(24):
        image[100:150] = number
        folder = tmp_path / "photos" / (CLASSES[number % 2] if number < 8 else "unlabeled")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{number}.bmp")
    _, data = untrained(
        f"folder:{tmp_path / 'photos'}", tmp_path / "run", chosen="", method="supervised"
    )
    pool, copied = suggest.candidates(data)
    assert (len(pool), copied) == (16, 0)
