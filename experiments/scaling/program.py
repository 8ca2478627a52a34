"""One step as a compiled program, from shapes alone, and what its devices send each other."""

import math
import re
from dataclasses import dataclass
from typing import Any

from experiments.tpu.hlo import BYTES, COLLECTIVES
from jaxmatch.data.facts import Facts
from jaxmatch.program import Program


@dataclass(frozen=True, kw_only=True)
class Collective:
    """One exchange between devices, after XLA has combined those that can go together."""

    kind: str
    arrays: tuple[tuple[str, tuple[int, ...]], ...]  # dtype and shape of each result on a device
    line: str  # of the program

    @property
    def bytes(self) -> int:
        """Of all results on one device."""
        return sum(BYTES[dtype] * math.prod(shape) for dtype, shape in self.arrays)


def collectives(text: str) -> list[Collective]:
    """The exchanges of a program, given by ``compiled.as_text()`` for CPUs, in its order.

    Raises ValueError on an asynchronous one, whose results XLA writes in another form.
    """
    kinds = "|".join(COLLECTIVES)
    found = []
    for line in text.splitlines():
        match = re.search(rf"= (.*?) ({kinds})(-start)?\(", line)
        if match is None:
            continue
        results, kind, asynchronous = match.groups()
        if asynchronous:
            raise ValueError(f"an asynchronous exchange: {line.strip()}")
        arrays = tuple(
            (dtype, tuple(int(size) for size in shape.split(",") if size))
            for dtype, shape in re.findall(r"(\w+)\[([\d,]*)\]", results)
        )
        found.append(Collective(kind=kind, arrays=arrays, line=line.strip()))
    return found


def facts(
    *, side: int = 32, classes: int = 10, labels: int = 400, unlabeled: int = 50_000
) -> Facts:
    """Of a data set that need not exist."""
    return Facts(
        classes=tuple(str(number) for number in range(classes)),
        image_shape=(side, side, 3),
        labels=tuple(index % classes for index in range(labels)),
        unlabeled=unlabeled,
    )


def compile_quickly(program: Program) -> Any:
    """One step, compiled without LLVM's optimisations, but with all of XLA's."""
    options: dict[str, str | bool] = {"xla_backend_optimization_level": "0"}
    return program.trace(steps_per_call=1).lower().compile(compiler_options=options)
