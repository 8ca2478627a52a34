"""The results of runs, read from their folders and grouped by configuration.

A group holds the runs whose configurations differ only in the seed.
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
from jaxmatch.config.own import PAPER
from jaxmatch.config.saved import complete, tells_apart, to_json
from jaxmatch.config.stages import stage_folders
from jaxmatch.errors import InputError
from jaxmatch.evaluation.comparison import ON_FEATURES
from jaxmatch.record import findings
from jaxmatch.record.folder import RunFolder
from jaxmatch.record.metrics import accuracies
from jaxmatch.record.metrics import read as read_metrics
from jaxmatch.report.labels import differing, labels_of
from jaxmatch.runtime import paths

UNSET = ("", [], (), None)
STRONG_VIEWS = {"ctaugment": "ctaugment", "contrast": "contrast"}  # by ``augment``
ACCURACIES = ("last", "mean_20", "median_20", "best")
FILES = ("init_from", "data.split", "data.pseudo_labels")  # often one for each seed


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One training run of a run folder; a run without stages has exactly one.

    Attributes:
        name: of the stage's folder inside the run folder; "" if the run has no stages.
        settings: by dotted key, with defaults filled in.
        lines: of ``metrics.jsonl``.
        summary: of ``summary.json``; before the end, the values that are known so far.
        finished: whether ``summary.json`` exists.
        findings: what was found where the images are; None for a run of an older version.
        baselines: of ``baselines.json``; None if they are not measured.
        calibration: of ``calibration.json`` at the last step; None if there is none.
    """

    name: str
    settings: Mapping[str, Any]
    lines: Sequence[Mapping[str, Any]]
    summary: Mapping[str, Any]
    finished: bool
    findings: Mapping[str, Any] | None = None
    baselines: Mapping[str, Any] | None = None
    calibration: Mapping[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class Run:
    """The content of a run folder; the result of a run in stages is that of its last stage."""

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
    def baselines(self) -> Mapping[str, Any] | None:
        """The baselines for the run's labels; None if they are not measured."""
        return self.stages[-1].baselines

    @property
    def evaluated(self) -> str:
        """The network that the method reports, "teacher" or "student"."""
        return self.stages[-1].summary["evaluated"]

    def accuracy(self, kind: str, network: str) -> float | None:
        """One of :data:`ACCURACIES` of "teacher" or "student"."""
        return (self.stages[-1].summary.get(network) or {}).get(kind)

    def validation(self, kind: str = "last") -> float | None:
        """One of :data:`ACCURACIES` of the reported network on the validation set."""
        networks = self.stages[-1].summary.get("validation") or {}
        return (networks.get(self.evaluated) or {}).get(kind)

    def selected(self) -> float | None:
        """The test accuracy of the reported network at the checkpoint that ``keep_best`` chose."""
        best = self.stages[-1].summary.get("best") or {}
        return best.get("test", {}).get(self.evaluated, {}).get("accuracy")

    def balanced(self) -> float | None:
        """The balanced test accuracy of the reported network after the last step."""
        reported = self.stages[-1].summary.get(self.evaluated) or {}
        return (reported.get("metrics") or {}).get("balanced_accuracy")

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
        """The settings that distinguish groups of runs, so without the seed."""
        own = rf"([-_])s(eed)?[-_=]?{self.settings['seed']}(?!\d)(-[0-9a-f]{{8}})?"
        found = {}
        for stage in self.stages:
            prefix = "" if stage is self.stages[-1] else f"{stage.name} "
            chosen = _chosen_by_run(stage.settings)
            for key, value in stage.settings.items():
                if key == "seed" or key in chosen or not tells_apart(key):
                    continue
                if key in FILES or key.startswith("frozen."):
                    # Each seed of a group may read the file or run of its own seed.
                    value = re.sub(own, r"\1s", str(value))
                found[prefix + key] = value
        return found


def _chosen_by_run(settings: Mapping[str, Any]) -> set[str]:
    """The settings that a run on own images chooses from its training images or its speed."""
    found = set()
    if settings.get("size") not in (None, "", PAPER):
        found |= {"data.mean", "data.std"}
    if settings.get("minutes"):
        found |= {"steps", "eval_every"}
    return found


@dataclass(frozen=True, kw_only=True)
class Group:
    """Runs that differ in the seed only."""

    label: str
    runs: tuple[Run, ...]
    differs: Mapping[str, Any]  # the settings that differ between the groups

    @property
    def counted(self) -> tuple[Run, ...]:
        """The runs behind the group's numbers: the finished ones, or all if none is finished."""
        return tuple(run for run in self.runs if run.finished) or self.runs

    @property
    def bins(self) -> dict[str, dict[str, list[float]]]:
        """CTAugment's weights by op and parameter, as means over the runs; empty without it."""
        summaries = [run.stages[-1].summary for run in self.counted]
        bins = [summary["ctaugment"] for summary in summaries if summary.get("ctaugment")]
        return jax.tree.map(lambda *weights: statistics.fmean(weights), *bins) if bins else {}


@dataclass(frozen=True, kw_only=True)
class Baselines:
    """The baselines of runs on the same data with equally many labels.

    Attributes:
        data: the name of the data set.
        labels: the number of labels, as configured.
        measured: the content of ``baselines.json``, once for each choice of labeled images.
        network: ``init_from`` of the runs whose network's features they learned from; "" for
            baselines on pixels.
    """

    data: str
    labels: str
    measured: tuple[Mapping[str, Any], ...]
    network: str = ""

    @property
    def seeds(self) -> list[str]:
        """The seeds of the runs that they were measured for."""
        return [str(some["seed"]) for some in self.measured]


def baselines(groups: Iterable[Group]) -> list[Baselines]:
    """The baselines of the runs behind the numbers of ``groups``, on pixels and on features apart.

    Runs on the same images share those on pixels, runs from the same network those on features.
    """
    found: dict[tuple[str, ...], dict[str, Mapping[str, Any]]] = {}
    for run in (run for group in groups for run in group.counted):
        if run.baselines is None:
            continue
        # Images of another size are other pixels.
        key = *(str(run.settings[f"data.{k}"]) for k in ("name", "labels")), _pixels(run)
        for network in ("", str(run.identity()["init_from"])):
            some = {
                name: one
                for name, one in run.baselines["baselines"].items()
                if name.startswith(ON_FEATURES) == bool(network)
            }
            if some:
                by_split = found.setdefault((*key, network), {})
                by_split.setdefault(run.baselines["split"], {**run.baselines, "baselines": some})
    return [
        Baselines(data=data, labels=labels, measured=tuple(by_split.values()), network=network)
        for (data, labels, _, network), by_split in found.items()
    ]


def read(folder: str | Path) -> Run:
    """Read a run folder, finished or not.

    Raises:
        InputError: if it is not a run folder, or has no metrics yet.
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
    """Group runs, in the order of their first runs; every group gets a unique label."""
    members: dict[str, list[Run]] = {}
    for run in runs:
        members.setdefault(json.dumps(run.identity(), sort_keys=True), []).append(run)
    found = [sorted(group, key=lambda run: run.settings["seed"]) for group in members.values()]
    identities = [json.loads(text) for text in members]
    labels = labels_of([group[0].method for group in found], identities)
    return [
        Group(label=label, runs=tuple(group), differs=differing(identity, identities))
        for group, identity, label in zip(found, identities, labels, strict=True)
    ]


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
        findings=findings.read(folder / name),
        baselines=RunFolder(folder / name).read_baselines(),
        calibration=RunFolder(folder / name).read_calibrations().get(lines[-1]["step"])
        if lines
        else None,
    )


def _so_far(config: Mapping[str, Any], lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The values of a summary that are known before a run has finished."""
    evaluated = "teacher"
    with suppress(InputError):  # this version may not know the algorithm
        evaluated = build_algorithm(complete(config).algorithm).evaluated
    probed = [line["probe/knn"] for line in lines if "probe/knn" in line]
    return {
        "evaluated": evaluated,
        "teacher": accuracies(lines, "test/teacher/accuracy"),
        "student": accuracies(lines, "test/student/accuracy"),
        "validation": {
            network: accuracies(lines, f"validation/{network}/accuracy")
            for network in ("teacher", "student")
        },
        "probe": {"knn": probed[-1]} if probed else None,
        "steps": lines[-1]["step"] if lines else 0,
        "seconds": lines[-1].get("time/seconds") if lines else 0,
    }


def used_settings(run: Run) -> dict[str, Any]:
    """The settings of a run without empty ones and those of views that it does not draw."""
    settings = {key: value for key, value in run.identity().items() if value not in UNSET}
    name = "algorithm."
    values = {
        key.removeprefix(name): value for key, value in run.settings.items() if key.startswith(name)
    }
    try:
        algorithm = build_algorithm(values)
    except InputError:  # of another version
        return settings
    strong = STRONG_VIEWS.get(run.settings["augment"], "strong")
    drawn = {"weak", *(strong if role == "strong" else role for role in algorithm.labeled)}
    drawn |= {strong if role == "strong" else role for role in algorithm.unlabeled}
    if "strong" in algorithm.unlabeled:
        drawn.add("crops")
    return {
        key: value
        for key, value in settings.items()
        if not key.startswith("views.") or key.split(".")[1] in drawn
    }


def _pixels(run: Run) -> str:
    """The size of the images that a run's baselines were measured on."""
    return str((run.baselines or {}).get("pixels"))
