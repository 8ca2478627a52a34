"""The images and the cost of a configuration: nothing is compiled or computed."""

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from jaxmatch.algorithms.unequal import innermost
from jaxmatch.config.checks import check_policy
from jaxmatch.config.stages import stage_folders
from jaxmatch.errors import printable
from jaxmatch.evaluation.classifier import load
from jaxmatch.evaluation.selection import Selection
from jaxmatch.evaluation.trunk import read_trunk
from jaxmatch.optim.trained import count_values, trained_part
from jaxmatch.program import Program
from jaxmatch.record import findings, run_data
from jaxmatch.record.settled import settled, standardized
from jaxmatch.runtime.compilation import operations
from jaxmatch.runtime.mesh import device_bytes, tree_bytes
from jaxmatch.weights.transfer import STAGE, source_folder

MOST_ROWS = 20  # of the table of classes
UNITS = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
PARTS = {
    "params": "parameters",
    "stats": "BatchNorm statistics",
    "teacher": "teacher",
    "optimizer": "optimizer",
    "memory": "memory of the method",
    "policy": "augmentation policy",
    "images": "images",
}
STEPS = ("steps", "steps_per_call", "log_every", "eval_every", "save_every")


def describe(config: ConfigDict) -> dict[str, Any]:
    """What was found, what will run, shapes, parameters, bytes on a device, arithmetic of a step.

    ``operations_per_step`` counts floating-point operations as XLA does before optimization. It
    assumes that a frozen network has the architecture of the trained one. ``data`` is what
    :func:`jaxmatch.record.findings.find` returns.

    Returns:
        A JSON object; of a configuration with stages one for each stage, by its folder's name.

    Raises:
        InputError: if the configuration cannot work.
    """
    if "order" in config:
        stages = stage_folders(config)
        return {name: _describe(stage, len(stages)) for name, stage in stages.items()}
    return _describe(config)


def _describe(config: ConfigDict, stages: int = 1) -> dict[str, Any]:
    minutes = config.minutes if config.steps is None else 0.0
    config, chosen = settled(config, stages=stages)
    check_policy(config)
    selection = Selection.of(config)
    data = run_data.with_pseudo_labels(config, run_data.load_new(config))
    config = standardized(config, data.source.images)
    program = Program.build(config, data.facts()).with_stand_ins()
    begins = []
    if config.init_from and not config.init_from.startswith(STAGE):  # a stage has not run yet
        _, sentences = read_trunk(config, Path(), program)
        begins = [*sentences] or [f"init_from={config.init_from}: its encoder."]
    for name in () if config.data.pseudo_labels else config.frozen.values():
        if name and not name.startswith(STAGE):
            load(source_folder(name, Path()))  # refuses what is no run
    found = findings.find(data)
    if selection is not None:
        labels = data.validation_labels
        selection.check(len(program.classes), np.zeros(0, np.int32) if labels is None else labels)
    state, spec = program.state, program.spec
    return {
        "data": found,
        "run": {**_run(config, program, minutes), "chosen": chosen, "begins_from": begins},
        "parameters": count_values(state.params),
        "trained_parameters": count_values(
            trained_part(program.optim.train, state.params, program.algorithm.heads)
        ),
        "shapes": {
            jax.tree_util.keystr(path, simple=True, separator="/"): list(leaf.shape)
            for path, leaf in jax.tree_util.tree_leaves_with_path(state.params)
        },
        "bytes": {
            **{
                name: device_bytes(getattr(state, name), program.mesh, config.memory_placement)
                for name in ("params", "stats", "teacher", "optimizer", "memory", "policy")
            },
            "images": tree_bytes(program.data._replace(frozen=None)),
        },
        "operations_per_step": operations(program.trace(1)),
        "batch": {"labeled": spec.labeled_batch, "unlabeled": spec.unlabeled_batch},
        "devices": program.mesh.size,
    }


def _run(config: ConfigDict, program: Program, minutes: float) -> dict[str, Any]:
    """What will run, as a JSON object; if it may take ``minutes``, its steps are not known yet."""
    algorithm = program.algorithm
    idea = (sys.modules[type(innermost(algorithm)).__module__].__doc__ or "").partition("\n")[0]
    sides = ("depth", "width", "patch", "heads", "stride")
    return {
        "method": config.algorithm.name,
        "idea": idea,
        "network": config.model.name,
        "network_settings": {key: config.model[key] for key in sides if key in config.model},
        "dtype": config.dtype,
        "image_size": list(program.image_shape[:2]),
        "views": {"labeled": list(algorithm.labeled), "unlabeled": list(algorithm.unlabeled)},
        "augment": config.augment,
        "views_preset": config.views_preset,
        "evaluated": algorithm.evaluated,
        "minutes": minutes,
        **{key: None if minutes else config[key] for key in STEPS},
        **{key: config[key] for key in ("keep_best", "select")},
        "platform": program.mesh.devices.flat[0].device_kind,
    }


