"""Runs with data.added_labels: which images are labeled, also later; which tables are refused."""

import json
import os
import shutil

import numpy as np
import pytest
from helpers import toy_images
from ml_collections import ConfigDict
from PIL import Image
from tiny_runs import configuration, write_data

from jaxmatch import train
from jaxmatch.config.saved import run_name, to_json
from jaxmatch.data import added as added_labels
from jaxmatch.data.splits import Split
from jaxmatch.errors import InputError
from jaxmatch.record import run_data
from jaxmatch.record.folder import RunFolder
from jaxmatch.record.settled import settled, standardized
from jaxmatch.training.train import finished

CLASSES = ("ant", "bee", "cat, wild", "dog")
SHORT = {"steps": 10, "data__image_size": 8}


def put(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


@pytest.fixture
def photos(tmp_path):
    """Eight images a class in class folders, of which two are drawn to test, and 16 unlabeled."""
    root = tmp_path / "photos"
    images, labels = toy_images(48, 0)
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        folder = CLASSES[label] if number < 32 else "unlabeled"
        put(root / folder / f"{number:02d}.png", image)
    return root


def truth(number):
    return CLASSES[toy_images(48, 0)[1][number]]


def table(path, rows, key="path", more=""):
    """A table with some names and their labels; labels with a comma stand in quotes."""
    cells = (f'"{name}","{label}"{more and ",x,0.5"}\n' for name, label in rows.items())
    path.write_text(f"{key},label{more}\n{''.join(cells)}")
    return path


def unlabeled(*numbers):
    return {f"unlabeled/{number:02d}.png": truth(number) for number in numbers}


def loaded(source, **options):
    options = {"chosen": ",labels=all"} | SHORT | options
    return run_data.load_new(settled(configuration(source, **options))[0])


def labeled(data):
    """The class of each labeled image by its name, or by its row."""
    rows, names = data.split.indices.tolist(), data.source.names
    labels = [data.source.classes[label] for label in data.labels()]
    return dict(zip([names[row] if names else row for row in rows], labels, strict=True))


def test_labels_are_added_to_those_of_class_folders(photos, tmp_path):
    """Rows without a label and further columns do not count; test and other images stay."""
    rows = unlabeled(33, 40, 45)
    file = table(
        tmp_path / "next.csv", rows | {"unlabeled/36.png": ""}, more=",prediction,confidence"
    )
    plain, more = loaded(f"folder:{photos}"), loaded(f"folder:{photos}", data__added_labels=file)
    assert labeled(more) == labeled(plain) | rows
    assert more.record.listed == plain.record.listed
    np.testing.assert_array_equal(more.source.test_images, plain.source.test_images)
    counts = "Labels added by data.added_labels: 3 images"
    assert [note for note in more.source.survey.notes if note.startswith(counts)]
    assert "prediction" not in " ".join(more.source.survey.notes)


def test_the_draws_of_test_and_validation_images_stay(photos, tmp_path):
    file = table(tmp_path / "next.csv", unlabeled(33, 40, 45))
    options = {"data__validation": 6}
    plain = loaded(f"folder:{photos}", **options)
    more = loaded(f"folder:{photos}", data__added_labels=file, **options)
    assert plain.validation_rows == more.validation_rows
    assert labeled(more) == labeled(plain) | unlabeled(33, 40, 45)


def test_labels_of_a_balanced_draw_stay_and_an_unused_label_of_the_data_is_used(photos, tmp_path):
    plain = loaded(f"folder:{photos}", chosen=",labels=4")
    names, rows = plain.source.names, set(plain.source.rows.tolist())
    free = next(
        name for row, name in enumerate(names)
        if row in rows and name not in labeled(plain) and name.startswith("bee/")
    )  # fmt: skip
    file = table(tmp_path / "next.csv", {free: "bee"})
    more = loaded(f"folder:{photos}", chosen=",labels=4", data__added_labels=file)
    assert labeled(more) == labeled(plain) | {free: "bee"}
    known = next(iter(labeled(plain)))
    file = table(tmp_path / "known.csv", {known: labeled(plain)[known], free: "bee"})
    same = loaded(f"folder:{photos}", chosen=",labels=4", data__added_labels=file)
    assert labeled(same) == labeled(more)


def test_a_folder_with_a_table_takes_several_tables_more(tmp_path):
    images, labels = toy_images(40, 0)
    for number, image in enumerate(images):
        put(tmp_path / "photos" / f"{number:02d}.png", image)
    own = {f"{number:02d}.png": CLASSES[labels[number]] for number in range(32)}
    table(tmp_path / "photos" / "labels.csv", own)
    tables = [
        table(tmp_path / f"{number}.csv", {f"{number}.png": CLASSES[labels[number]]})
        for number in (33, 37)
    ]
    data = loaded(f"folder:{tmp_path / 'photos'}", data__added_labels=",".join(map(str, tables)))
    plain = loaded(f"folder:{tmp_path / 'photos'}")
    assert labeled(data) == labeled(plain) | {
        f"{number}.png": CLASSES[labels[number]] for number in (33, 37)
    }
    # The same rows in the folder's own table, with the columns of jaxmatch suggest.
    rows = own | {"33.png": CLASSES[labels[33]]}
    table(tmp_path / "photos" / "labels.csv", rows, more=",prediction,confidence")
    merged = loaded(f"folder:{tmp_path / 'photos'}")
    found = merged.record.listed
    assert found.labels[found.names.index("33.png")] == labels[33]
    assert "prediction" not in " ".join(merged.source.survey.notes)


def test_images_of_an_npz_file_are_named_by_their_index(tmp_path):
    _, y_train = toy_images(64, 0)
    known = np.where(np.arange(64) < 32, y_train, -1)
    source = write_data(tmp_path / "a.npz", y_train=known)
    rows = {40: str(y_train[40]), 63: str(y_train[63])}
    file = table(tmp_path / "next.csv", rows, key="index")
    found = labeled(loaded(source, data__added_labels=file))
    assert len(found) == 34
    assert {row: found[row] for row in rows} == rows


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({}, "has no label; fill in the column label"),
        ({"unlabeled/33.png": ""}, "has no label; fill in the column label"),
        ({"unlabeled/33.png": "cow"}, "the label 'cow', which is none of the classes ant, bee"),
        ({"unlabeled/99.png": "ant"}, "names unlabeled/99.png, but there is no such file"),
        ({"TEST": "OWN"}, "which is a test image; remove the row"),
        ({"TRAIN": "OTHER"}, "but the data has '{own}'; correct one of them"),
    ],
)
def test_tables_that_do_not_fit_are_refused(photos, tmp_path, rows, message):
    plain = loaded(f"folder:{photos}")
    names = plain.source.names
    test = names[plain.record.listed.test[0]]
    train_name = next(iter(labeled(plain)))
    own = labeled(plain)[train_name]
    words = {
        "TEST": test,
        "OWN": test.split("/")[0],
        "TRAIN": train_name,
        "OTHER": next(name for name in CLASSES if name != own),
    }
    rows = {words.get(name, name): words.get(label, label) for name, label in rows.items()}
    file = table(tmp_path / "next.csv", rows)
    with pytest.raises(InputError) as error:
        loaded(f"folder:{photos}", data__added_labels=file)
    assert message.format(own=own) in str(error.value)


