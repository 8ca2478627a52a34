"""Small data sets stay on the device as uint8, and a step gathers its examples there."""

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
    """Images in memory, one row each.

    A TPU stores an array in tiles of its two last axes. If a step gathered from images [n h w c] of
    three channels, they would be padded forty times, and copied to that form at every call. Rows
    are gathered without a copy.
    """

    rows: Any  # [n h*w*c] uint8: NumPy, on a device, or only a shape and dtype
    size: tuple[int, int, int] = struct.field(pytree_node=False)  # height, width, channels

    @classmethod
    def of(cls, images: HostOrDevice) -> Self:
        """The table of images [n h w c]; NumPy images are not copied."""
        height, width, channels = images.shape[1:]
        return cls(
            images.reshape(len(images), height * width * channels), (height, width, channels)
        )

    def __len__(self) -> int:
        """The number of images."""
        return self.rows.shape[0]

    @property
    def images(self) -> HostOrDevice:
        """The images [n h w c]; NumPy rows are not copied."""
        return self.rows.reshape(-1, *self.size)

    def take(self, index: Array) -> Array:
        """The images at ``index`` [b], which must be in bounds: [b h w c]."""
        rows = jnp.asarray(self.rows).at[index].get(mode="promise_in_bounds")
        by_planes = partial(_images_by_planes, size=self.size)
        reshaped = partial(jnp.reshape, shape=(*index.shape, *self.size))
        return jax.lax.platform_dependent(rows, tpu=by_planes, default=reshaped)


def _images_by_planes(rows: Array, size: tuple[int, int, int]) -> Array:
    """Turn rows uint8 [b h*w*c] into images [b h w c] whose memory layout is planes [b c h w].

    A TPU's augmentation needs this layout. A product with zeros and ones sorts the channels faster
    than a TPU transposes bytes.
    """
    height, width, channels = size
    place = np.arange(width * channels).reshape(width, channels)
    where = jnp.asarray(np.arange(width * channels)[:, None, None] == place.T, jnp.bfloat16)
    lines = rows.reshape(-1, height, width * channels).astype(jnp.bfloat16)
    planes = jnp.einsum("bhk,kcw->bchw", lines, where, preferred_element_type=jnp.float32)
    return planes.astype(rows.dtype).transpose(0, 2, 3, 1)


class Resident(NamedTuple):
    """A training set: NumPy arrays on the host, later replicated over the devices.

    The images of a streamed set are LazyImages and never in memory all at once.
    """

    labeled_images: Table | LazyImages  # n images
    labeled_labels: HostOrDevice  # [n] int32
    unlabeled_images: Table | LazyImages  # u images
    # [u] int32, -1 = unknown or also a labeled example, STRANGER = of no class; only for metrics
    unlabeled_labels: HostOrDevice
    frozen: PyTree = None  # variables of the run's frozen networks by role, if there are any


def resident(
    source: Source,
    split: Split,
    include_labeled: bool = True,
    more: tuple[np.ndarray, np.ndarray] | None = None,
) -> Resident:
    """The labeled examples in split order, and the unlabeled pool in storage order, on the host.

    The pool is all training images, without the labeled ones if ``include_labeled`` is False. It
    is a view of the source if possible. Labels of labeled images in the pool are hidden (-1): the
    run learns from them, so that a figure about unlabeled images must leave these images out.

    Args:
        source: the data set.
        split: the labeled examples.
        include_labeled: whether the pool has them, too.
        more: positions and labels of further labeled examples, which follow those of the split.

    Raises:
        InputError: if the split does not fit the source.
    """
    labeled = locate(source, split)
    unseen = source.labels.copy()
    unseen[labeled] = -1
    pool = slice(None) if include_labeled else np.setdiff1d(np.arange(len(source.rows)), labeled)

    def images(rows: np.ndarray | slice) -> Table | LazyImages:
        some = source.images[rows]
        return some if isinstance(some, LazyImages) else Table.of(some)

    labels = source.labels[labeled]
    if more is not None and len(more[0]):
        labeled, labels = np.concatenate([labeled, more[0]]), np.concatenate([labels, more[1]])
    return Resident(
        labeled_images=images(labeled),
        labeled_labels=labels,
        unlabeled_images=images(pool),
        unlabeled_labels=unseen[pool],
    )


def batch(
    data: Resident,
    key: Array,
    step: Array | int,
    labeled_batch: int,
    unlabeled_batch: int,
    balanced: int = 0,
) -> Batch:
    """The examples of one step before augmentation; a batch size of zero gives None.

    ``key`` is the run's key, the same at every step. ``data`` is replicated, so each device gathers
    its own share of the batch, which the caller shards. ``balanced`` is the number of classes if
    labeled examples are drawn equally often from each, and each has some; else 0.
    """

    def draw(
        stream: int, size: int, images: Table | LazyImages, labels: HostOrDevice
    ) -> Examples | None:
        if size == 0:
            return None
        assert isinstance(images, Table)  # a streamed set has a Feed instead
        words = order.words(jax.random.fold_in(key, stream))
        if stream == 0 and balanced:
            index = order.balanced_positions(words, step, size, jnp.asarray(labels), balanced)
        else:
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
