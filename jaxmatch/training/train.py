"""Train one run, or its stages one after another, from the configuration to the summary."""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from jaxmatch.config import extending, saved
from jaxmatch.config.checks import check_policy, check_settings
from jaxmatch.config.own import with_usual_input
from jaxmatch.config.stages import stage_folders, with_stages
from jaxmatch.errors import InputError
from jaxmatch.evaluation.probe import missing
from jaxmatch.evaluation.selection import Selection
from jaxmatch.program import Program
from jaxmatch.record import findings, run_data
from jaxmatch.record.data import Data
from jaxmatch.record.folder import RunFolder
from jaxmatch.record.settled import settled, standardized
from jaxmatch.runtime import hosts, paths
from jaxmatch.runtime.checkpoint import Checkpoints, check_place
from jaxmatch.runtime.dispatch import Call
from jaxmatch.runtime.termination import Stop, termination_noted
from jaxmatch.training import pace
from jaxmatch.training import stages as stages_of_run
from jaxmatch.training.frozen import frozen_runs, load_frozen
from jaxmatch.training.run import Run
from jaxmatch.training.shared import Shared

log = logging.getLogger(__name__)


def train(config: ConfigDict, workdir: str | Path | None = None, place: str = "") -> dict[str, Any]:
    """Train the run that ``config`` describes, or continue it.

    Args:
        config: as :func:`jaxmatch.config.flags.from_flags` or a file's ``get_config`` returns it.
        workdir: the run folder; by default ``runs/<config>-<data>-<labels>-s<seed>-<hash>``. If it
            holds an interrupted run of the same configuration, that run is continued.
        place: where the data of an interrupted run is now, if it has moved.

    Returns:
        The content of ``summary.json``.

    Raises:
        InputError: if the configuration, the data or the folder cannot work.
        NonFiniteError: if a loss becomes NaN or Inf; the last good checkpoint is kept.
        DiskError: if the run folder cannot be written.
        Stopped: after SIGTERM or Ctrl-C (SIGINT), once the state is saved.
    """
    if not isinstance(config, ConfigDict):
        raise InputError(
            "train takes what jaxmatch.config returns: "
            "jaxmatch.train(jaxmatch.config('fixmatch:mnist5k'))."
        )
    folder = paths.path(workdir or default_folder(config))
    check_place(folder)
    if place and not hosts.from_leader(RunFolder(folder).config_file.exists):
        raise InputError(
            f"{folder} holds no run, so its data cannot have moved; name the data of a new run in "
            "--config and leave out --data."
        )
    with termination_noted() as terminated:
        if "order" in config:
            return _train_stages(config, folder, place, terminated)
        return _train_one(config, folder, place, terminated)


def default_folder(config: ConfigDict) -> Path:
    """The run folder of a configuration if no other is given."""
    return Path("runs") / saved.run_name(config)


def chosen(
    config: ConfigDict, folder: Path, place: str = "", stages: int = 1
) -> tuple[ConfigDict, list[str]]:
    """The configuration of a run with its open settings chosen and checked, and what was chosen.

    Those that depend on the images' values or on the speed follow in :func:`prepare`.

    Args:
        config: of one run or stage.
        folder: of the run.
        place: where the data is now, if it has moved.
        stages: the number of stages that share the time of a run.

    Raises:
        InputError: if a setting cannot work.
    """
    found, notes = settled(config, folder, place=place, stages=stages)
    check_settings(with_usual_input(found))
    if not hosts.from_leader(RunFolder(folder).config_file.exists):
        check_policy(found)
    Selection.of(found)
    return found, notes


