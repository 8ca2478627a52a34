"""Equal images with different labels are noted."""

import shutil

import numpy as np
import pytest
from PIL import Image

from jaxmatch.data import sources
from jaxmatch.data.source import Reading
from jaxmatch.data.splits import Split
from jaxmatch.record.data import Data

IMAGES = np.random.RandomState(0).randint(0, 256, (8, 8, 8, 3)).astype(np.uint8)


def copies(place, labeled=(0, 4)):
    source = sources.load(place, Reading())
    return Data(source=source, split=Split(indices=np.array(labeled))).copies()


def folder(root):
    for number, image in enumerate(IMAGES):
        for part, name in (("train", "cat" if number < 4 else "dog"), ("test", "cat")):
            (root / part / name).mkdir(parents=True, exist_ok=True)
            shown = image if part == "train" else image // 2
            Image.fromarray(shown).save(root / part / name / f"{number}.png")
    return root / "train"


def test_files_of_several_classes_are_noted(tmp_path):
    train = folder(tmp_path)
    (train / "unlabeled").mkdir()
    shutil.copy(train / "cat" / "3.png", train / "cat" / "copy.png")
    assert not any("another class" in note for note in copies(f"folder:{tmp_path}"))
    shutil.copy(train / "cat" / "2.png", train / "dog" / "copy.png")
    shutil.copy(train / "cat" / "2.png", train / "unlabeled" / "copy.png")
    shutil.copy(train / "cat" / "3.png", train / "dog" / "3.png")
    assert copies(f"folder:{tmp_path}")[0] == (
        "5 images have exact copies of another class, such as train/cat/2.png (cat) and "
        "train/dog/copy.png (dog); correct their labels."
    )


@pytest.mark.parametrize("labels", [[0, 0, 0, 0, 1, 1, 1, 1], [0, 0, 0, 0, 1, 1, 1, -1]])
def test_arrays_of_several_classes_are_noted(tmp_path, labels):
    images = IMAGES.copy()
    images[7] = images[1]
    test = {"x_test": IMAGES[:2] // 2, "y_test": [0, 1]}
    np.savez(tmp_path / "a.npz", x_train=images, y_train=labels, **test)
    found = [note for note in copies(f"npz:{tmp_path / 'a.npz'}") if "another class" in note]
    assert found == [
        "2 images have exact copies of another class, such as training image 1 (0) and training "
        "image 7 (1); correct their labels."
    ] * (labels[7] == 1)