def test_a_class_may_be_a_word_for_no_label(photos, tmp_path, caplog):
    (photos / "ant").rename(photos / "none")
    (photos / "bee").rename(photos / "unknown")
    rows = {"unlabeled/33.png": "none", "unlabeled/34.png": "unknown", "unlabeled/35.png": "?"}
    file = table(tmp_path / "next.csv", rows)
    found = labeled(loaded(f"folder:{photos}", data__added_labels=file))
    assert {name: found.get(name) for name in rows} == {**rows, "unlabeled/35.png": None}
    assert "Read as no label: '?' in 1 row of next.csv" in caplog.text


def test_contradictions_between_and_within_tables_are_refused(photos, tmp_path):
    one = table(tmp_path / "one.csv", {"unlabeled/33.png": "ant"})
    two = table(tmp_path / "two.csv", {"unlabeled/33.png": "bee"})
    with pytest.raises(InputError, match=r"two.csv gives .* 'bee', but .*one.csv has 'ant'"):
        loaded(f"folder:{photos}", data__added_labels=f"{one},{two}")
    one.write_text("path,label\nunlabeled/33.png,ant\nunlabeled/33.png,bee\n")
    with pytest.raises(InputError, match="more than once, as 'ant' and 'bee'"):
        loaded(f"folder:{photos}", data__added_labels=one)