def page(described: Mapping[str, Any], title: str) -> RenderableType:
    """The content of :func:`describe` for people, 80 columns wide or more."""
    if "batch" in described:
        return Group(*_sections(described, title))
    parts = (_sections(stage, f"{title}: {name}") for name, stage in described.items())
    return Group(*(part for sections in parts for part in sections))


def _sections(found: Mapping[str, Any], title: str) -> Iterable[RenderableType]:
    data, run, batch = found["data"], found["run"], found["batch"]
    yield Text(printable(title), style="bold")
    yield _section("What was found")
    rows = [("data", printable(data["name"])), ("numbers", findings.total(data))]
    yield _pairs([*rows, ("sizes", findings.pixels(data))])
    yield _indented(_classes(data["counts"]))
    yield _pairs(remark.split(": ", 1) for remark in findings.remarks(data))
    yield _section("What will run")
    settings = ", ".join(f"{key} {value}" for key, value in run["network_settings"].items())
    views = {kind: ", ".join(roles) or "none" for kind, roles in run["views"].items()}
    named = f", views={run['views_preset']}" if run["views_preset"] else ""
    strong = f" (strong: {run['augment']}{named})" if "strong" in views["unlabeled"] else ""
    periods = {"log": "log_every", "evaluate": "eval_every", "save": "save_every"}
    steps = f"as many as take {run['minutes']:g} minutes, which the run measures as it begins"
    if not run["minutes"]:
        every = ", ".join(f"{verb} every {run[key]:,}" for verb, key in periods.items())
        steps = f"{run['steps']:,}, {run['steps_per_call']:,} a call; {every}"
    used = f"{run['select']}, which evaluate, predict and export use"
    best = used if run["select"] else run["keep_best"] or "none beside the newest"
    height, width = run["image_size"]
    yield _pairs(
        [
            ("method", run["idea"]),
            ("network", f"{run['network']}, {settings}: {_parameters(found)}"),
            ("images", f"{width}x{height}, {run['dtype']} activations"),
            ("views", f"labeled {views['labeled']}; unlabeled {views['unlabeled']}{strong}"),
            ("a step", f"{batch['labeled']:,} labeled and {batch['unlabeled']:,} unlabeled images"),
            ("steps", steps),
            ("best kept", best),
            ("reported", f"the {run['evaluated']}"),
            ("arithmetic", f"{_short(found['operations_per_step'])} operations a step"),
            ("devices", f"{found['devices']} ({run['platform']})"),
            *(("begins from", sentence) for sentence in run["begins_from"]),
            *(("chosen", note) for note in run["chosen"]),
        ]
    )
    yield _section("Memory on a device, without activations")
    sizes = [(title, found["bytes"][name]) for name, title in PARTS.items() if found["bytes"][name]]
    sizes.append(("together", sum(size for _, size in sizes)))
    yield _pairs((title, f"{_short(size)}B") for title, size in sizes)


def _parameters(found: Mapping[str, Any]) -> str:
    """The number of parameters; with that of those that train, if others do not."""
    count, trained = found["parameters"], found["trained_parameters"]
    part = f", of which {trained:,} are trained" if trained < count else ""
    return f"{count:,} parameters{part}"


def _section(title: str) -> RenderableType:
    return Text(f"\n{title}", style="bold")


def _indented(content: RenderableType) -> RenderableType:
    return Padding(content, (0, 0, 0, 2), expand=False)


def _pairs(rows: Iterable[Iterable[str]]) -> RenderableType:
    """Lines of a name and a text, which is wrapped beside it."""
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True, style="dim")
    table.add_column(overflow="fold")
    for name, text in rows:
        table.add_row(Text(name), Text(text))
    return _indented(table)


def _classes(counts: Mapping[str, Mapping[str, int]]) -> RenderableType:
    """The table of the classes; in the middle of many a line says how many are left out."""
    kinds = [kind for kind in findings.KINDS if any(each[kind] for each in counts.values())]
    if not kinds:
        return Text("no class is known")
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("class", overflow="fold", header_style="dim")
    for kind in kinds:
        table.add_column(kind, justify="right", header_style="dim")
    names = list(counts)
    shown = names if len(names) <= MOST_ROWS else [*names[: MOST_ROWS // 2], *names[-3:]]
    for name in shown:
        if len(shown) < len(names) and name == names[-3]:
            table.add_row(f"... {len(names) - len(shown):,} more")
        row = [f"{counts[name][kind]:,}" for kind in kinds]
        table.add_row(Text(printable(name)), *row)
    return table


def _short(number: float | None) -> str:
    """A number with three digits and a unit of thousands; "unknown" for None."""
    if number is None:
        return "unknown"
    for size, unit in UNITS:
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.3g}"
