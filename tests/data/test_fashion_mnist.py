import gzip
import json

import numpy as np
import pytest
from tiny_runs import train_tiny

from jaxmatch.cli.main import main
from jaxmatch.data.fashion_mnist import CLASSES, read_idx
from jaxmatch.data.source import Reading
from jaxmatch.data.sources import load, sizes
from jaxmatch.errors import InputError


def idx(array):
    """An array of bytes in the IDX format: http://yann.lecun.com/exdb/mnist, "file formats"."""
    header = bytes((0, 0, 8, array.ndim)) + np.array(array.shape, ">i4").tobytes()
    return header + array.tobytes()


def write(folder, compress=True, **replaced):
    random = np.random.default_rng(0)
    arrays = {
        "train-images-idx3-ubyte": random.integers(0, 256, (30, 28, 28), np.uint8),
        "train-labels-idx1-ubyte": np.arange(30, dtype=np.uint8) % 10,
        "t10k-images-idx3-ubyte": random.integers(0, 256, (10, 28, 28), np.uint8),
        "t10k-labels-idx1-ubyte": np.arange(10, dtype=np.uint8),
    }
    folder.mkdir(exist_ok=True)
    for name, array in arrays.items():
        content = idx(replaced.get(name.partition("-idx")[0].replace("-", "_"), array))
        if compress:
            (folder / f"{name}.gz").write_bytes(gzip.compress(content))
        else:
            (folder / name).write_bytes(content)
    return arrays


@pytest.mark.slow
def test_a_run_is_used_where_its_files_are_and_where_they_have_moved(tmp_path, capsys):
    write(tmp_path / "files")
    options = {"data__directory": str(tmp_path / "files"), "data__validation": 10, "steps": 5}
    train_tiny("fashion_mnist", tmp_path / "run", chosen=",labels=10", **options)
    words = ["evaluate", f"--workdir={tmp_path / 'run'}", "--json"]
    capsys.readouterr()
    main(words)
    there = json.loads(capsys.readouterr().out)
    main(["suggest", f"--workdir={tmp_path / 'run'}", "-n", "2", "-o", str(tmp_path / "next.csv")])
    assert f"--config.data.directory={tmp_path / 'files'}" in capsys.readouterr().out
    (tmp_path / "files").rename(tmp_path / "moved")
    with pytest.raises(SystemExit, match="2"):
        main(words)
    assert f"{tmp_path / 'files'}" in capsys.readouterr().err
    main([*words, f"--data={tmp_path / 'moved'}"])
    assert json.loads(capsys.readouterr().out) == there


@pytest.mark.parametrize("compress", [False, True])
def test_images_and_labels_are_those_of_the_files(tmp_path, compress):
    arrays = write(tmp_path, compress)
    reading = Reading(directory=str(tmp_path))
    source = load("fashion_mnist", reading)
    assert source.classes == CLASSES
    assert len(CLASSES) == 10
    assert source.images.shape == (30, 28, 28, 3)
    for channel in range(3):
        np.testing.assert_array_equal(
            source.images[..., channel], arrays["train-images-idx3-ubyte"]
        )
    np.testing.assert_array_equal(source.labels, arrays["train-labels-idx1-ubyte"])
    np.testing.assert_array_equal(source.test_images[..., 0], arrays["t10k-images-idx3-ubyte"])
    np.testing.assert_array_equal(source.test_labels, range(10))
    assert sizes("fashion_mnist", reading) == [(28, 28)]
    scaled = load("fashion_mnist", Reading(directory=str(tmp_path), image_size=32))
    assert scaled.images.shape == (30, 32, 32, 3)


def test_missing_files_say_where_they_come_from(tmp_path):
    with pytest.raises(InputError, match=r"not in .*: install Debian's package dataset-fashion-m"):
        load("fashion_mnist", Reading(directory=str(tmp_path)))


@pytest.mark.parametrize(
    "replaced",
    [
        {"train_images": np.zeros((30, 27, 28), np.uint8)},
        {"t10k_labels": np.zeros(9, np.uint8)},
        {"train_labels": np.full(30, 10, np.uint8)},
    ],
)
def test_other_data_is_refused(tmp_path, replaced):
    write(tmp_path, **replaced)
    with pytest.raises(InputError, match="which is not Fashion-MNIST; get its files again"):
        load("fashion_mnist", Reading(directory=str(tmp_path)))


@pytest.mark.parametrize(
    "content", [b"", b"\0\0\x08", idx(np.zeros((3, 2), np.uint8))[:-1], b"\0\0\x0d\x01" + bytes(8)]
)
@pytest.mark.parametrize("compress", [False, True])
def test_damaged_files_are_told(tmp_path, content, compress):
    file = tmp_path / ("a.gz" if compress else "a")
    file.write_bytes(gzip.compress(content) if compress else content)
    with pytest.raises(InputError, match=r"cannot be read as an IDX file .*; get it again"):
        read_idx(file)


@pytest.mark.parametrize("damage", ["cut", "changed"])
def test_a_damaged_archive_is_told(tmp_path, damage):
    file = tmp_path / "a.gz"
    content = gzip.compress(idx(np.arange(6, dtype=np.uint8).reshape(3, 2)))
    changed = content[:10] + b"\xff" + content[11:]  # the first byte of the stream itself
    file.write_bytes(content[:-4] if damage == "cut" else changed)
    with pytest.raises(InputError, match=r"cannot be read as an IDX file"):
        read_idx(file)
