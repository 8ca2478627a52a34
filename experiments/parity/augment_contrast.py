"""Replays the colour, blur and resize reference files: torchvision on PIL images and tensors."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from experiments.parity.augment_rows import (
    BLEND,
    EXACT,
    HUE,
    PIL_RESIZE,
    TENSOR,
    Row,
    compare,
)
from jaxmatch.augment.pixels import blur, color
from jaxmatch.augment.pixels.resize import resize, resize_smooth

Arrays = dict[str, np.ndarray]


def _each(function, images: np.ndarray, *arguments: np.ndarray) -> np.ndarray:
    """``function`` of every image [n h w c] with every argument [m ...]: [m n h w c]."""
    m, n = len(arguments[0]), len(images)
    batch = jnp.asarray(np.tile(images, (m, 1, 1, 1)))
    repeated = (jnp.asarray(np.repeat(argument, n, axis=0)) for argument in arguments)
    out = np.asarray(jax.jit(function)(batch, *repeated))
    return out.reshape(m, n, *out.shape[1:])


def _on_planes(function):
    """A function of planes [c b h w] as one of images [b h w c]."""

    def on_images(images: jax.Array, *arguments: jax.Array) -> jax.Array:
        return jnp.moveaxis(function(jnp.moveaxis(images, -1, 0), *arguments), 0, -1)

    return on_images


def _float(values: np.ndarray) -> np.ndarray:
    return np.asarray(values, np.float32)


def replay_simclr_color(file: Arrays, inputs: Arrays) -> list[Row]:
    """Every array of simclr_color.npz: colour steps, whole jitters, both blurs."""
    row = partial(compare, "simclr_color")
    x32, x96 = inputs["x32"].astype(np.int32), inputs["x96"].astype(np.int32)
    rows = []
    for name in ("brightness", "contrast", "saturation", "hue"):
        limits = HUE if name == "hue" else BLEND
        ours = _each(_on_planes(getattr(color, name)), x32, _float(file[f"{name}__factor"]))
        rows.append(row(f"{name} 32", ours, file[f"{name}__y32"], limits))
    ours = _each(_on_planes(color.hue), x96, _float(file["hue__factor"][3:4]))[0]
    rows.append(row("hue 96", ours, file["hue__y96"], HUE))
    for size, images in (("32", x32), ("96", x96)):
        ours = np.asarray(_on_planes(color.grayscale)(jnp.asarray(images)))
        rows.append(row(f"grayscale {size}", ours, file[f"grayscale__y{size}"], EXACT))
    orders, factors = file["jitter__order"].astype(np.int32), _float(file["jitter__bcsh"])
    ours = _each(_on_planes(color.jitter), x32, orders, factors)
    rows.append(row("jitter 32", ours, file["jitter__y32"], HUE))
    for key, size, images in (("", "32", x32), ("96", "96", x96)):
        sigma = _float(file[f"blur_pil__sigma{key}"])
        blurred = partial(blur.gaussian_blur, largest=float(sigma.max()))
        ours = _each(_on_planes(blurred), images, sigma)
        rows.append(row(f"blur_pil {size}", ours, file[f"blur_pil__y{size}"], EXACT))
    images = _float(inputs["x32"][file["blur_tensor__image_index"]]) / 255
    sigma = _float(file["blur_tensor__sigma"])
    for kernel, theirs in zip(file["blur_tensor__kernel"], file["blur_tensor__y32"], strict=True):
        blurred = partial(blur.gaussian_blur_smooth, kernel=int(kernel))
        ours = _each(_on_planes(blurred), images, sigma)
        rows.append(row(f"blur_tensor kernel {kernel}", ours, theirs, TENSOR))
    return rows


def replay_resized_crop(file: Arrays, inputs: Arrays) -> list[Row]:
    """Every array of resized_crop.npz: two filters, PIL, tensors with and without antialias."""
    row = partial(compare, "resized_crop")
    x32 = inputs["x32"][file["image_index32"]]
    cases = (("y32", x32, file["box32"]), ("y96to32", inputs["x96"], file["box96"]))
    rows = []
    for method in ("bilinear", "bicubic"):
        for suffix, images, boxes in cases:
            theirs = file[f"pil_{method}__{suffix}"]
            crop = partial(resize, size=theirs.shape[-3:-1], method=method)
            ours = _each(crop, images[: theirs.shape[1]], boxes)
            rows.append(row(f"pil {method} {suffix}", ours, theirs, PIL_RESIZE))
            for antialias in (False, True):
                key = f"tensor_{method}_aa{antialias:d}__{suffix}"
                crop = partial(
                    resize_smooth, size=theirs.shape[-3:-1], method=method, antialias=antialias
                )
                ours = _each(crop, _float(images[: file[key].shape[1]]) / 255, boxes)
                rows.append(row(key.replace("__", " ").replace("_", " "), ours, file[key], TENSOR))
    return rows
