import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxmatch.data import sources, splits
from jaxmatch.data import tfds as tfds_reader
from jaxmatch.data.lazy import LazyImages
from jaxmatch.data.source import Reading
from jaxmatch.errors import InputError

KINDS = ("images", "test_images")


def same(lazy, resident):
    """Everything but the images is equal, and so are these once they are read."""
    for name in ("name", "classes"):
        assert getattr(lazy, name) == getattr(resident, name)
    for name in ("labels", "rows", "test_labels"):
        np.testing.assert_array_equal(getattr(lazy, name), getattr(resident, name))
    for name in KINDS:
        images = getattr(lazy, name)
        assert isinstance(images, LazyImages)
        assert images.shape == getattr(resident, name).shape
        np.testing.assert_array_equal(np.asarray(images), getattr(resident, name))


def test_a_folder_reads_the_same_later(photographs):
    options = {"seed": 3, "image_size": 24}
    name = f"folder:{photographs}"
    lazy = sources.load(name, Reading(stream=True, **options))
    same(lazy, sources.load(name, Reading(**options)))
    assert [lazy.names[row] for row in lazy.rows[:2]] == ["train/cat/000.jpg", "train/cat/001.jpg"]


@pytest.mark.parametrize("size", [None, 24])
def test_a_prepared_set_reads_the_same_later(tfds_directory, size):
    options = {"seed": 0, "directory": tfds_directory, "image_size": size}
    same(
        sources.load("tfds:stl10", Reading(stream=True, **options)),
        sources.load("tfds:stl10", Reading(**options)),
    )


def test_imagenet_is_tested_on_its_validation_split(imagenet_directory):
    options = {"seed": 0, "directory": imagenet_directory, "image_size": 16}
    lazy = sources.load("tfds:imagenet2012", Reading(stream=True, **options))
    same(lazy, sources.load("tfds:imagenet2012", Reading(**options)))
    assert len(lazy.images) == 40
    assert len(lazy.test_images) == 8
    assert len(lazy.classes) == 1000
    for name, label in zip(lazy.names, lazy.labels, strict=True):
        assert name.startswith(lazy.classes[label])


@pytest.fixture
def fresh(imagenet_directory, tmp_path):
    """A copy of the prepared set without an index."""
    directory = tmp_path / "prepared"
    shutil.copytree(imagenet_directory, directory, ignore=shutil.ignore_patterns("jaxmatch-*"))
    return directory


@pytest.fixture
def index(fresh, monkeypatch):
    """Loads that copy, and the records that were read for it so far."""
    reads = []
    examples = tfds_reader._examples

    class Counted:
        def __init__(self, split):
            self.split = split

        def __len__(self):
            return len(self.split)

        def __getitem__(self, number):
            reads.append(number)
            return self.split[number]

    monkeypatch.setattr(
        tfds_reader, "_examples", lambda builder, split: Counted(examples(builder, split))
    )
    options = {"seed": 0, "directory": str(fresh), "image_size": 16, "stream": True}
    return (lambda: sources.load("tfds:imagenet2012", Reading(**options))), reads


def kept(directory):
    return sorted(Path(directory).rglob("jaxmatch-*"))


def test_labels_are_read_from_the_records_once(fresh, index):
    load, reads = index
    first = load()
    assert sorted(reads) == sorted([*range(40), *range(8)])
    assert [path.suffix for path in kept(fresh)] == [".npz"] * 2
    again = load()
    assert len(reads) == 48
    np.testing.assert_array_equal(again.labels, first.labels)
    assert again.names == first.names


@pytest.mark.parametrize("damage", ["empty", "half", "flipped", "others", "pickled"])
def test_a_damaged_index_is_made_anew(fresh, index, caplog, damage):
    load, reads = index
    first = load()
    for path in kept(fresh):
        whole = path.read_bytes()
        if damage == "others":
            np.savez(path, labels=np.zeros(3, np.int32), names=np.array([], str))
        elif damage == "pickled":
            np.savez(path, labels=np.array([None] * 40), names=np.array([None]))
        else:
            flipped = bytes([*whole[:200], whole[200] ^ 255, *whole[201:]])
            path.write_bytes({"empty": b"", "half": whole[:-90], "flipped": flipped}[damage])
    again = load()
    assert len(reads) == 96
    assert caplog.text.count("is damaged; it is written again") == 2
    np.testing.assert_array_equal(again.labels, first.labels)
    assert again.names == first.names
    load()
    assert len(reads) == 96


