"""Writes two real data sets as a user would have them: photographs in folders, arrays in a file.

    python -m experiments.own_data.make elpv FOLDER
    python -m experiments.own_data.make fashion_mnist FILE.npz [--images=FOLDER]
    python -m experiments.own_data.make fashion_mnist FOLDER [--images=FOLDER]

"elpv" are the 2,624 photographs of solar cells of the package ``elpv-dataset`` (Buerhop-Lutz et
al., "A Benchmark for Visual Identification of Defective Solar Cells in Electroluminescence
Imagery", EU PVSEC 2018): defective if the experts' probability is above one half. A fifth of each
class is the test set, 20 of each class are labeled (``--labels``), the others are unlabeled.

"fashion_mnist" (Xiao et al., 2017, https://arxiv.org/abs/1708.07747) are the images that Debian's
package ``dataset-fashion-mnist`` installs; ``--images`` names their folder. All training images
have their label in the file, of which ``labels=N`` of the configuration draws some.
"""

import argparse
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from jaxmatch.data.fashion_mnist import CLASSES, INSTALLED, read_idx

ELPV = ("intact", "defective")
TEST_SHARE = 0.2


def elpv(folder: Path, labels: int, seed: int) -> None:
    """Write the photographs to train/<class>/, test/<class>/ and unlabeled/.

    Args:
        folder: a new folder.
        labels: the number of labeled photographs, equally many of each class.
        seed: draws the test set and the labeled photographs.
    """
    from elpv_dataset.utils import load_dataset  # pyright: ignore[reportMissingImports]

    images, probabilities, _ = load_dataset()
    classes = (probabilities > 0.5).astype(int)
    order = np.random.RandomState(seed).permutation(len(images))
    for number, name in enumerate(ELPV):
        members = order[classes[order] == number]
        tests, rest = np.split(members, [round(TEST_SHARE * len(members))])
        labeled, unlabeled = np.split(rest, [labels // len(ELPV)])
        _write(folder / "test" / name, tests, images)
        _write(folder / "train" / name, labeled, images)
        _write(folder / "unlabeled", unlabeled, images)


def fashion_mnist(place: Path, source: Path) -> None:
    """Write the images as a file of arrays, or to train/<class>/ and test/<class>/ of a folder."""
    arrays = {
        f"{key}_{part}": read_idx(source / f"{prefix}-{kind}-idx{axes}-ubyte.gz")
        for part, prefix in (("train", "train"), ("test", "t10k"))
        for key, kind, axes in (("x", "images", 3), ("y", "labels", 1))
    }
    if place.suffix == ".npz":
        np.savez_compressed(place, **arrays)  # pyright: ignore[reportArgumentType]
        return
    for part in ("train", "test"):
        for number, name in enumerate(CLASSES):
            members = np.flatnonzero(arrays[f"y_{part}"] == number)
            _write(place / part / name, members, arrays[f"x_{part}"])


def _write(folder: Path, rows: Iterable[int], images: np.ndarray) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for row in rows:
        Image.fromarray(images[row]).save(folder / f"{row:05d}.png")


def main() -> None:
    """Write the data set that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=("elpv", "fashion_mnist"))
    parser.add_argument("place", type=Path)
    parser.add_argument("--labels", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--images", type=Path, default=INSTALLED)
    arguments = parser.parse_args()
    if arguments.name == "elpv":
        elpv(arguments.place, arguments.labels, arguments.seed)
    else:
        fashion_mnist(arguments.place, arguments.images)


if __name__ == "__main__":
    main()
