"""What the images of a folder are used for: every layout is used as expected, noted or refused."""

import os
import re
import unicodedata

import pytest
from buckets import in_memory
from PIL import Image

from jaxmatch.data import sources
from jaxmatch.data.listing import find
from jaxmatch.data.source import Reading
from jaxmatch.errors import InputError

NFC, NFD = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))


def fill(root, text):
    """Write the small pictures, or other files, that a text names; a slash ends an empty folder."""
    for name in text.split():
        path = root / name
        if name.endswith("/"):
            path.mkdir(parents=True, exist_ok=True)
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix in (".png", ".jpg"):
            Image.new("RGB", (8, 8), (len(name), 9, 9)).save(path)
        else:
            path.write_text("something")
    return root


def used(root):
    """{set: {class: names}} of a folder."""
    found = find(str(root))
    sets = {}
    for name, label in found.classes_of.items():
        part = "test" if name in found.test else "val" if name in found.validation else "train"
        sets.setdefault(part, {}).setdefault(label, []).append(name)
    return sets


def notes(root):
    return " ".join(find(str(root)).notes)


def words(**sets):
    return {
        part: {label: names.split() for label, names in classes.items()}
        for part, classes in sets.items()
    }


PLAIN = "cat/0.png cat/1.png dog/2.png dog/3.png"


def test_class_folders_need_no_note(tmp_path):
    fill(tmp_path, PLAIN + " unlabeled/4.png test/cat/5.png test/dog/6.png")
    assert used(tmp_path) == {
        "train": {
            "cat": ["cat/0.png", "cat/1.png"],
            "dog": ["dog/2.png", "dog/3.png"],
            "": ["unlabeled/4.png"],
        },
        "test": {"cat": ["test/cat/5.png"], "dog": ["test/dog/6.png"]},
    }
    assert notes(tmp_path) == ""


SYNONYMS = {
    "train": (
        "labeled",
        "Labelled",
        "train",
        "Train",
        "TRAIN",
        "training",
        "Training",
        "train_set",
        "training data",
    ),
    "test": ("test", "Test", "TEST", "testing", "Testing", "test-set", "TestSet"),
    "val": ("val", "Val", "valid", "Valid", "validation", "Validation", "validation_set"),
    "unlabeled": ("unlabeled", "Unlabeled", "unlabelled", "UNLABELLED", "unlabeled_images"),
}


@pytest.mark.parametrize(("part", "name"), [(p, name) for p in SYNONYMS for name in SYNONYMS[p]])
def test_the_folders_of_sets_have_synonyms(tmp_path, part, name):
    names = {each: each for each in SYNONYMS} | {part: name}
    for each in ("train", "test", "val"):
        for number, label in enumerate(("cat", "dog")):
            (tmp_path / names[each] / label).mkdir(parents=True)
            fill(tmp_path / names[each] / label, f"{number}.png")
    (tmp_path / names["unlabeled"]).mkdir()
    fill(tmp_path / names["unlabeled"], "8.png")
    found = used(tmp_path)
    for each in ("train", "test", "val"):
        assert found[each]["cat"] == [f"{names[each]}/cat/0.png"]
        assert found[each]["dog"] == [f"{names[each]}/dog/1.png"]
    assert found["train"][""] == [f"{names['unlabeled']}/8.png"]
    assert set(found) == {"train", "test", "val"}
    assert (name in notes(tmp_path)) == (name != part)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("train/Unlabeled/4.png", "train/Unlabeled/4.png"),
        ("train/unlabelled/deep/4.png", "train/unlabelled/deep/4.png"),
        ("train/4.png", "train/4.png"),
        ("unlabelled/cat/4.png", "unlabelled/cat/4.png"),
    ],
)
def test_unlabeled_images_of_a_training_folder(tmp_path, text, name):
    fill(tmp_path, f"train/cat/0.png train/dog/1.png {text}")
    found = find(str(tmp_path))
    assert found.classes_of[name] == ""
    assert set(found.classes_of.values()) == {"cat", "dog", ""}


