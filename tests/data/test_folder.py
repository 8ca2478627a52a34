import logging
import re

import numpy as np
import pytest
from PIL import Image

from jaxmatch.data import sources
from jaxmatch.data.levels import Levels
from jaxmatch.data.source import Reading
from jaxmatch.errors import InputError


def picture(path, level, size=(12, 9)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (level, level, level)).save(path)


def class_folders(root, classes=("cat", "dog"), each=5):
    for number, name in enumerate(classes):
        for image in range(each):
            picture(root / name / f"{image}.png", 100 * number + image, (12 + image, 9))


def load(root, seed=0, **options):
    return sources.load(f"folder:{root}", Reading(seed=seed, **options))


def levels(pixels):
    return pixels[:, 0, 0, 0].tolist()


def test_class_folders_and_a_drawn_test_set(tmp_path):
    class_folders(tmp_path, each=10)
    picture(tmp_path / "unlabeled" / "deep" / "0.png", 250)
    picture(tmp_path / "loose.png", 251)
    (tmp_path / "README.txt").write_text("not an image, and not in a class folder")
    source = load(tmp_path)
    assert source.name == f"folder:{tmp_path}"
    assert source.classes == ("cat", "dog")
    assert source.images.shape == (18, 32, 32, 3)
    np.testing.assert_array_equal(np.bincount(source.test_labels), [2, 2])
    np.testing.assert_array_equal(source.labels, [0] * 8 + [1] * 8 + [-1, -1])
    assert levels(source.images)[-2:] == [251, 250]
    together = levels(source.images)[:-2] + levels(source.test_images)
    assert sorted(together) == [*range(10), *range(100, 110)]


