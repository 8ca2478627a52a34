"""The results of runs as their folders tell them, grouped by configuration, with tables over seeds.

Runs of one configuration apart from the seed are a group; its figures are mean ± sample standard
deviation over its finished runs, as the tables of the semi-supervised literature give them.
"""

import json
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from jaxmatch.algorithms import build_algorithm
from jaxmatch.config.dotted import flatten
from jaxmatch.config.saved import complete, tells_apart, to_json
from jaxmatch.config.stages import stage_folders
from jaxmatch.errors import InputError
from jaxmatch.record.folder import RunFolder
from jaxmatch.record.metrics import accuracies
from jaxmatch.record.metrics import read as read_metrics
from jaxmatch.runtime import paths

ACCURACIES = ("last", "mean_20", "median_20", "best")
# Settings with a column of their own, or part of a group's name.
NAMED = {"recipe", "algorithm.name", "data.name", "data.labels"}


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One training run of a run folder, which has several if it is staged."""

    name: str  # of its folder inside the run's; "" if it is the run itself
    settings: Mapping[str, Any]  # flat, defaults filled in
    lines: Sequence[Mapping[str, Any]]
    summary: Mapping[str, Any]  # of an unfinished one what can be said so far
    finished: bool


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a run folder says of its run; of a staged one the last stage is the result."""

    folder: Path
    method: str
    stages: tuple[Stage, ...]

    @property
    def settings(self) -> Mapping[str, Any]:
        """The last stage's settings by dotted key."""
        return self.stages[-1].settings

    @property
    def finished(self) -> bool:
        """Whether the last stage has finished."""
        return self.stages[-1].finished

    @property
    def evaluated(self) -> str:
        """The network that the method reports, "teacher" or "student"."""
        return self.stages[-1].summary["evaluated"]

    def accuracy(self, kind: str, network: str) -> float | None:
        """One of :data:`ACCURACIES` of "teacher" or "student"."""
        return (self.stages[-1].summary.get(network) or {}).get(kind)

    def cost(self, key: str, part: str = "") -> float | None:
        """``summary[key]``, or its ``part``, summed over the stages."""
        total = 0.0
        for stage in self.stages:
            value = stage.summary.get(key)
            if value is None:
                return None
            total += value[part] if part else value
        return total

    def identity(self) -> dict[str, Any]:
        """The settings that tell runs apart, without the seed."""
        own = rf"([-_])s(eed)?[-_=]?{self.settings['seed']}(?!\d)(-[0-9a-f]{{8}})?"
        found = {}
        for stage in self.stages:
            prefix = "" if stage is self.stages[-1] else f"{stage.name} "
            for key, value in stage.settings.items():
                if key == "seed" or not tells_apart(key):
                    continue
                if key in ("init_from", "data.split") or key.startswith("frozen."):
                    # Files of the same seed are no difference between the seeds of a group.
                    value = re.sub(own, r"\1s", str(value))
                found[prefix + key] = value
        return found


@dataclass(frozen=True, kw_only=True)
class Group:
    """Runs that differ in the seed only."""

    label: str
    runs: tuple[Run, ...]
    differs: Mapping[str, Any]  # the settings that other groups have otherwise

    @property
    def counted(self) -> tuple[Run, ...]:
        """The runs that the group's figures are taken over: the finished ones, if any is."""
        return tuple(run for run in self.runs if run.finished) or self.runs

    @property
    def bins(self) -> dict[str, dict[str, list[float]]]:
        """CTAugment's weights by op and parameter, the mean over the runs; empty without it."""
        every = [run.stages[-1].summary.get("ctaugment") for run in self.counted]
        learned = [bins for bins in every if bins]
        return jax.tree.map(lambda *weights: statistics.fmean(weights), *learned) if learned else {}