@pytest.mark.parametrize(
    ("text", "expected", "note"),
    [
        (  # classes beside train
            "train/cat/0.png train/dog/1.png cat/2.png bird/3.png 4.png",
            words(train={"cat": "train/cat/0.png", "dog": "train/dog/1.png"}),
            "Not used, beside the folder train: 3 images (4.png, bird, cat); move what you",
        ),
        (  # a flat test set beside train
            "train/cat/0.png train/dog/1.png test/2.png test/3.png",
            words(train={"cat": "train/cat/0.png", "dog": "train/dog/1.png"}),
            "Not used, without a class, in the folder test: 2 images; label with jaxmatch",
        ),
        (  # a flat validation set beside train
            "Train/cat/0.png Train/dog/1.png Valid/2.png",
            words(train={"cat": "Train/cat/0.png", "dog": "Train/dog/1.png"}),
            "Not used, without a class, in the folder Valid: 1 image;",
        ),
        (  # a flat test set whose name has two words
            "train/cat/0.png train/dog/1.png test-images/2.png",
            words(train={"cat": "train/cat/0.png", "dog": "train/dog/1.png"}),
            "label with jaxmatch predict, or sort what you need into test-images/<class>/.",
        ),
        (  # images of the test set without a class
            "cat/0.png dog/1.png test/cat/2.png test/dog/3.png test/4.png test/unlabeled/5.png",
            words(
                train={"cat": "cat/0.png", "dog": "dog/1.png"},
                test={"cat": "test/cat/2.png", "dog": "test/dog/3.png"},
            ),
            "Not used, without a class, in the folder test: 2 images;",
        ),
        (  # a folder around all
            "photos/cat/0.png photos/dog/1.png",
            words(train={"cat": "photos/cat/0.png", "dog": "photos/dog/1.png"}),
            "All images lie in photos/, which is read as the data folder",
        ),
        (  # two folders around sets
            "a/b/train/cat/0.png a/b/train/dog/1.png a/b/test/cat/2.png a/b/test/dog/3.png",
            words(
                train={"cat": "a/b/train/cat/0.png", "dog": "a/b/train/dog/1.png"},
                test={"cat": "a/b/test/cat/2.png", "dog": "a/b/test/dog/3.png"},
            ),
            "All images lie in a/b/",
        ),
        (  # a table inside the only folder
            "photos/0.png photos/1.png photos/labels.csv=path,label;0.png,cat;1.png,dog",
            words(train={"cat": "photos/0.png", "dog": "photos/1.png"}),
            "All images lie in photos/",
        ),
        (  # one class is no folder around all
            "cat/0.png cat/1.png",
            words(train={"cat": "cat/0.png cat/1.png"}),
            "",
        ),
        (  # folders in a class
            "cat/0.png cat/kitten/1.png dog/2.png",
            words(train={"cat": "cat/0.png cat/kitten/1.png", "dog": "dog/2.png"}),
            "Folders inside a class folder are no classes of their own: cat/kitten.",
        ),
        (  # folders in the only class, beside a set
            "photos/cat/0.png photos/dog/1.png unlabeled/2.png",
            words(train={"photos": "photos/cat/0.png photos/dog/1.png", "": "unlabeled/2.png"}),
            "photos/cat, photos/dog; folder:",
        ),
        (  # images beside class folders
            "cat/0.png dog/1.png 2.png",
            words(train={"cat": "cat/0.png", "dog": "dog/1.png", "": "2.png"}),
            "Used without a label: 1 image beside the class folders, such as 2.png",
        ),
        (  # a class that the test set lacks
            "cat/0.png dog/1.png test/cat/2.png",
            words(train={"cat": "cat/0.png", "dog": "dog/1.png"}, test={"cat": "test/cat/2.png"}),
            "The test set has no images of dog",
        ),
        (  # the case of a class
            "train/Cat/0.png train/dog/1.png test/cat/2.png test/dog/3.png",
            words(
                train={"Cat": "train/Cat/0.png", "dog": "train/dog/1.png"},
                test={"Cat": "test/cat/2.png", "dog": "test/dog/3.png"},
            ),
            "The held-out class cat is the training class Cat",
        ),
        (  # letters
            "a/0.png A/1.png",
            words(train={"a": "a/0.png", "A": "A/1.png"}),
            "The classes A and a differ only in case",
        ),
        (  # a class that may mean no label
            "cat/0.png dog/1.png unknown/2.png",
            words(train={"cat": "cat/0.png", "dog": "dog/1.png", "unknown": "unknown/2.png"}),
            "unknown is a class here",
        ),
        (  # a folder of programs
            "cat/0.png dog/1.png scripts/make.py scripts/README.md",
            words(train={"cat": "cat/0.png", "dog": "dog/1.png"}),
            "The folder scripts has no images and is no class",
        ),
        (  # sets without images
            "cat/0.png dog/1.png train/ test/readme.txt Unlabeled/.x.png",
            words(train={"cat": "cat/0.png", "dog": "dog/1.png"}),
            "The folder Unlabeled, test, train has no images",
        ),
        (  # runs and what belongs to them
            "cat/0.png dog/1.png runs/x/config.json runs/x/metrics.jsonl runs/x/curves.png "
            "runs/report.html runs/report_losses.png augment.png Thumbs.db dog/.cache/3.png "
            "env/pyvenv.cfg env/lib/logo.png",
            words(train={"cat": "cat/0.png", "dog": "dog/1.png"}),
            "",
        ),
    ],
)
def test_layouts_that_are_used(tmp_path, text, expected, note):
    fill_with_tables(tmp_path, text)
    assert used(tmp_path) == expected
    assert note in notes(tmp_path)
    assert bool(note) == bool(notes(tmp_path))


