"""One step of a configuration as a compiled program, from shapes alone, and what devices send."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxmatch import build
from jaxmatch.data import streaming
from jaxmatch.data.lazy import Files, LazyImages
from jaxmatch.data.resident import Resident
from jaxmatch.dispatch import make_call
from jaxmatch.parallel import replicated, state_shardings
from jaxmatch.types import PyTree, TrainState

KINDS = (
    "all-gather",
    "all-reduce",
    "all-to-all",
    "collective-broadcast",
    "collective-permute",
    "ragged-all-to-all",
    "reduce-scatter",
)
ITEM_BYTES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2}
ITEM_BYTES |= {"s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8}


@dataclass(frozen=True, kw_only=True)
class Collective:
    """One exchange between devices, after XLA has combined those that can go together."""

    kind: str
    arrays: tuple[tuple[str, tuple[int, ...]], ...]  # dtype and shape of each result on a device
    line: str  # of the program

    @property
    def bytes(self) -> int:
        """Of all results on one device."""
        return sum(ITEM_BYTES[dtype] * math.prod(shape) for dtype, shape in self.arrays)


def collectives(text: str) -> list[Collective]:
    """The exchanges of a program, given by ``compiled.as_text()`` for CPUs, in its order.

    Raises ValueError on an asynchronous one, whose results XLA writes in another form.
    """
    kinds = "|".join(KINDS)
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


@dataclass(frozen=True, kw_only=True)
class Program:
    """A step before and after compilation; ``state`` are shapes."""

    parts: build.Parts
    state: TrainState
    places: PyTree
    traced: Any

    def compile(self, quick: bool = False) -> Any:
        """For the devices at hand; ``quick`` leaves out LLVM's optimisations, not XLA's."""
        options = {"xla_backend_optimization_level": 0} if quick else {}
        return self.traced.lower().compile(compiler_options=options)


def facts(
    *, side: int = 32, classes: int = 10, labels: int = 400, unlabeled: int = 50_000
) -> dict[str, Any]:
    """Of a data set that need not exist, as ``run_data.Data.facts`` gives them."""
    return {
        "classes": [str(number) for number in range(classes)],
        "image_shape": (side, side, 3),
        "labels": [index % classes for index in range(labels)],
        "unlabeled": unlabeled,
    }


def lower_step(config: ConfigDict, facts: Mapping[str, Any]) -> Program:
    """One step as training runs it on a CPU, the state donated; no image is allocated."""
    parts = build.build_parts(config, facts)
    optimizer = parts.optim.build(config.steps, parts.model.layers)
    state = jax.eval_shape(lambda: build.build_state(config, parts, optimizer))
    places = state_shardings(state, parts.mesh, config.memory_placement)
    everywhere = replicated(parts.mesh)

    def images(count: int) -> Any:
        if config.data.stream:
            height, width, _ = parts.image_shape
            nowhere = Files(root=Path(), paths=())
            rows = np.zeros(count, np.int64)
            return LazyImages(records=nowhere, rows=rows, size=(height, width))
        return jax.ShapeDtypeStruct((count, *parts.image_shape), np.uint8)

    def labels(count: int) -> Any:
        return jax.ShapeDtypeStruct((count,), np.int32)

    labeled, unlabeled = len(facts["labels"]), facts["unlabeled"]
    data: Any = Resident(images(labeled), labels(labeled), images(unlabeled), labels(unlabeled))
    data_places: Any = everywhere
    if config.data.stream:
        data = streaming.shapes(build.build_plan(config, parts, data), parts.mesh)
        data_places = streaming.places(data)
    call = jax.jit(
        make_call(build.build_step(config, parts, optimizer), build.examples_of(parts), 1),
        in_shardings=(places, data_places),
        out_shardings=(places, everywhere),
        donate_argnums=0,
    )
    return Program(parts=parts, state=state, places=places, traced=call.trace(state, data))
