"""A teacher that normalises other parts of a batch than the student (shuffled BatchNorm).

He et al., "Momentum Contrast for Unsupervised Visual Representation Learning", CVPR 2020, section
3.3, https://arxiv.org/abs/1911.05722.
"""

from collections.abc import Sequence
from itertools import accumulate
from operator import itemgetter

import jax
import jax.numpy as jnp

from jaxmatch.functional.alike import split_alike
from jaxmatch.types import Array, Inputs, Outputs, PyTree


def draw_places(key: Array, views: Sequence[Array]) -> Array:
    """The image [n] int32 at each place of the teacher's batch of ``views``, n images in all."""
    return jax.random.permutation(key, sum(map(len, views)))


def teacher_on(
    given: Inputs, views: Sequence[Array], places: PyTree
) -> tuple[tuple[Outputs, ...], PyTree]:
    """The teacher's outputs on each view, in the order of the images, and its new statistics.

    The views are one BatchNorm batch. With ``places`` of :func:`draw_places` it is permuted, so its
    groups have images of all views and parts; devices exchange these images. () permutes nothing.
    """
    if isinstance(places, tuple):
        return given.teacher(tuple(views))
    joined = views[0] if len(views) == 1 else jnp.concatenate(views)
    # Without the hint every device would run the teacher on the whole batch.
    outputs, stats = given.teacher(split_alike(joined, joined[places])[1])
    ends = list(accumulate(map(len, views)))
    back = jnp.split(jnp.argsort(places), ends[:-1])
    return tuple(jax.tree.map(itemgetter(rows), outputs) for rows in back), stats
