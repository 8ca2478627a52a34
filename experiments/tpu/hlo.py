"""Reads a program that the TPU compiler has optimized and scheduled, from its text.

Cycles are those that the compiler estimates for each instruction, times the trips of the loops
around it. It gives none for gathers and scatters, which move one element at a time: theirs are
bundles of instructions counted in the machine code of small programs for a v5e. None of it knows of
stalls or of exchanges between chips: **static figures, good for ratios, not measured speed.**
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

BYTES = {"pred": 1, "s4": 1, "u4": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2}
BYTES |= {"s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8}
COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "all-to-all",
    "collective-broadcast",
    "collective-permute",
    "ragged-all-to-all",
    "reduce-scatter",
)
# Bundles for each element: a gather of single elements, one of short rows, a scatter. Long rows are
# copied, 1,024 bytes in 8 bundles.
ELEMENT, ROW, SCATTER = 13.9, 8.9, 7.7
_SHAPE = re.compile(r"(\w+)\[([\d,]*)\](?:\{([\d,]*)(?::([^}]*))?\})?")
_NAME = r"[\w.\-<>]+"


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",") if number]


@dataclass(frozen=True)
class Shape:
    """An array: its dtype, its sides, the order of its axes from minor to major, and its tiles."""

    dtype: str
    sides: list[int]
    order: list[int]
    tail: str

    @property
    def bytes(self) -> int:
        """Without padding."""
        return BYTES[self.dtype] * math.prod(self.sides)

    @property
    def padded(self) -> int:
        """Bytes with the padding to whole tiles."""
        sides = list(self.sides)
        order = self.order or list(reversed(range(len(sides))))
        if tiles := re.match(r"T\(([\d,]+)\)", self.tail):
            for tile, axis in zip(reversed(_numbers(tiles[1])), order, strict=False):
                sides[axis] = -(-sides[axis] // tile) * tile
        return BYTES[self.dtype] * math.prod(sides)

    @property
    def in_main_memory(self) -> bool:
        """Whether it lies in the chip's large memory (HBM)."""
        return "S(" not in self.tail

    def __str__(self) -> str:
        """As the compiler writes it."""
        return f"{self.dtype}[{','.join(map(str, self.sides))}]"


def shapes(text: str) -> list[Shape]:
    """All arrays of a type."""
    return [
        Shape(dtype, _numbers(sides), _numbers(order), tail)
        for dtype, sides, order, tail in _SHAPE.findall(text)
        if dtype in BYTES
    ]


@dataclass(frozen=True)
class Instruction:
    """A line of a program: ``name = type operation(rest``."""

    name: str
    type: str
    operation: str
    rest: str

    def attribute(self, key: str) -> str:
        """The value of ``key=``; an empty text if there is none."""
        found = re.search(rf"{key}=%?({_NAME})", self.rest)
        return found[1] if found else ""

    @property
    def cycles(self) -> int | None:
        """The compiler's estimate."""
        found = re.search(r'estimated_cycles":"(\d+)"', self.rest)
        return int(found[1]) if found else None

    @property
    def path(self) -> str:
        """Of the functions and modules that it stems from."""
        found = re.search(r'op_name="([^"]*)"', self.rest)
        return found[1] if found else ""

    @property
    def frame(self) -> int:
        """The number of its stack frame; 0 for none."""
        found = re.search(r"stack_frame_id=(\d+)", self.rest)
        return int(found[1]) if found else 0

    @property
    def operands(self) -> list[str]:
        """The names of its operands."""
        depth = 1
        for end, letter in enumerate(self.rest):
            depth += (letter == "(") - (letter == ")")
            if not depth:
                return re.findall(rf"%({_NAME})", self.rest[:end])
        return []


