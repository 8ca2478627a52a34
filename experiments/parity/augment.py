"""Replays the augmentation reference files, made with Pillow, through the library's transforms."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from experiments.parity import augment_contrast
from experiments.parity.augment_rows import (
    AUTOCONTRAST,
    BLEND,
    EXACT,
    FIXED_POINT_WARP,
    PIL_RESIZE,
    WHOLE_VIEW,
    Row,
    compare,
)
from experiments.parity.rows import Unknown
from jaxmatch.augment.ctaugment import NAMES as CTA_NAMES
from jaxmatch.augment.ctaugment import CTAugment
from jaxmatch.augment.ctaugment import Draws as CTADraws
from jaxmatch.augment.ops import INVERSION, NO_VALUE, OPS, WEIGHT, apply_chosen
from jaxmatch.augment.pixels import geometry, tone
from jaxmatch.augment.randaugment import TABLES, Draws, RandAugment
from jaxmatch.augment.weak import Draws as WeakDraws
from jaxmatch.augment.weak import Weak

Arrays = dict[str, np.ndarray]

_LIMITS = {
    "autocontrast": AUTOCONTRAST,
    "brightness": BLEND,
    "color": BLEND,
    "contrast": BLEND,
    "sharpness": BLEND,
    "rotate": FIXED_POINT_WARP,
    "shear_x": FIXED_POINT_WARP,
    "shear_y": FIXED_POINT_WARP,
}
# Under CTAugment these are mixed with the image.
_CTA_LIMITS = {
    "autocontrast": AUTOCONTRAST,
    **dict.fromkeys(("blur", "equalize", "invert", "smooth"), BLEND),
}
_LIBRARY_NAMES = {name.replace("_", ""): name for name in OPS}
_ALL = tuple(OPS)
_NAMES = TABLES["google"].names  # and of torchssl
_WITHOUT_VALUE = {name for name, op in OPS.items() if op.strength in (NO_VALUE, WEIGHT, INVERSION)}


@jax.jit
def _apply(images: jax.Array, op: jax.Array, value: jax.Array) -> jax.Array:
    """Any op of the library on any image, compiled together as a strong view is."""
    return jnp.moveaxis(apply_chosen(tone.planes(images), op, value, _ALL), 0, -1)


_TORCHSSL_VIEW = jax.jit(RandAugment(table="torchssl").apply)
_GOOGLE_VIEW = jax.jit(RandAugment(table="google").apply)
_CTA_VIEW = jax.jit(CTAugment().apply)


class _Reading(dict[str, np.ndarray]):
    """The arrays of a file; remembers which were read."""

    def __init__(self, file: Mapping[str, np.ndarray]):
        """Read the file whole."""
        super().__init__(file)
        self.read: set[str] = set()

    def __getitem__(self, key: str) -> np.ndarray:
        """The array of ``key``, which counts as read from now on."""
        self.read.add(key)
        return super().__getitem__(key)

    def views(self) -> list[str]:
        """The views: keys such as "y96", "jitter__y32"."""
        return [key for key in self if key.rpartition("__")[2].startswith("y")]


def replay(path: Path | str) -> list[Row | Unknown]:
    """Replay one augmentation file, told by its name; ``inputs.npz`` lies beside it.

    Raises:
        KeyError: no replay is known for a file of this name.
    """
    path = Path(path)
    with np.load(path) as npz, np.load(path.parent / "inputs.npz") as inputs:
        file = _Reading(npz)
        rows = REPLAYS[path.name](file, dict(inputs))
    unread = [key for key in file.views() if key not in file.read]
    return [*rows, *(Unknown(path.stem, key, "the replay does not read it") for key in unread)]


def _library_name(name: str) -> str:
    return _LIBRARY_NAMES[name.lower()]


def _each(name: str, values: np.ndarray, images: np.ndarray) -> np.ndarray:
    """One op at each of ``values`` [m] on each of ``images`` [n h w 3]: [m n h w 3]."""
    m, n = len(values), len(images)
    op = np.full(m * n, _ALL.index(name), np.int32)
    out = _apply(np.tile(images, (m, 1, 1, 1)), op, np.repeat(values, n))
    return np.asarray(out).reshape(m, *images.shape)


def _usb_ops(file: Arrays, inputs: Arrays) -> list[Row]:
    rows = []
    for key in file:
        if "__mag" not in key or key.startswith("Cutout"):
            continue
        label, size = key.split("__mag")
        name, size = _library_name(label), size or "32"
        images, values = inputs[f"x{size}"], file[key]
        if name.startswith("translate"):
            values = values * images.shape[1]
        elif name in _WITHOUT_VALUE:
            values = np.ones_like(values)
        ours = _each(name, values, images)
        theirs = file[f"{label}__y{size}"]
        rows.append(compare("usb_ops", f"{label} {size}", ours, theirs, _LIMITS.get(name, EXACT)))
    images = inputs["x32"]
    height, width = images.shape[1:3]
    centre = jnp.asarray(file["Cutout__centre_xy"][:, ::-1].copy())
    box = geometry.shifted_box(centre, jnp.asarray(file["Cutout__mag"] * width), height, width)
    ours = _cut(images, box, (125, 123, 114))
    rows.append(compare("usb_ops", "Cutout 32", ours, file["Cutout__y32"], EXACT))
    return rows


def _cut(images: np.ndarray, boxes: jax.Array, fill: tuple[int, ...]) -> np.ndarray:
    """Every box [m 4] cut from every image: [m n h w 3]."""
    m, n = len(boxes), len(images)
    batch = jnp.asarray(np.tile(images, (m, 1, 1, 1)))
    out = geometry.fill_box(batch, jnp.repeat(boxes, n, 0), jnp.asarray(fill))
    return np.asarray(out).reshape(m, *images.shape)


def _cta_ops(file: Arrays, inputs: Arrays) -> list[Row]:
    rows = []
    for key in file:
        name, _, what = key.partition("__")
        if what not in ("y32", "y96") or name in ("cutout", "rescale"):
            continue
        level = file["level"] if what == "y32" else file["level"][3:4]
        ours = _cta_each(name, inputs[what.replace("y", "x")], level)
        limits = _CTA_LIMITS.get(name, _LIMITS.get(name, EXACT))
        theirs = file[key].reshape(ours.shape)
        rows.append(compare("cta_ops", f"{name} {what[1:]}", ours, theirs, limits))
    images, centre = inputs["x32"], file["cutout__centre_ij"][:, ::-1]
    ours = _cta_each("cutout", images, file["level"], centre=centre)
    rows.append(compare("cta_ops", "cutout 32", ours, file["cutout__y32"], EXACT))
    images, scale = images[file["rescale__image_index"]], file["rescale__scale"]
    method_levels = file["rescale__method_level"]
    for m, (method, level) in enumerate(
        zip(file["rescale__method_name"], method_levels, strict=True)
    ):
        ours = _cta_each("rescale", images, scale, np.full_like(scale, level))
        limits = EXACT if method == "nearest" else PIL_RESIZE
        theirs = file["rescale__y32"][:, m]
        rows.append(compare("cta_ops", f"rescale {method}", ours, theirs, limits))
    return rows


def _cta_each(
    name: str,
    images: np.ndarray,
    first: np.ndarray,
    second: np.ndarray | None = None,
    centre: np.ndarray | None = None,
) -> np.ndarray:
    """One CTAugment op at each of the levels [m] on each image [n h w 3]: [m n h w 3].

    ``second`` [m] is the level of its second parameter, ``centre`` [m 2] that of a cutout.
    """
    m, n = len(first), len(images)
    level = np.stack([first, np.zeros(m) if second is None else second], -1)
    centre = np.zeros((m, 2)) if centre is None else centre
    draws = CTADraws(
        op=jnp.full((m * n, 1), CTA_NAMES.index(name), jnp.int32),
        level=jnp.asarray(np.repeat(level, n, 0)[:, None], jnp.float32),
        centre=jnp.asarray(np.repeat(centre, n, 0)[:, None], jnp.int32),
        box=jnp.zeros((m * n, 4), jnp.int32),
    )
    out = _CTA_VIEW(jnp.asarray(np.tile(images, (m, 1, 1, 1))), draws)
    return np.asarray(out).reshape(m, *images.shape)


def _fixmatch_ra_ops(file: Arrays, inputs: Arrays) -> list[Row]:
    images = inputs["x32"][file["image_index"]]
    n = len(images)
    rows = []
    for key in file:
        label, _, what = key.partition("__")
        if what != "rgb":
            continue
        name, theirs = _library_name(label), file[key]
        values = np.array(
            [OPS[name].strength.levels["google"](int(level)) for level in file["level"]]
        )
        signed = theirs.ndim == 6
        if signed:
            values = np.stack([values, -values], 1).ravel()
        # Where alpha is 0, a whole view shows mid-grey.
        repeated = np.tile(images, (len(values), 1, 1, 1))
        ours = _google_view(repeated, [(name, np.repeat(values, n))])
        ours = ours.reshape(theirs.shape)
        limits = _LIMITS.get(name, EXACT)
        if signed:
            hidden = np.unpackbits(file[f"{label}__alpha0"]).astype(bool)[: ours.size // 3]
            hidden = hidden.reshape(*ours.shape[:-1], 1)
            rows.append(
                compare(
                    "fixmatch_ra_ops",
                    f"{label} alpha",
                    (ours == 127.5).all(-1, keepdims=True),
                    hidden,
                    limits,
                )
            )
            theirs = np.where(hidden, 127.5, theirs)
        rows.append(compare("fixmatch_ra_ops", label, ours, theirs, limits))
    for spec, theirs in zip(file["chain__spec"], file["chain__y"], strict=True):
        rows.append(_chain(json.loads(str(spec)), images, theirs))
    return rows


def _google_view(images: np.ndarray, chain: Sequence[tuple[str, np.ndarray | float]]) -> np.ndarray:
    """A google view with given ops and an empty cutout, as levels."""
    b = len(images)
    op = np.stack([np.full(b, _NAMES.index(name)) for name, _ in chain], -1)
    value = np.stack([np.broadcast_to(value, b) for _, value in chain], -1)
    draws = Draws(jnp.asarray(op), jnp.asarray(value), jnp.zeros((b, 4), jnp.int32))
    return np.asarray(_GOOGLE_VIEW(jnp.asarray(images), draws))


def _chain(spec: list, images: np.ndarray, theirs: np.ndarray) -> Row:
    # The reference's wrapper truncates network input to levels; the library never leaves levels.
    scaled = images.astype(np.float32) / 127.5 - 1
    truncated = ((scaled * 0.5 + 0.5) * 255).astype(np.uint8)
    named = [(_library_name(label), level) for label, level in spec]
    ops = [(name, OPS[name].strength.levels["google"](level)) for name, level in named]
    ours = _google_view(truncated, ops)
    label = ", ".join(f"{label} {level}" for label, level in spec)
    levels = np.rint((theirs.astype(np.float64) + 1) * 127.5)
    return compare("fixmatch_ra_ops", f"chain {label}", np.rint(ours), levels, WHOLE_VIEW)


def _weak(file: Arrays, inputs: Arrays) -> list[Row]:
    rows = []
    sizes = [key[1:] for key in file if re.fullmatch(r"y\d+", key) and f"x{key[1:]}" in inputs]
    for size in sizes:
        suffix = "" if size == "32" else size
        pad, draws = int(file[f"pad{suffix}"]), file[f"top_left_flip{suffix}"]
        images = inputs[f"x{size}"]
        m, n = len(draws), len(images)
        ours = _weak_views(np.tile(images, (m, 1, 1, 1)), np.repeat(draws, n, 0), pad)
        theirs = file[f"y{size}"]
        rows.append(
            compare("weak", f"crop, flip {size}", ours.reshape(theirs.shape), theirs, EXACT)
        )
    return rows


def _weak_views(images: np.ndarray, top_left_flip: np.ndarray, pad: int | None) -> np.ndarray:
    draws = WeakDraws(
        jnp.asarray(top_left_flip[:, :2], jnp.int32), jnp.asarray(top_left_flip[:, 2] > 0)
    )
    weak = Weak(pad=pad, order="crop_flip")
    return np.asarray(jax.jit(weak.apply)(jnp.asarray(images), draws))


def _usb_pipeline(file: Arrays, inputs: Arrays) -> list[Row]:
    images = inputs["x32"][file["image_index"]]
    height, width = images.shape[1:3]
    names = [_library_name(str(name)) for name in file["op_names"]]
    op = np.array([_NAMES.index(name) for name in names])[file["op_index"]]
    # The reference draws a value for ops that have none.
    plain = np.array([name in _WITHOUT_VALUE for name in _NAMES])
    sides = np.array([name.startswith("translate") for name in _NAMES])
    value = np.where(plain[op], 1.0, file["op_val"] * np.where(sides[op], width, 1))
    centre = jnp.asarray(file["cutout_centre_xy"][:, ::-1].copy())
    box = geometry.shifted_box(centre, jnp.asarray(file["cutout_v"] * width), height, width)
    weak = jnp.asarray(_weak_views(images, file["top_left_flip"], None))
    draws = Draws(jnp.asarray(op), jnp.asarray(value), box)
    before = _TORCHSSL_VIEW(weak, draws._replace(box=jnp.zeros_like(box)))
    valued = [name not in _WITHOUT_VALUE for name in names]
    ranges = np.array([OPS[name].strength.torchssl for name in names])[valued]
    reference = np.stack([file["op_min"], file["op_max"]], -1)[valued]
    return [
        compare("usb_pipeline", "ranges of the values", ranges, reference, EXACT),
        compare("usb_pipeline", "ops", np.asarray(before), file["y_before_cutout"], WHOLE_VIEW),
        compare(
            "usb_pipeline",
            "strong view",
            np.asarray(_TORCHSSL_VIEW(weak, draws)),
            file["y"],
            WHOLE_VIEW,
        ),
    ]


REPLAYS: dict[str, Callable[[Arrays, Arrays], list[Row]]] = {
    "usb_ops.npz": _usb_ops,
    "cta_ops.npz": _cta_ops,
    "fixmatch_ra_ops.npz": _fixmatch_ra_ops,
    "weak.npz": _weak,
    "usb_pipeline.npz": _usb_pipeline,
    "simclr_color.npz": augment_contrast.replay_simclr_color,
    "resized_crop.npz": augment_contrast.replay_resized_crop,
}