def _train_one(
    asked: ConfigDict,
    folder: Path,
    place: str,
    terminated: Stop,
    kept: str = "",
    stages: int = 1,
) -> dict[str, Any]:
    started = time.monotonic()
    config, notes = chosen(asked, folder, place, stages)
    if (done := completed(config, folder, place)) is not None:
        log.warning("%s is already complete.", folder)
        return done
    timed = asked.minutes and not hosts.from_leader(RunFolder(folder).config_file.exists)
    with Checkpoints(RunFolder(folder).checkpoints, keep=config.keep) as checkpoints:
        config, data = load(config, folder, place, kept)
        run = assemble(config, folder, data, checkpoints, started)
        announce([run])
        _say([] if timed else notes)
        if timed:
            seconds = 60 * asked.minutes / stages - (time.monotonic() - started)
            measured = pace.steps(run, seconds)  # all processes take the steps
            steps = hosts.from_leader(lambda: measured)
            del run  # frees its arrays
            found, notes = settled(asked, folder, place=place, stages=stages, steps=steps)
            _say(notes)
            config = standardized(found, data.source.images)
            run = assemble(config, folder, data, checkpoints, started)
        call = run.compile()
        run.record()
        return _drive(run, call, terminated)


def _say(notes: Sequence[str]) -> None:
    for note in notes:
        log.warning("%s", note)


def prepare(
    config: ConfigDict,
    folder: Path,
    checkpoints: Checkpoints,
    started: float,
    place: str = "",
    kept: str = "",
    shared: Shared | None = None,
    devices: int | None = None,
) -> Run:
    """Load the data and the frozen networks of a run, and put them on the devices.

    Nothing is compiled or written.

    Args:
        config: the configuration.
        folder: the run folder; an interrupted run must go on with the data and the frozen networks
            that are recorded there.
        checkpoints: of the run.
        started: the time of the start by ``time.monotonic``.
        place: where the data of an interrupted run is now, if it has moved.
        kept: a file of images that a later stage labels.
        shared: the arrays that several runs of this process have in common.
        devices: replaces ``config.devices``.

    Raises:
        InputError: if anything cannot work, as far as that is known without tracing a step.
    """
    config, data = load(config, folder, place, kept)
    if shared is not None:
        data = replace(data, source=shared.source(data.source))
    return assemble(config, folder, data, checkpoints, started, shared, devices)


def load(
    config: ConfigDict, folder: Path, place: str = "", kept: str = ""
) -> tuple[ConfigDict, Data]:
    """Load the data of a run; choose the input's mean and deviation if they are open.

    Arguments and errors are those of :func:`prepare`.
    """
    begun = hosts.from_leader(lambda: RunFolder(folder).read_config())
    if begun is not None:
        config = saved.as_begun(config, begun)
    data, earlier = run_data.load(config, folder, place, kept)
    if data.known is None:
        data = replace(data, earlier=earlier)
    return standardized(config, data.source.images), data


def assemble(
    config: ConfigDict,
    folder: Path,
    data: Data,
    checkpoints: Checkpoints,
    started: float,
    shared: Shared | None = None,
    devices: int | None = None,
) -> Run:
    """Build the program of a run, and put its data and frozen networks on the devices.

    ``config`` has no open settings. Other arguments and errors are those of :func:`prepare`.
    """
    facts = data.facts()
    placed = config
    if devices is not None:
        placed = config.copy_and_resolve_references()
        placed.devices = devices
    program = Program.build(placed, facts)
    frozen = load_frozen(config, folder, program, data)
    if frozen.digests:
        facts = replace(facts, frozen=frozen.digests)
    program = replace(program, frozen=frozen.networks)
    return Run(config, folder, data, facts, program, frozen.variables, checkpoints, started, shared)


def announce(runs: Sequence[Run]) -> None:
    """Tell what was found where the images of new runs are; equal facts once."""
    told: list[findings.Findings] = []
    for run in runs:
        if run.found is not None and run.found not in told:
            told.append(run.found)
            for line in findings.lines(run.found):
                log.warning("%s", line)


def _drive(run: Run, call: Call, terminated: Stop) -> dict[str, Any]:
    """Train a run to its end."""
    with run:
        state = run.start(terminated)
        while not run.done:
            state, meter = call(state, run.feed)
            state = run.after(state, meter, terminated)
        return run.finish(state)


