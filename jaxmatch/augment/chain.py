"""A chain of transforms is one transform."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jaxmatch.types import Array, PyTree, Transform


@dataclass(frozen=True, kw_only=True)
class Chain:
    """A :class:`~jaxmatch.types.Transform` that applies ``transforms`` from first to last.

    A strong view is ``(Weak(), RandAugment())``; TorchSSL puts the ops first. Each transform draws
    for the shape of the chain's input. So if one changes the height or width, the draws of the
    later ones must not depend on them.
    """

    transforms: tuple[Transform, ...]

    def draw(self, key: Array, shape: tuple[int, ...]) -> PyTree:
        """The draws of each transform as a tuple; each has a key of its own."""
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
