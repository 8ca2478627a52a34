"""Predicted step time and efficiency of the recipes on 8 to 1024 chips.

    python -m experiments.scaling.plan

prints tables. The time and the memory of a step on a TPU v5e are the compiler's (``results.jsonl``
and ``recipes.jsonl`` of :mod:`experiments.tpu`); what a step exchanges is counted
(``measured.json``, by ``measure``), and what a host decodes is measured. Chips are what their
vendors say, and the time on others than v5e is assumed to follow their peaks: the README lists all
of it. Nothing overlaps: exchanges wait for the rest, and it for them.
"""

import argparse
import json
import math
from bisect import bisect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from experiments.scaling.measure import MEASURED
from experiments.tpu import recipes
from experiments.tpu.__main__ import RESULTS

# Measured: images that a core decodes in a second, by the views of each.
DECODED = {1: 549.0, 2: 410.0}
# Assumed: shares of the links' rate, and of a host's processors that decode.
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
COMPILED_FOR = "TPU v5e"
MEMORY = 15.75 * 2**30  # of such a chip, as its compiler says
ALLOWED = (["--config.dtype=bfloat16"], [])  # overrides that lines of a recipe may have


class Chip(NamedTuple):
    """An accelerator, its network and its host; rates are per second and per chip, one way."""

    operations: float  # peak, bfloat16
    memory_rate: float  # bytes to and from its memory
    inside: float  # bytes over all links to chips of its slice
    slice: int  # chips that those links reach
    axes: int  # of their torus; 0 for a switch
    chips_a_host: int
    processors: int  # of a host, as its system counts them
    outside: float  # bytes to chips of other slices
    hop: float = 1e-6  # seconds from chip to chip
    hop_outside: float = 1e-5  # seconds from slice to slice


CHIPS = {
    "TPU v4": Chip(275e12, 1.2e12, 1.1e15 / 4096, 4096, 3, 4, 240, 6.25e9),
    "TPU v5e": Chip(197e12, 819e9, 200e9, 256, 2, 8, 224, 6.4e12 / 8 / 256),
    "TPU v5p": Chip(459e12, 2.765e12, 600e9, 6144, 3, 4, 208, 6.25e9),
    "H100": Chip(989e12, 3.35e12, 450e9, 8, 0, 8, 112, 50e9, hop=3e-6, hop_outside=5e-6),
}

