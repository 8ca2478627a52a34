"""The contact sheet shows what the ops and the views do."""

import jax
import numpy as np

from jaxmatch.augment.chain import Chain
from jaxmatch.augment.ops import OPS
from jaxmatch.augment.randaugment import RandAugment
from jaxmatch.augment.sheet import contact_sheet
from jaxmatch.augment.weak import Weak

STRONG = Chain(transforms=(Weak(), RandAugment()))


def sheet(images, seed=0):
    return np.asarray(contact_sheet(images, Weak(), STRONG, jax.random.key(seed)))


def test_a_row_for_each_op_and_two_for_each_image():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (3, 16, 16, 3)).astype(np.uint8)
    first, other = sheet(images), sheet(images, seed=1)
    height, width, channels = first.shape
    assert channels == 3
    assert height > len(OPS) * 72
    # The same ops on the left, other views on the right.
    differs = np.nonzero((first != other).any((0, 2)))[0]
    assert width // 3 < differs.min() < differs.max() < width
    # Images, enlarged without smoothing, appear as they are.
    tile = np.asarray(images[0].repeat(4, 0).repeat(4, 1))
    assert set(map(tuple, tile.reshape(-1, 3))) <= set(map(tuple, first.reshape(-1, 3)))
