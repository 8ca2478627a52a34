"""How fast single 3x3 convolutions and their gradients are: oneDNN's, XLA's two paths, PyTorch's.

    python -m experiments.throughput.layers jax [--dtype bfloat16]
    /path/to/environment/bin/python experiments/throughput/layers.py torch    # needs torch alone

120 images, all cores. Prints for each layer of WRN-28-2 the Gflop/s of the forward pass,
of the gradient of its input and of that of its kernel: medians of 9, by the clock, and after a "/"
the share of the processors' time that they used.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

BATCH = 120
# (side, channels in, channels out, stride)
LAYERS = (
    (32, 3, 16, 1),
    (32, 16, 32, 1),
    (32, 32, 32, 1),
    (32, 32, 64, 2),
    (16, 64, 64, 1),
    (16, 64, 128, 2),
    (8, 128, 128, 1),
)
Three = list[Callable[[], Any]]  # forward, gradient of the input, gradient of the kernel


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("library", choices=("jax", "torch"))
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    arguments = parser.parse_args()
    jax = arguments.library == "jax"
    paths = jax_paths() if jax else {"torch": with_torch}
    print(f"| side, channels, stride | {' | '.join(paths)} |\n|---|{'---|' * len(paths)}")
    for layer in LAYERS:
        side, before, after, stride = layer
        operations = 2 * BATCH * (side // stride) ** 2 * 9 * before * after
        cells = []
        for prepare in paths.values():
            times = [measure(call) for call in prepare(*layer, arguments.dtype)]
            cells.append(
                ", ".join(f"{operations / wall / 1e9:.0f} / {used:.2f}" for wall, used in times)
            )
        print(f"| {side}, {before} to {after}, {stride} | {' | '.join(cells)} |", flush=True)


def measure(call: Callable[[], Any], calls: int = 9) -> tuple[float, float]:
    """Median seconds of a call, and which share of all processors' time it used."""
    call()
    call()
    walls, shares = [], []
    for _ in range(calls):
        start, used = time.perf_counter(), time.process_time()
        call()
        walls.append(time.perf_counter() - start)
        shares.append((time.process_time() - used) / walls[-1] / (os.cpu_count() or 1))
    return statistics.median(walls), statistics.median(shares)


def jax_paths() -> dict[str, Callable[[int, int, int, int, str], Three]]:
    """The library's path, and those of XLA: with the options that the library asks for, without."""
    from functools import partial

    from jaxmatch.models import onednn
    from jaxmatch.models.contraction import convolve
    from jaxmatch.runtime.compilation import compiler_options, keep_memory

    keep_memory()
    ours = partial(with_jax, convolution=convolve, options=compiler_options())
    return {
        onednn.library().text.removeprefix("convolutions by "): ours,
        "XLA's older path": partial(with_jax, options=compiler_options()),
        "XLA's default": partial(with_jax, options={}),
    }


def with_jax(
    side: int,
    before: int,
    after: int,
    stride: int,
    dtype: str,
    options: dict[str, str],
    convolution: Callable[..., Any] | None = None,
) -> Three:
    """The three calls of ``convolution``, or of XLA's, compiled with the options."""
    import jax

    images = jax.random.normal(jax.random.key(0), (BATCH, side, side, before), dtype)
    kernel = jax.random.normal(jax.random.key(1), (3, 3, before, after), dtype)
    around = ((1, 1), (1, 1))

    def forward(images: Any, kernel: Any) -> Any:
        if convolution is not None:
            return convolution(images, kernel, stride, around)
        form = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            images, kernel, (stride, stride), around, dimension_numbers=form
        )

    def to_images(images: Any, kernel: Any, slope: Any) -> Any:
        return jax.vjp(lambda images: forward(images, kernel), images)[1](slope)

    def to_kernel(images: Any, kernel: Any, slope: Any) -> Any:
        return jax.vjp(lambda kernel: forward(images, kernel), kernel)[1](slope)

    slope = forward(images, kernel)
    given = (images, kernel, slope)
    calls = (
        (jax.jit(forward, compiler_options=options), given[:2]),
        (jax.jit(to_images, compiler_options=options), given),
        (jax.jit(to_kernel, compiler_options=options), given),
    )
    return [lambda f=f, values=values: jax.block_until_ready(f(*values)) for f, values in calls]


def with_torch(side: int, before: int, after: int, stride: int, dtype: str) -> Three:
    """The three calls on channels_last tensors."""
    import torch  # pyright: ignore[reportMissingImports]

    last = {"memory_format": torch.channels_last, "dtype": getattr(torch, dtype)}
    images = torch.randn(BATCH, before, side, side).to(**last)
    kernel = torch.randn(after, before, 3, 3).to(**last)
    slope = torch.randn_like(torch.nn.functional.conv2d(images, kernel, None, stride, 1))

    def backward(*wanted: bool) -> Any:
        steps = [stride, stride], [1, 1], [1, 1]
        return torch.ops.aten.convolution_backward(
            slope, images, kernel, None, *steps, False, [0, 0], 1, [*wanted, False]
        )

    return [
        lambda: torch.nn.functional.conv2d(images, kernel, None, stride, 1),
        lambda: backward(True, False),
        lambda: backward(False, True),
    ]


if __name__ == "__main__":
    main()
