"""How much of a step's exchanges lies beside other work, in the program as it is scheduled.

    python -m experiments.tpu.overlap --config=moco_v2:tfds:imagenet2012 --topology=v5e:2x4
    python -m experiments.tpu.overlap --config=... --topology=... --xla_option=value

An exchange that the program waits for has nothing beside it. One that runs beside others has a
start and a done; on TPUs a fusion may go on with it (its computation is called
``async_collective_fusion``). Every exchange is printed with the work between the two and with the
seconds that it takes alone, from its bytes and the links that :mod:`experiments.scaling.plan`
assumes. ``--xla_...`` are options of the compiler.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from experiments.tpu import hlo, topology
from experiments.tpu.__main__ import commit
from experiments.tpu.report import part

# No work of the chip: names of parts, and copies that run beside the rest.
NAMES = ("parameter", "get-tuple-element", "tuple", "bitcast", "constant", "after-all")
PARTS_OF_COPIES = ("copy-start", "copy-done", "slice-start", "slice-done")


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """One exchange between chips of the program."""

    kind: str
    part: str  # of the library
    bytes: int  # of its results on a chip
    times: int  # that it runs in the program
    start: int  # where, in the order in which instructions run
    done: int  # the same index for one that the program waits for
    begins: float  # cycles of the program before its start
    beside: float  # cycles of other work between start and done, each time
    instructions: int  # that do this work


def exchanges(program: hlo.Program) -> list[Exchange]:
    """All exchanges of a scheduled program, in its order."""
    order = list(program.scheduled())
    before = [0.0, *accumulate(cycles(program, one) * times for one, times in order)]
    work = [one.operation not in (*NAMES, *PARTS_OF_COPIES) for one, _ in order]
    at = {one.name: index for index, (one, _) in enumerate(order)}
    ends = {
        name: index
        for index, (one, _) in enumerate(order)
        if one.operation.endswith("-done")
        for name in one.operands[:1]
    }
    found: dict[str, list[tuple[int, hlo.Instruction]]] = {}
    for index, (outer, _) in enumerate(order):
        for one in program.inside(outer):
            if one.operation.removesuffix("-start") in hlo.COLLECTIVES:
                key = one.attribute("channel_id") or one.name
                found.setdefault(key, []).append((index, one))
    result = []
    for places in found.values():
        start, one = places[0]
        outer, times = order[start]
        done = max(places[-1][0], ends.get(outer.name, at[outer.name]))
        inside = range(start + 1, done)
        if start == done and outer.attribute("calls").startswith("async_collective"):
            inside = range(start, start + 1)
        kind = one.operation.removesuffix("-start")
        results = hlo.shapes(one.type)
        if one.operation.endswith("-start") and kind != "all-reduce":
            results = results[len(results) // 2 :]
        result.append(
            Exchange(
                kind=kind,
                part=part(program, one),
                bytes=sum(shape.bytes for shape in results),
                times=times,
                start=start,
                done=done,
                begins=before[start],
                beside=(before[inside.stop] - before[inside.start]) / times if inside else 0.0,
                instructions=sum(work[index] for index in inside),
            )
        )
    return result


def cycles(program: hlo.Program, one: hlo.Instruction) -> float:
    """The compiler's estimate, or that of a gather or scatter; 0 where there is none."""
    return program.moved(one)[1] if one.cycles is None else one.cycles


def waits(
    program: hlo.Program, found: Sequence[Exchange], hertz: float, needs: Sequence[float]
) -> float:
    """Seconds of one run in which nothing computes, because an exchange has not ended.

    The links carry one exchange after another, in the order of their starts.

    Args:
        program: scheduled.
        found: its exchanges.
        hertz: of the chip.
        needs: seconds of each exchange alone.
    """
    events = sorted(
        event
        for number, one in enumerate(found)
        for event in ((one.start, 0, number), (one.done, 1, number))
    )
    order = [cycles(program, one) * times / hertz for one, times in program.scheduled()]
    before = [0.0, *accumulate(order)]
    waited = free = 0.0
    ready: dict[int, float] = {}
    for index, ends, number in events:
        # What a fusion computes while it exchanges is done before it ends.
        clock = before[index + (ends and found[number].beside > 0)] + waited
        if not ends:
            free = ready[number] = max(free, clock) + needs[number] * found[number].times
        elif ready[number] > clock:
            waited += ready[number] - clock
    return waited


def measure(
    name: str, overrides: Sequence[str], where: str, options: Mapping[str, str]
) -> dict[str, Any]:
    """Compile a step with more options of the compiler, and read what runs beside its exchanges.

    Milliseconds are of one step. ``exchange_ms`` is what the exchanges take alone, ``wait_ms`` what
    of it nothing hides: both assume links. Without estimates of cycles (GPUs) there are neither
    times beside nor waits, but counts of instructions.
    """
    devices = topology.devices(where)
    from experiments.scaling.plan import CHIPS, latency, transfer
    from experiments.tpu.program import lower

    kind = topology.generation(where)
    chip, hertz = CHIPS.get(f"TPU {kind}", CHIPS.get(kind.upper())), topology.HERTZ.get(kind)
    lowered, steps, batch = lower(name, overrides, devices)
    compiled = lowered.compile(compiler_options={key: typed(options[key]) for key in options})
    program = hlo.read(compiled.as_text())
    found = exchanges(program)
    result: dict[str, Any] = {
        "config": name,
        "overrides": list(overrides),
        "topology": where,
        "options": dict(options),
        "commit": commit(),
        "batch": batch,
        "temp": compiled.memory_analysis().temp_size_in_bytes,
        "exchanges": len(found),
        "beside_others": sum(one.beside > 0 for one in found),
    }
    total = sum(cycles(program, one) * times for one, times in program.scheduled())
    if hertz:
        result["static_ms"] = round(1e3 * total / hertz / steps, 4)
    if hertz and chip:
        count = len(devices)
        needs = [latency(chip, count) + transfer(chip, count, one.bytes) for one in found]
        alone = sum(need * one.times for need, one in zip(needs, found, strict=True))
        result["exchange_ms"] = round(1e3 * alone / steps, 4)
        result["wait_ms"] = round(1e3 * waits(program, found, hertz, needs) / steps, 4)
    result["list"] = [
        {
            "kind": one.kind,
            "part": one.part,
            "bytes": one.bytes,
            "times": one.times / steps,
            "instructions": one.instructions,
        }
        | (
            {
                "begins": round(one.begins / total, 4),
                "beside_ms": round(1e3 * one.beside / hertz, 4),
            }
            if hertz
            else {}
        )
        for one in found
    ]
    return result


def typed(text: str) -> bool | int | str:
    """The value of an option as the compilers for CPUs and GPUs ask for it."""
    if text in ("true", "false"):
        return text == "true"
    return int(text) if text.isdigit() else text


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--config", required=True)
    parser.add_argument("--topology", default="v5e:2x4")
    chosen, rest = parser.parse_known_args(arguments)
    options = [word.removeprefix("--") for word in rest if word.startswith("--xla_")]
    overrides = [word for word in rest if not word.startswith("--xla_")]
    given = dict(option.split("=", 1) for option in options)
    print(json.dumps(measure(chosen.config, overrides, chosen.topology, given)))


if __name__ == "__main__":
    main()
