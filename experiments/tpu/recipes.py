"""The default recipe of every method, compiled for a topology and recorded.

    python -m experiments.tpu.recipes --topology=v5e:8x8
    python -m experiments.tpu.recipes --topology=v5e:8x8 fixmatch:tfds:cifar10 moco_v2:tfds:cifar10
    python -m experiments.tpu.recipes --table

Each recipe is compiled in a process of its own, by the command of :mod:`experiments.tpu`, and adds
a line to ``recipes.jsonl`` beside this file. One that has a line for the topology is passed over,
so the command goes on where it was stopped. A recipe that a run would refuse, because a chip has no
room for its step, is not compiled. One that does not compile has a line with the compiler's
message. Each line has the bytes that a run estimates. Where a recipe's batch does not divide over
the chips, it is scaled (the README's ``scale=K``) by the smallest factor that makes it.
``--estimate`` records what a run estimates alone, in seconds. ``--less-effort`` compiles in an
eighth of the time, to tell whether a recipe fits; its times say nothing. ``--table`` prints what
was recorded as a Markdown table.
"""

import argparse
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.tpu import topology
from experiments.tpu.__main__ import commit
from experiments.tpu.program import facts_of
from jaxmatch.algorithms import build_algorithm
from jaxmatch.config.flags import from_flags
from jaxmatch.errors import InputError
from jaxmatch.program import Program
from jaxmatch.training.footprint import check_step, estimate

RECORDED = Path(__file__).with_name("recipes.jsonl")
CONFIGS = Path(__file__).parents[2] / "configs"
CIFAR, IMAGENET = "tfds:cifar10", "tfds:imagenet2012"
COMPILED = {"error", "memory", "refused"}  # a line has one of these, or an estimate alone
KEPT = 3  # of the largest buffers
MESSAGE = 400  # characters
# What a program would hold, in both forms in which the compiler tells it as it gives up.
USED = re.compile(r"(?:Used |HLO temporaries \()([\d.]+)([MG])\)? (?:of|exceeds)")
UNITS = {"M": 2**20, "G": 2**30}


def recipes() -> list[str]:
    """The ``--config`` arguments: each method on CIFAR-10, and on ImageNet where it has settings.

    A recipe of stages is left out; each of its stages is a recipe here.
    """
    found = []
    for path in sorted(CONFIGS.glob("[!_]*.py")):
        for data in (CIFAR, IMAGENET):
            config, _ = from_flags(f"{path.stem}:{data}", [])
            if "order" not in config and (data == CIFAR or config.model.name.startswith("resnet")):
                found.append(f"{path.stem}:{data}")
    return found


def fitting(recipe: str, chips: int) -> str:
    """The recipe with the ``scale=K`` that it takes to divide over the chips, if it takes one."""
    config, _ = from_flags(recipe, [])
    algorithm, size = build_algorithm(config.algorithm), config.data.batch_size
    batches = [size] * bool(algorithm.labeled)
    batches += [size * config.data.ratio] * bool(algorithm.unlabeled)
    # The batch is a whole number times what each set adds to it.
    factor = chips // math.gcd(chips, *batches)
    return recipe if factor == 1 else f"{recipe},scale={factor}"


def lines() -> list[dict[str, Any]]:
    """What was recorded."""
    if not RECORDED.exists():
        return []
    return [json.loads(line) for line in RECORDED.read_text().splitlines()]


def estimated(recipe: str, where: str, devices: Sequence[Any]) -> dict[str, Any]:
    """The bytes of a chip that a run estimates for a recipe's step, and whether it refuses it."""
    config, _ = from_flags(recipe, [])
    program = Program.build(config, facts_of(config), devices).with_stand_ins()
    told: dict[str, Any] = {"config": recipe, "topology": where, "what": "step", "commit": commit()}
    told["estimate"] = estimate(program)
    try:
        check_step(program)
    except InputError as error:
        told["refused"] = str(error)
    return told


def compiled(
    recipe: str, where: str, devices: Sequence[Any], what: str, effort: float = 0
) -> dict[str, Any]:
    """What :mod:`experiments.tpu` prints of a recipe, or why it failed, with a run's estimate.

    Args:
        recipe: the ``--config`` argument.
        where: the topology.
        devices: of the topology.
        what: "step", "augment" or "feed".
        effort: of the compiler, from -1 to 1; 0 is its default.
    """
    told: dict[str, Any] = {"config": recipe, "topology": where, "what": what, "commit": commit()}
    if what == "step":
        told = estimated(recipe, where, devices)
        if "refused" in told:
            return told
    command = [sys.executable, "-m", "experiments.tpu", f"--config={recipe}"]
    command += [f"--topology={where}", f"--what={what}"]
    settings = {**os.environ, "JAX_EXEC_TIME_OPTIMIZATION_EFFORT": str(effort)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=settings)
    if effort:
        told["effort"] = effort
    if done.returncode != 0:
        return {**told, **failure(done.stderr)}
    found = json.loads(done.stdout.splitlines()[-1])
    found["largest_buffers"] = found["largest_buffers"][:KEPT]
    return {**told, **found}


