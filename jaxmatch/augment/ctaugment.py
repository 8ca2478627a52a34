"""CTAugment (Berthelot et al. 2020): how strong each image op may be is learned from the labels.

The range of every op parameter is cut into bins. A bin's weight is a moving average of the
probability that the teacher gives to the true class of labeled images under this op at this
strength; bins that hurt are drawn no longer. ReMixMatch, https://arxiv.org/abs/1911.09785; with
FixMatch's constants and ops, https://arxiv.org/abs/2001.07685.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxmatch.augment.ops import apply_chosen
from jaxmatch.augment.pixels import geometry, resize, tone
from jaxmatch.augment.pixels import source as pixels
from jaxmatch.errors import InputError, suggest
from jaxmatch.settings import Count, Momentum, Share, section
from jaxmatch.types import Array

Policy = dict[str, dict[str, Array]]  # weight of each bin, by op and parameter

# The number of bins of each parameter of each op.
BINS: dict[str, dict[str, int]] = {
    "autocontrast": {"weight": 17},
    "blur": {"weight": 17},
    "brightness": {"factor": 17},
    "color": {"factor": 17},
    "contrast": {"factor": 17},
    "cutout": {"side": 17},
    "equalize": {"weight": 17},
    "identity": {},
    "invert": {"weight": 17},
    "posterize": {"bits": 8},
    "rescale": {"crop": 17, "method": 6},
    "rotate": {"degrees": 17},
    "sharpness": {"factor": 17},
    "shear_x": {"ratio": 17},
    "shear_y": {"ratio": 17},
    "smooth": {"weight": 17},
    "solarize": {"threshold": 17},
    "translate_x": {"shift": 17},
    "translate_y": {"shift": 17},
}
NAMES = tuple(BINS)
METHODS = ("lanczos", "bicubic", "bilinear", "box", "hamming", "nearest")  # of rescale
TRANSLATIONS = ("identity", "fraction")
FILL = 127  # level of a cutout
_CUTOUT, _RESCALE = NAMES.index("cutout"), NAMES.index("rescale")

# Parameters are rows of a padded table; one more row stands for an op's missing parameters.
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
    centre: Array  # [b n 2] int32 row and column of the centre, read where the op is a cutout
    box: Array  # [b 4] int32 last cutout: top, left, bottom, right, the last two excluded


@section("views.ctaugment")
class CTAugment:
    """The policy: how it is drawn from and how it learns.

    The defaults are those of FixMatch's code, by which the published results were made.

    Attributes:
        depth: ops a view.
        decay: of the moving averages, rho.
        threshold: the share of its parameter's largest rate below which a bin is not drawn.
        cta_translate: "identity": by up to 0.3 pixels, which rounds to none, as in the published
            code; "fraction": by up to 0.3 of the image's side, as the paper means it.
    """

    depth: Count = 2
    decay: Momentum = 0.99
    threshold: Share = 0.8
    cta_translate: str = "identity"

    def __post_init__(self) -> None:
        """Refuse an unknown translation."""
        if self.cta_translate not in TRANSLATIONS:
            raise InputError(
                f"unknown cta_translate {self.cta_translate!r}; "
                f"{suggest(self.cta_translate, TRANSLATIONS)}"
            )

    def init(self) -> Policy:
        """Weight 1 everywhere: ops and levels are drawn uniformly."""
        return {
            name: {parameter: jnp.ones(count, float) for parameter, count in bins.items()}
            for name, bins in BINS.items()
            if bins
        }

    def draw(self, policy: Policy, key: Array, shape: tuple[int, ...]) -> Draws:
        """Choose ops uniformly and levels by the policy, for images of ``shape`` [b h w 3].

        With weights m of a parameter's bins, bin b is drawn with probability proportional to
        p_b = m_b + 1 - rho, or to 0 where p_b < threshold max p; the level lies uniformly in it.
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

        # One centre more than ops, of the last cutout.
        sides = jnp.array([height, width], jnp.int32)
        centre = jax.random.randint(to_centre, (b, self.depth + 1, 2), 0, sides, jnp.int32)
        box = _cutout_box(centre[:, -1], jnp.ones(b, jnp.float32), (height, width))
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

        Each parameter used, in the order of the batch, moves the weight of its bin
        b = floor(0.999 level bins): m_b <- rho m_b + (1 - rho) truth. In closed form, for the
        h hits j of a bin: rho^h m_b + (1 - rho) sum_j rho^(h-j) truth_j.
        """
        row = pixels.select_rows(jnp.asarray(_ROWS), draws.op)  # [b n 2]
        bins = pixels.select_rows(jnp.asarray(_COUNTS), row)
        place = jnp.floor(draws.level * bins * 0.999).astype(jnp.int32)
        cell = (row * _WIDEST + place).reshape(len(truth), -1)  # [b k]
        hits = cell[..., None] == jnp.arange((_NONE + 1) * _WIDEST)  # [b k cells]
        # A product with a triangle, since a running sum would walk from device to device.
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
        """The value (see :data:`jaxmatch.augment.ops.OPS`) of an op at ``level`` 0..1 of any shape.

        ``size`` is the images' height and width.
        """
        shift = 0.3 * (2 * level - 1)
        side = {"translate_x": size[1], "translate_y": size[0]}
        if name in side:
            return shift * side[name] if self.cta_translate == "fraction" else shift
        if name in ("brightness", "color", "contrast", "sharpness"):
            return 0.1 + 1.9 * level
        if name in ("shear_x", "shear_y"):
            return shift
        if name == "posterize":
            return 1 + jnp.floor(7.999 * level)
        if name == "rotate":
            return jnp.rint(45 * (2 * level - 1))
        return jnp.floor(255.999 * level) if name == "solarize" else level

    def _layer(self, levels: Array, op: Array, level: Array, centre: Array) -> Array:
        """One op on each image, as planes: op [b], level and centre [b 2]."""
        height, width = levels.shape[2:]
        size = height, width
        first, second = level[:, 0], level[:, 1]
        value = first
        for position, name in enumerate(NAMES):
            value = jnp.where(op == position, self.value(name, first, size), value)
        levels = apply_chosen(levels, op, value, NAMES)  # of rescale and cutout the identity
        share = jnp.where(op == _RESCALE, 0.25 * first, 0)
        margin = jnp.stack([jnp.rint(share * height), jnp.rint(share * width)], -1)
        method = jnp.floor(5.99 * second).astype(jnp.int32)
        levels = resize.zoom(levels, margin.astype(jnp.int32), method, METHODS)
        box = _cutout_box(centre, first, size)
        cut = geometry.inside_box(box, height, width) & (op == _CUTOUT)[:, None, None]
        return jnp.where(cut, FILL, levels)


def describe(policy: Policy) -> dict[str, dict[str, Any]]:
    """The weights of all bins as JSON: {op: {parameter: list of floats}}."""
    return jax.tree.map(lambda weights: np.asarray(weights).tolist(), jax.device_get(policy))


def _table(policy: Policy) -> Array:
    """The weights as rows of one table, minus infinity where a row has no more bins."""
    rows = [
        jnp.pad(policy[name][parameter], (0, _WIDEST - count), constant_values=-jnp.inf)
        for (name, parameter), count in zip(_PARAMETERS, _COUNTS, strict=False)
    ]
    return jnp.stack([*rows, jnp.ones_like(rows[0])])


def _cutout_box(centre: Array, level: Array, size: tuple[int, int]) -> Array:
    """The square [b 4] around ``centre`` [b 2] at ``level`` [b]; half the shorter side at 1."""
    side = 1 + jnp.floor(0.499 * level * min(size)).astype(jnp.int32)
    return geometry.clipped_box(centre, side // 2, *size)


def _after(size: int) -> Array:
    """Whether the column comes after the row: bool [size size]."""
    return jnp.arange(size) > jnp.arange(size)[:, None]
