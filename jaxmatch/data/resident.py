"""Small data sets live on the device as uint8, and a step gathers its examples there."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmatch.data import order
from jaxmatch.data.lazy import LazyImages
from jaxmatch.data.sources import Source
from jaxmatch.data.splits import Split, locate
from jaxmatch.types import Array, Batch, Examples, PyTree

HostOrDevice = Array | np.ndarray | LazyImages


class Resident(NamedTuple):
    """A training set; numpy on the host, then replicated over the devices.

    Of a streamed set the images are LazyImages and never all in memory.
    """

    labeled_images: HostOrDevice  # [n h w c] uint8
    labeled_labels: HostOrDevice  # [n] int32
    unlabeled_images: HostOrDevice  # [u h w c] uint8
    unlabeled_labels: HostOrDevice  # [u] int32, -1 = unknown; only metrics read it
    frozen: PyTree = None  # variables of the run's frozen networks by role, if it has any


def resident(source: Source, split: Split, include_labeled: bool = True) -> Resident:
    """The labeled examples in split order beside the unlabeled pool in storage order.

    The pool is all training images, without the labeled ones if not ``include_labeled``. The
    leaves are host arrays, the pool a view of the source where possible. Raises InputError where
    the split does not fit the source.
    """
    labeled = locate(source, split)
    pool = slice(None) if include_labeled else np.setdiff1d(np.arange(len(source.rows)), labeled)
    return Resident(
        labeled_images=source.images[labeled],
        labeled_labels=source.labels[labeled],
        unlabeled_images=source.images[pool],
        unlabeled_labels=source.labels[pool],
    )


def batch(
    data: Resident, key: Array, step: Array | int, labeled_batch: int, unlabeled_batch: int
) -> Batch:
    """The examples of one step, before augmentation; a batch size of zero gives None.

    ``key`` is the run's, the same at every step. ``data`` is replicated, so that each device
    gathers its own share of a batch that the caller shards.
    """

    def draw(stream: int, size: int, images: HostOrDevice, labels: HostOrDevice) -> Examples | None:
        if size == 0:
            return None
        words = order.words(jax.random.fold_in(key, stream))
        index = order.positions(words, step, size, len(images))
        return Examples(
            views=(jnp.asarray(images).at[index].get(mode="promise_in_bounds"),),
            label=jnp.asarray(labels).at[index].get(mode="promise_in_bounds"),
            index=index,
        )

    return Batch(
        labeled=draw(0, labeled_batch, data.labeled_images, data.labeled_labels),
        unlabeled=draw(1, unlabeled_batch, data.unlabeled_images, data.unlabeled_labels),
    )