@pytest.mark.parametrize("word", ["-1", "a", "1.5", "64", "³"])
def test_an_index_that_is_none_is_refused(data, tmp_path, word):
    file = table(tmp_path / "next.csv", {word: "1"}, key="index")
    with pytest.raises(InputError, match=r"index|no training image"):
        loaded(data, data__added_labels=file)


def test_a_table_of_the_other_kind_is_refused(data, photos, tmp_path):
    file = table(tmp_path / "next.csv", {"3": "1"})
    with pytest.raises(InputError, match="must have the first line `index,label`"):
        loaded(data, data__added_labels=file)
    file = table(tmp_path / "next.csv", {"3": "1"}, key="index")
    with pytest.raises(InputError, match="must have the first line `path,label`"):
        loaded(f"folder:{photos}", data__added_labels=file)


def test_methods_without_labels_refuse_some(photos, tmp_path):
    file = table(tmp_path / "next.csv", unlabeled(33))
    with pytest.raises(InputError, match=r"data\.added_labels empty"):
        loaded(f"folder:{photos}", method="simclr", chosen="", data__added_labels=file)


def test_names_with_commas(tmp_path):
    whole = tmp_path / "a,b.csv"
    whole.touch()
    assert added_labels.files(str(whole)) == (str(whole),)
    assert added_labels.files("a.csv, b.csv,") == ("a.csv", "b.csv")
    assert added_labels.files(f"c.csv, {whole}, d.csv") == ("c.csv", str(whole), "d.csv")
    assert added_labels.files(f"{'x' * 300},{whole},{'y' * 300}") == (
        "x" * 300,
        str(whole),
        "y" * 300,
    )
    assert added_labels.files("") == ()


def test_added_labels_leave_a_split_again():
    split = Split(indices=np.array([5, 3, 9, 7]))
    assert added_labels.without(split, {9: 0, 3: 1}).indices.tolist() == [5, 7]
    assert added_labels.without(split, {}).indices.tolist() == [5, 3, 9, 7]


def begin(config, folder):
    """What a run writes when it begins."""
    chosen = settled(config)[0]
    data = run_data.load_new(chosen)
    run = RunFolder(folder)
    run.write_config(to_json(standardized(chosen, data.source.images)), data.facts())
    run.write_split(data.split)
    run.write_record(data.record)
    return data


def resumed(config, folder, place=""):
    return run_data.load(settled(config, folder, place=place)[0], folder, place)[0]


@pytest.mark.parametrize("kind", ["folder", "npz"])
def test_a_run_keeps_the_labels_that_it_began_with(photos, tmp_path, kind):
    """They stay when the table is gone; training refuses a changed one."""
    if kind == "folder":
        name, rows, key = f"folder:{photos}", unlabeled(33, 40, 45), "path"
    else:
        y_train = toy_images(64, 0)[1]
        known = np.where(np.arange(64) < 32, y_train, -1)
        name = write_data(tmp_path / "a.npz", y_train=known)
        rows, key = {row: str(y_train[row]) for row in (40, 63)}, "index"
    file = table(tmp_path / "next.csv", rows, key=key)
    options = {"chosen": ",labels=all"} | SHORT
    config, folder = configuration(name, data__added_labels=file, **options), tmp_path / "run"
    began = begin(config, folder)
    assert RunFolder(folder).read_split().indices.tolist() == began.split.indices.tolist()
    assert RunFolder(folder).read_record() == began.record
    assert labeled(resumed(config, folder)) == labeled(began)
    first, *others = rows
    table(file, {first: rows[first]} | dict.fromkeys(others, ""), key=key)
    with pytest.raises(InputError, match="has other labels than the run began with"):
        resumed(config, folder)
    wrong = next(each for each in began.source.classes if each != rows[first])
    table(file, rows | {first: wrong}, key=key)
    with pytest.raises(InputError, match="has other labels than the run began with"):
        resumed(config, folder)
    # Commands that do not train take what is recorded.
    held = run_data.load_recorded(settled(config, folder)[0], folder)
    assert labeled(held) == labeled(began)
    os.remove(file)
    assert labeled(resumed(config, folder)) == labeled(began)


