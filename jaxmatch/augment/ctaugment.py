"""CTAugment (Berthelot et al. 2020) learns from the labels how strong each image op may be.

The range of each parameter of an op is cut into bins. The weight of a bin is a moving average: the
teacher's probability of the true class, on labeled images under this op at this strength. Bins of
low weight are not drawn. The method is ReMixMatch's, https://arxiv.org/abs/1911.09785; the
constants and ops are FixMatch's, https://arxiv.org/abs/2001.07685.
"""

from collections.abc import Mapping
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxmatch.augment.ops import OPS, apply_chosen, ops_of
from jaxmatch.augment.pixels import geometry, resize, tone
from jaxmatch.augment.pixels import source as pixels
from jaxmatch.settings import Count, Momentum, Share, section
from jaxmatch.types import Array

Policy = dict[str, dict[str, Array]]  # weight of each bin, by op and parameter

# The bins of two ops that only CTAugment has. They are not in ops.OPS, because they read more than
# a value: a cutout has a place, and a rescale has a method.
_OWN: dict[str, Mapping[str, int]] = {
    "cutout": {"side": 17},
    "rescale": {"crop": 17, "method": 6},
}
# The number of bins of each parameter of each op.
BINS = {
    name: _OWN[name] if name in _OWN else OPS[name].strength.bins
    for name in sorted((*ops_of("ctaugment"), *_OWN))
}
NAMES = tuple(BINS)
METHODS = ("lanczos", "bicubic", "bilinear", "box", "hamming", "nearest")  # of rescale
FILL = 127  # level of a cutout
_CUTOUT, _RESCALE = NAMES.index("cutout"), NAMES.index("rescale")

# Each parameter is a row of a padded table. The last row stands for parameters that an op lacks.
_PARAMETERS = [(name, parameter) for name, bins in BINS.items() for parameter in bins]
_NONE, _WIDEST = len(_PARAMETERS), 17
_COUNTS = np.array([*(BINS[name][parameter] for name, parameter in _PARAMETERS), _WIDEST], np.int32)
_ROWS = np.array(
    [
        ([row for row, (owner, _) in enumerate(_PARAMETERS) if owner == name] + 2 * [_NONE])[:2]
        for name in NAMES
    ],
    np.int32,
)  # [ops 2]


class Draws(NamedTuple):
    """All randomness of ``n`` ops and the last cutout for ``b`` images."""

    op: Array  # [b n] int32 position in NAMES
    level: Array  # [b n 2] float32 0..1, of the op's first and second parameter
    centre: Array  # [b n 2] int32 row and column of a cutout's centre; other ops do not read it
    box: Array  # [b 4] int32 last cutout: top, left, bottom, right; the last two are excluded