def test_an_index_goes_to_the_cache_where_others_own_the_data(fresh, index, monkeypatch, tmp_path):
    load, reads = index
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    replace = Path.replace

    def refused(self, target):
        if "cache" not in str(target):
            raise PermissionError
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", refused)
    load()
    assert kept(fresh) == []
    assert len(kept(tmp_path / "cache")) == 2
    load()
    assert len(reads) == 48


def test_two_containers_write_the_index_into_files_of_their_own(fresh, index, monkeypatch):
    load, _ = index
    partial = []
    replace = Path.replace
    monkeypatch.setattr(Path, "replace", lambda *paths: partial.append(paths[0]) or replace(*paths))
    monkeypatch.setattr(os, "getpid", lambda: 1)
    for _ in range(2):
        load()
        for path in kept(fresh):
            path.unlink()
    assert len(set(partial)) == 4


def test_damaged_records_are_told(fresh, index):
    load, _ = index
    file = next(fresh.rglob("*validation.array_record*"))
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2] + bytes(len(content) - len(content) // 2))
    with pytest.raises(InputError, match=r"labels of tfds:imagenet2012 cannot be read .* anew"):
        load()


def test_images_index_like_an_array(photographs):
    images = sources.load(f"folder:{photographs}", Reading(image_size=8, stream=True)).images
    whole = np.asarray(images)
    mask = np.arange(len(whole)) % 3 == 0
    for index in (slice(2, 9, 2), np.array([5, 0, 5]), mask):
        np.testing.assert_array_equal(np.asarray(images[index]), whole[index])
    assert len(images[:0]) == 0


def test_a_centre_crop_keeps_its_share(tmp_path):
    ramp = np.broadcast_to(np.arange(64, dtype=np.uint8)[None, :, None], (64, 64, 3))
    for number in range(4):
        (tmp_path / "ab"[number % 2]).mkdir(exist_ok=True)
        Image.fromarray(ramp).save(tmp_path / "ab"[number % 2] / f"{number}.png")
    name = f"folder:{tmp_path}"
    whole, half = (
        np.asarray(sources.load(name, Reading(image_size=32, stream=True, share=share)).images)
        for share in (1.0, 0.5)
    )
    np.testing.assert_array_equal(half[0, :, :, 0], np.tile(np.arange(16, 48), (32, 1)))
    assert whole[0, 0, 0, 0] <= 1
    with pytest.raises(InputError, match=r"data\.center_crop=0 must be above 0"):
        sources.load(name, Reading(share=0))


def test_only_files_and_prepared_sets_are_streamed():
    with pytest.raises(InputError, match=r"needs a source of folder: and tfds:"):
        sources.load("digits", Reading(stream=True))


def test_a_split_may_list_file_names(imagenet_directory, tmp_path):
    source = sources.load(
        "tfds:imagenet2012", Reading(directory=imagenet_directory, image_size=16, stream=True)
    )
    chosen = [7, 0, 21]
    file = tmp_path / "1percent.txt"
    file.write_text("\n".join(source.names[row] for row in chosen) + "\n\n")
    split = splits.read(file, source.naming)
    assert split.indices.tolist() == chosen
    np.testing.assert_array_equal(splits.locate(source, split), chosen)
    file.write_text("n01440764_0.JPEG\n")
    with pytest.raises(InputError, match=r"n01440764_0\.JPEG, which is no training image"):
        splits.read(file, source.naming)


def test_a_split_may_list_paths_of_a_folder(photographs, tmp_path):
    source = sources.load(f"folder:{photographs}", Reading(image_size=8))
    file = tmp_path / "labeled.txt"
    file.write_text("train/dog/003.jpg\ntrain/cat/000.jpg\n")
    rows = splits.read(file, source.naming).indices
    assert [source.names[row] for row in rows] == ["train/dog/003.jpg", "train/cat/000.jpg"]
    file.write_text("003.jpg\n")  # of the dogs and of the cats
    with pytest.raises(InputError, match=r"003\.jpg, which stands for several images"):
        splits.read(file, source.naming)
    with pytest.raises(InputError, match="the images of digits have none"):
        splits.read(file, sources.load("digits", Reading()).naming)
    with pytest.raises(InputError, match="Cannot read the split file"):
        splits.read(tmp_path / "missing.txt", source.naming)
