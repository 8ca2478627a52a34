import logging

import numpy as np
import pytest
from PIL import Image

from jaxmatch.data import images, sources
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
    with pytest.raises(InputError, match=r"cat/broken\.png, .*dog/half\.png"):
        load(tmp_path, strict=True)


def test_files_to_predict(tmp_path):
    class_folders(tmp_path / "some")
    picture(tmp_path / "a.png", 7)
    (tmp_path / "some" / "notes.txt").write_text("ignored")
    files = images.image_files([tmp_path / "some", tmp_path / "a.png"])
    assert [file.parent.name for file in files[:10]] == ["cat"] * 5 + ["dog"] * 5
    assert files[10] == tmp_path / "a.png"
    (tmp_path / "b.png").write_bytes(b"no image")
    arrays, readable = images.read_images([tmp_path / "b.png", *files], (6, 8))
    assert arrays.shape == (11, 6, 8, 3)
    assert levels(arrays) == [0, 1, 2, 3, 4, 100, 101, 102, 103, 104, 7]
    assert readable == files
    with pytest.raises(InputError, match="no readable images"):
        images.read_images([tmp_path / "b.png"], (6, 8))
    with pytest.raises(InputError, match=r"no file or folder .*none\.png"):
        images.image_files([tmp_path / "none.png"])


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
    with pytest.raises(InputError, match=r"'emu' .* has no readable image"):
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
        ("path,label\n0.png\n", "first line `path,label`"),
        ("path,label\n0.png,\xff\n", "Cannot read"),
    ],
)
def test_tables_that_do_not_fit(tmp_path, table, message):
    picture(tmp_path / "0.png", 0)
    (tmp_path / "labels.csv").write_bytes(table.encode("latin-1"))
    with pytest.raises(InputError, match=message):
        load(tmp_path)
