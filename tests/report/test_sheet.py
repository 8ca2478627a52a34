"""The contact sheet shows what the ops and the views do."""

import jax
import numpy as np

from jaxmatch.augment.chain import Chain
from jaxmatch.augment.ops import OPS
from jaxmatch.augment.randaugment import RandAugment
from jaxmatch.augment.weak import Weak
from jaxmatch.report.sheet import contact_sheet


def test_a_row_for_each_op_and_two_for_each_image():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, 18, 18, 3)).astype(np.uint8)
    strong = Chain(transforms=(Weak(), RandAugment()))
    sheet = np.asarray(contact_sheet(images, {"weak": Weak(), "strong": strong}, jax.random.key(0)))
    drawn = (sheet != 255).any(-1)
    assert sheet.shape[0] > len(OPS) * 72
    # A tile of every op lies left, four rows of tiles lie right, the first tile is the image.
    left = drawn[:, : sheet.shape[1] // 3].any(1)
    right = drawn[:, sheet.shape[1] // 2 :].any(1)
    assert left.sum() >= len(OPS) * 72
    assert 4 * 72 <= right.sum() <= 4 * 92
    tile = images[0].repeat(4, 0).repeat(4, 1)
    top, x = 12, 12 + 104
    np.testing.assert_array_equal(sheet[top : top + 72, x : x + 72], tile)
