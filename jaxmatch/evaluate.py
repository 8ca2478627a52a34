"""What given variables say of uint8 images: predictions, features, heads, in equal batches."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxmatch.augment.views import normalize
from jaxmatch.compilation import jit
from jaxmatch.data.lazy import Images, LazyImages
from jaxmatch.parallel import from_processes, process_share, put, replicated, shard_batch
from jaxmatch.types import Array, Network, Outputs, PyTree

BATCH = 500


Evaluate = Callable[[PyTree, Array | Images], np.ndarray]
Embed = Callable[[PyTree, Array | Images], dict[str, np.ndarray]]


def make_predict(
    network: Network, mean: Sequence[float], std: Sequence[float], mesh: Mesh, batch: int = BATCH
) -> Evaluate:
    """A function (variables, images [n h w c] uint8) -> probabilities [n C], in eval mode."""
    return _make(lambda outputs: jax.nn.softmax(outputs.logits), network, mean, std, mesh, batch)


def make_features(
    network: Network, mean: Sequence[float], std: Sequence[float], mesh: Mesh, batch: int = BATCH
) -> Evaluate:
    """A function (variables, images [n h w c] uint8) -> pooled features [n d], in eval mode."""
    return _make(lambda outputs: outputs.features, network, mean, std, mesh, batch)


def make_embed(
    network: Network, mean: Sequence[float], std: Sequence[float], mesh: Mesh, batch: int = BATCH
) -> Embed:
    """A function (variables, images [n h w c] uint8) -> heads [n ...] by name, in eval mode."""
    return _make(lambda outputs: dict(outputs.heads), network, mean, std, mesh, batch)


def _make(
    read: Callable[[Outputs], PyTree],
    network: Network,
    mean: Sequence[float],
    std: Sequence[float],
    mesh: Mesh,
    batch: int,
) -> Callable[[PyTree, Array | Images], Any]:
    """What ``read`` takes from the outputs of all images, in their order.

    Lazy images are decoded here, by each process those of its own devices.

    The last batch is filled up with the first images, whose second answer is dropped.
    """

    def answers(variables: PyTree, images: Array) -> PyTree:
        found = read(network(variables, normalize(images, mean, std), train=False)[0])
        # Every process needs the answers of all.
        return jax.lax.with_sharding_constraint(found, replicated(mesh))

    @jit
    def one(variables: PyTree, images: Array, start: Array) -> PyTree:
        width = _width(images.shape[0], batch, mesh.size)
        index = shard_batch((start + jnp.arange(width)) % images.shape[0], mesh)
        return answers(variables, images[index])

    @jit
    def decoded(variables: PyTree, images: Array) -> PyTree:
        return answers(variables, images)

    def run(variables: PyTree, images: Array | Images) -> PyTree:
        count = images.shape[0]
        width = _width(count, batch, mesh.size)
        starts = range(0, count, width)
        if isinstance(images, LazyImages):
            first, own = process_share(width, mesh)

            def rows(start: int) -> Array:
                index = (start + first + np.arange(own)) % count
                return from_processes(np.asarray(images[index]), width, mesh)

            parts = []
            for start in starts:  # the host decodes the next while the device works on some
                parts.append(decoded(variables, rows(start)))
                jax.block_until_ready(parts[-2:][0])
        else:
            images = put(images, replicated(mesh))
            parts = [one(variables, images, np.int32(start)) for start in starts]
        return jax.tree.map(lambda *rows: np.concatenate(rows)[:count], *jax.device_get(parts))

    return run


def _width(count: int, batch: int, shards: int) -> int:
    """Size of the batches for ``count`` images: at most ``batch``, a multiple of ``shards``."""
    return -(-min(count, batch) // shards) * shards


def accuracy(
    predict: Callable[[PyTree, Array], np.ndarray],
    variables: PyTree,
    images: Array,
    labels: np.ndarray,
) -> float:
    """Share of ``images`` [n h w c] whose most probable class is their label of ``labels`` [n]."""
    return float(np.mean(predict(variables, images).argmax(-1) == labels))