@dataclass
class Program:
    """Instructions by computation, and where in the sources each comes from."""

    computations: dict[str, list[Instruction]] = field(default_factory=dict)
    roots: dict[str, str] = field(default_factory=dict)
    entry: str = ""
    sections: dict[str, dict[int, str]] = field(default_factory=dict)

    @cached_property
    def by_name(self) -> dict[str, Instruction]:
        """Every instruction."""
        return {one.name: one for body in self.computations.values() for one in body}

    def files(self, frame: int) -> list[str]:
        """The source files of the library from the innermost call outwards, after ``jaxmatch/``."""
        found = []
        names, places = self.sections["FileNames"], self.sections["FileLocations"]
        frames = self.sections["StackFrames"]
        while frame in frames:
            location, parent = (
                int(re.search(rf"{key}=(\d+)", frames[frame] + f" {key}=0")[1])  # pyright: ignore
                for key in ("file_location_id", "parent_frame_id")
            )
            name = names[int(re.search(r"file_name_id=(\d+)", places[location])[1])].strip('"')  # pyright: ignore
            if "/jaxmatch/" in name:
                found.append(name.rpartition("/jaxmatch/")[2])
            if parent == frame:
                break
            frame = parent
        return found

    def trips(self, loop: Instruction) -> int:
        """How often the body of a loop runs."""
        if known := re.search(r'known_trip_count":\{"n":"(\d+)"', loop.rest):
            return int(known[1])
        bounds = [
            int(number[1])
            for one in self.computations[loop.attribute("condition")]
            if one.operation == "constant" and one.type.startswith("s32")
            if (number := re.match(r"(\d+)\)", one.rest))
        ]
        return max(bounds, default=1)

    def sides(self, branch: Instruction) -> list[str]:
        """The computations of a conditional, of which one runs."""
        listed = re.search(r"branch_computations=\{([^}]*)\}", branch.rest)
        names = re.findall(rf"%({_NAME})", listed[1]) if listed else []
        return names or [branch.attribute(f"{side}_computation") for side in ("true", "false")]

    def inside(self, one: Instruction) -> Iterator[Instruction]:
        """A fusion's instructions, nested ones too; of others the instruction itself."""
        if one.operation not in ("fusion", "async-start"):
            yield one
            return
        for inner in self.computations.get(one.attribute("calls"), ()):
            yield from self.inside(inner)

    def scheduled(self, computation: str = "", times: int = 1) -> Iterator[tuple[Instruction, int]]:
        """Each instruction that runs, and how often; of a conditional all branches."""
        for one in self.computations[computation or self.entry]:
            if one.operation == "while":
                yield from self.scheduled(one.attribute("body"), times * self.trips(one))
            elif one.operation == "conditional":
                for name in self.sides(one):
                    yield from self.scheduled(name, times)
            elif one.operation == "call":
                yield from self.scheduled(one.attribute("to_apply"), times)
            else:
                yield one, times

    def moved(self, one: Instruction) -> tuple[int, float]:
        """Elements, or rows, that a gather or scatter moves, and its cycles; zeros for others."""
        for inner in self.inside(one):
            if inner.operation == "gather":
                sizes = re.search(r"slice_sizes=\{([\d,]*)\}", inner.rest)
                row = math.prod(_numbers(sizes[1])) if sizes else 1
                result = shapes(inner.type)[0]
                count = math.prod(result.sides) // max(1, row)
                if row > 128:
                    return count, count * max(20, row * BYTES[result.dtype] // 1024 * 8)
                return count, count * (ELEMENT if row == 1 else ROW)
            if inner.operation == "scatter":
                updates = shapes(self.by_name[inner.operands[-1]].type)[0]
                listed = re.search(r"update_window_dims=\{([\d,]*)\}", inner.rest)
                window = _numbers(listed[1]) if listed else []
                count = math.prod(s for axis, s in enumerate(updates.sides) if axis not in window)
                return count, count * SCATTER
        return 0, 0.0


def read(text: str) -> Program:
    """The program of ``compiled.as_text()``."""
    program = Program()
    section: dict[int, str] = {}
    body: list[Instruction] | None = None
    name = ""
    for line in text.splitlines():
        if line in ("FileNames", "FunctionNames", "FileLocations", "StackFrames"):
            section = program.sections.setdefault(line, {})
        elif entry := re.match(r"(\d+) (.*)", line):
            section[int(entry[1])] = entry[2]
        elif head := re.match(rf"(ENTRY )?%({_NAME}) \(.*\{{$", line):
            name = head[2]
            body = program.computations.setdefault(name, [])
            program.entry = name if head[1] else program.entry
        elif line == "}":
            body = None
        elif body is not None and (found := re.match(rf"  (ROOT )?%({_NAME}) = (.*)$", line)):
            type_, rest = _split_type(found[3])
            if found[1]:
                program.roots[name] = found[2]
            if call := re.match(r"([\w\-]+)\((.*)$", rest):
                body.append(Instruction(found[2], type_, call[1], call[2]))
    return program


def _split_type(text: str) -> tuple[str, str]:
    depth = 0
    for end, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0 and (letter == " " or (letter == ")" and text.startswith("("))):
            return text[: end + 1].strip(), text[end + 1 :].strip()
    return text, ""