@pytest.mark.parametrize(
    ("name", "like"),
    [
        *(
            (name, True)
            for name in ("test2", "my_test", "Test Images 2", "dev", "holdout", "validate")
        ),
        *(
            (name, True)
            for name in ("unlabeled1", "unlabeled (1)", "not_labeled", "train_unlabeled")
        ),
        *(
            (name, False)
            for name in ("contest", "valley", "device", "latest", "interval", "labels")
        ),
    ],
)
def test_a_class_with_the_name_of_a_set_is_noted(tmp_path, name, like):
    for number in range(2):
        fill(tmp_path, "cat/0.png dog/1.png")
        path = tmp_path / name / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), (number, 9, 9)).save(path)
    told = f"{name} is a class here; if it is a set, call its folder test, val or unlabeled."
    assert (told in notes(tmp_path)) == like


def fill_with_tables(root, text):
    plain = [name for name in text.split() if "=" not in name]
    fill(root, " ".join(plain))
    for name in set(text.split()) - set(plain):
        path, _, rows = name.partition("=")
        (root / path).write_text(rows.replace(";", "\n"))


@pytest.mark.parametrize("name", ["train", "test", "Valid", "val", "validation", "Testing"])
def test_a_folder_that_may_be_a_class_or_a_set_is_refused(tmp_path, name):
    fill(tmp_path, f"bus/0.png invalid/1.png {name}/2.png")
    with pytest.raises(InputError, match=f"{name} holds images but no class folders.*train"):
        find(str(tmp_path))
    fill(tmp_path, f"{name}/unlabeled/3.png")
    with pytest.raises(InputError, match=f"{name} holds images but no class folders"):
        find(str(tmp_path))
    other = tmp_path / "remedy"
    fill(other, f"train/bus/0.png train/invalid/1.png train/{name}/2.png")
    assert set(used(other)["train"]) == {"bus", "invalid", name}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"There are no images in .*; put them into folders <class>/"),
        ("notes.txt .x.png", r"no images in .* \(1 hidden, 1 no image \(\.txt\)\)"),
        ("train/cat/0.png training/cat/1.png", "two folders of the train set, train and training"),
        ("cat/0.png test/cat/1.png Test/cat/2.png", "two folders of the test set, Test and test"),
        (
            "cat/train/0.png cat/test/1.png dog/train/2.png",
            "cat/test is a set inside of the class cat; .*train/cat/",
        ),
        (
            "cat/0.png dog/unlabeled/1.png dog/2.png",
            "dog/unlabeled is a set inside of the class dog",
        ),
        (
            "train/train/cat/0.png train/test/cat/1.png",
            "train/test is a set inside of the set train;",
        ),
        ("cat/0.png dog/", "class folder .*dog is empty; put images into it, or remove it"),
        ("cat/0.png dog/.x.png", r"class folder .*dog has no images.*hidden"),
        (
            "cat/0.png dog/a.heic dog/b.txt",
            r"dog has no images, only.*dog/a\.heic \(no decoder for HEIC",
        ),
        ("train/cat/0.png train/dog/", "class folder .*dog is empty"),
        ("cat/0.png dog/1.png test/dog/", "class folder .*test/dog is empty"),
        ("test/cat/0.png test/dog/1.png", "no training images"),
        ("cat/0.png dog/1.png test/cat/2.png test/emu/3.png", "'emu' .*has test but no training"),
        ("cat/0.png dog/1.png val/emu/3.png", "'emu' .*has validation but no training"),
        ("cat/0.png dog/1.png", "too few labeled images for a test set"),
        ("cat/0.png dog/1.png eval/cat/2.png eval/dog/3.png", "eval is no class.*folder cat for a"),
        ("a/cat/0.png a/b/1.png b/cat/2.png cat/3.png", "a is no class, because it has a folder b"),
        (
            "fold1/cat/0.png fold1/dog/1.png fold2/cat/2.png",
            "fold1 holds folders, so it looks like",
        ),
        ("cat/0.png cat/1.png cat/2.png .dog/3.png", r"fewer than two.*Left out: \.dog/ \(hidden"),
        ("0.png 1.png", "has images but no labels: put the labeled ones"),
        ("0.png 1.png names.csv", r"no labels.*\(there is names\.csv, which has another name"),
        ("train/0.png train/labels.csv test/1.png", r"no labels.*there is train/labels\.csv"),
        ("all/0.png all/1.png", "too few labeled|fewer than two"),
        ("cat/0.png dog/1.png train/cat/", "class folder .*train/cat is empty"),
    ],
)
def test_layouts_that_are_refused(tmp_path, text, message):
    fill(tmp_path, text)
    with pytest.raises(InputError, match=message) as caught:
        sources.load(f"folder:{tmp_path}", Reading())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "classes"),
    [
        (f"{NFC}/0.png {NFD}/1.png dog/2.png", {NFC: 2, "dog": 1}),
        (f"train/{NFD}/0.png train/dog/1.png test/{NFC}/2.png test/dog/3.png", {NFC: 1, "dog": 1}),
        (f"train/{NFD}/0.png train/dog/1.png", {NFD: 1, "dog": 1}),
    ],
)
def test_a_class_has_one_name_in_any_normal_form(tmp_path, text, classes):
    fill(tmp_path, text)
    found = used(tmp_path)
    assert {label: len(names) for label, names in found["train"].items()} == classes
    assert set(found.get("test", classes)) == set(classes)


