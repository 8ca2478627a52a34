"""The table of labels: what its columns, labels and paths may look like."""

import os
import unicodedata

import pytest
from PIL import Image

from jaxmatch.data import sources, table
from jaxmatch.data.listing import current_labels, find
from jaxmatch.data.source import Reading
from jaxmatch.errors import InputError


def fill(root, names, rows=None, file="labels.csv"):
    for name in names.split():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (9, 9, 9)).save(path)
    if rows is not None:
        content = rows if isinstance(rows, bytes) else rows.encode()
        (root / file).write_bytes(content)
    return root


IMAGES = " ".join(f"{number}.png" for number in range(4))
ROWS = [("0.png", "cat"), ("1.png", "dog"), ("2.png", ""), ("3.png", "cat")]
EXPECTED = {"0.png": "cat", "1.png": "dog", "2.png": "", "3.png": "cat"}


def text(rows=ROWS, header="path,label", delimiter=",", end="\n"):
    return end.join([header, *(delimiter.join(row) for row in rows)]) + end


def notes(root):
    return " ".join(find(str(root)).notes)


@pytest.mark.parametrize(
    ("content", "note"),
    [
        (text(), ""),
        (text(end="\r\n"), ""),
        ("\ufeff" + text(), ""),
        (text().encode("utf-16"), ""),
        (text(header=" Path , LABEL "), ""),
        (text(header='"path","label"'), ""),
        (text([(f' "{name}"', f' "{label}" ') for name, label in ROWS]), ""),
        (text(delimiter=";", header="path;label"), ""),
        (text(delimiter="\t", header="path\tlabel"), ""),
        (text(delimiter="|", header="path|label"), ""),
        ("sep=;\n" + text(delimiter=";", header="path;label"), ""),
        ("\n" + text() + "\n,\n\n", ""),
        (text(header="filename,class"), "The column 'filename' of labels.csv is read as the path"),
        (text(header="file,label"), "The column 'file' of labels.csv is read as the path"),
        (text(header="image,label"), "The column 'image' of labels.csv is read as the path"),
        (text(header="Image Path,Class Name"), "'Class Name' of labels.csv is read as the label"),
        (text(header="file_name,category"), "'category' of labels.csv is read as the label"),
        (
            text([(*row, "0.5", "x") for row in ROWS], header="path,label,weight,by"),
            "Columns of labels.csv that are not read: weight, by",
        ),
        (text([row[::-1] for row in ROWS], header="label,path"), ""),
        (text([("./0.png", "cat"), ("sub/../1.png", "dog"), *ROWS[2:]]), ""),
    ],
)
def test_tables_in_any_common_form(tmp_path, content, note):
    fill(tmp_path, IMAGES, content)
    found = find(str(tmp_path))
    assert found.classes_of == EXPECTED
    assert found.table == "labels.csv"
    assert note in notes(tmp_path)
    assert bool(note) == bool(found.notes)
    assert not found.left_out


