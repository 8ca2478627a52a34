"""A run's images are those it was begun with, by name and content, or a command refuses."""

import csv
import json
import os
import re
import shutil
import unicodedata

import numpy as np
import pytest
from helpers import assert_bitwise, toy_images
from PIL import Image
from tiny_runs import (
    OVERRIDES,
    configuration,
    state_of,
    without_extras,
    without_learning,
    write_data,
)

from jaxmatch import train
from jaxmatch.cli import main as cli
from jaxmatch.config.flags import from_flags
from jaxmatch.data import record as records
from jaxmatch.data import splits
from jaxmatch.errors import InputError
from jaxmatch.evaluation.probe import probe
from jaxmatch.record import run_data
from jaxmatch.record.metrics import read
from jaxmatch.record.settled import settled


@pytest.fixture(scope="module", autouse=True)
def only_steps():
    with without_extras():
        yield


def load_new(config, **options):
    return run_data.load_new(settled(config)[0], **options)


CLASSES = ("ant", "bee", "cat", "dog")
SHORT = {
    "steps": 10,
    "save_every": 5,
    "data__image_size": 8,
    "method": "pseudo_label",
    "devices": 1,
}


def fill(root, count=64, seed=0, prefix="m"):
    """Class folders of small pictures, in the colours of the toy problem."""
    images, labels = toy_images(count, seed)
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        folder = root / CLASSES[label]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{prefix}{number:03d}.png")


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A folder without a test set, and a finished run on it; both to be copied, not changed."""
    base = tmp_path_factory.mktemp("original")
    fill(base / "photos")
    (base / "photos" / "unlabeled").mkdir()
    for number, image in enumerate(toy_images(8, 7)[0]):
        Image.fromarray(image).save(base / "photos" / "unlabeled" / f"{number}.png")
    train(configuration(f"folder:{base / 'photos'}", **SHORT), base / "run")
    return base


@pytest.fixture
def copy(original, tmp_path):
    """The same in a place of its own: the run knows the images to have been there."""
    shutil.copytree(original, tmp_path / "copy")
    base = tmp_path / "copy"
    for file in ("config.json", "data.json", "split.json"):
        path = base / "run" / file
        path.write_text(path.read_text().replace(str(original), str(base)))
    return base


def call(capsys, *words):
    code = 0
    try:
        cli.main([str(word) for word in words])
    except SystemExit as error:
        code = error.code
    return code, *capsys.readouterr()


def evaluated(capsys, base, *words):
    code, output, error = call(capsys, "evaluate", "--json", f"--workdir={base / 'run'}", *words)
    return json.loads(output) if code == 0 else error


def interrupted(base):
    """Take the run back to its checkpoint of step 5."""
    (base / "run" / "summary.json").unlink()
    shutil.rmtree(base / "run" / "checkpoints" / "10")


def names_of(base, part):
    record = records.read(base / "run")
    rows = {
        "labeled": splits.read(base / "run" / "split.json").indices.tolist(),
        "test": record.listed.test,
        "training": record.listed.training.tolist(),
    }
    return [record.listed.names[row] for row in rows[part]]


def add_images(base):
    """Photographs that sort before all others, and a class that nobody had."""
    fill(base / "photos", 20, seed=3, prefix="a")
    fill(base / "photos" / "unlabeled", 4, seed=4, prefix="a")
    (base / "photos" / "aardvark").mkdir()
    Image.fromarray(toy_images(1, 9)[0][0]).save(base / "photos" / "aardvark" / "0.png")


def test_the_record_has_names_sizes_hashes_and_classes(original):
    content = json.loads((original / "run" / "data.json").read_text())
    assert content["classes"] == list(CLASSES)
    assert content["location"] == str(original / "photos")
    listed = content["listed"]
    assert len(listed["names"]) == 72
    for name, size, found in zip(listed["names"], listed["sizes"], listed["hashes"], strict=True):
        path = original / "photos" / name
        assert size == path.stat().st_size
        assert found == records.file_hash(path, ends=False)
    assert listed["drawn"]
    assert len(listed["test"]) == 12


@pytest.mark.slow
def test_images_added_change_neither_evaluation_nor_probe(original, copy, capsys):
    expected = evaluated(capsys, original)
    probed = probe(copy / "run")
    add_images(copy)
    assert evaluated(capsys, copy) == expected
    assert probe(copy / "run") == probed


def test_images_added_are_not_used_by_a_resumed_run(original, copy):
    add_images(copy)
    interrupted(copy)
    train(configuration(f"folder:{copy / 'photos'}", **SHORT), copy / "run")
    assert_bitwise(state_of(copy / "run"), state_of(original / "run"))
    accuracy = [
        [line[key] for line in read(base / "run") for key in line if key.startswith("test/")]
        for base in (original, copy)
    ]
    assert accuracy[0] == accuracy[1]


def test_images_added_are_used_by_a_new_run(copy):
    add_images(copy)
    shutil.rmtree(copy / "photos" / "aardvark")
    found = load_new(configuration(f"folder:{copy / 'photos'}", **SHORT))
    assert len(found.source.rows) + len(found.source.test_images) == 72 + 24


def relabel(path):
    other = path.parents[1] / ("bee" if path.parent.name != "bee" else "ant") / path.name
    path.rename(other)


def change(path):
    image = np.asarray(Image.open(path)).copy()
    image[0, 0] ^= 255
    Image.fromarray(image).save(path)


def change_bytes(path):
    """Another content of the same size."""
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)


DAMAGE = {
    "missing": (lambda path: path.unlink(), r"is missing"),
    "renamed": (lambda path: path.rename(path.with_name("z.png")), r"is missing \(.*z\.png has"),
    "relabelled": (relabel, r"is missing \((ant|bee)/.* has its content\)"),
    "changed": (change, "has changed"),
    "of the same size": (change_bytes, "has changed"),
}


@pytest.mark.parametrize(
    ("part", "damage"),
    [
        pytest.param(
            part,
            damage,
            marks=()
            if (part == "labeled") == (damage != "changed") and damage != "of the same size"
            else pytest.mark.slow,
        )
        for part in ("labeled", "test")
        for damage in DAMAGE
    ],
)
def test_an_image_that_is_not_what_it_was_is_refused_by_name(part, damage, copy, capsys):
    act, expected = DAMAGE[damage]
    name = names_of(copy, part)[0]
    act(copy / "photos" / name)
    before = {path: path.stat().st_mtime_ns for path in (copy / "run").rglob("*")}
    for words in (["evaluate"], ["probe"]):
        code, output, error = call(capsys, *words, f"--workdir={copy / 'run'}")
        assert (code, output) == (2, "")
        assert f"{copy / 'photos' / name}, a {part} image of the run, " in error
        assert re.search(expected, error), error
        assert "put it back" in error
    interrupted(copy)
    with pytest.raises(InputError, match=expected):
        train(configuration(f"folder:{copy / 'photos'}", **SHORT), copy / "run")
    after = {path: path.stat().st_mtime_ns for path in (copy / "run").rglob("*")}
    assert {path: before[path] for path in after if path.is_file()} == {
        path: moment for path, moment in after.items() if path.is_file()
    }


def test_an_unlabeled_image_that_is_gone_stops_a_resume_but_no_evaluation(copy, capsys):
    (copy / "photos" / "unlabeled" / "0.png").unlink()
    assert isinstance(evaluated(capsys, copy), dict)
    interrupted(copy)
    with pytest.raises(InputError, match=r"unlabeled/0\.png, a training image .* is missing"):
        train(configuration(f"folder:{copy / 'photos'}", **SHORT), copy / "run")


def test_a_moved_folder_is_named_and_then_known(original, copy, capsys):
    expected = evaluated(capsys, original)
    (copy / "photos").rename(copy / "elsewhere")
    error = evaluated(capsys, copy)
    assert f"There is no {copy / 'photos'}" in error
    assert "--data" in error
    add_images(copy)
    shutil.rmtree(copy / "photos")
    assert evaluated(capsys, copy, f"--data={copy / 'elsewhere'}") == expected
    interrupted(copy)
    config = configuration(f"folder:{copy / 'photos'}", **SHORT)
    train(config, copy / "run", str(copy / "elsewhere"))
    assert_bitwise(state_of(copy / "run"), state_of(original / "run"))
    assert evaluated(capsys, copy) == expected  # the run knows the new place


def test_a_moved_folder_of_other_content_is_refused(copy, capsys):
    shutil.copytree(copy / "photos", copy / "elsewhere")
    name = names_of(copy, "test")[0]
    change(copy / "elsewhere" / name)
    shutil.rmtree(copy / "photos")
    assert f"{copy / 'elsewhere' / name}, a test image" in evaluated(
        capsys, copy, f"--data={copy / 'elsewhere'}"
    )
    error = evaluated(capsys, copy, f"--data={copy / 'nowhere'}")
    assert f"There is no {copy / 'nowhere'}" in error


@pytest.mark.slow
def test_a_relative_folder_is_that_of_the_run(original, copy, capsys, monkeypatch, tmp_path):
    """``folder:.`` names another folder where a later command is started."""
    monkeypatch.chdir(copy / "photos")
    train(configuration("folder:.", **SHORT), copy / "run2")
    assert_bitwise(state_of(copy / "run2"), state_of(original / "run"))
    fill(tmp_path / "other", 32, seed=5)
    monkeypatch.chdir(tmp_path / "other")
    shutil.rmtree(copy / "run")
    (copy / "run2").rename(copy / "run")
    assert evaluated(capsys, copy) == evaluated(capsys, original)


def test_place_is_for_runs_that_exist_and_for_data_that_has_one(copy, tmp_path):
    config = configuration(f"folder:{copy / 'photos'}", **SHORT)
    with pytest.raises(InputError, match="holds no run, so its data cannot have moved"):
        train(config, tmp_path / "new", str(copy / "photos"))
    assert not (tmp_path / "new").exists()
    with pytest.raises(InputError, match="mnist5k is part of a package and cannot move"):
        load_new(from_flags("fixmatch:mnist5k", [])[0], place=str(tmp_path))


def test_a_run_without_a_record_is_read_with_a_warning(original, copy, capsys, caplog):
    (copy / "run" / "data.json").unlink()
    assert evaluated(capsys, copy) == evaluated(capsys, original)
    assert "no record of its images" in caplog.text


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", "\0", '{"format": 1}', '{"format": 2, "listed": null}']
)
def test_a_damaged_record_is_one_sentence(content, copy, capsys):
    (copy / "run" / "data.json").write_text(content)
    code, output, error = call(capsys, "evaluate", f"--workdir={copy / 'run'}")
    assert (code, output) == (2, "")
    assert "data.json" in error
    assert len(error.splitlines()) == 1


@pytest.mark.slow
def test_labels_of_a_table_that_changed_are_refused(copy, capsys):
    photos = copy / "photos"
    names = [path.relative_to(photos).as_posix() for path in sorted(photos.glob("[abcd]*/*.png"))]

    def table(label_of):
        with open(photos / "labels.csv", "w", newline="") as file:
            rows = [(name, label_of(name)) for name in names]
            csv.writer(file).writerows([("path", "label"), *rows])

    table(lambda name: name.split("/")[0])
    shutil.rmtree(copy / "run")
    train(configuration(f"folder:{photos}", **SHORT), copy / "run")
    assert isinstance(evaluated(capsys, copy), dict)
    wrong = names_of(copy, "labeled")[3]
    table(lambda name: "eel" if name == wrong else name.split("/")[0])
    error = evaluated(capsys, copy)
    assert f"{photos / wrong}, a labeled image of the run, has the label 'eel' now" in error
    names.remove(wrong)
    table(lambda name: name.split("/")[0])
    assert "has no label in labels.csv any more" in evaluated(capsys, copy)


def test_one_image_under_several_names_is_one(tmp_path):
    fill(tmp_path / "photos", 32)
    root = tmp_path / "photos"
    plain = load_new(configuration(f"folder:{root}", **SHORT))
    some = sorted(path.name for path in (root / "ant").iterdir())
    (root / "ant" / "a_link.png").symlink_to(root / "ant" / some[0])
    os.link(root / "ant" / some[1], root / "ant" / "a_hard_link.png")
    (root / "unlabeled").mkdir()
    (root / "unlabeled" / "again.png").symlink_to(
        root / "bee" / next(iter((root / "bee").iterdir())).name
    )
    linked = load_new(configuration(f"folder:{root}", **SHORT))
    assert len(linked.source.rows) == len(plain.source.rows)
    assert linked.source.names[-1] != "unlabeled/again.png"
    (root / "dog" / "ant.png").symlink_to(root / "ant" / some[2])
    with pytest.raises(InputError, match="are one image, but of the classes 'ant' and 'dog'"):
        load_new(configuration(f"folder:{root}", **SHORT))


def test_one_image_of_a_table_in_several_spellings_is_one(tmp_path):
    fill(tmp_path / "photos", 32)
    root = tmp_path / "photos"
    names = [path.relative_to(root).as_posix() for path in sorted(root.rglob("*.png"))]
    first = names[0]
    again = [f"./{first}", f"ant/../{first}", str(root / first)]
    lines = [f"{name},{name.split('/')[0]}" for name in names]
    lines += [f"{name},ant" for name in again]
    (root / "labels.csv").write_text("\n".join(["path,label", *lines]))
    found = load_new(configuration(f"folder:{root}", **SHORT))
    assert sorted(found.source.names) == names
    (root / "labels.csv").write_text("\n".join(["path,label", *lines, f"./{first},dog"]))
    with pytest.raises(InputError, match="more than once, as 'ant' and 'dog'"):
        load_new(configuration(f"folder:{root}", **SHORT))


def test_copies_across_sets_are_warned_of_with_a_count(tmp_path, caplog):
    root = tmp_path / "photos"
    fill(root / "train", 32)
    fill(root / "test", 16, seed=1)
    (root / "unlabeled").mkdir()
    tests = sorted((root / "test").rglob("*.png"))
    for number, path in enumerate(tests[:3]):
        shutil.copy(path, root / "unlabeled" / f"{number}.png")
    shutil.copy(tests[3], root / "train" / tests[3].parent.name / "again.png")
    options = {**SHORT, "method": "supervised", "steps": 5}
    with without_learning():
        train(configuration(f"folder:{root}", chosen=",labels=all", **options), tmp_path / "run")
    assert "3 test images have exact copies among the unlabeled images" in caplog.text
    assert "1 test image has an exact copy among the labeled images" in caplog.text


@pytest.mark.slow  # those of folders are the test before
def test_copies_in_arrays_are_warned_of(tmp_path, caplog):
    images, labels = toy_images(64, 0)
    file = write_data(tmp_path / "x.npz", x_test=images[:5], y_test=labels[:5])
    train(
        configuration(file, chosen=",labels=all", method="supervised", steps=5, devices=1),
        tmp_path / "run",
    )
    assert "5 test images have exact copies among the labeled images" in caplog.text


def test_a_listed_image_is_never_in_the_drawn_test_set(tmp_path):
    root = tmp_path / "photos"
    fill(root, 64)
    names = [path.relative_to(root).as_posix() for path in sorted(root.rglob("*.png"))]
    chosen = names[::3]
    (tmp_path / "split.txt").write_text("\n".join(chosen))
    for seed in range(3):
        config = configuration(
            f"folder:{root}", chosen=f",split={tmp_path / 'split.txt'},seed={seed}", **SHORT
        )
        found = load_new(config)
        assert [found.source.names[row] for row in found.split.indices] == chosen
        assert len(found.source.test_images) == len(CLASSES) * round(0.2 * 2 / 3 * 16)
    rows = [names.index(name) for name in chosen]
    (tmp_path / "split.json").write_text(json.dumps({"indices": rows}))
    config = configuration(f"folder:{root}", chosen=f",split={tmp_path / 'split.json'}", **SHORT)
    assert load_new(config).split.indices.tolist() == rows


@pytest.mark.slow
def test_a_list_that_names_others_by_now_is_refused(tmp_path):
    root, file = tmp_path / "photos", tmp_path / "split.txt"
    fill(root, 32)
    names = [path.relative_to(root).as_posix() for path in sorted(root.rglob("*.png"))]
    file.write_text("\n".join(names[::4]))
    config = configuration(f"folder:{root}", chosen=f",split={file}", **SHORT)
    train(config, tmp_path / "run")
    interrupted(tmp_path)
    fill(root, 8, seed=3, prefix="a")  # positions change, names stay
    file.write_text("\n".join(f"./{name}" for name in names[::4]))
    train(config, tmp_path / "run")
    interrupted(tmp_path)
    file.write_text("\n".join(names[1::4]))
    with pytest.raises(InputError, match="names other images than the run began with"):
        train(config, tmp_path / "run")
    file.unlink()
    train(config, tmp_path / "run")


def test_lists_may_come_from_windows(tmp_path):
    root = tmp_path / "photos"
    fill(root, 32)
    names = [path.relative_to(root).as_posix() for path in sorted(root.rglob("*.png"))]
    chosen = [names[0], names[9], names[17], names[26]]
    (tmp_path / "SPLIT.TXT").write_text("\r\n".join(name.replace("/", "\\") for name in chosen))
    config = configuration(f"folder:{root}", chosen=f",split={tmp_path / 'SPLIT.TXT'}", **SHORT)
    found = load_new(config)
    assert [found.source.names[row] for row in found.split.indices] == chosen


@pytest.mark.parametrize("spelling", ["./{}", "{root}/{}", "ant/../{}", "\ufeff{}", "{}\r", " {} "])
def test_lists_may_spell_paths_in_any_way(spelling, tmp_path):
    root = tmp_path / "photos"
    fill(root, 32)
    names = [path.relative_to(root).as_posix() for path in sorted(root.rglob("*.png"))]
    chosen = [names[0], names[9], names[17], names[26]]
    text = "\n".join(spelling.format(name, root=root) for name in [*chosen, chosen[0]])
    (tmp_path / "split.txt").write_bytes(("\ufeff" + text.replace("\ufeff", "")).encode())
    config = configuration(f"folder:{root}", chosen=f",split={tmp_path / 'split.txt'}", **SHORT)
    found = load_new(config)
    assert [found.source.names[row] for row in found.split.indices] == chosen


def test_lists_may_have_any_unicode_form_and_bytes(tmp_path):
    root = tmp_path / "photos"
    fill(root, 32)
    names = [path.relative_to(root).as_posix() for path in sorted(root.rglob("*.png"))]
    chosen = [names[0], names[9], names[17], names[26]]
    odd = [chosen[0].replace("m", "cafe\u0301"), os.fsdecode(os.fsencode(chosen[1]) + b"\xe9.png")]
    for old, new in zip(chosen, odd, strict=False):
        (root / old).rename(root / new)
    lines = [unicodedata.normalize("NFC", odd[0]), odd[1], *chosen[2:]]
    (tmp_path / "split.txt").write_bytes(os.fsencode("\n".join(lines)))
    config = configuration(f"folder:{root}", chosen=f",split={tmp_path / 'split.txt'}", **SHORT)
    found = load_new(config)
    assert [found.source.names[row] for row in found.split.indices] == [*odd, *chosen[2:]]


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([], "names no image"),
        (["", "  "], "names no image"),
        (["ant/none.png"], "names ant/none.png, which is no training image"),
        (["ant/m000.png", "bee/m001.png", "cat/m002.png"], "names no image of class 'dog'"),
        (["unlabeled/0.png"], "whose label is not known"),
    ],
)
def test_lists_that_do_not_fit_are_one_sentence(lines, expected, tmp_path):
    root = tmp_path / "photos"
    fill(root, 32)
    (root / "unlabeled").mkdir()
    Image.fromarray(toy_images(1, 3)[0][0]).save(root / "unlabeled" / "0.png")
    (tmp_path / "split.txt").write_text("\n".join(lines))
    config = configuration(f"folder:{root}", chosen=f",split={tmp_path / 'split.txt'}", **SHORT)
    with pytest.raises(InputError, match=expected):
        load_new(config)


ALIKE = [pytest.param(array, marks=pytest.mark.slow) for array in ("x_train", "y_test")]
ARRAYS = {"method": "pseudo_label", "steps": 5, "devices": 1}


@pytest.fixture(scope="module")
def arrays_run(tmp_path_factory):
    """A finished run on an npz file."""
    base = tmp_path_factory.mktemp("arrays")
    file = write_data(base / "x.npz", x_unlabeled=toy_images(8, 3)[0])
    with without_learning():
        train(configuration(file, **ARRAYS), base / "run")
    return base


@pytest.mark.parametrize("array", ["y_train", "x_test", "x_unlabeled", *ALIKE])
def test_arrays_that_changed_are_refused_by_name(array, arrays_run, tmp_path, capsys):
    shutil.copytree(arrays_run / "run", tmp_path / "run")
    arrays = dict(np.load(arrays_run / "x.npz"))
    arrays[array] = arrays[array].copy()
    arrays[array].flat[0] = (arrays[array].flat[0] + 1) % 4
    file = tmp_path / "changed.npz"
    np.savez(file, **arrays)
    found = evaluated(capsys, tmp_path, f"--data={file}")
    if array == "x_unlabeled":
        assert found == evaluated(capsys, arrays_run)
    else:
        assert f"{array} of {file} is not what the run was trained with" in found
    (tmp_path / "run" / "summary.json").unlink()
    config = configuration(arrays_run / "x.npz", **ARRAYS)
    with pytest.raises(InputError, match=f"{array} of"):
        train(config, tmp_path / "run", str(file))


def test_a_moved_file_is_known_by_its_arrays(arrays_run, tmp_path, capsys):
    shutil.copytree(arrays_run / "run", tmp_path / "run")
    for file in ("config.json", "data.json"):
        path = tmp_path / "run" / file
        path.write_text(path.read_text().replace(str(arrays_run), "/nowhere"))
    assert "There is no /nowhere/x.npz" in evaluated(capsys, tmp_path)
    np.savez_compressed(tmp_path / "moved.npz", **np.load(arrays_run / "x.npz"))
    expected = evaluated(capsys, arrays_run)
    assert evaluated(capsys, tmp_path, f"--data={tmp_path / 'moved.npz'}") == expected


@pytest.mark.slow
def test_a_validation_set_stays_what_it_was(copy, capsys):
    options = {**SHORT, "data__validation": 8}
    config = configuration(f"folder:{copy / 'photos'}", **options)
    shutil.rmtree(copy / "run")
    train(config, copy / "run")
    listed = records.read(copy / "run").listed
    assert len(listed.validation) == 8
    lines = [{k: v for k, v in line.items() if "accuracy" in k} for line in read(copy / "run")]
    add_images(copy)
    interrupted(copy)
    train(config, copy / "run")
    again = [{k: v for k, v in line.items() if "accuracy" in k} for line in read(copy / "run")]
    assert again == lines
    name = listed.names[listed.validation[0]]
    change(copy / "photos" / name)
    assert f"{name}, a validation image of the run, has changed" in evaluated(capsys, copy)


@pytest.mark.slow
def test_the_drawn_test_set_of_a_run_stays_that_of_runs_that_build_on_it(copy, caplog):
    """Another seed would draw test images that the earlier run was trained on."""
    photos = f"folder:{copy / 'photos'}"
    options = {**SHORT, "chosen": ",labels=16,seed=3"}
    add_images(copy)
    shutil.rmtree(copy / "photos" / "aardvark")
    train(configuration(photos, **options, init_from=str(copy / "run")), copy / "second")
    record = records.read(copy / "second")
    names = [record.listed.names[row] for row in record.listed.test]
    assert sorted(names) == sorted(names_of(copy, "test"))
    assert "were training images of an earlier run" not in caplog.text
    change(copy / "photos" / names[0])
    with pytest.raises(
        InputError, match=f"{names[0]}, a test image of the run that this one builds on, has"
    ):
        train(configuration(photos, **options, init_from=str(copy / "run")), copy / "third")
    shutil.copytree(copy / "photos", copy / "moved")
    elsewhere = f"folder:{copy / 'moved'}"
    train(configuration(elsewhere, **options, init_from=str(copy / "run")), copy / "fourth")
    assert "were training images of an earlier run" in caplog.text


def test_a_teacher_of_other_classes_is_refused(copy, tmp_path):
    shutil.copytree(copy / "photos", tmp_path / "others")
    (tmp_path / "others" / "dog").rename(tmp_path / "others" / "eel")
    config = configuration(
        f"folder:{tmp_path / 'others'}",
        **{**SHORT, "method": "distillation"},
        frozen__teacher=str(copy / "run"),
    )
    with pytest.raises(InputError, match="'dog' stands where the data has 'eel'"):
        train(config, tmp_path / "run")


@pytest.mark.slow
def test_a_streamed_folder_is_known_by_all_of_its_files(copy, capsys, monkeypatch):
    monkeypatch.setattr(records, "ENDS", 8)  # the byte that changes is none of these
    photos = copy / "photos"
    shutil.rmtree(copy / "run")
    options = {**SHORT, "data__stream": True, "workers": 1}
    train(configuration(f"folder:{photos}", **options), copy / "run")
    expected = evaluated(capsys, copy)
    add_images(copy)
    assert evaluated(capsys, copy) == expected
    listed = records.read(copy / "run").listed
    assert not listed.ends
    hashed = {name for name, found in zip(listed.names, listed.hashes, strict=True) if found}
    assert hashed == {*names_of(copy, "labeled"), *names_of(copy, "test")}
    name = names_of(copy, "test")[0]
    change_bytes(photos / name)
    assert f"{photos / name}, a test image of the run, has changed" in evaluated(capsys, copy)


@pytest.mark.slow
def test_prepared_sets_are_known_by_version_and_records(tmp_path, capsys):
    golden = os.path.join(os.path.dirname(__file__), "..", "golden", "tfds.zip")
    shutil.unpack_archive(golden, tmp_path / "tfds")
    place = tmp_path / "tfds"
    options = {**SHORT, "chosen": ",labels=10", "data__directory": str(place)}
    config = configuration("tfds:cifar10", **options)
    train(config, tmp_path / "run")
    expected = evaluated(capsys, tmp_path)
    record = records.read(tmp_path / "run")
    assert set(record.parts) == {"version", "train", "test"}
    assert record.location == str(place)
    place.rename(tmp_path / "moved")
    assert evaluated(capsys, tmp_path, f"--data={tmp_path / 'moved'}") == expected
    (shard,) = [path for path in (tmp_path / "moved").rglob("cifar10-test*") if path.is_file()]
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    found = evaluated(capsys, tmp_path, f"--data={tmp_path / 'moved'}")
    assert f"test of {tmp_path / 'moved' / 'cifar10'}" in found
    assert "is not what the run was trained with" in found


@pytest.mark.slow
def test_an_inherited_test_set_is_known_by_content_where_the_folder_has_moved(copy, caplog):
    shutil.copytree(copy / "photos", copy / "moved")
    options = {**SHORT, "chosen": ",labels=16,seed=3", "method": "supervised", "steps": 5}
    config = configuration(f"folder:{copy / 'moved'}", **options, init_from=str(copy / "run"))
    train(config, copy / "second")
    record = records.read(copy / "second")
    assert sorted(names_of(copy, "test")) == sorted(
        record.listed.names[row] for row in record.listed.test
    )
    assert "were training images" not in caplog.text


def test_an_image_to_be_labeled_is_no_test_image_of_an_earlier_run(copy, tmp_path):
    names = [*names_of(copy, "test")[:1], *names_of(copy, "labeled")]
    (tmp_path / "split.txt").write_text("\n".join(names))
    options = {**SHORT, "chosen": f",split={tmp_path / 'split.txt'}"}
    config = configuration(f"folder:{copy / 'photos'}", **options, init_from=str(copy / "run"))
    with pytest.raises(InputError, match="is to be labeled, but is a test image of the run"):
        train(config, tmp_path / "run")


@pytest.mark.parametrize("row", [500, -1])
def test_a_split_of_images_that_are_not_there_is_refused(copy, tmp_path, row):
    (tmp_path / "split.json").write_text(json.dumps({"indices": [0, row]}))
    options = {**SHORT, "chosen": f",split={tmp_path / 'split.json'}"}
    config = configuration(f"folder:{copy / 'photos'}", **options, init_from=str(copy / "run"))
    with pytest.raises(InputError, match=f"names image {row}, which is not a training image"):
        train(config, tmp_path / "run")


def stages(photos, split):
    """SelfMatch, in which only the second stage reads labels."""
    flags = []
    for name in ("simclr", "fixmatch"):
        values = OVERRIDES | {"steps": 10, "save_every": 5, "data.image_size": 8}
        if name == "simclr":
            values.pop("algorithm.threshold")
        flags += [f"--config.stages.{name}.{key}={value}" for key, value in values.items()]
    return from_flags(f"selfmatch:folder:{photos},split={split}", flags)[0]


@pytest.mark.slow
def test_stages_keep_listed_images_out_of_the_test_set_and_follow_a_moved_folder(copy):
    photos, split = copy / "photos", copy / "split.txt"
    shutil.rmtree(copy / "run")
    names = [path.relative_to(photos).as_posix() for path in sorted(photos.glob("[abcd]*/*.png"))]
    split.write_text("\n".join(names[::2]))  # half of each class, so some that would be drawn
    train(stages(photos, split), copy / "run")
    first, second = (records.read(copy / "run" / name) for name in ("1_simclr", "2_fixmatch"))
    assert first.listed.test == second.listed.test
    assert not {first.listed.names[row] for row in first.listed.test} & set(names[::2])
    shutil.rmtree(copy / "run" / "2_fixmatch")
    (copy / "run" / "summary.json").unlink()
    add_images(copy)
    shutil.rmtree(photos / "aardvark")
    photos.rename(copy / "moved")
    train(stages(photos, split), copy / "run", str(copy / "moved"))
    third = records.read(copy / "run" / "2_fixmatch").listed
    assert {third.names[row] for row in third.test} == {
        first.listed.names[row] for row in first.listed.test
    }
    shutil.rmtree(copy / "moved")
    assert train(stages(photos, split), copy / "run")["steps"] == 10  # complete: no data is needed


def test_the_split_of_another_run_names_its_images(copy):
    chosen = names_of(copy, "labeled")
    fill(copy / "photos", 12, seed=3, prefix="a")  # positions change
    config = configuration(
        f"folder:{copy / 'photos'}", chosen=f",split={copy / 'run' / 'split.json'}", **SHORT
    )
    found = load_new(config)
    assert [found.source.names[row] for row in found.split.indices] == chosen
    for row in (-1, 10_000):  # of a damaged file, or beside the record of another run
        (copy / "run" / "split.json").write_text(json.dumps({"indices": [0, row]}))
        with pytest.raises(InputError, match=r"names images that data\.json beside it does not"):
            load_new(config)


def test_a_run_without_split_or_record_is_not_given_other_data(copy):
    interrupted(copy)
    (copy / "run" / "split.json").unlink()
    before = {path: path.read_bytes() for path in (copy / "run").rglob("*") if path.is_file()}
    config = configuration(f"folder:{copy / 'photos'}", **SHORT)
    with pytest.raises(InputError, match=r"Cannot read the split file .*split\.json"):
        train(config, copy / "run")
    after = {path: path.read_bytes() for path in (copy / "run").rglob("*") if path.is_file()}
    assert before == after


def test_an_old_run_on_other_images_is_refused_by_its_facts(copy):
    interrupted(copy)
    (copy / "run" / "data.json").unlink()
    (copy / "photos" / "unlabeled" / "0.png").unlink()
    with pytest.raises(InputError, match="its unlabeled differ"):
        train(configuration(f"folder:{copy / 'photos'}", **SHORT), copy / "run")


@pytest.mark.slow
def test_links_and_old_places_in_lists_and_tables_are_understood(copy):
    photos, split = copy / "photos", copy / "split.txt"
    shutil.rmtree(copy / "run")
    (photos / "ant" / "lnk.png").symlink_to("m000.png")
    names = [path.relative_to(photos).as_posix() for path in sorted(photos.glob("[abcd]*/m*.png"))]
    table = [f"{photos / name},{name.split('/')[0]}" for name in names]
    table.append(f"{photos}/ant/lnk.png,ant")
    (photos / "labels.csv").write_text("\n".join(["path,label", *table]))
    split.write_text("\n".join([f"{photos}/ant/lnk.png", *(str(photos / n) for n in names[1::3])]))
    options = {**SHORT, "chosen": f",split={split}"}
    train(configuration(f"folder:{photos}", **options), copy / "run")
    interrupted(copy)
    train(configuration(f"folder:{photos}", **options), copy / "run")
    interrupted(copy)
    photos.rename(copy / "moved")
    train(configuration(f"folder:{photos}", **options), copy / "run", str(copy / "moved"))


def test_a_complete_run_learns_where_its_data_is_now(original, copy, capsys):
    (copy / "photos").rename(copy / "moved")
    train(configuration(f"folder:{copy / 'photos'}", **SHORT), copy / "run", str(copy / "moved"))
    assert evaluated(capsys, copy) == evaluated(capsys, original)


def test_an_unknown_name_does_not_list_all_others(tmp_path):
    fill(tmp_path / "photos", 64)
    (tmp_path / "split.txt").write_text("# my images\n")
    config = configuration(
        f"folder:{tmp_path / 'photos'}", chosen=f",split={tmp_path / 'split.txt'}", **SHORT
    )
    with pytest.raises(InputError) as caught:
        load_new(config)
    assert len(str(caught.value)) < 400
