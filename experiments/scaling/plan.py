"""Predicted step time and efficiency of the recipes on 8 to 1024 chips.

    python -m experiments.scaling.plan

prints tables. What a step computes and exchanges is measured (``measured.json``, by ``measure``),
and so is what a host decodes; chips are what their vendors say, and shares of peaks are assumed:
the README lists all of it. Nothing overlaps: exchanges wait for the arithmetic, and it for them.
"""

import argparse
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from experiments.scaling.measure import MEASURED

# Measured: images that a core decodes in a second, by the views of each.
DECODED = {1: 549.0, 2: 410.0}
# Assumed: shares of a chip's peak, of its links' rate, and of a host's processors that decode.
UTILISATION = {"cifar10": 0.1, "imagenet2012": 0.25}
LINK_SHARE = 0.8
DECODING = 0.9
GROUP = 8  # chips that share a published batch where the batch grows with the chips
COUNTS = tuple(2**power for power in range(3, 11))
# Times the published batch, by the number of chips.
SCALING: dict[str, Callable[[int], int]] = {
    "the published batch": lambda count: 1,
    "16 times the published batch": lambda count: 16,
    f"a published batch for each {GROUP} chips": lambda count: count // GROUP,
}
NOTHING = {"count": 0, "bytes": 0}


class Chip(NamedTuple):
    """An accelerator, its network and its host; rates are per second and per chip, one way."""

    operations: float  # peak, bfloat16
    inside: float  # bytes over all links to chips of its slice
    slice: int  # chips that those links reach
    axes: int  # of their torus; 0 for a switch
    chips_a_host: int
    processors: int  # of a host, as its system counts them
    outside: float  # bytes to chips of other slices
    hop: float = 1e-6  # seconds from chip to chip
    hop_outside: float = 1e-5  # seconds from slice to slice


CHIPS = {
    "TPU v4": Chip(275e12, 1.1e15 / 4096, 4096, 3, 4, 240, 6.25e9),
    "TPU v5e": Chip(197e12, 200e9, 256, 2, 8, 224, 6.4e12 / 8 / 256),
    "TPU v5p": Chip(459e12, 600e9, 6144, 3, 4, 208, 6.25e9),
    "H100": Chip(989e12, 450e9, 8, 0, 8, 112, 50e9, hop=3e-6, hop_outside=5e-6),
}


@dataclass(frozen=True, kw_only=True)
class Work:
    """What one global step asks for."""

    operations: float
    labeled: int  # images, of one view each
    unlabeled: int  # of two
    reduced: float  # bytes of all sums, nearly all the gradient's
    gathered: float  # bytes of rows that every chip gets
    exchanges: int  # one after the other, but for the gradient's
    utilisation: float
    streamed: bool  # the hosts decode the images


@dataclass(frozen=True, kw_only=True)
class Step:
    """Predicted seconds of a step, by what they are spent on."""

    compute: float
    gradient: float
    latency: float  # of the other exchanges, BatchNorm's
    input: float  # of the hosts, while the chips work
    input_rate: float  # images a second that each host must decode for the chips never to wait

    @property
    def chips(self) -> float:
        """Without waiting for images."""
        return self.compute + self.gradient + self.latency

    @property
    def seconds(self) -> float:
        """Of a whole step."""
        return max(self.chips, self.input)

    @property
    def efficiency(self) -> float:
        """The share in which the chips compute."""
        return self.compute / self.seconds

    @property
    def bound(self) -> str:
        """What takes the most."""
        if self.input > self.chips:
            return "input"
        return max(("compute", "gradient", "latency"), key=lambda name: getattr(self, name))


def latency(chip: Chip, count: int) -> float:
    """Seconds of a sum of a few numbers over ``count`` chips, a power of two."""
    inside = min(count, chip.slice)
    power = round(math.log2(inside))
    # Half a ring either way to scatter, and to gather, along each axis.
    sides = [2 ** ((power + axis) // chip.axes) for axis in range(chip.axes)]
    hops = sum(side for side in sides if side > 1) if chip.axes else 2 * (inside > 1)
    return hops * chip.hop + 2 * math.log2(count / inside) * chip.hop_outside


def transfer(chip: Chip, count: int, size: float) -> float:
    """Seconds that the links take for the sum of ``size`` bytes, besides the latency.

    Rings carry 2 (n - 1) / n of the bytes. Of several slices each chip then sums its part with its
    like in the others.
    """
    inside = min(count, chip.slice)
    slices = count / inside
    seconds = 2 * (inside - 1) / inside * size / chip.inside
    seconds += 2 * (slices - 1) / slices * size / inside / chip.outside
    return seconds / LINK_SHARE


def predict(work: Work, chip: Chip, count: int) -> Step:
    """A step over ``count`` chips, a power of two."""
    compute = work.operations / count / (chip.operations * work.utilisation)
    once = latency(chip, count)
    gradient = once + transfer(chip, count, work.reduced)
    others = work.exchanges * once + transfer(chip, count, work.gathered)
    hosts = count / chip.chips_a_host
    decode = work.labeled / DECODED[1] + work.unlabeled / DECODED[2]
    images = work.labeled + work.unlabeled
    return Step(
        compute=compute,
        gradient=gradient,
        latency=others,
        input=work.streamed * decode / (hosts * chip.processors * DECODING),
        input_rate=work.streamed * images / hosts / (compute + gradient + others),
    )


def work_of(compiled: Sequence[dict[str, Any]], recipe: str, factor: int, chips: int) -> Work:
    """A recipe at ``factor`` times its batch, from what ``measure`` found of its step.

    Groups of BatchNorm grow with the batch; if they are fewer than the chips, what was compiled for
    more devices than groups tells the exchanges.
    """
    rows = [row for row in compiled if row["recipe"] == recipe]
    groups = rows[0]["groups"]
    divided = groups > 1 and groups * factor < chips
    row = next(row for row in rows if row["devices"] == GROUP * (1 + divided))
    sums, rest = (row["collectives"].get(kind, NOTHING) for kind in ("all-reduce", "all-gather"))
    labeled, unlabeled = row["batch"]
    return Work(
        operations=row["operations_per_step"] * factor,
        labeled=labeled * factor,
        unlabeled=unlabeled * factor,
        reduced=sums["bytes"],
        gathered=rest["bytes"] * factor,
        exchanges=sums["count"] + rest["count"] - 1,
        utilisation=UTILISATION[recipe.rpartition(":")[2]],
        streamed=recipe.endswith("imagenet2012"),
    )


def main() -> None:
    argparse.ArgumentParser(description=__doc__, allow_abbrev=False).parse_args()
    compiled = json.loads(MEASURED.read_text())["compiled"]
    for recipe in dict.fromkeys(row["recipe"] for row in compiled):
        for title, factors in SCALING.items():
            print(f"\n{recipe}, {title}:\n\n| chips | images | " + " | ".join(CHIPS), end=" |\n")
            print("|---" * (2 + len(CHIPS)) + "|")
            for count in COUNTS:
                work = work_of(compiled, recipe, factors(count), count)
                if work.labeled % count:
                    break
                cells = [str(count), f"{work.labeled + work.unlabeled:,}"]
                for chip in CHIPS.values():
                    step = predict(work, chip, count)
                    bound = "" if step.bound == "compute" else f" {step.bound}"
                    rate = f", {step.input_rate:,.0f}/s" if work.streamed else ""
                    share = f"{step.efficiency:.0%}"
                    cells.append(f"{1e3 * step.seconds:.2f} ms, {share}{rate}{bound}")
                print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
