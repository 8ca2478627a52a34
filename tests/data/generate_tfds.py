"""Write tests/golden/tfds.zip, eurosat.zip, imagenet.zip: real images by TFDS's own builders.

Run with the ``prepare`` and ``demo`` extras: ``python tests/data/generate_tfds.py``. An ArrayRecord
file takes at least 128 KiB, nearly all of it padding, hence the archive.
The builders are TFDS's, so feature specification, class names and versions are the real ones;
only the examples are replaced, by scikit-learn's photographs and digits.
"""

import io
import shutil
import tempfile
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images


def crops(count, size, seed):
    """Random crops [count size size 3] uint8 of two photographs, taken at 4x the size."""
    random = np.random.RandomState(seed)
    photographs = load_sample_images().images
    for _ in range(count):
        photograph = photographs[random.randint(2)]
        top, left = (random.randint(edge - 4 * size) for edge in photograph.shape[:2])
        crop = Image.fromarray(photograph[top : top + 4 * size, left : left + 4 * size])
        yield np.asarray(crop.resize((size, size), Image.Resampling.BOX))


def digits(first, count, size):
    """Digits ``first`` onwards: (image [size size 3] uint8, label)."""
    bunch = load_digits()
    for image, label in zip(bunch.images, bunch.target, strict=True):
        if first <= 0 < count:
            levels = Image.fromarray((image * 15.9).astype(np.uint8)).convert("RGB")
            yield np.asarray(levels.resize((size, size), Image.Resampling.BICUBIC)), int(label)
            count -= 1
        first -= 1


class Tiny:
    """Replaces download and examples of a TFDS image builder."""

    sizes = (("train", 20), ("test", 10))

    def _split_generators(self, dl_manager):
        names = enumerate(self.sizes)
        return {name: self._generate_examples(seed, size) for seed, (name, size) in names}


ORIGINALS = {
    name: tfds.builder_cls(name)
    for name in ("cifar10", "cifar100", "svhn_cropped", "stl10", "eurosat", "imagenet2012")
}

with tfds.core.registered.skip_registration():

    class Cifar10(Tiny, ORIGINALS["cifar10"]):
        names = "airplane automobile bird cat deer dog frog horse ship truck"

        def _split_generators(self, dl_manager):
            self.info.features["label"].names = self.names.split()
            return super()._split_generators(dl_manager)

        def _generate_examples(self, seed, size):
            for number, image in enumerate(crops(size, 32, seed)):
                yield number, {"id": f"{number:05d}", "image": image, "label": number % 10}

    class Cifar100(Tiny, ORIGINALS["cifar100"]):
        sizes = (("train", 100), ("test", 10))

        def _generate_examples(self, seed, size):
            for number, (image, _) in enumerate(digits(100 * seed, size, 32)):
                labels = {"label": number, "coarse_label": number % 20}
                yield number, {"id": f"{number:05d}", "image": image, **labels}

    class SvhnCropped(Tiny, ORIGINALS["svhn_cropped"]):
        sizes = (("train", 20), ("test", 10), ("extra", 10))

        def _generate_examples(self, seed, size):
            for number, (image, label) in enumerate(digits(20 * seed, size, 32)):
                yield number, {"id": f"{number:05d}", "image": image, "label": label}

    class Stl10(Tiny, ORIGINALS["stl10"]):
        sizes = (("train", 10), ("test", 10), ("unlabelled", 5))

        def _generate_examples(self, seed, size):
            for number, (image, _) in enumerate(digits(20 * seed, size, 96)):
                yield number, {"image": image, "label": -1 if size == 5 else number}

    class Eurosat(Tiny, ORIGINALS["eurosat"]):
        sizes = (("train", 60),)

        def _generate_examples(self, seed, size):
            names = self.info.features["label"].names
            for number, image in enumerate(crops(size, 64, seed)):
                label = names[number % 10]
                name = f"{label}_{number // 10 + 1}.jpg"
                file = io.BytesIO()
                Image.fromarray(image).save(file, "JPEG", quality=90)
                file.seek(0)
                yield name, {"image": file, "label": label, "filename": name}

    class Imagenet2012(Tiny, ORIGINALS["imagenet2012"]):
        sizes = (("train", 40), ("validation", 8))

        def _generate_examples(self, seed, size):
            names = self.info.features["label"].names
            random = np.random.RandomState(seed)
            for number, image in enumerate(crops(size, 96, seed)):
                wide, high = random.randint(48, 97, 2)  # of many sizes, as the real ones
                file = io.BytesIO()
                Image.fromarray(image[:high, :wide]).save(file, "JPEG", quality=90)
                file.seek(0)
                label = names[number % 4]
                name = f"{label}_{number + 1}.JPEG" if seed == 0 else f"val_{number + 1:08d}.JPEG"
                yield name, {"image": file, "label": label, "file_name": name}


def write(archive, *builders):
    with tempfile.TemporaryDirectory() as directory:
        for builder in builders:
            builder(data_dir=directory, file_format="array_record").download_and_prepare()
        shutil.rmtree(Path(directory) / "downloads", ignore_errors=True)
        golden = Path(__file__).parents[1] / "golden"
        shutil.make_archive(str(golden / archive), "zip", directory)


if __name__ == "__main__":
    write("tfds", Cifar10, Cifar100, SvhnCropped, Stl10)
    write("eurosat", Eurosat)
    write("imagenet", Imagenet2012)
