"""The work of a loader's worker: it decodes the examples of a step once and crops all their views.

It uses NumPy and Pillow only. The step and the position in the global batch determine the example
and its crops, for any number of workers and processes.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from jaxmatch.data import images as image_files
from jaxmatch.data.crops import HostCrop
from jaxmatch.data.lazy import SUBSTITUTES, Records
from jaxmatch.data.levels import DEFAULT, Levels
from jaxmatch.data.order import balanced_positions, positions
from jaxmatch.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Pool:
    """The labeled or the unlabeled examples, and this process's share of each batch."""

    records: Records
    rows: np.ndarray  # [n] int64 row of each example
    labels: np.ndarray  # [n] int32, -1 = unknown
    words: np.ndarray  # [ROUNDS 2] uint32, from which the order is drawn
    crops: tuple[HostCrop, ...]  # one for each view role
    batch: int  # size of the global batch
    first: int  # position of this process's first example in the batch
    count: int  # number of this process's examples
    seeds: tuple[int, ...]  # the run's seed and the pool's number
    levels: Levels = DEFAULT
    balanced: int = 0  # number of classes that are drawn equally often; 0: examples are

    def load(self, step: int) -> dict[str, np.ndarray | tuple[np.ndarray, ...]]:
        """Load the examples of a step. The next readable image replaces an unreadable one.

        Returns:
            views: one array [count height width 3] uint8 for each role; label and index: [count];
            unreadable: the rows that were replaced.
        """
        if self.balanced:
            index = balanced_positions(self.words, step, self.batch, self.labels, self.balanced)
        else:
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
                image = image_files.decode(self.records.read(row), self.levels)
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
    """The pools that the loader reads at each step: "labeled", "unlabeled" or both."""

    pools: dict[str, Pool]

    def load(self, step: int) -> dict[str, dict[str, np.ndarray | tuple[np.ndarray, ...]]]:
        """Load the examples of a step from each pool."""
        return {name: pool.load(step) for name, pool in self.pools.items()}
