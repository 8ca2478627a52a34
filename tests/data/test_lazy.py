import numpy as np
import pytest
from PIL import Image

from jaxmatch.data import sources, splits
from jaxmatch.data import tfds as tfds_reader
from jaxmatch.data.lazy import LazyImages
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
    lazy = sources.load(name, stream=True, **options)
    same(lazy, sources.load(name, **options))
    assert [lazy.names[row] for row in lazy.rows[:2]] == ["train/cat/000.jpg", "train/cat/001.jpg"]


@pytest.mark.parametrize("size", [None, 24])
def test_a_prepared_set_reads_the_same_later(tfds_directory, size):
    options = {"seed": 0, "directory": tfds_directory, "image_size": size}
    same(sources.load("tfds:stl10", stream=True, **options), sources.load("tfds:stl10", **options))


def test_imagenet_is_tested_on_its_validation_split(imagenet_directory):
    options = {"seed": 0, "directory": imagenet_directory, "image_size": 16}
    lazy = sources.load("tfds:imagenet2012", stream=True, **options)
    same(lazy, sources.load("tfds:imagenet2012", **options))
    assert len(lazy.images) == 40
    assert len(lazy.test_images) == 8
    assert len(lazy.classes) == 1000
    for name, label in zip(lazy.names, lazy.labels, strict=True):
        assert name.startswith(lazy.classes[label])


def test_labels_are_read_from_the_records_once(imagenet_directory, monkeypatch):
    options = {"seed": 0, "directory": imagenet_directory, "image_size": 16, "stream": True}
    first = sources.load("tfds:imagenet2012", **options)
    monkeypatch.setattr(tfds_reader, "CHUNK", None)  # reading would fail
    again = sources.load("tfds:imagenet2012", **options)
    np.testing.assert_array_equal(again.labels, first.labels)
    assert again.names == first.names


def test_images_index_like_an_array(photographs):
    images = sources.load(f"folder:{photographs}", seed=0, image_size=8, stream=True).images
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
        np.asarray(sources.load(name, seed=0, image_size=32, stream=True, share=share).images)
        for share in (1.0, 0.5)
    )
    np.testing.assert_array_equal(half[0, :, :, 0], np.tile(np.arange(16, 48), (32, 1)))
    assert whole[0, 0, 0, 0] <= 1
    with pytest.raises(InputError, match=r"data\.center_crop=0 must lie"):
        sources.load(name, seed=0, share=0)


def test_only_files_and_prepared_sets_are_streamed():
    with pytest.raises(InputError, match=r"only folder: and tfds: sets are streamed"):
        sources.load("digits", seed=0, stream=True)


def test_a_split_may_list_file_names(imagenet_directory, tmp_path):
    source = sources.load(
        "tfds:imagenet2012", seed=0, directory=imagenet_directory, image_size=16, stream=True
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
    source = sources.load(f"folder:{photographs}", seed=0, image_size=8)
    file = tmp_path / "labeled.txt"
    file.write_text("train/dog/003.jpg\ntrain/cat/000.jpg\n")
    rows = splits.read(file, source.naming).indices
    assert [source.names[row] for row in rows] == ["train/dog/003.jpg", "train/cat/000.jpg"]
    file.write_text("003.jpg\n")  # of the dogs and of the cats
    with pytest.raises(InputError, match=r"003\.jpg, which stands for several images"):
        splits.read(file, source.naming)
    with pytest.raises(InputError, match="the images of digits have none"):
        splits.read(file, sources.load("digits", seed=0).naming)
    with pytest.raises(InputError, match="Cannot read the split file"):
        splits.read(tmp_path / "missing.txt", source.naming)