def test_a_linked_class_folder_and_a_linked_test_set_are_used_once(tmp_path):
    store, data = tmp_path / "store", tmp_path / "data"
    fill(store, "cats/0.png cats/1.png")
    fill(data, "dog/2.png dog/3.png")
    (data / "cat").symlink_to(store / "cats")
    (data / "dog" / "all").symlink_to(data)
    assert used(data) == words(train={"cat": "cat/0.png cat/1.png", "dog": "dog/2.png dog/3.png"})
    (data / "test" / "cat").mkdir(parents=True)
    (data / "test" / "cat" / "again.png").symlink_to(store / "cats" / "0.png")
    assert used(data)["test"] == {"cat": ["test/cat/again.png"]}
    assert "Used as test images only, although found elsewhere too: 1 image." in notes(data)
    assert find(str(data)).left_out["with another name that is used"] == ("cat/0.png",)
    (data / "kitten").symlink_to(store / "cats")
    with pytest.raises(InputError, match="are one image, but of the classes"):
        find(str(data))


def test_what_is_left_out_is_listed_by_reason(tmp_path):
    fill(
        tmp_path,
        "cat/0.png dog/1.png cat/a.txt cat/b.txt .git/x.png dog/Thumbs.db test/2.png "
        "train/cat/3.png train/dog/4.png runs/a/config.json runs/a/split.json",
    )
    (tmp_path / "train" / "cat" / "none.png").symlink_to("nowhere")
    assert find(str(tmp_path)).left_out == {
        "linking to nothing": ("train/cat/none.png",),
        "of a run of jaxmatch": ("runs/a/",),
        "beside the folder train": ("cat/0.png", "dog/1.png"),
        "hidden": (".git/",),
        "no image (.txt)": ("cat/a.txt", "cat/b.txt"),
        "of the system or a program": ("dog/Thumbs.db",),
        "without a class, in the folder test": ("test/2.png",),
    }


def test_a_class_folder_that_is_lost_is_told(tmp_path, monkeypatch):
    fill(tmp_path, PLAIN)
    (tmp_path / "emu").symlink_to("nowhere")
    assert notes(tmp_path) == "Links to nothing: emu."
    (tmp_path / "emu").unlink()
    fill(tmp_path, "emu/4.png")
    scandir = os.scandir

    def refused(path):
        if str(path).rstrip("/").endswith("emu"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refused)
    with pytest.raises(InputError, match=r"folder .*emu cannot be opened; change its permissions"):
        find(str(tmp_path))


