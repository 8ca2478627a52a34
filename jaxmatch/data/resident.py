"""Small data sets live on the device as uint8, and a step gathers its examples there."""

import math
from functools import partial
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxmatch.data import order
from jaxmatch.data.lazy import LazyImages
from jaxmatch.data.source import Source
from jaxmatch.data.splits import Split, locate
from jaxmatch.types import Array, Batch, Examples, PyTree

HostOrDevice = Array | np.ndarray


class Table(struct.PyTreeNode):
    """Images in memory, a row each.

    A TPU stores arrays in tiles of its two last axes. Images [n h w c] with three channels would be
    padded forty times when a step gathers some of them, and copied to that form at every call; rows
    are gathered as they lie.
    """

    rows: Any  # [n h*w*c] uint8, numpy or of a device
    size: tuple[int, int, int] = struct.field(pytree_node=False)  # height, width, channels

    @classmethod
    def of(cls, images: Any) -> Self:
        """The table of images [n h w c], which are not copied on the host."""
        size = tuple(images.shape[1:])
        return cls(images.reshape(len(images), math.prod(size)), size)

    def __len__(self) -> int:
        """The number of images."""
        return self.rows.shape[0]

    @property
    def images(self) -> Any:
        """The images [n h w c]; of numpy rows no copy."""
        return self.rows.reshape(-1, *self.size)

    def take(self, index: Array) -> Array:
        """The images number ``index`` [b], all in bounds: [b h w c]."""
        rows = jnp.asarray(self.rows).at[index].get(mode="promise_in_bounds")
        by_planes = partial(_images_by_planes, size=self.size)
        reshaped = partial(jnp.reshape, shape=(*index.shape, *self.size))
        return jax.lax.platform_dependent(rows, tpu=by_planes, default=reshaped)


def _images_by_planes(rows: Array, size: tuple[int, int, int]) -> Array:
    """Rows uint8 [b h*w*c] as images [b h w c] that lie in memory as planes [b c h w].

    So a TPU's augmentation wants them, and a product with zeros and ones sorts the channels faster
    than its transposition of bytes.
    """
    height, width, channels = size
    place = np.arange(width * channels).reshape(width, channels)
    where = jnp.asarray(np.arange(width * channels)[:, None, None] == place.T, jnp.bfloat16)
    lines = rows.reshape(-1, height, width * channels).astype(jnp.bfloat16)
    planes = jnp.einsum("bhk,kcw->bchw", lines, where, preferred_element_type=jnp.float32)
    return planes.astype(rows.dtype).transpose(0, 2, 3, 1)


class Resident(NamedTuple):
    """A training set; numpy on the host, then replicated over the devices.

    Of a streamed set the images are LazyImages and never all in memory.
    """

    labeled_images: Table | LazyImages  # n images
    labeled_labels: HostOrDevice  # [n] int32
    unlabeled_images: Table | LazyImages  # u images
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

    def images(rows: Any) -> Table | LazyImages:
        some = source.images[rows]
        return some if isinstance(some, LazyImages) else Table.of(some)

    return Resident(
        labeled_images=images(labeled),
        labeled_labels=source.labels[labeled],
        unlabeled_images=images(pool),
        unlabeled_labels=source.labels[pool],
    )


def batch(
    data: Resident, key: Array, step: Array | int, labeled_batch: int, unlabeled_batch: int
) -> Batch:
    """The examples of one step, before augmentation; a batch size of zero gives None.

    ``key`` is the run's, the same at every step. ``data`` is replicated, so that each device
    gathers its own share of a batch that the caller shards.
    """

    def draw(stream: int, size: int, images: Any, labels: HostOrDevice) -> Examples | None:
        if size == 0:
            return None
        words = order.words(jax.random.fold_in(key, stream))
        index = order.positions(words, step, size, len(images))
        return Examples(
            views=(images.take(index),),
            label=jnp.asarray(labels).at[index].get(mode="promise_in_bounds"),
            index=index,
        )

    return Batch(
        labeled=draw(0, labeled_batch, data.labeled_images, data.labeled_labels),
        unlabeled=draw(1, unlabeled_batch, data.unlabeled_images, data.unlabeled_labels),
    )
