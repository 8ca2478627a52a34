"""What a compiled program has a GPU do, by part of the library: kernels, bytes, products, memory.

The compiler for GPUs estimates no time, so there is none here. Bytes are those that each kernel
reads and writes by its operands and results; of what it gathers, slices or updates only that part.
Caches are not in them. Where products are computed by cuDNN, cuBLAS or Triton, the algorithm, and
with it cuDNN's scratch memory, is chosen on a GPU only: neither is known here.
"""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any

from experiments.tpu import hlo
from experiments.tpu.report import LARGEST, collectives, host_calls, memory_of, part

# These are no kernels: names of values, control flow, and exchanges, which are listed apart.
_NONE = (
    *("parameter", "constant", "get-tuple-element", "tuple", "bitcast", "after-all", "iota"),
    *("while", "conditional", "call", "partition-id", "replica-id", "opt-barrier", "copy-done"),
)
_LIBRARIES = {"__cudnn": "cuDNN", "__cublas": "cuBLAS", "__triton": "Triton"}
_EMITTERS = {"kLoop": "elementwise", "kInput": "reductions and scatters"}


def report(compiled: Any, steps: int = 1) -> dict[str, Any]:
    """Everything that the text and the memory analysis of a program for GPUs tell.

    Args:
        compiled: as ``jax.jit(...).lower(...).compile()`` gives it.
        steps: that one run of the program takes; all but memory is of one step, on one GPU.
    """
    text = compiled.as_text()
    program = hlo.read(text)
    kinds: Counter[str] = Counter()
    launched: defaultdict[str, float] = defaultdict(float)
    moved: defaultdict[str, float] = defaultdict(float)
    products: Counter[str] = Counter()
    layouts: Counter[tuple[str, str]] = Counter()
    moves: Counter[tuple[str, int, bool, str]] = Counter()
    buffers: dict[str, tuple[int, str]] = {}
    operations = 0.0
    for one, times in kernels(program):
        where, share = part(program, one), times / steps
        kinds[kind(one)] += times
        launched[where] += share
        moved[where] += accessed(program, one) * share
        for named, count in multiplied(program, one):
            products[named] += times
            operations += count * share
        for shape in turned(program, one):
            layouts[shape, where] += times
        for move in moves_of(program, one):
            moves[*move, where] += times
        for shape in hlo.shapes(one.type):
            buffers[str(shape)] = shape.bytes, where
    largest = sorted(buffers.items(), key=lambda item: -item[1][0])[:LARGEST]
    return {
        "memory": memory_of(compiled),
        "kernels": sum(kinds.values()) / steps,
        "kernels_by_kind": {name: count / steps for name, count in kinds.most_common()},
        "kernels_by_part": _ordered(launched),
        "bytes_accessed": sum(moved.values()),
        "bytes_by_part": _ordered(moved),
        "flops_of_products": operations,
        "loops": loops(program, steps),
        "branches": branches(program) / steps,
        "moves": [
            {"kind": name, "elements": count, "atomic": atomic, "part": where, "times": times}
            for (name, count, atomic, where), times in sorted(moves.items(), reverse=True)
        ],
        "layout_copies": [
            {"shape": shape, "part": where, "times": times / steps}
            for (shape, where), times in sorted(
                layouts.items(), key=lambda item: -hlo.shapes(item[0][0])[0].bytes
            )[:LARGEST]
        ],
        "largest_buffers": [
            {"shape": name, "bytes": size, "part": where} for name, (size, where) in largest
        ],
        "collectives": collectives(program, steps),
        "products": {name: count / steps for name, count in products.most_common()},
        "host_calls": host_calls(text),
    }


def _ordered(values: dict[str, float]) -> dict[str, float]:
    return dict(sorted(values.items(), key=lambda item: -item[1]))


def is_kernel(one: hlo.Instruction) -> bool:
    """Whether an instruction that is scheduled is work for the GPU, exchanges aside."""
    name = one.operation.removesuffix("-start").removesuffix("-done")
    return one.operation not in _NONE and name not in hlo.COLLECTIVES


def kernels(program: hlo.Program) -> Iterator[tuple[hlo.Instruction, int]]:
    """Each kernel, copy or call of a library, and how often it runs; of a branch all sides."""
    return ((one, times) for one, times in program.scheduled() if is_kernel(one))


def kind(one: hlo.Instruction) -> str:
    """Of a kernel: the library that it is of, the emitter of a fusion, or the operation."""
    for start, library in _LIBRARIES.items():
        if start in one.rest:
            return library
    if one.operation == "fusion":
        return _EMITTERS.get(one.attribute("kind"), "copies of slices")
    return "sorts" if one.operation == "sort" else one.operation


def accessed(program: hlo.Program, one: hlo.Instruction) -> int:
    """Bytes that a kernel reads and writes, each once."""
    written = [shape.bytes for shape in hlo.shapes(one.type)]
    read = [_size(program, name) for name in one.operands]
    body = program.computations.get(one.attribute("calls"), ()) if "calls=" in one.rest else ()
    for inner in body:
        if inner.operation == "parameter":
            number = int(inner.rest.partition(")")[0])
            users = [user for user in body if inner.name in user.operands]
            if users and all(_is_part(user, inner.name) for user in users):
                read[number] = sum(_part_of(program, user) for user in users)
    root = next((inner for inner in body if inner.name == program.roots.get(_called(one))), None)
    if root is not None and root.operation == "dynamic-update-slice":
        written = [_part_of(program, root)]
    return sum(written) + sum(read)


def _called(one: hlo.Instruction) -> str:
    return one.attribute("calls")