def _train_stages(asked: ConfigDict, folder: Path, place: str, terminated: Stop) -> dict[str, Any]:
    parts = {
        name: chosen(stage, folder / name, place, len(asked.order))[0]
        for name, stage in stage_folders(asked).items()
    }
    config = with_stages(asked, parts.values())
    hosts.from_leader(lambda: _check_not_extended(folder, parts))
    kept = next((stage.data.split for stage in parts.values() if stage.data.split), "")
    facts = []
    for name, stage in parts.items():
        where = folder / name
        done = hosts.from_leader(lambda s=stage, where=where: finished(s, where))
        frozen_runs(stage, where)
        known = RunFolder(where).read_facts() if done else None
        facts.append(known or run_data.load(stage, where, place, kept)[0].facts())
    stages_of_run.check(config, facts)
    hosts.synchronize("stages checked")
    hosts.from_leader(lambda: RunFolder(folder).write_config(saved.to_json(config)))
    summaries: dict[str, Any] = {}
    for name in parts:
        if summaries and (stop := terminated()):
            *_, before = summaries
            raise stop(
                f"stopped by {stop.cause} after the stage {before}; the same command continues."
            )
        log.warning("stage %d of %d: %s", len(summaries) + 1, len(parts), folder / name)
        asked_stage = asked.stages[name.partition("_")[2]]
        summaries[name] = _train_one(
            asked_stage, folder / name, place, terminated, kept, len(parts)
        )
    summary = stages_of_run.summarise(summaries)
    hosts.from_leader(lambda: RunFolder(folder).write_summary(summary))
    return summary


def _check_not_extended(folder: Path, parts: Mapping[str, ConfigDict]) -> None:
    """Refuse more steps of a stage after a later one has begun from what it had learned.

    Raises:
        InputError: naming both stages.
    """
    begun = [name for name in parts if RunFolder(folder / name).config_file.exists()]
    for name in begun[:-1]:
        old = RunFolder(folder / name).read_config()
        if old is not None and old["steps"] < parts[name].steps:
            raise InputError(
                f"{folder / name} cannot be extended from {old['steps']} to {parts[name].steps} "
                f"steps, because {begun[-1]} has begun from what it had learned; choose another "
                "--workdir."
            )


def finished(config: ConfigDict, folder: Path) -> dict[str, Any] | None:
    """The summary of a complete run in ``folder``; None if steps or probes are missing.

    A complete run lacks steps if it is to be extended (:mod:`jaxmatch.config.extending`).

    Raises:
        InputError: if the folder holds a run of another configuration (the message tells the
            difference), or a damaged file.
    """
    found = RunFolder(folder)
    old = found.read_config()
    if old is None:
        if found.trained:
            raise InputError(f"{folder} holds a run without config.json; choose another folder.")
        return None
    old.pop("facts", None)
    new = saved.to_json(saved.filled(config, old))
    if reason := extending.refusal(old, new, saved.differences(old, new)):
        raise InputError(
            f"{folder} holds a run of {reason}; choose another --workdir or undo the change."
        )
    summary = found.read_summary()
    if summary is None or missing(summary) or summary["steps"] < config.steps:
        return None
    return summary


def completed(config: ConfigDict, folder: Path, place: str = "") -> dict[str, Any] | None:
    """As :func:`finished`, with the same result in every process.

    If the data or a frozen network has moved, the new place is recorded in the run folder.

    Raises:
        InputError: as :func:`finished`, or if a new place has other content.
    """
    done = hosts.from_leader(lambda: finished(config, folder))
    if done is not None:
        old = RunFolder(folder).read_config()
        if place or (old and saved.moved(old, saved.to_json(config))):
            with Checkpoints(RunFolder(folder).checkpoints, keep=config.keep) as checkpoints:
                prepare(config, folder, checkpoints, time.monotonic(), place).record()
    return done