def test_a_labeled_image_that_has_changed_is_refused(photos, tmp_path):
    file = table(tmp_path / "next.csv", unlabeled(33))
    config = configuration(f"folder:{photos}", data__added_labels=file, **SHORT, chosen="")
    begin(config, tmp_path / "run")
    put(photos / "unlabeled" / "33.png", toy_images(8, 5)[0][0])
    with pytest.raises(InputError, match=r"33.png, a labeled image of the run, has changed"):
        run_data.load_recorded(
            settled(config, tmp_path / "run")[0], tmp_path / "run", needed="held"
        )


def test_other_tables_are_another_run(photos, tmp_path):
    options = {"chosen": ",labels=all"} | SHORT
    plain = configuration(f"folder:{photos}", **options)
    file = table(tmp_path / "next.csv", unlabeled(33))
    more = configuration(f"folder:{photos}", data__added_labels=file, **options)
    begin(plain, tmp_path / "plain")
    begin(more, tmp_path / "more")
    for config, folder in ((more, "plain"), (plain, "more")):
        with pytest.raises(InputError, match=r"another configuration \(data\.added_labels: "):
            finished(settled(config)[0], tmp_path / folder)
    assert finished(settled(more)[0], tmp_path / "more") is None  # may go on
    assert "added" not in json.loads((tmp_path / "plain" / "data.json").read_text())
    assert run_name(plain) != run_name(more)
    before = to_json(plain)
    del before["data"]["added_labels"]  # an older version has no such key, and names equal runs so
    assert run_name(ConfigDict(before)) == run_name(plain)


def test_a_moved_folder_and_a_moved_table_are_found(photos, tmp_path):
    file = table(tmp_path / "next.csv", unlabeled(33))
    options = {"chosen": ",labels=all"} | SHORT
    begin(configuration(f"folder:{photos}", data__added_labels=file, **options), tmp_path / "run")
    place = shutil.move(photos, tmp_path / "elsewhere")
    os.makedirs(tmp_path / "tables")
    moved = shutil.move(file, tmp_path / "tables" / "next.csv")
    config = configuration(f"folder:{place}", data__added_labels=moved, **options)
    assert finished(settled(config)[0], tmp_path / "run") is None
    assert "unlabeled/33.png" in labeled(resumed(config, tmp_path / "run", str(place)))


@pytest.mark.slow
def test_a_run_trains_from_another_one_with_more_labels(photos, tmp_path):
    """With the test set that the first one drew."""
    options = {"method": "supervised", "chosen": ",labels=all", "data__ratio": 0} | SHORT
    train(configuration(f"folder:{photos}", **options), tmp_path / "one")
    file = table(tmp_path / "next.csv", unlabeled(33, 40))
    more = {"init_from": tmp_path / "one", "classifier_init": "logistic", "seed": 1}
    config = configuration(f"folder:{photos}", data__added_labels=file, **options, **more)
    summary = train(config, tmp_path / "two")
    one, two = (RunFolder(tmp_path / name) for name in ("one", "two"))
    assert two.read_record().listed.test == one.read_record().listed.test
    assert len(two.read_split().indices) == len(one.read_split().indices) + 2
    assert summary["teacher"]["metrics"]["accuracy"] == summary["teacher"]["last"]
    assert "logistic regression" in (tmp_path / "two" / "log.txt").read_text()
    assert "of 26 labeled images" in (tmp_path / "two" / "log.txt").read_text()


def test_a_label_that_looks_like_a_class_is_that_class(photos, tmp_path):
    (photos / "ant").rename(photos / "cafe\u0301")  # as a Mac writes it
    (photos / "bee").rename(photos / "bee ")
    rows = {"unlabeled/33.png": "caf\u00e9", "unlabeled/34.png": "bee"}
    file = table(tmp_path / "next.csv", rows)
    found = labeled(loaded(f"folder:{photos}", data__added_labels=file))
    assert [found[name] for name in rows] == ["cafe\u0301", "bee "]