def read(folder: str | Path) -> Run:
    """Read a run folder, finished or not.

    Raises:
        InputError: if it is none, or holds no metrics yet.
    """
    folder = paths.path(folder)
    values = RunFolder(folder).read_config()
    if values is None:
        raise InputError(f"{folder} is no run folder: it has no config.json.")
    try:
        stages = stage_folders(values) if "order" in values else {"": values}
        found = tuple(_stage(folder, name, stage) for name, stage in stages.items())
        method = values.get("recipe") or values["algorithm"]["name"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunFolder(folder).damaged("its settings are not those of a run") from error
    if not any(stage.lines or stage.finished for stage in found):
        raise InputError(f"{folder} has no metrics yet; report it once it has logged some.")
    return Run(folder=folder, method=method, stages=found)


def group(runs: Iterable[Run]) -> list[Group]:
    """Sort runs into groups, in order of their first runs, each with a name of its own."""
    members: dict[str, list[Run]] = {}
    for run in runs:
        members.setdefault(json.dumps(run.identity(), sort_keys=True), []).append(run)
    found = [sorted(group, key=lambda run: run.settings["seed"]) for group in members.values()]
    identities = [json.loads(text) for text in members]
    labels = _labels([group[0].method for group in found], identities)
    return [
        Group(label=label, runs=tuple(group), differs=_differing(identity, identities))
        for group, identity, label in zip(found, identities, labels, strict=True)
    ]


def table(groups: Sequence[Group]) -> list[dict[str, str]]:
    """A row of text for each group, by column; accuracies in percent."""
    return _without_empty(
        [
            {
                "method": group.label,
                "data": str(group.runs[0].settings["data.name"]),
                "labels": str(group.runs[0].settings["data.labels"]),
                "seeds": _seeds(group),
                **_figures(group.counted),
                "differs in": _settings(group.differs),
            }
            for group in groups
        ]
    )


def runs_table(groups: Sequence[Group]) -> list[dict[str, str]]:
    """A row for each run."""
    return _without_empty(
        [
            {
                "method": group.label,
                "seed": str(run.settings["seed"]),
                "status": "finished" if run.finished else "running",
                **_figures([run]),
                "earlier stages": "; ".join(map(_earlier, run.stages[:-1])),
                "folder": str(run.folder),
            }
            for group in groups
            for run in group.runs
        ]
    )


def table_text(groups: Sequence[Group]) -> str:
    """The table of groups in aligned columns."""
    rows = table(groups)
    columns = list(rows[0]) if rows else []
    widths = [max(len(column), *(len(row[column]) for row in rows)) for column in columns]
    lines = [columns, ["-" * width for width in widths], *(list(row.values()) for row in rows)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def _stage(folder: Path, name: str, config: Mapping[str, Any]) -> Stage:
    settings = flatten(to_json(complete(config)))
    for fact in [key for key in settings if key.startswith("facts.")]:
        del settings[fact]
    lines = read_metrics(folder / name)
    summary = RunFolder(folder / name).read_summary()
    return Stage(
        name=name,
        settings=settings,
        lines=lines,
        summary=_so_far(config, lines) if summary is None else summary,
        finished=summary is not None,
    )


def _so_far(config: Mapping[str, Any], lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What of a summary can be said of a run that has not finished."""
    evaluated = "teacher"
    with suppress(InputError):  # of another version's algorithm
        evaluated = build_algorithm(complete(config).algorithm).evaluated
    probed = [line["probe/knn"] for line in lines if "probe/knn" in line]
    return {
        "evaluated": evaluated,
        "teacher": accuracies(lines, "test/teacher/accuracy"),
        "student": accuracies(lines, "test/student/accuracy"),
        "probe": {"knn": probed[-1]} if probed else None,
        "steps": lines[-1]["step"] if lines else 0,
        "seconds": lines[-1].get("time/seconds") if lines else 0,
    }


def _differing(identity: Mapping[str, Any], others: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The settings that are not the same in ``others``; an algorithm's own, among its like."""
    name = identity["algorithm.name"]
    differing = {}
    for key, value in identity.items():
        own = key.startswith("algorithm.")
        compared = [
            other
            for other in others
            if key in other and (not own or other["algorithm.name"] == name)
        ]
        if key not in NAMED and any(other[key] != value for other in compared):
            differing[key] = value
    return differing


def _labels(methods: Sequence[str], identities: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names that tell groups apart: the method, then labels, data, other settings where needed."""
    labels = list(methods)
    for key, text in (("data.labels", "{}, {} labels"), ("data.name", "{}, {}")):
        if len({str(identity[key]) for identity in identities}) > 1:
            labels = [
                text.format(label, identity[key])
                for label, identity in zip(labels, identities, strict=True)
            ]
    named = []
    for label, identity in zip(labels, identities, strict=True):
        same = [other for other, like in zip(identities, labels, strict=True) if like == label]
        differs = _differing(identity, same)
        short = {key.rpartition(".")[2]: value for key, value in list(differs.items())[:3]}
        name = f"{label}, {_settings(short)}" if short else label
        named.append(name if name not in named else f"{name} ({named.count(name) + 1})")
    return named


def _figures(runs: Sequence[Run]) -> dict[str, str]:
    """The columns that a group and a single run share."""
    probes = [run.stages[-1].summary.get("probe") or {} for run in runs]

    def cost(key: str, part: str = "") -> str:
        known = [value for run in runs if (value := run.cost(key, part)) is not None]
        return f"{statistics.fmean(known):,.0f}" if known else ""

    return {
        "reported": runs[0].evaluated,
        **{
            kind: _percent(run.accuracy(kind, run.evaluated) for run in runs) for kind in ACCURACIES
        },
        "teacher last": _percent(run.accuracy("last", "teacher") for run in runs),
        "student last": _percent(run.accuracy("last", "student") for run in runs),
        "k-NN": _percent(probe.get("knn") for probe in probes),
        "linear probe": _percent(probe.get("linear") for probe in probes),
        "steps": cost("steps"),
        "labeled seen": cost("images_seen", "labeled"),
        "unlabeled seen": cost("images_seen", "unlabeled"),
        "seconds": cost("seconds"),
    }


def _percent(values: Iterable[float | None]) -> str:
    """Mean ± sample standard deviation of fractions, in percent."""
    known = [100 * value for value in values if value is not None]
    if len(known) < 2:
        return f"{known[0]:.1f}" if known else ""
    return f"{statistics.fmean(known):.1f} ± {statistics.stdev(known):.1f}"


def _seeds(group: Group) -> str:
    seeds = ", ".join(str(run.settings["seed"]) for run in group.counted)
    text = f"{len(group.counted)} ({seeds})"
    if not group.counted[0].finished:
        return f"{text}, running"
    left = len(group.runs) - len(group.counted)
    return f"{text}, {left} more running" if left else text


def _settings(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in values.items())


def _without_empty(rows: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """Rows without the columns in which none has anything."""
    return [
        {column: text for column, text in row.items() if any(other[column] for other in rows)}
        for row in rows
    ]


def _earlier(stage: Stage) -> str:
    """What a table says of a stage before the last."""
    probe = stage.summary.get("probe") or {}
    shown = {name: f"{100 * value:.1f}" for name, value in probe.items() if value is not None}
    return f"{stage.name} ({_settings({'steps': stage.summary['steps'], **shown})})"