@section("views.ctaugment")
class CTAugment:
    """Draws from the policy, and updates it.

    The defaults are those of FixMatch's code, which made the published results.

    Attributes:
        depth: number of ops of a view.
        decay: rho, the decay of the moving averages.
        threshold: a bin is not drawn if its rate is below this share of the largest rate of its
            parameter.
        cta_translate: "identity" translates by up to 0.3 pixels, which rounds to none, as the
            published code does; "fraction" translates by up to 0.3 of the image's side, as the
            paper says.
        cutout: a strong view ends with a cutout of half the side, as in FixMatch's code; the
            views of ReMixMatch's code do not.
    """

    depth: Count = 2
    decay: Momentum = 0.99
    threshold: Share = 0.8
    cta_translate: Literal["identity", "fraction"] = "identity"
    cutout: bool = True

    def init(self) -> Policy:
        """All weights are 1, so ops and levels are drawn uniformly."""
        return {
            name: {parameter: jnp.ones(count, float) for parameter, count in bins.items()}
            for name, bins in BINS.items()
            if bins
        }

    def draw(self, policy: Policy, key: Array, shape: tuple[int, ...]) -> Draws:
        """Choose ops uniformly and levels by the policy, for images of ``shape`` [b h w 3].

        A parameter has bins with weights m. Bin b is drawn with probability proportional to
        p_b = m_b + 1 - rho, or to 0 if p_b < threshold max p. The level is uniform in the bin.
        """
        b, height, width = shape[:3]
        to_op, to_bin, to_level, to_centre = jax.random.split(key, 4)
        op = jax.random.randint(to_op, (b, self.depth), 0, len(NAMES), jnp.int32)
        rate = _table(policy) + (1 - self.decay)
        rate = rate / rate.max(1, keepdims=True)
        logits = jnp.log(jnp.where(rate < self.threshold, 0, rate)).astype(jnp.float32)
        row = pixels.select_rows(jnp.asarray(_ROWS), op)  # [b n 2]
        chosen = jax.random.categorical(to_bin, pixels.select_rows(logits, row))
        within = jax.random.uniform(to_level, row.shape, jnp.float32)
        level = (chosen + within) / pixels.select_rows(jnp.asarray(_COUNTS), row)

        # The last centre is that of the last cutout, at level 1.
        sides = jnp.array([height, width], jnp.int32)
        centre = jax.random.randint(to_centre, (b, self.depth + 1, 2), 0, sides, jnp.int32)
        box = _cutout_box(centre[:, -1], jnp.ones(b, jnp.float32), (height, width))
        box = box if self.cutout else jnp.zeros_like(box)
        return Draws(op, level, centre[:, :-1], box)

    def apply(self, images: Array, draws: Draws) -> Array:
        """Levels 0..255 [b h w 3] of any dtype in (rounded), float32 levels out."""

        def layer(levels: Array, one: tuple[Array, Array, Array]) -> tuple[Array, None]:
            return self._layer(levels, *one), None

        steps = jax.tree.map(lambda leaf: leaf.swapaxes(0, 1), draws[:3])
        levels, _ = lax.scan(layer, tone.planes(images), steps)
        cut = geometry.fill_box(jnp.moveaxis(levels, 0, -1), draws.box, jnp.int32(FILL))
        return cut.astype(jnp.float32)

    def update(self, policy: Policy, draws: Draws, truth: Array) -> Policy:
        """Learn from the teacher's probability ``truth`` [b] of the true class under ``draws``.

        The parameters in use are taken in the order of the batch. Each moves the weight of its
        bin b = floor(0.999 level bins): m_b <- rho m_b + (1 - rho) truth. If a bin is hit h times,
        j = 1..h, the closed form is rho^h m_b + (1 - rho) sum_j rho^(h-j) truth_j.
        """
        row = pixels.select_rows(jnp.asarray(_ROWS), draws.op)  # [b n 2]
        bins = pixels.select_rows(jnp.asarray(_COUNTS), row)
        place = jnp.floor(draws.level * bins * 0.999).astype(jnp.int32)
        cell = (row * _WIDEST + place).reshape(len(truth), -1)  # [b k]
        hits = cell[..., None] == jnp.arange((_NONE + 1) * _WIDEST)  # [b k cells]
        # A product with a triangle: a running sum would go from device to device.
        order = _after(len(truth)).astype(jnp.float32)
        after = jnp.matmul(order, hits.sum(1).astype(jnp.float32), precision="highest")
        same = (cell[:, :, None] == cell[:, None, :]) & _after(cell.shape[1])
        later = jnp.where(hits, after[:, None], 0).sum(2).astype(jnp.int32) + same.sum(2)
        gain = (1 - self.decay) * self.decay**later * truth[:, None]
        gained = jnp.where(hits, gain[..., None], 0).sum((0, 1)).reshape(-1, _WIDEST)
        kept = (self.decay ** hits.sum((0, 1))).reshape(-1, _WIDEST)
        learned = {name: dict(weights) for name, weights in policy.items()}
        for number, (name, parameter) in enumerate(_PARAMETERS):
            old = policy[name][parameter]
            new = kept[number, : len(old)] * old + gained[number, : len(old)]
            learned[name][parameter] = new.astype(old.dtype)
        return learned

    def value(self, name: str, level: Array, size: tuple[int, int]) -> Array:
        """The value of an op at ``level`` 0..1 of any shape; the level of a cutout or a rescale.

        ``size`` is the images' height and width.
        """
        if name in _OWN:
            return level
        op = OPS[name]
        value = op.strength.ctaugment(level)
        if op.side is not None and self.cta_translate == "fraction":
            return value * size[op.side]
        return value

    def _layer(self, levels: Array, op: Array, level: Array, centre: Array) -> Array:
        """Apply one op to each image: planes in and out, op [b], level and centre [b 2]."""
        height, width = levels.shape[2:]
        size = height, width
        first, second = level[:, 0], level[:, 1]
        value = first
        for position, name in enumerate(NAMES):
            value = jnp.where(op == position, self.value(name, first, size), value)
        levels = apply_chosen(
            levels, op, value, NAMES
        )  # leaves rescale and cutout to the lines below
        share = jnp.where(op == _RESCALE, 0.25 * first, 0)
        margin = jnp.stack([jnp.rint(share * height), jnp.rint(share * width)], -1)
        method = jnp.floor(5.99 * second).astype(jnp.int32)
        levels = resize.zoom(levels, margin.astype(jnp.int32), method, METHODS)
        box = _cutout_box(centre, first, size)
        cut = geometry.inside_box(box, height, width) & (op == _CUTOUT)[:, None, None]
        return jnp.where(cut, FILL, levels)


def describe(policy: Policy) -> dict[str, dict[str, list[float]]]:
    """The weights of all bins as JSON, by op and parameter."""
    return jax.tree.map(lambda weights: np.asarray(weights).tolist(), jax.device_get(policy))


def _table(policy: Policy) -> Array:
    """The weights as rows of one table; minus infinity fills the rows of fewer bins."""
    rows = [
        jnp.pad(policy[name][parameter], (0, _WIDEST - count), constant_values=-jnp.inf)
        for (name, parameter), count in zip(_PARAMETERS, _COUNTS, strict=False)
    ]
    return jnp.stack([*rows, jnp.ones_like(rows[0])])


def _cutout_box(centre: Array, level: Array, size: tuple[int, int]) -> Array:
    """The square [b 4] around ``centre`` [b 2], of half the shorter side at ``level`` [b] 1."""
    side = 1 + jnp.floor(0.499 * level * min(size)).astype(jnp.int32)
    return geometry.clipped_box(centre, side // 2, *size)


def _after(size: int) -> Array:
    """Whether the column comes after the row: bool [size size]."""
    return jnp.arange(size) > jnp.arange(size)[:, None]
