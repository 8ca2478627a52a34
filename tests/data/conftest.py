import shutil
from pathlib import Path

import pytest

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="session")
def mnist5k():
    from jaxmatch.data import sources

    return sources.load("mnist5k", seed=0)


@pytest.fixture(scope="session")
def tfds_directory(tmp_path_factory):
    """Small sets prepared by TFDS's own cifar10, cifar100, svhn_cropped and stl10 builders."""
    directory = tmp_path_factory.mktemp("tfds")
    shutil.unpack_archive(GOLDEN / "tfds.zip", directory)
    return str(directory)
