"""How a step's time and memory grow with batch, width, image side, bank and number of devices.

    python -m experiments.throughput.growth            # -> growth.json and growth.png beside it
    python -m experiments.throughput.growth --only batch,width

Random images; every point is a process of its own, which measures the step after its first call.
On a CPU seconds are those of the processor, so other work on the machine matters little. Memory is
XLA's plan of the compiled step: its temporary arrays on one device, besides state and images.
"""

import argparse
import io
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from experiments.throughput.measure import random_data
from jaxmatch.config.flags import from_flags
from jaxmatch.data.resident import resident
from jaxmatch.program import Program
from jaxmatch.runtime.compilation import jit, prepare_process
from jaxmatch.runtime.mesh import replicated

HERE = Path(__file__).parent
# A small network of the published kind; a quantity's values change one thing each.
BASE = {"model.depth": 10, "data.batch_size": 8, "data.ratio": 3}
SIDE = 32
Point = Mapping[str, Any]  # recipe, side, labels, devices, and overrides by dotted key
QUANTITIES: dict[str, dict[int, Point]] = {
    "batch": {8 * n: {"data.batch_size": 2 * n} for n in (1, 2, 4, 8, 16)},
    "width": {n: {"model.width": n} for n in (1, 2, 4, 8)},
    "image side": {n: {"side": n} for n in (16, 32, 64, 96)},
    "bank rows": {
        n: {"recipe": "simmatch", "labels": n} for n in (40, 400, 4_000, 40_000, 128_000)
    },
    "devices": {n: {"devices": n} for n in (1, 2, 4, 8)},
}
# The powers of the quantity that a step's time, of all devices together, and its memory, of one
# device, are proportional to where convolutions and activations are all that matters.
POWERS = {
    "batch": (1, 1),
    "width": (2, 1),
    "image side": (2, 2),
    "bank rows": (0, 0),
    "devices": (0, -1),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--only", default="", help="quantities, separated by commas")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(json.loads(arguments.one))))
        return
    chosen = [name for name in arguments.only.split(",") if name] or list(QUANTITIES)
    file = HERE / "growth.json"
    results = json.loads(file.read_text()) if file.exists() else {}
    results = {name: results[name] for name in QUANTITIES if name in results}
    for name in chosen:
        results[name] = {}
        for value, point in QUANTITIES[name].items():
            results[name][str(value)] = found = apart(point)
            print(f"{name} {value}: {found}", flush=True)
    file.write_text(json.dumps(results, indent=1) + "\n")
    (HERE / "growth.png").write_bytes(plot(results))
    print(table(results))


def apart(point: Point) -> dict[str, float]:
    """:func:`measure` in a process that sees as many devices as the point asks for."""
    devices = str(point.get("devices", 1))
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": devices}
    command = [sys.executable, "-m", "experiments.throughput.growth", "--one", json.dumps(point)]
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure(point: Point, calls: int = 5) -> dict[str, float]:
    """Seconds of a step (median, least, largest) and bytes of its temporary arrays."""
    values = dict(point)
    recipe, side = values.pop("recipe", "fixmatch"), values.pop("side", SIDE)
    labels, devices = values.pop("labels", 40), values.pop("devices", 1)
    flags = {**BASE, **values, "devices": devices}
    config, _ = from_flags(
        f"{recipe}:tfds:cifar10,labels={labels}",
        [f"--config.{key}={value}" for key, value in flags.items()],
    )
    prepare_process()
    data = random_data(config, side, 10, count=max(10_000, labels))
    program = Program.build(config, data.facts())
    everywhere = replicated(program.mesh)
    state = jax.jit(program.init, out_shardings=everywhere)()
    images = jax.device_put(resident(data.source, data.split), everywhere)
    compiled = (
        jit(
            lambda state, images: program.step(state, program.examples(images, state))[0],
            out_shardings=everywhere,
            donate_argnums=0,
        )
        .lower(state, images)
        .compile()
    )
    clock = time.process_time if jax.default_backend() == "cpu" else time.perf_counter
    times = []
    for _ in range(calls + 1):
        start = clock()
        state = jax.block_until_ready(compiled(state, images))
        times.append(clock() - start)
    times = times[1:]
    analysis = compiled.memory_analysis()
    assert analysis is not None
    return {
        "seconds": statistics.median(times),
        "least": min(times),
        "largest": max(times),
        "bytes": analysis.temp_size_in_bytes,
    }


def table(results: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """Markdown: each point relative to the first of its quantity, and the power of the growth."""
    rows = [
        "| quantity | values | step time, relative | power, last two | expected | memory, MB "
        "| power, last two | expected |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, points in results.items():
        first = next(iter(points.values()))
        times = [f"{point['seconds'] / first['seconds']:.2f}" for point in points.values()]
        memory = [f"{point['bytes'] / 1e6:.0f}" for point in points.values()]
        columns = [name, " / ".join(points), " / ".join(times)]
        columns += [f"{last_power(points, 'seconds'):.2f}", f"{POWERS[name][0]}"]
        columns += [" / ".join(memory), f"{last_power(points, 'bytes'):.2f}", f"{POWERS[name][1]}"]
        rows.append(f"| {' | '.join(columns)} |")
    return "\n".join(rows)


def last_power(points: Mapping[str, Mapping[str, float]], key: str) -> float:
    """The power of the quantity by which ``key`` grows between its last two points."""
    (x, before), (y, after) = list(points.items())[-2:]
    return math.log(after[key] / before[key]) / math.log(float(y) / float(x))


def plot(results: Mapping[str, Mapping[str, Mapping[str, float]]]) -> bytes:
    """A PNG: seconds (with least and largest) above, memory below, a column for each quantity."""
    figure = Figure(figsize=(3.2 * len(results), 5.6), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    panels: Any = figure.subplots(2, len(results), squeeze=False)
    for column, (name, points) in enumerate(results.items()):
        at = [float(value) for value in points]
        found = list(points.values())
        lines = (
            ("seconds a step", [point["seconds"] for point in found], "#1F6FB2"),
            ("temporary arrays, MB", [point["bytes"] / 1e6 for point in found], "#C2571A"),
        )
        for axes, power, (title, values, color) in zip(
            (panels[0][column], panels[1][column]), POWERS[name], lines, strict=True
        ):
            axes.plot(at, values, "o-", color=color, linewidth=2, label="measured")
            expected = [values[0] * (x / at[0]) ** power for x in at]
            axes.plot(at, expected, "--", color="#999999", linewidth=1, label="expected")
            axes.set_xscale("log")
            axes.set_xticks(at, [f"{x / 1000:g}k" if x >= 1000 else f"{x:g}" for x in at])
            if power:
                axes.set_yscale("log")
                axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                axes.yaxis.set_major_formatter("{x:g}")
            axes.minorticks_off()
            axes.set_xlabel(name)
            axes.set_ylabel(title if column == 0 else "")
            axes.spines[["top", "right"]].set_visible(False)
        spread = ([point["least"] for point in found], [point["largest"] for point in found])
        panels[0][column].fill_between(at, *spread, color="#1F6FB2", alpha=0.2)
        for axes in panels[:, column]:
            if axes.get_yscale() == "linear":
                axes.set_ylim(bottom=0)
    panels[0][0].legend(frameon=False, fontsize=8)
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    return picture.getvalue()


if __name__ == "__main__":
    main()