@pytest.mark.parametrize("file", ["Labels.csv", "LABELS.CSV", "labels.tsv"])
def test_the_name_of_the_table_in_any_case(tmp_path, file):
    fill(tmp_path, IMAGES, text(), file)
    assert find(str(tmp_path)).classes_of == EXPECTED
    assert current_labels(tmp_path, EXPECTED)("1.png") == "dog"
    (tmp_path / "labels.CSV").write_text(text())
    with pytest.raises(InputError, match="has several tables"):
        find(str(tmp_path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "first line `path,label`"),
        ("0.png,cat\n1.png,dog\n", "first line `path,label`"),
        ("path,kind\n0.png,cat\n", "first line `path,label`"),
        ("path,label\n0.png\n", "has no cell for the label in line 2"),
        ("path,label\n1.png,cat\n,cat\n", "has no path in line 3"),
        ('path,label\n0.png,"19 inch\n1.png,cat\n', "line break inside of quotes in line 2"),
        ("path,label\n0.png,cat,dog\n", "more cells than columns in line 2; put"),
        ("path,label\n0.png,cat\n./0.png,dog\n", "names 0.png more than once, as 'cat' and 'dog'"),
        ("path,label\nx.png,cat\n", "names x.png, but there is no such file: correct the paths"),
        ("path,label\n0.png,cat\nx.png,cat\ny.png,dog\n", "no such file, nor for 1 other row:"),
        ("path,label\n0,cat\n1,dog\n", "with extension, such as 0.png"),
        ("path,label\n0.png,1\n1.png,1.0\n", "'1' and '1.0', which are the same number"),
        ("path,label\n0.png,01\n1.png,1\n", "'01' and '1', which are the same number"),
        ("path,label\n\n\n0.png\n", "has no cell for the label in line 4"),
        ("sep=,\npath,label\n\n,cat\n", "has no path in line 4"),
        ("path,label\n0.png,None\n1.png,cat\n", "label 'None': leave the label empty"),
        ("path,label\n0.png,NA\n1.png,cat\n", "label 'NA': leave the label empty"),
        ("path,label,split\n0.png,cat,fold1\n", "split 'fold1'; write train, validation, test"),
        (b"path,label\n0.png,\xff\n", "Cannot read .*UTF-8"),
        ("path,label\n0.png,\0\n", "Cannot read .*null bytes"),
    ],
)
def test_tables_that_are_refused(tmp_path, content, message):
    fill(tmp_path, IMAGES, content)
    with pytest.raises(InputError, match=message) as caught:
        find(str(tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("word", ["-1", "-1.0", "nan", "NaN", "null", "?", "<NA>", "unlabeled"])
def test_words_for_no_label_are_no_class(tmp_path, word):
    rows = [(name, label or word) for name, label in ROWS]
    fill(tmp_path, IMAGES, text(rows))
    assert find(str(tmp_path)).classes_of == EXPECTED
    assert f"Read as no label: {word!r} in 1 row of labels.csv" in notes(tmp_path)


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (("1.0", "2.0"), ["1.0", "2.0"]),
        (("01", "02"), ["01", "02"]),
        (("0", "-2"), ["-2", "0"]),
        (("no defect", "ein Riß"), ["ein Riß", "no defect"]),
        (("A", "a"), ["A", "a"]),
    ],
)
def test_labels_keep_their_text(tmp_path, labels, classes):
    rows = [(f"{number}.png", labels[number % 2]) for number in range(4)]
    fill(tmp_path, IMAGES, text(rows))
    assert sorted(set(find(str(tmp_path)).classes_of.values())) == classes


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ("split", ("train", "val", "test", "")),
        ("Split", ("Training", "validation", "Testing", "train")),
        ("set", ("TRAIN", "valid", "TEST", "train")),
        ("subset", ("", "dev", "test", "train")),
    ],
)
def test_a_column_for_the_set(tmp_path, header, words):
    rows = [(f"{number}.png", "ab"[number // 4], words[number % 4]) for number in range(8)]
    fill(
        tmp_path,
        " ".join(row[0] for row in rows),
        text([*rows, ("8.png", "", "train"), ("9.png", "a", "unlabeled")], f"path,label,{header}"),
    )
    fill(tmp_path, "8.png 9.png")
    found = find(str(tmp_path))
    assert found.validation == {"1.png", "5.png"}
    assert found.test == {"2.png", "6.png"}
    assert found.classes_of["8.png"] == found.classes_of["9.png"] == ""
    source = sources.load(f"folder:{tmp_path}", Reading(image_size=8))
    assert source.test_labels.tolist() == source.validation_labels.tolist() == [0, 1]
    assert not source.listed.drawn
    assert source.listed.apart
    assert source.listed.table


def test_rows_of_a_test_set_without_a_label_are_left_out(tmp_path):
    rows = [
        ("0.png", "a", "train"),
        ("1.png", "b", ""),
        ("2.png", "", "test"),
        ("3.png", "b", "test"),
    ]
    fill(tmp_path, IMAGES, text(rows, "path,label,split"))
    found = find(str(tmp_path))
    assert found.test == {"3.png"}
    assert found.left_out == {"without a label, in the test set": ("2.png",)}
    assert "Not used, without a label, in the test set: 1 image; write what you know into" in notes(
        tmp_path
    )


def test_images_that_the_table_does_not_name_are_unlabeled_with_a_note(tmp_path):
    more = " ".join(f"more/{number}.png" for number in range(3))
    fill(tmp_path, f"{IMAGES} {more} unlabeled/0.png", text())
    found = find(str(tmp_path))
    assert {name for name, label in found.classes_of.items() if not label} == {
        *("2.png", "unlabeled/0.png"),
        *more.split(),
    }
    assert "Used without a label: 3 images that labels.csv does not name, such" in notes(tmp_path)


def test_class_folders_beside_a_table_are_noted(tmp_path):
    fill(tmp_path, "cat/0.png dog/1.png", "path,label\ncat/0.png,tom\ndog/1.png,rex\n")
    assert find(str(tmp_path)).classes_of == {"cat/0.png": "tom", "dog/1.png": "rex"}
    assert "folders such as cat, dog are not read as classes" in notes(tmp_path)


def test_folders_of_sets_beside_a_table(tmp_path):
    fill(tmp_path, "train/0.png train/1.png Test/2.png Test/3.png val/4.png test_/x/5.png")
    fill(
        tmp_path,
        "Test/a/6.png",
        "path,label\ntrain/0.png,a\ntrain/1.png,b\nTest/2.png,a\nval/4.png,b\n",
    )
    found = find(str(tmp_path))
    assert found.test == {"Test/2.png", "Test/a/6.png"}
    assert found.validation == {"val/4.png"}
    assert found.left_out == {"without a class, in the folder Test": ("Test/3.png",)}
    assert "Used as test images, because of the folder Test: 1 row of labels.csv" in notes(tmp_path)
    assert "Not used, without a class, in the folder Test: 1 image;" in notes(tmp_path)


NFC, NFD = (unicodedata.normalize(form, "é.png") for form in ("NFC", "NFD"))


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("train/a.png", "train\\a.png"),
        ("train/a.png", "a.png"),
        ("train/a.png", "images/train/a.png"),
        ("train/a.png", "C:\\data\\train\\a.png"),
        ("a.png", "/elsewhere/a.png"),
        ("train/a.png", "Train/A.PNG"),
        (NFD, NFC),
        (NFC, NFD),
    ],
)
def test_paths_that_fit_one_image_only_are_understood_with_a_note(tmp_path, name, written):
    fill(tmp_path, f"{name} 1.png", f"path,label\n{written},cat\n1.png,dog\n")
    found = find(str(tmp_path))
    assert found.classes_of == {name: "cat", "1.png": "dog"}
    assert "Found by a similar name: 1 file of labels.csv" in notes(tmp_path)
    assert current_labels(tmp_path, found.names)(name) == "cat"


def test_a_missing_file_does_not_give_its_label_to_another_image(tmp_path):
    # dog/0.png is not in the table, but dog/1.png is: the folder dog has its own rows.
    table = "path,label\ncat/0.png,cat\ncat/1.png,cat\ndog/1.png,dog\n"
    fill(tmp_path, "cat/1.png dog/0.png dog/1.png", table)
    with pytest.raises(InputError, match=r"names cat/0\.png, but there is no such file: correct"):
        find(str(tmp_path))
    (tmp_path / "cat" / "1.png").unlink()  # then cat is no folder of images
    with pytest.raises(InputError, match=r"names cat/0\.png, but there is no such file"):
        find(str(tmp_path))
    (tmp_path / "labels.csv").write_text("path,label\nold/0.png,cat\nold/1.png,dog\n")
    assert find(str(tmp_path)).classes_of == {"dog/0.png": "cat", "dog/1.png": "dog"}
    assert "2 files of labels.csv, such as old/0.png as dog/0.png." in notes(tmp_path)


def test_paths_that_fit_several_images_are_refused(tmp_path):
    fill(tmp_path, "a/0.png b/0.png", "path,label\n0.png,cat\na/0.png,dog\n")
    with pytest.raises(InputError, match=r"names 0\.png, .* relative to the folder, .*such as a/0"):
        find(str(tmp_path))


def test_a_file_that_the_table_names_is_used_whatever_its_name(tmp_path):
    fill(tmp_path, "1.png 2.png")
    (tmp_path / "1.png").rename(tmp_path / "1.bak")
    outside = tmp_path / "outside"
    fill(outside, "3.png")
    data = tmp_path / "data"
    data.mkdir()
    (tmp_path / "1.bak").rename(data / "1.bak")
    (tmp_path / "2.png").rename(data / ".2.png")
    (data / "labels.csv").write_text(
        f"path,label\n1.bak,cat\n.2.png,dog\n{outside}/3.png,cat\n../outside/3.png,cat\n"
    )
    found = find(str(data))
    assert sorted(found.classes_of.values()) == ["cat", "cat", "dog"]
    assert {"1.bak", ".2.png"} < found.classes_of.keys()
    assert [*found.aliases, *found.aliases.values()] == ["../outside/3.png", f"{outside}/3.png"][
        ::-1
    ]
    assert found.left_out.keys() == {"with another name that is used"}


def test_names_that_are_not_utf8(tmp_path):
    odd = os.fsdecode(b"caf\xe9.png")
    fill(tmp_path, f"{odd} 1.png", b"path,label\ncaf\xe9.png,cat\n1.png,dog\n")
    assert find(str(tmp_path)).classes_of == {odd: "cat", "1.png": "dog"}


def test_a_table_in_the_only_folder_is_found_again(tmp_path):
    fill(tmp_path / "photos", "cat/0.png cat/1.png", "path,label\ncat/0.png,a\ncat/1.png,b\n")
    found = find(str(tmp_path))
    assert found.classes_of == {"photos/cat/0.png": "a", "photos/cat/1.png": "b"}
    labels = current_labels(tmp_path, found.names)
    assert [labels(name) for name in found.names] == ["a", "b"]
    moved = tmp_path.rename(tmp_path.with_name("moved"))
    (moved / "photos" / "labels.csv").write_text(
        f"path,label\n{tmp_path}/photos/cat/0.png,a\n{tmp_path}/photos/cat/1.png,c\n"
    )
    labels = current_labels(moved, found.names, tmp_path)
    assert [labels(name) for name in found.names] == ["a", "c"]
    assert current_labels(tmp_path, found.names) is None


@pytest.mark.parametrize(
    ("word", "part"),
    [
        *((word, "train") for word in ("train", "Training", "train_set", "labeled")),
        *((word, "test") for word in ("test", "TESTING", "test images")),
        *((word, "validation") for word in ("val", "Valid", "validation-data")),
        *((word, "unlabeled") for word in ("unlabeled", "Unlabelled")),
        *((word, "") for word in ("trains", "latest", "invalid", "value", "labels", "tester", "")),
    ],
)
def test_words_for_sets(word, part):
    assert table.part_of(word) == part


def test_long_numbers_that_differ_are_two_classes(tmp_path):
    one, other = "900000000000000000", "900000000000000001"
    fill(tmp_path, IMAGES, text([("0.png", one), ("1.png", other)]))
    assert set(find(str(tmp_path)).classes_of.values()) == {one, other, ""}


@pytest.mark.parametrize(
    "row", ["new/1.png", "NEW/1.PNG", "photos/new/1.png", "{root}/new/1.png", "new\\1.png"]
)
def test_an_image_added_under_a_name_of_the_run_is_another_one(tmp_path, row):
    fill(tmp_path, IMAGES, text())
    names = find(str(tmp_path)).names
    fill(tmp_path, "new/1.png", text([*ROWS, (row.format(root=tmp_path), "cat")]))
    assert {name: current_labels(tmp_path, names)(name) for name in names} == EXPECTED


def test_an_image_added_above_those_of_the_run_is_another_one(tmp_path):
    rows = [("a/0.png", "cat"), ("a/1.png", "dog")]
    fill(tmp_path, "a/0.png a/1.png", text(rows))
    names = find(str(tmp_path)).names
    fill(tmp_path, "0.png", text([("0.png", "dog"), *rows]))
    assert current_labels(tmp_path, names)("a/0.png") == "cat"


def test_a_short_name_still_means_the_image_of_the_run(tmp_path):
    rows = [("0.png", "cat"), ("1.png", "dog")]  # found by a similar name
    fill(tmp_path, "a/0.png a/1.png", text(rows))
    names = find(str(tmp_path)).names
    fill(tmp_path, "new/1.png", text([*rows, ("new/1.png", "cat")]))
    assert [current_labels(tmp_path, names)(name) for name in names] == ["cat", "dog"]


def test_a_table_that_a_run_does_not_read_is_not_read_later(tmp_path):
    inside = fill(tmp_path / "sets", "train/a/0.png train/b/0.png", "path,label\na/0.png,b\n")
    names = find(str(inside)).names
    (inside / "labels.csv").rename(inside / "train" / "labels.csv")
    assert current_labels(inside, names) is None
    outside = fill(tmp_path / "two", "photos/0.png photos/1.png", None)
    (outside / "labels.csv").write_text(text([("photos/0.png", "cat"), ("photos/1.png", "dog")]))
    (outside / "photos" / "labels.csv").write_text(text([("0.png", "dog")]))
    names = find(str(outside)).names
    assert [current_labels(outside, names)(name) for name in names] == ["cat", "dog"]


def test_a_name_that_is_too_long_is_that_of_no_file(tmp_path):
    fill(tmp_path, IMAGES, text([*ROWS, (f"{'x' * 300}.png", "cat")]))
    with pytest.raises(InputError, match="but there is no such file"):
        find(str(tmp_path))