LEGEND = f"""A cell: milliseconds a step, the share of them in which the chips compute, images a
second that a host must decode, and what takes most where it is not the chips' work. Work of a chip:
s, static, by the compiler for {COMPILED_FOR}; i, on the line through two such figures; a, assumed
from it by the chips' peaks. Exchanges are always assumed. GB: memory of a chip, as s or i."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """What one global step asks for."""

    labeled: int  # images, of one view each
    unlabeled: int  # of two
    reduced: float  # bytes of all sums, nearly all the gradient's
    gathered: float  # bytes of rows that every chip gets
    exchanges: int  # one after the other, but for the gradient's
    streamed: bool  # the hosts decode the images
    groups: int = 1  # of BatchNorm, at the published batch
    shared: bool = False  # by chips


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


class Figure(NamedTuple):
    """What one chip does in a step, without exchanges."""

    seconds: float
    held: float  # bytes of its memory
    static: bool = True  # the compiler's for so many images; else on the line through two of them


def shares(groups: int, factor: int, chips: int) -> bool:
    """Whether chips share groups of BatchNorm, which grow with the batch; 1 is the whole batch."""
    return groups > 1 and groups * factor < chips


def figures(
    lines: Iterable[Mapping[str, Any]], recipe: str, groups: int = 1, shared: bool = False
) -> dict[int, Figure]:
    """The compiler's figures of a recipe by images a chip; the last line for each counts.

    Chips that share groups take longer for as many images, so unless ``shared`` such lines are left
    out.
    """
    found = {}
    for line in lines:
        name, _, factor = line["config"].partition(",scale=")
        count = recipes.chips(line["topology"])
        # Neither a part of a step, nor one that was only estimated, refused or did not compile.
        if (name, line["what"]) != (recipe, "step") or line.get("static_ms") is None:
            continue
        if line["overrides"] not in ALLOWED or not line["topology"].startswith("v5e:"):
            continue
        if shared or not shares(groups, int(factor or 1), count):
            known = Figure(line["static_ms"] / 1e3, line["memory"]["held"])
            found[sum(line["batch"]) // count] = known
    return found


def figure(known: Mapping[int, Figure], images: int) -> Figure:
    """That of so many images a chip: the compiler's, or on the line through two around it.

    Beyond the most images it is the line through the two before; no images cost nothing.

    Raises:
        ValueError: where nothing is known.
    """
    if images in known:
        return known[images]
    if not known:
        raise ValueError("record a step for v5e first, by python -m experiments.tpu --record.")
    known = {0: Figure(0.0, 0.0), **known}
    counts = sorted(known)
    after = min(bisect(counts, images), len(counts) - 1)
    low, high = counts[after - 1 : after + 1]
    share = (images - low) / (high - low)
    seconds, held = (
        first + share * (second - first)
        for first, second in zip(known[low][:2], known[high][:2], strict=True)
    )
    return Figure(seconds, held, static=False)


def slower(chip: Chip) -> float:
    """Assumed: the time of a step in those of a v5e, by the peak that is the lesser gain."""
    here = CHIPS[COMPILED_FOR]
    return max(here.operations / chip.operations, here.memory_rate / chip.memory_rate)


def predict(work: Work, chip: Chip, count: int, compute: float) -> Step:
    """A step over ``count`` chips, a power of two, each of which works for ``compute`` seconds."""
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
    shared = shares(groups, factor, chips)
    row = next(row for row in rows if row["devices"] == GROUP * (1 + shared))
    sums, rest = (row["collectives"].get(kind, NOTHING) for kind in ("all-reduce", "all-gather"))
    labeled, unlabeled = row["batch"]
    return Work(
        labeled=labeled * factor,
        unlabeled=unlabeled * factor,
        reduced=sums["bytes"],
        gathered=rest["bytes"] * factor,
        exchanges=sums["count"] + rest["count"] - 1,
        streamed=recipe.endswith("imagenet2012"),
        groups=groups,
        shared=shared,
    )


def recorded() -> list[dict[str, Any]]:
    """The lines that :mod:`experiments.tpu` recorded, the oldest first.

    Those compiled with less effort are left out: their times are several times too long.
    """
    found = [json.loads(line) for line in RESULTS.read_text().splitlines()] + recipes.lines()
    return [line for line in found if not line.get("effort")]


def cell(work: Work, name: str, count: int, each: Figure) -> str:
    """One prediction in a table, and where its time comes from."""
    chip = CHIPS[name]
    step = predict(work, chip, count, each.seconds * slower(chip))
    rate = f", {step.input_rate:,.0f}/s" if work.streamed else ""
    bound = "" if step.bound == "compute" else f" {step.bound}"
    text = f"{1e3 * step.seconds:.2f} ms, {step.efficiency:.0%}{rate}{bound}"
    if name != COMPILED_FOR:
        return f"{text} (a)"
    kind = "s" if each.static else "i"
    fits = "" if each.held <= MEMORY else " does not fit"
    return f"{text} ({kind}, {each.held / 1e9:.1f} GB{fits})"


def main() -> None:
    argparse.ArgumentParser(description=__doc__, allow_abbrev=False).parse_args()
    compiled, lines = json.loads(MEASURED.read_text())["compiled"], recorded()
    print(LEGEND)
    for recipe in dict.fromkeys(row["recipe"] for row in compiled):
        for title, factors in SCALING.items():
            print(f"\n{recipe}, {title}:\n\n| chips | images | " + " | ".join(CHIPS), end=" |\n")
            print("|---" * (2 + len(CHIPS)) + "|")
            for count in COUNTS:
                work = work_of(compiled, recipe, factors(count), count)
                if work.labeled % count:
                    break
                images = work.labeled + work.unlabeled
                known = figures(lines, recipe, work.groups, work.shared)
                each = figure(known, images // count)
                cells = [cell(work, name, count, each) for name in CHIPS]
                print(f"| {count} | {images:,} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