def test_drawn_test_set_depends_on_the_seed_only(tmp_path):
    class_folders(tmp_path, each=20)
    first, again, other = (load(tmp_path, seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.rows, again.rows)
    assert not np.array_equal(first.rows, other.rows)
    for source in (first, other):  # rows are positions among all sorted paths, whatever the seed
        order = np.array(sorted(str(number) for number in range(20)), int)
        expected = np.concatenate([order, 100 + order])[source.rows]
        np.testing.assert_array_equal(levels(source.images), expected)


def test_given_train_and_test_folders(tmp_path):
    class_folders(tmp_path / "train")
    class_folders(tmp_path / "test", each=2)
    picture(tmp_path / "unlabeled" / "0.png", 250)
    picture(tmp_path / "notes" / "0.png", 251)
    source = load(tmp_path, image_size=8)
    assert source.classes == ("cat", "dog")
    assert source.images.shape == (11, 8, 8, 3)
    assert levels(source.test_images) == [0, 1, 100, 101]


def test_table_of_labels(tmp_path):
    for number in range(10):
        picture(tmp_path / "all" / f"{number}.png", number)
    rows = [f"all/{number}.png,{'ab'[number % 2]}" for number in range(6)]
    rows += ["./all/6.png,", 'all/7.png,""']
    (tmp_path / "labels.csv").write_text("\ufeffpath,label\n" + "\n".join(rows) + "\n\n")
    picture(tmp_path / "unlabeled" / "0.png", 250)
    source = load(tmp_path)
    assert source.classes == ("a", "b")
    np.testing.assert_array_equal(np.bincount(source.test_labels), [1, 1])
    np.testing.assert_array_equal(source.labels[-5:], [-1] * 5)
    assert levels(source.images)[-5:] == [6, 7, 8, 9, 250]
    np.testing.assert_array_equal(
        source.labels[:-5], [value % 2 for value in levels(source.images)[:-5]]
    )


def test_unreadable_files_are_named(tmp_path, caplog):
    class_folders(tmp_path)
    (tmp_path / "cat" / "broken.png").write_bytes(b"no image")
    whole = (tmp_path / "dog" / "0.png").read_bytes()
    (tmp_path / "dog" / "half.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "dog" / ".hidden").write_text("ignored")
    with caplog.at_level(logging.WARNING):
        source = load(tmp_path)
    assert "cat/broken.png" in caplog.text
    assert "dog/half.png" in caplog.text
    assert ".hidden" not in caplog.text
    assert len(source.images) + len(source.test_images) == 10
    with pytest.raises(
        InputError, match=r"not an image: cat/broken\.png; truncated: dog/half\.png"
    ):
        load(tmp_path, strict=True)


def test_the_survey_tells_what_was_read_and_what_was_left_out(tmp_path):
    class_folders(tmp_path / "train")
    class_folders(tmp_path / "test", each=2)
    Image.new("L", (7, 5), 9).save(tmp_path / "train" / "cat" / "gray.png")
    (tmp_path / "train" / "cat" / "empty.png").write_bytes(b"")
    (tmp_path / "train" / "dog" / "page.jpg").write_bytes(b"<html></html>")
    (tmp_path / "train" / "dog" / "phone.jpg").write_bytes(b"\0\0\0\x18ftypheic" + bytes(40))
    survey = load(tmp_path).survey
    assert survey.left_out == {
        "empty file": ("train/cat/empty.png",),
        "not an image": ("train/dog/page.jpg",),
        "no decoder for HEIC": ("train/dog/phone.jpg",),
    }
    assert survey.modes == {"RGB": 14, "gray": 1}
    assert survey.sizes == {(9, 12 + number): 2 for number in range(2, 5)} | {
        (9, 12): 4,
        (9, 13): 4,
        (5, 7): 1,
    }


def many_levels(root, highest, kind="PNG", number=4):
    for name in ("cat", "dog"):
        (root / name).mkdir(parents=True)
        for each in range(number):
            levels = np.linspace(0, highest - each * (highest > 1), 64).reshape(8, 8)
            dtype = np.float32 if highest <= 1 else np.int32 if highest > 65535 else np.uint16
            image = Image.fromarray(levels.astype(dtype))
            image.save(root / name / f"{each}.{kind.lower()}", kind)


@pytest.mark.parametrize(
    ("highest", "kind", "note"),
    [
        (65535, "PNG", r"8 of the images are 16-bit gray, .* 0 to 65535; 65535 is white\.$"),
        (20000, "PNG", r"0 to 20000; 65535 is white\.$"),
        (4095, "PNG", r"0 to 4095; .* levels of 12 bits .*; set data\.white_level=4095\.$"),
        (3000, "PNG", r"0 to 3000; .* levels of 12 bits .*; set data\.white_level=4095\.$"),
        (16000, "TIFF", r"0 to 16000; .* levels of 14 bits .*data\.white_level=16383\.$"),
        (2**30, "TIFF", r"signed 32-bit gray, .* 2147483647 is white\.$"),
        (1, "TIFF", r"32-bit float gray, with levels from 0 to 1; 1 is white\.$"),
    ],
)
def test_levels_of_more_than_8_bits_are_noted(tmp_path, highest, kind, note):
    many_levels(tmp_path, highest, kind)
    for stream in (False, True):
        (found,) = load(tmp_path, stream=stream).survey.notes
        assert re.search(note, found)


def test_the_white_level_reaches_the_images(tmp_path):
    many_levels(tmp_path, 4095)
    dark = load(tmp_path, image_size=8)
    bright = load(tmp_path, image_size=8, levels=Levels(white=4095))
    assert dark.images.max() == 15
    assert bright.images.max() == 255
    (note,) = bright.survey.notes
    assert note.endswith("4095 is white.")


def test_files_of_several_frames_and_images_of_one_color_are_noted(tmp_path):
    class_folders(tmp_path)
    frames = [Image.fromarray(np.eye(9, dtype=np.uint8) * level) for level in (200, 100)]
    for number in range(7):
        file = tmp_path / "cat" / f"frames{number}.gif"
        frames[0].save(file, save_all=True, append_images=frames[1:])
    frames, constant = load(tmp_path).survey.notes
    listed = ", ".join(f"cat/frames{number}.gif" for number in range(5))
    assert frames == (
        "7 of the images hold several frames or pages, of which the first is used: "
        f"{listed} and 2 more."
    )
    assert constant.startswith("10 of the images have one color everywhere: cat/0.png, ")


@pytest.mark.parametrize("stream", [False, True])
def test_the_background_reaches_the_images(tmp_path, stream):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for number in range(4):
            Image.new("RGBA", (6, 6), (0, 0, 0, 0)).save(tmp_path / name / f"{number}.png")
    for background, level in ((255, 255, 255), 255), ((10, 20, 30), (10, 20, 30)), (None, 0):
        source = load(tmp_path, stream=stream, levels=Levels(background=background))
        assert (np.asarray(source.images) == level).all()
        assert (np.asarray(source.test_images) == level).all()


def test_fewer_than_two_classes_serve_label_free_methods_only(tmp_path):
    picture(tmp_path / "0.png", 0)
    picture(tmp_path / "1.png", 1)
    with pytest.raises(InputError, match="has images but no labels"):
        load(tmp_path)
    source = load(tmp_path, label_free=True)
    assert source.classes == ()
    np.testing.assert_array_equal(source.labels, [-1, -1])
    class_folders(tmp_path, classes=("cat",))
    with pytest.raises(InputError, match="fewer than two classes"):
        load(tmp_path)
    assert load(tmp_path, label_free=True).classes == ("cat",)


def test_content_that_does_not_fit(tmp_path):
    class_folders(tmp_path / "train")
    class_folders(tmp_path / "test", classes=("cat", "emu"))
    with pytest.raises(InputError, match=r"'emu' .* has test but no training images"):
        load(tmp_path)
    (tmp_path / "train" / "emu").mkdir()
    with pytest.raises(InputError, match="emu is empty"):
        load(tmp_path)
    (tmp_path / "train" / "emu" / "0.png").write_bytes(b"no image")
    with pytest.raises(
        InputError, match=r"'emu' .* has no readable image \(not an image: train/emu/0\.png\)"
    ):
        load(tmp_path)


def test_a_method_without_labels_leaves_out_a_test_set_of_other_classes(tmp_path):
    class_folders(tmp_path / "test", classes=("cat", "dog"))
    for number in range(3):
        picture(tmp_path / "unlabeled" / f"{number}.png", 50 + number)
    with pytest.raises(InputError, match=r"'cat' .* has test but no training images"):
        load(tmp_path)
    source = load(tmp_path, label_free=True)
    assert (len(source.images), len(source.test_images), source.classes) == (3, 0, ())
    told = "Not used: the test set, because no training image is of cat, dog."
    assert told in source.survey.notes
    left_out = source.survey.left_out["test images of classes that no training image has"]
    assert left_out[0] == "test/cat/0.png"


def test_classes_without_a_drawn_test_image_are_noted(tmp_path):
    class_folders(tmp_path)
    picture(tmp_path / "emu" / "0.png", 200)
    told = "The test set, drawn from the labeled images, has none of emu."
    assert told in load(tmp_path).survey.notes
    picture(tmp_path / "emu" / "1.png", 201)
    assert not any("has none of" in note for note in load(tmp_path).survey.notes)


def test_images_of_which_none_is_readable_are_named_with_the_reason(tmp_path):
    class_folders(tmp_path, each=2)
    for path in tmp_path.glob("*/*.png"):
        path.write_bytes(b"no image")
    with pytest.raises(InputError, match=r"No image of .* is readable \(not an image: cat/0\.png"):
        sources.sizes(f"folder:{tmp_path}", Reading())


def test_a_table_without_any_label_is_named(tmp_path):
    picture(tmp_path / "0.png", 0)
    (tmp_path / "labels.csv").write_text("path,label\n0.png,\n")
    with pytest.raises(InputError, match=r"labels\.csv of .* has no labels; write those you know"):
        load(tmp_path)


def test_empty_folders_and_single_images(tmp_path):
    with pytest.raises(InputError, match="no images in"):
        load(tmp_path)
    class_folders(tmp_path, each=1)
    with pytest.raises(InputError, match="too few labeled images for a test set"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("path,label\nnone.png,a\n", r"names none\.png, but there is no such file"),
        ("path,label\n0.png,a\n./0.png,b\n", r"names 0\.png more than once"),
        ("file,kind\n0.png,a\n", "first line `path,label`"),
        ("path,label\n0.png\n", "no cell for the label in line 2"),
        ("path,label\n0.png,\xff\n", "Cannot read"),
    ],
)
def test_tables_that_do_not_fit(tmp_path, table, message):
    picture(tmp_path / "0.png", 0)
    (tmp_path / "labels.csv").write_bytes(table.encode("latin-1"))
    with pytest.raises(InputError, match=message):
        load(tmp_path)
