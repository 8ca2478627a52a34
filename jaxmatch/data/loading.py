"""What a loader's worker does: decode the examples of a step once and cut all their views.

It uses NumPy and Pillow only. Which examples, and which crops, follows from the step and the place
in the global batch, whatever the number of workers and processes.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from jaxmatch.data import images as image_files
from jaxmatch.data.crops import HostCrop
from jaxmatch.data.lazy import SUBSTITUTES, Records
from jaxmatch.data.order import positions
from jaxmatch.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Pool:
    """The labeled or the unlabeled examples, and the share of each batch that is loaded here.

    ``views`` are arrays [count height width 3] uint8, a role each.
    """

    records: Records
    rows: np.ndarray  # [n] int64 row of each example
    labels: np.ndarray  # [n] int32, -1 = unknown
    words: np.ndarray  # [ROUNDS 2] uint32, what the order is drawn from
    crops: tuple[HostCrop, ...]  # a view role each
    batch: int  # of all processes
    first: int  # of this process's examples in the batch
    count: int  # of them
    seeds: tuple[int, ...]  # the run's seed and the pool's number

    def load(self, step: int) -> dict[str, np.ndarray | tuple[np.ndarray, ...]]:
        """The examples of a step: views, label [count], index [count], and the rows left out.

        An unreadable image is replaced by the next readable one of the pool.
        """
        index = positions(self.words, step, self.batch, len(self.rows))
        index = index[self.first : self.first + self.count].copy()
        views = tuple(np.empty((self.count, *crop.size, 3), np.uint8) for crop in self.crops)
        unreadable: list[int] = []
        for place in range(self.count):
            image, index[place] = self._readable(int(index[place]), unreadable)
            seed = (*self.seeds, step, self.first + place)
            random = np.random.Generator(np.random.Philox(np.random.SeedSequence(seed)))
            for view, crop in zip(views, self.crops, strict=True):
                view[place] = crop.apply(image, random)
        return {
            "views": views,
            "label": self.labels[index].astype(np.int32),
            "index": index,
            "unreadable": np.array(unreadable, np.int64),
        }

    def _readable(self, index: int, unreadable: list[int]) -> tuple[Image.Image, int]:
        for position in range(index, index + SUBSTITUTES):
            row = int(self.rows[position % len(self.rows)])
            try:
                image = image_files.decode(self.records.read(row))
            except (OSError, InputError):
                unreadable.append(row)
                continue
            return image, position % len(self.rows)
        raise InputError(
            f"{SUBSTITUTES} images from {self.records.name(int(self.rows[index]))} on are not "
            "readable; is the data set still there?"
        )


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What the loader reads at each step: the pools that are used, "labeled" and "unlabeled"."""

    pools: dict[str, Pool]

    def load(self, step: int) -> dict[str, dict[str, np.ndarray | tuple[np.ndarray, ...]]]:
        """The examples of a step, of each pool."""
        return {name: pool.load(step) for name, pool in self.pools.items()}