def test_the_survey_has_sizes_and_kinds_of_the_files(tmp_path):
    fill(tmp_path, " ".join(f"{label}/{number}.png" for label in "ab" for number in range(4)))
    Image.new("L", (6, 9)).save(tmp_path / "a" / "gray.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", (5, 7)).save(tmp_path / "b" / "turned.jpg", exif=turned)
    (tmp_path / "b" / "broken.png").write_bytes(b"no image")
    for stream in (False, True):
        survey = sources.load(f"folder:{tmp_path}", Reading(stream=stream)).survey
        assert survey.sizes == {(8, 8): 8, (9, 6): 1, (5, 7): 1}
        assert survey.modes == {"RGB": 9, "gray": 1}
        assert survey.left_out == ({} if stream else {"not an image": ("b/broken.png",)})


def test_a_validation_folder_is_the_validation_set(tmp_path):
    text = [f"{label}/{number}.png" for label in ("cat", "dog") for number in range(6)]
    fill(tmp_path, " ".join([*text, "val/cat/6.png", "val/dog/7.png", "val/dog/8.png"]))
    for stream in (False, True):
        source = sources.load(f"folder:{tmp_path}", Reading(stream=stream, image_size=8))
        assert source.validation_images.shape == (3, 8, 8, 3)
        assert source.validation_labels.tolist() == [0, 1, 1]
        listed = source.listed
        assert [listed.names[row] for row in listed.validation] == [
            *("val/cat/6.png", "val/dog/7.png", "val/dog/8.png")
        ]
        assert not {*listed.validation} & {*source.rows.tolist(), *listed.test}
        assert not {*listed.validation} & {*listed.training.tolist()}
        assert not any(re.match("val/", name) for name in source.naming.rows)


def test_any_path_of_a_folder(tmp_path):
    text = " ".join(f"{label}/{number}.png" for label in "ab" for number in range(2))
    for name in ("x,y", "x y", "é,labels", "with=sign"):
        fill(tmp_path / name, text)
        for given in (f"{tmp_path / name}", f"{tmp_path / name}/", f"{tmp_path}//{name}//"):
            source = sources.load(f"folder:{given}", Reading(image_size=8))
            assert len(source.images) == len(source.test_images) == 2
            assert source.location == str(tmp_path / name)


def test_a_file_in_place_of_a_folder_and_a_folder_in_place_of_a_file(tmp_path):
    file = tmp_path / "photos.zip"
    file.write_bytes(b"PK")
    with pytest.raises(InputError, match=r"photos\.zip is a file; unpack it"):
        sources.load(f"folder:{file}", Reading())
    with pytest.raises(InputError, match=r"is a folder; give the \.npz file"):
        sources.load(f"npz:{tmp_path}", Reading())


@pytest.mark.parametrize("table", [False, True])
def test_a_bucket_has_the_same_layouts(tmp_path, table):
    names = [f"Train/{label}/{number}.png" for label in ("cat", "dog") for number in range(3)]
    fill(tmp_path, " ".join(names))
    rows = [f"{name},{name.split('/')[1]},{'test' if '2' in name else ''}" for name in names]
    with in_memory() as files:
        for name in names:
            files.pipe(f"bucket/data/photos/{name}", (tmp_path / name).read_bytes())
        files.pipe("bucket/data/photos/Unlabelled/9.png", (tmp_path / names[0]).read_bytes())
        if table:
            files.pipe(
                "bucket/data/photos/labels.csv", "\n".join(["path,label,split", *rows]).encode()
            )
        found = find("s3://bucket/data")
        source = sources.load("folder:s3://bucket/data", Reading(image_size=8))
        looked_at = sources.sizes("folder:s3://bucket/data", Reading())
        streamed = sources.load("folder:s3://bucket/data", Reading(image_size=8, stream=True))
    assert looked_at == sources.sizes(f"folder:{tmp_path}", Reading())[:1] * 7
    assert streamed.survey.sizes == source.survey.sizes == {looked_at[0]: 7}
    assert streamed.survey.modes == source.survey.modes
    assert found.classes_of == {
        **{f"photos/{name}": name.split("/")[1] for name in names},
        "photos/Unlabelled/9.png": "",
    }
    assert found.table == ("photos/labels.csv" if table else "")
    assert len(found.test) == (2 if table else 0)
    assert len(source.images) == 5
    assert source.test_labels.tolist() == [0, 1]