def failure(text: str) -> dict[str, Any]:
    """The message at the end of a failed process's output, and the bytes that did not fit."""
    raised = [
        line for line in text.splitlines() if re.match(r"[\w.]+(Error|Exit|Exhausted)\b", line)
    ]
    message = raised[-1] if raised else text.strip()[-MESSAGE:]
    used = USED.search(text)
    held = round(float(used[1]) * UNITS[used[2]]) if used else None
    return {"error": message[:MESSAGE], "held": held}


def table(found: Iterable[Mapping[str, Any]], what: str = "step") -> str:
    """Markdown: megabytes held, and estimated before, and static milliseconds a step.

    A row is a recipe, a column a topology. The newest line of a recipe counts, of those with the
    most effort.
    """
    newest: dict[tuple[str, str], Mapping[str, Any]] = {}
    for line in found:
        key = (line["config"].partition(",")[0], line["topology"])
        if line["what"] == what and knows(line) >= knows(newest.get(key)):
            newest[key] = line
    places = sorted({where for _, where in newest}, key=chips)
    rows = [
        "| recipe | " + " | ".join(f"{where}, {chips(where)} chips" for where in places) + " |",
        "|---|" + "---|" * len(places),
    ]
    for recipe in sorted({recipe for recipe, _ in newest}):
        cells = [cell(newest.get((recipe, where))) for where in places]
        rows.append(f"| `{recipe}` | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def knows(line: Mapping[str, Any] | None) -> int:
    """How much a line tells: an estimate 0, a compilation with less effort 1, all else 2."""
    if line is None or not line.keys() & COMPILED:
        return 0
    return 1 if "effort" in line else 2


def cell(line: Mapping[str, Any] | None) -> str:
    """What :func:`table` has of one recipe on one topology, or why that has no program."""
    if line is None:
        return ""
    scale = "".join(re.findall(r",(scale=\d+)", line["config"]))
    note = f"; {scale}" if scale else ""
    guess = f"{sum(line['estimate'].values()) / 1e6:,.0f}" if "estimate" in line else "?"
    if "refused" in line:
        return f"refused ({guess}{note})"
    if not knows(line):
        return f"({guess}{note})"
    if "error" in line:
        need = f"{line['held'] / 1e6:,.0f}" if line["held"] else "does not compile"
        return f"**{need}** ({guess}{note})"
    if "effort" in line:
        return f"~{line['memory']['held'] / 1e6:,.0f} ({guess}{note})"
    time = f", {line['static_ms']:.2f} ms" if "static_ms" in line else ""  # none of GPUs
    return f"{line['memory']['held'] / 1e6:,.0f} ({guess}{note}){time}"


def chips(where: str) -> int:
    """Of a topology."""
    return math.prod(int(side) for side in where.partition(":")[2].split("x"))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("recipes", nargs="*", help="by default all")
    parser.add_argument("--topology", default="v5e:8x8")
    parser.add_argument("--what", default="step", choices=("step", "augment", "feed"))
    parser.add_argument("--estimate", action="store_true", help="compile nothing")
    parser.add_argument("--less-effort", action="store_true", help="of the compiler")
    parser.add_argument("--table", action="store_true")
    chosen = parser.parse_args(arguments)
    if chosen.table:
        print(table(lines(), chosen.what))
        return
    devices = topology.devices(chosen.topology)
    effort = -1 if chosen.less_effort else 0
    enough = 0 if chosen.estimate else 2 + effort
    done = {
        (line["config"], line["topology"], line["what"])
        for line in lines()
        if knows(line) >= enough
    }
    for recipe in chosen.recipes or recipes():
        name = fitting(recipe, chips(chosen.topology))
        if (name, chosen.topology, chosen.what) in done:
            continue
        if chosen.estimate:
            found = estimated(name, chosen.topology, devices)
        else:
            found = compiled(name, chosen.topology, devices, chosen.what, effort)
        line = json.dumps(found)
        with RECORDED.open("a") as file:
            file.write(line + "\n")
        print(line, flush=True)


if __name__ == "__main__":
    main()
