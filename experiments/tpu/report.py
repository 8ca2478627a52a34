"""What a compiled program costs, by part of the library: memory, static time, exchanges."""

import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any

from experiments.tpu import hlo

# The part of an instruction is that of the innermost file of its call stack that has one. Where the
# compiler kept no such file, a module of Flax in the instruction's path tells the network.
PARTS = {
    "augment/": "augmentation",
    "models/batch_norm": "BatchNorm",
    "models/channels": "BatchNorm",
    "models/": "network",
    "data/": "data order",
    "optim": "optimizer",
    "algorithms/": "loss",
}
MODULE = re.compile(r"(?:^|[/(])[A-Z]\w*\)*/")  # such as jvp(ViT)/
ATTENTION = "/attention/"  # a module of each block of a Vision Transformer
WITH_BACKWARD = ("network", "attention", "BatchNorm", "loss")
LARGEST = 10  # buffers listed
KINDS = ("argument", "output", "alias", "temp", "generated_code")


def report(compiled: Any, hertz: float, steps: int = 1) -> dict[str, Any]:
    """Everything that the text and the analyses of a compiled program tell.

    Args:
        compiled: for TPUs, as ``jax.jit(...).lower(...).compile()`` gives it.
        hertz: of the chip.
        steps: that one run of the program takes; cycles, moves and exchanges are of one step.
    """
    text = compiled.as_text()
    program = hlo.read(text)
    cost = compiled.cost_analysis()
    cycles: defaultdict[str, float] = defaultdict(float)
    moves: Counter[tuple[int, str]] = Counter()
    buffers: dict[str, tuple[int, float, str]] = {}
    for one, times in program.scheduled():
        share = times / steps
        where = part(program, one)
        elements, moving = program.moved(one)
        if elements:
            moves[elements, where] += times
        if one.cycles is not None:
            cycles[where] += one.cycles * share
        elif elements:
            cycles[f"{where}: gathers and scatters"] += moving * share
        if one.operation not in ("parameter", "get-tuple-element", "tuple", "bitcast", "constant"):
            for shape in hlo.shapes(one.type):
                if shape.in_main_memory:
                    padding = round(shape.padded / max(1, shape.bytes), 2)
                    buffers[f"{shape}"] = (shape.padded, padding, where)
    milliseconds = {name: round(1e3 * value / hertz, 4) for name, value in cycles.items()}
    largest = sorted(buffers.items(), key=lambda item: -item[1][0])[:LARGEST]
    return {
        "memory": memory_of(compiled),
        "flops": cost.get("flops"),
        "bytes_accessed": cost.get("bytes accessed"),
        "static_ms": round(sum(milliseconds.values()), 4),
        "static_ms_by_part": dict(sorted(milliseconds.items(), key=lambda item: -item[1])),
        "moves": [
            {"elements": elements, "part": where, "times": times}
            for (elements, where), times in sorted(moves.items(), reverse=True)
        ],
        "largest_buffers": [
            {"shape": name, "padded_bytes": size, "padding": padding, "part": where}
            for name, (size, padding, where) in largest
        ],
        "collectives": collectives(program, steps),
        "products": products(program),
        "host_calls": host_calls(text),
    }


def summary(found: Mapping[str, Any]) -> dict[str, Any]:
    """The figures by which programs are compared, of what a report tells: flat, and by name.

    ``flops`` of a GPU's program are those of its products. ``static_ms`` of it is empty.
    """
    memory = found["memory"]
    moves = [move["elements"] for move in found["moves"] if move.get("kind") != "sort"]
    exchanged: defaultdict[str, dict[str, float]] = defaultdict(lambda: {"count": 0, "bytes": 0})
    for one in found["collectives"]:
        exchanged[one["kind"]]["count"] += one["times"]
        exchanged[one["kind"]]["bytes"] += one["bytes"]
    return {
        "compile_seconds": found["compile_seconds"],
        "argument_bytes": memory["argument"],
        "temp_bytes": memory["temp"],
        "peak_bytes": memory["peak"],
        "flops": found.get("flops", found.get("flops_of_products")),
        "bytes_accessed": found["bytes_accessed"],
        "static_ms": found.get("static_ms_by_part", {}),
        "largest_gather": max(moves, default=0),
        "collectives": dict(exchanged),
        "precision": found["products"],
        "host_callbacks": found["host_calls"],
    }


def memory_of(compiled: Any) -> dict[str, int | None]:
    """Bytes on a chip by kind, those of all kinds, and the peak if the compiler tells it."""
    memory = compiled.memory_analysis()
    sizes = {kind: getattr(memory, f"{kind}_size_in_bytes") for kind in KINDS}
    held = sum(sizes.values()) - 2 * sizes["alias"]
    return {**sizes, "held": held, "peak": getattr(memory, "peak_memory_in_bytes", None)}


def host_calls(text: str) -> int:
    """How many instructions exchange data with the host."""
    return len(re.findall(r" (?:outfeed|infeed|send|recv)\(|callback", text))


def part(program: hlo.Program, one: hlo.Instruction) -> str:
    """The part of the library that an instruction stems from."""
    found = (
        name
        for file in program.files(one.frame)
        for start, name in PARTS.items()
        if file.startswith(start)
    )
    name = next(found, "network" if MODULE.search(one.path) else "other")
    if name == "network" and ATTENTION in one.path:
        name = "attention"
    return f"{name} backward" if name in WITH_BACKWARD and "transpose(" in one.path else name


def collectives(program: hlo.Program, steps: int) -> list[dict[str, Any]]:
    """Exchanges between chips: kind, dtype, times and bytes of results on a chip in a step."""
    found: defaultdict[tuple[str, str, str], list[float]] = defaultdict(lambda: [0, 0])
    channels: set[str] = set()
    for outer, times in program.scheduled():
        for one in program.inside(outer):
            kind = one.operation.removesuffix("-start")
            if kind not in hlo.COLLECTIVES:
                continue
            # One that runs beside others appears in each fusion that goes on with it.
            channel = one.attribute("channel_id")
            if channel and channel in channels:
                continue
            channels.add(channel)
            results = hlo.shapes(one.type)
            if one.operation.endswith("-start") and kind != "all-reduce":
                results = results[len(results) // 2 :]
            dtype = max(results, key=lambda shape: shape.bytes).dtype
            entry = found[kind, part(program, one), dtype]
            entry[0] += times / steps
            entry[1] += sum(shape.bytes for shape in results) * times / steps
    return [
        {"kind": kind, "part": where, "dtype": dtype, "times": times, "bytes": size}
        for (kind, where, dtype), (times, size) in sorted(found.items())
    ]


def products(program: hlo.Program) -> dict[str, int]:
    """How many convolutions and matrix products there are by dtypes and asked precision."""
    found: Counter[str] = Counter()
    for body in program.computations.values():
        for one in body:
            if one.operation not in ("convolution", "dot"):
                continue
            inputs = [
                hlo.shapes(program.by_name[name].type)[0].dtype
                for name in one.operands[:2]
                if name in program.by_name
            ]
            asked = re.search(r"operand_precision=\{([^}]*)\}", one.rest)
            precision = asked[1].partition(",")[0] if asked else "default"
            result = hlo.shapes(one.type)[0].dtype
            found[f"{' x '.join(inputs)} -> {result}, {precision}"] += 1
    return dict(found)