def _is_part(user: hlo.Instruction, name: str) -> bool:
    """Whether it only takes or changes a part of ``name``, its first operand."""
    partial = ("gather", "dynamic-slice", "slice", "dynamic-update-slice")
    return user.operation in partial and user.operands.index(name) == 0


def _part_of(program: hlo.Program, user: hlo.Instruction) -> int:
    if user.operation == "dynamic-update-slice":
        return _size(program, user.operands[1])
    return sum(shape.bytes for shape in hlo.shapes(user.type))


def _size(program: hlo.Program, name: str) -> int:
    found = program.by_name.get(name)
    return sum(shape.bytes for shape in hlo.shapes(found.type)) if found else 0


def multiplied(program: hlo.Program, one: hlo.Instruction) -> Iterator[tuple[str, float]]:
    """Each product of a kernel: library, dtypes, precision; and its operations."""
    for inner in program.inside(one):
        target = re.search(r'custom_call_target="(__cu\w+)', inner.rest)
        if inner.operation != "dot" and not target:
            continue
        left, right = (hlo.shapes(program.by_name[name].type)[0] for name in inner.operands[:2])
        result = hlo.shapes(inner.type)[0]
        asked = re.search(r"operand_precision=\{([^}]*)\}", inner.rest)
        precision = asked[1].partition(",")[0] if asked else "default"
        if precision == "default" and left.dtype == "f32":
            precision = "TF32"
        named = f"{kind(one)}: {left.dtype} x {right.dtype} -> {result.dtype}, {precision}"
        yield named, 2.0 * _terms(inner, left, right, result)


def _terms(inner: hlo.Instruction, left: hlo.Shape, right: hlo.Shape, result: hlo.Shape) -> float:
    """Products of two numbers that it sums."""
    sizes = [math.prod(shape.sides) for shape in (left, right, result)]
    if labels := re.search(r"dim_labels=\w+_\w+->(\w+)", inner.rest):
        # Each pixel of the results meets the kernel of one of their channels.
        kernel, results = {"Filter": (2, 1), "Input": (1, 0)}.get(
            next((way for way in ("Filter", "Input") if f"Backward{way}" in inner.rest), ""), (1, 2)
        )
        channels = (left, right, result)[results].sides[labels[1].index("f")]
        return sizes[kernel] * sizes[results] / channels
    batched = re.search(r"lhs_batch_dim(?:ension)?s\W+([\d,\"]*)", inner.rest)
    axes = [int(axis) for axis in re.findall(r"\d+", batched[1])] if batched else []
    entries = math.prod(left.sides[axis] for axis in axes)
    # (m k) x (k n) -> (m n): the square of m k n is the product of the sizes.
    return math.sqrt(math.prod(size / entries for size in sizes)) * entries


def turned(program: hlo.Program, one: hlo.Instruction) -> Iterator[str]:
    """Arrays that a kernel writes in another order of axes than it reads them."""
    for inner in program.inside(one):
        if inner.operation not in ("copy", "transpose") or not inner.operands:
            continue
        (result, *_), source = hlo.shapes(inner.type), program.by_name.get(inner.operands[0])
        order = hlo.shapes(source.type)[0].order if source else result.order
        if inner.operation == "transpose":
            listed = re.search(r"dimensions=\{([\d,]*)\}", inner.rest)
            axes = [int(axis) for axis in listed[1].split(",") if axis] if listed else []
            order = [axes.index(axis) for axis in order]
        sides = result.sides
        if [a for a in result.order if sides[a] > 1] != [a for a in order if sides[a] > 1]:
            yield str(result)


def moves_of(program: hlo.Program, one: hlo.Instruction) -> Iterator[tuple[str, int, bool]]:
    """Gathers, scatters and sorts: elements or rows that each moves; whether it adds atomically."""
    for inner in program.inside(one):
        if inner.operation == "sort":
            yield "sort", math.prod(hlo.shapes(inner.type)[0].sides), False
        elif inner.operation in ("gather", "scatter"):
            count, _ = program.moved(inner)
            atomic = inner.operation == "scatter" and "unique_indices=true" not in inner.rest
            yield inner.operation, count, atomic


def loops(program: hlo.Program, steps: int) -> list[dict[str, Any]]:
    """Loops inside of a step: turns, kernels and exchanges a turn, how often, and what for."""
    found: Counter[tuple[int, int, str]] = Counter()
    pending = [(program.entry, 1)]
    while pending:
        computation, times = pending.pop()
        for one in program.computations[computation]:
            if one.operation == "while":
                turns, body = program.trips(one), one.attribute("body")
                inner = sum(n for each, n in program.scheduled(body) if is_kernel(each))
                found[turns, inner, part(program, one)] += times
                pending.append((body, times * turns))
            elif one.operation == "conditional":
                pending += [(name, times) for name in program.sides(one)]
            elif one.operation == "call":
                pending.append((one.attribute("to_apply"), times))
    # The loop over the steps of a call runs once; those in it as often as there are steps.
    return [
        {"turns": turns, "kernels": inner, "times": times / steps, "part": where}
        for (turns, inner, where), times in sorted(found.items(), reverse=True)
        if not (steps > 1 and turns == steps and times == 1)
    ]


def branches(program: hlo.Program, computation: str = "", times: int = 1) -> int:
    """How often a branch is taken that depends on the data, for which a GPU may ask the host."""
    count = 0
    for one in program.computations[computation or program.entry]:
        if one.operation == "while":
            count += branches(program, one.attribute("body"), times * program.trips(one))
        elif one.operation == "conditional":
            count += times
            count += sum(branches(program, side, times) for side in program.sides(one))
        elif one.operation == "call":
            count += branches(program, one.attribute("to_apply"), times)
    return count
