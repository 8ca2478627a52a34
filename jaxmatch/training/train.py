"""Training from a configuration to its summary: one run, or stages one after another."""

import logging
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from jaxmatch.config import saved
from jaxmatch.config.checks import check_settings
from jaxmatch.config.stages import stage_folders, stages_of
from jaxmatch.errors import InputError
from jaxmatch.evaluation.probe import missing
from jaxmatch.program import Program
from jaxmatch.record import run_data
from jaxmatch.record.folder import RunFolder
from jaxmatch.runtime import hosts, paths
from jaxmatch.runtime.checkpoint import Checkpoints, check_place
from jaxmatch.runtime.dispatch import Call
from jaxmatch.runtime.termination import Stop, termination_noted
from jaxmatch.training import stages
from jaxmatch.training.frozen import frozen_runs, load_frozen
from jaxmatch.training.run import Run
from jaxmatch.training.shared import Shared

log = logging.getLogger(__name__)


def train(config: ConfigDict, workdir: str | Path | None = None, place: str = "") -> dict[str, Any]:
    """Train, or continue, the run that ``config`` describes; stages one after another.

    Args:
        config: as :func:`jaxmatch.config.flags.from_flags` or a file's ``get_config`` returns it.
        workdir: the run folder; by default ``runs/<config>-<data>-<labels>-s<seed>-<hash>``.
            A folder that holds an interrupted run of the same configuration is continued.
        place: where the data of an interrupted run is now, if it has moved.

    Returns:
        The content of ``summary.json``.

    Raises:
        InputError: if anything in the configuration or the folder cannot work.
        NonFiniteError: if a loss becomes NaN or Inf; the last good checkpoint is kept.
        DiskError: if the run folder cannot be written.
        Stopped: after SIGTERM or Ctrl-C (SIGINT), once the state is saved.
    """
    for stage in stages_of(config).values():
        check_settings(stage)
    folder = paths.path(workdir or Path("runs") / saved.run_name(config))
    check_place(folder)
    if place and not hosts.from_leader(RunFolder(folder).config_file.exists):
        raise InputError(
            f"{folder} holds no run whose data could have moved; name the data of a new run in "
            "--config, without --data."
        )
    with termination_noted() as terminated:
        if "order" in config:
            return _train_stages(config, folder, place, terminated)
        return _train_one(config, folder, place, terminated)


def _train_one(
    config: ConfigDict, folder: Path, place: str, terminated: Stop, kept: str = ""
) -> dict[str, Any]:
    started = time.monotonic()
    if (done := completed(config, folder, place)) is not None:
        log.warning("%s is already complete.", folder)
        return done
    with Checkpoints(RunFolder(folder).checkpoints, keep=config.keep) as checkpoints:
        run = prepare(config, folder, checkpoints, started, place, kept)
        call = run.compile()
        run.record()
        return _drive(run, call, terminated)


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
    """The run of ``config`` in ``folder``, its data loaded; nothing is written.

    Args:
        config: the saved.
        folder: with the records of data and frozen networks of an interrupted run, if any.
        checkpoints: of the run.
        started: when that was, by ``time.monotonic``.
        place: where the data of an interrupted run is now, if it has moved.
        kept: a file of images that a later stage labels.
        shared: what several runs of this process have in common.
        devices: in place of ``config.devices``.

    Raises:
        InputError: if anything cannot work that needs no step to be traced.
    """
    data, earlier = run_data.load(config, folder, place, kept)
    if data.known is None:
        for text in (*data.copies(), *data.seen_by(earlier)):
            log.warning("%s", text)
    if shared is not None:
        data = replace(data, source=shared.source(data.source))
    facts = data.facts()
    placed = config
    if devices is not None:
        placed = config.copy_and_resolve_references()
        placed.devices = devices
    program = Program.build(placed, facts)
    frozen = load_frozen(config, folder, program)
    if frozen.digests:
        facts = replace(facts, frozen=frozen.digests)
    program = replace(program, frozen=frozen.networks)
    run = (config, folder, data, facts, program, frozen.variables, checkpoints, started)
    return Run(*run) if shared is None else Run(*run, put=shared.put, alone=False)


def _drive(run: Run, call: Call, terminated: Stop) -> dict[str, Any]:
    """Train a run to its end."""
    with run:
        state = run.start()
        while not run.done:
            state, meter = call(state, run.feed)
            state = run.after(state, meter, terminated)
        return run.finish(state)


def _train_stages(config: ConfigDict, folder: Path, place: str, terminated: Stop) -> dict[str, Any]:
    parts = stage_folders(config)
    kept = next((stage.data.split for stage in parts.values() if stage.data.split), "")
    facts = []
    for name, stage in parts.items():
        where = folder / name
        done = hosts.from_leader(lambda s=stage, where=where: finished(s, where))
        frozen_runs(stage, where)
        known = RunFolder(where).read_facts() if done else None
        facts.append(known or run_data.load(stage, where, place, kept)[0].facts())
    stages.check(config, facts)
    hosts.synchronize("stages checked")
    if hosts.leader():
        RunFolder(folder).write_config(saved.to_json(config))
    summaries: dict[str, Any] = {}
    for name, stage in parts.items():
        if summaries and (stop := terminated()):
            *_, before = summaries
            raise stop(
                f"stopped by {stop.cause} after the stage {before}; the same command continues."
            )
        summaries[name] = _train_one(stage, folder / name, place, terminated, kept)
    summary = stages.summarise(summaries)
    if hosts.leader():
        RunFolder(folder).write_summary(summary)
    return summary


def finished(config: ConfigDict, folder: Path) -> dict[str, Any] | None:
    """The summary of a complete run in ``folder``; None if there is work left.

    Raises InputError where the folder holds a run of another configuration, with the difference,
    or one of these files is damaged.
    """
    found = RunFolder(folder)
    old = found.read_config()
    if old is None:
        if found.trained:
            raise InputError(f"{folder} holds a run without config.json; choose another folder.")
        return None
    old.pop("facts", None)
    if changed := saved.differences(old, saved.to_json(config)):
        raise InputError(
            f"{folder} holds a run of another configuration ({'; '.join(changed)}); "
            "choose another --workdir or undo the change."
        )
    summary = found.read_summary()
    return None if summary is None or missing(summary) else summary


def completed(config: ConfigDict, folder: Path, place: str = "") -> dict[str, Any] | None:
    """As :func:`finished`, the same in every process.

    Where a place that the run read from is another by now, its content must be the same; the run
    then knows the new place.

    Raises:
        InputError: as :func:`finished`, or if a new place holds something else.
    """
    done = hosts.from_leader(lambda: finished(config, folder))
    if done is not None:
        old = RunFolder(folder).read_config()
        if place or (old and saved.moved(old, saved.to_json(config))):
            with Checkpoints(RunFolder(folder).checkpoints, keep=config.keep) as checkpoints:
                prepare(config, folder, checkpoints, time.monotonic(), place).record()
    return done
