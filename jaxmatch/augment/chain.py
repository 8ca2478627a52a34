"""Transforms one after another, as one transform."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jaxmatch.types import Array, PyTree, Transform


@dataclass(frozen=True, kw_only=True)
class Chain:
    """A :class:`~jaxmatch.types.Transform` that applies ``transforms`` from first to last.

    A strong view is ``(Weak(), RandAugment())``; TorchSSL puts the ops first. All draw for the
    shape of the first one's images: after one that changes it, none may draw by height or width.
    """

    transforms: tuple[Transform, ...]

    def draw(self, key: Array, shape: tuple[int, ...]) -> PyTree:
        """A tuple of the draws of each transform, from keys of their own."""
        if not self.transforms:
            return ()
        keys = jax.random.split(key, len(self.transforms))
        return tuple(
            transform.draw(key, shape) for transform, key in zip(self.transforms, keys, strict=True)
        )

    def apply(self, images: Array, draws: PyTree) -> Array:
        """Levels 0..255 [b h w c] of any dtype in, float32 levels out."""
        for transform, drawn in zip(self.transforms, draws, strict=True):
            images = transform.apply(images, drawn)
        return images.astype(jnp.float32)
