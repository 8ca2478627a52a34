"""Images decoded and cropped per second and core: ours beside plain Pillow and other decoders.

python -m experiments.input_pipeline.measure [--rounds N]

The images are crops of scikit-learn's two photographs in the mean size of ImageNet's, 500x375, at
JPEG quality 95. The alternatives run in turn, N rounds of all; a rate is images by processor time
of one thread, but that of whole loaders by wall time. Decoders that are not installed
(``pip install simplejpeg opencv-python-headless``) are left out.
"""

import argparse
import io
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import jax
import numpy as np
from PIL import Image

from jaxmatch.data import order, streaming
from jaxmatch.data.crops import HostCrop
from jaxmatch.data.lazy import Files
from jaxmatch.data.loading import Plan, Pool
from jaxmatch.runtime.mesh import make_mesh

COUNT, BATCH, STEPS = 128, 64, 24
SIZE = (224, 224)
WEAK = HostCrop(size=SIZE, area=(0.2, 1.0), flip=0.5)


def write_images(root: Path) -> Files:
    """The JPEG files that all alternatives read."""
    from sklearn.datasets import load_sample_images

    photographs = load_sample_images().images
    random = np.random.RandomState(0)
    for number in range(COUNT):
        photograph = photographs[number % 2]
        top, left = random.randint(photograph.shape[0] - 374), random.randint(141)
        crop = photograph[top : top + 375, left : left + 500]
        Image.fromarray(crop).save(root / f"{number:03d}.jpg", quality=95)
    return Files(root=root, paths=tuple(f"{number:03d}.jpg" for number in range(COUNT)))


def pool(records: Files, views: int) -> Pool:
    """A pool whose step is one batch of all of ``views`` crops."""
    return Pool(
        records=records,
        rows=np.arange(COUNT),
        labels=np.zeros(COUNT, np.int32),
        words=np.asarray(order.words(jax.random.key(0))),
        crops=(WEAK,) * views,
        batch=BATCH,
        first=0,
        count=BATCH,
        seeds=(0, 0),
    )


def random_box(width: int, height: int) -> tuple[int, int, int, int]:
    return WEAK.box(width, height, np.random.default_rng())


def plain_pillow(content: bytes) -> np.ndarray:
    image = Image.open(io.BytesIO(content)).convert("RGB")
    view = image.crop(random_box(*image.size)).resize(SIZE, Image.Resampling.BILINEAR)
    return np.asarray(view)


def with_simplejpeg(content: bytes) -> np.ndarray:
    import simplejpeg  # pyright: ignore[reportMissingImports]

    image = Image.fromarray(simplejpeg.decode_jpeg(content))
    view = image.crop(random_box(*image.size)).resize(SIZE, Image.Resampling.BILINEAR)
    return np.asarray(view)


def with_opencv(content: bytes) -> np.ndarray:
    """Its area filter is not Pillow's antialiased one, so the views differ."""
    import cv2  # pyright: ignore[reportMissingImports]

    levels = np.frombuffer(content, np.uint8)
    image = np.asarray(cv2.imdecode(levels, cv2.IMREAD_COLOR_RGB))
    left, top, right, bottom = random_box(image.shape[1], image.shape[0])
    return cv2.resize(image[top:bottom, left:right], SIZE, interpolation=cv2.INTER_AREA)


def alternatives(records: Files) -> dict[str, Callable[[], int]]:
    """What is compared, as functions that return how many images they handled."""
    contents = [records.read(row) for row in range(BATCH)]

    def loop(one: Callable[[bytes], np.ndarray]) -> Callable[[], int]:
        return lambda: len([one(content) for content in contents])

    def loads(views: int) -> Callable[[], int]:
        made = pool(records, views)
        return lambda: len(made.load(0)["index"])

    found = {
        "plain Pillow loop, 1 view": loop(plain_pillow),
        "ours, 1 view": loads(1),
        "ours, 2 views of one decode": loads(2),
        "decode alone, Pillow": loop(
            lambda content: np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
        ),
    }
    if find_spec("simplejpeg"):
        found["simplejpeg + Pillow resize, 1 view"] = loop(with_simplejpeg)
    if find_spec("cv2"):
        import cv2  # pyright: ignore[reportMissingImports]

        cv2.setNumThreads(1)
        found["OpenCV, 1 view"] = loop(with_opencv)
    return found


def loader_rate(records: Files, workers: int) -> float:
    """Images per second of wall time that reach the device, after the first steps."""
    plan = Plan(pools={"unlabeled": pool(records, 2)})
    with streaming.Feed(plan, make_mesh(1, BATCH), 0, STEPS, workers) as feed:
        for _ in range(STEPS // 3):
            jax.block_until_ready(feed())
        start = time.perf_counter()
        for _ in range(STEPS - STEPS // 3):
            jax.block_until_ready(feed())
        return (STEPS - STEPS // 3) * BATCH / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    rates: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        records = write_images(Path(folder))
        size = sum(file.stat().st_size for file in Path(folder).iterdir()) / COUNT
        functions = alternatives(records)
        for _ in range(rounds):
            for name, function in functions.items():
                start = time.process_time()
                count = function()
                rates.setdefault(name, []).append(count / (time.process_time() - start))
        for workers in (1, 2):
            name = f"whole loader, 2 views, {workers} workers (wall time)"
            rates[name] = [loader_rate(records, workers) for _ in range(max(1, rounds // 3))]
    table = {
        name: [round(rate) for rate in (statistics.median(found), min(found), max(found))]
        for name, found in rates.items()
    }
    result = {"bytes": round(size), "cores": os.cpu_count(), "median, min, max per second": table}
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
