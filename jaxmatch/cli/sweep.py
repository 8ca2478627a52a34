"""Sweeps: a config file's function ``sweep()`` lists runs; print their commands or train them.

``sweep()`` returns or yields a dict of overrides for each run. ``sweep(argument)`` also gets the
text after the colon of ``--config``. Two keys are special: "config" replaces the sweep's own
``--config``, and "workdir" fixes the run folder's name inside the sweep's folder. (The default name
contains a hash of the settings.) Example::

    def sweep():
        for name in ("fixmatch", "simmatch"):
            for threshold in (0.9, 0.95):
                yield {"config": f"{name}:mnist5k,labels=40", "algorithm.threshold": threshold}
"""

import contextlib
import inspect
import json
import runpy
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from ml_collections import ConfigDict

from jaxmatch.cli.words import AND
from jaxmatch.config.argument import SHARES
from jaxmatch.config.checks import check_settings
from jaxmatch.config.flags import from_flags, load_module, plain
from jaxmatch.config.keys import KEYS
from jaxmatch.config.own import Circumstances, settle, with_usual_input
from jaxmatch.config.saved import run_name
from jaxmatch.config.stages import stage_folders, stages_of
from jaxmatch.errors import InputError, Terminated
from jaxmatch.evaluation.selection import Selection
from jaxmatch.record import findings, run_data
from jaxmatch.record.folder import RunFolder
from jaxmatch.runtime import paths
from jaxmatch.settings import check_value
from jaxmatch.training import together
from jaxmatch.training.train import chosen, completed

MEANING_OF_EXIT_CODE = {
    2: "bad input",
    3: "NaN or Inf",
    4: "disk",
    130: "Ctrl-C",
    143: "SIGTERM",
    -9: "killed",
}


@dataclass(frozen=True, kw_only=True)
class Point:
    """One run of a sweep.

    Attributes:
        words: the arguments of ``jaxmatch train``.
        workdir: the run folder.
        config: the configuration that the arguments give.
    """

    words: tuple[str, ...]
    workdir: Path
    config: ConfigDict


def points(
    config: str,
    overrides: Sequence[str] = (),
    *,
    seeds: Sequence[int] = (),
    base: str | Path = "runs",
) -> list[Point]:
    """The runs of a sweep, in order.

    Args:
        config: ``FILE_OR_NAME[:ARGUMENT]``. With ``seeds`` the file may have no ``sweep()``; its
            configuration is then the only point.
        overrides: ``--config.key=value`` for all points; they win over a point's own.
        seeds: repeat all points with each of these seeds.
        base: the folder of the run folders.

    Raises:
        InputError: if a point is wrong, or two points are the same run; the message names them.
    """
    path, _, argument = config.partition(":")
    for seed in seeds:
        check_value("seed", seed, KEYS["seed"].kind)
        if seeds.count(seed) > 1:
            raise InputError(f"seed {seed} is given twice; give each of --seeds once.")
    if seeds and any(flag.startswith("--config.seed=") for flag in overrides):
        raise InputError("--seeds contradicts --config.seed; give only one of them.")
    found: list[Point] = []
    known: dict[str, int] = {}
    numbered = list(enumerate(_listed(path, argument, alone=bool(seeds)), 1))
    for seed in seeds or (None,):
        for number, values in numbered:
            try:
                point = _point(values, config, overrides, seed, paths.path(base))
            except InputError as error:
                raise InputError(f"point {number} of the sweep ({values}): {error}") from error
            for name in {run_name(point.config), str(paths.absolute(point.workdir))}:
                if name in known:
                    raise InputError(
                        f"points {known[name]} and {number} of the sweep are the same run, {name}; "
                        "drop one of them."
                    )
                known[name] = number
            found.append(point)
    if not found:
        raise InputError(f"the sweep of {path} has no points.")
    return found


def grouped(points: Iterable[Point], seeds: int = 1) -> list[list[Point]]:
    """Group points that differ only in their seeds, at most ``seeds`` of them in a group.

    One process trains a group. Groups are in the order of their first points.

    Raises:
        InputError: if ``seeds`` is less than 1, or if it is more than 1 and a point cannot be
            trained together with others (:mod:`jaxmatch.training.together`).
    """
    if seeds < 1:
        raise InputError(f"--vmap-seeds={seeds} must be at least 1.")
    groups: list[list[Point]] = []
    open_groups: dict[str, list[Point]] = {}
    for point in points:
        if seeds > 1:
            together.check_one(point.config)
        key = together.key(point.config)
        group = open_groups.get(key)
        if group is None or len(group) == seeds:
            group = open_groups[key] = []
            groups.append(group)
        group.append(point)
    return groups


def command(group: Sequence[Point]) -> str:
    """The shell command that trains, or continues, the runs of a group."""
    return shlex.join(("jaxmatch", "train", *_words(group)))


def opening(points: Iterable[Point]) -> list[str]:
    """What was found where the images are, for each data set of a sweep, by its first point.

    A data set that cannot be read is left out: the training of its points tells why.
    """
    found: dict[str, findings.Findings] = {}
    for point in points:
        with contextlib.suppress(InputError):
            *_, (folder, config) = chosen_stages(point).items()
            keys = ("name", "labels", "validation", *SHARES)
            kind = json.dumps([config.data[key] for key in keys])
            if kind not in found:
                known = findings.read(folder)
                found[kind] = known or findings.find(run_data.load_new(config))
    return [line for each in found.values() for line in findings.lines(each)]


def run(
    points: Iterable[Point], say: Callable[[str], None] = lambda text: None, seeds: int = 1
) -> dict[Path, str]:
    """Train the points in order; continue interrupted ones and skip finished ones.

    Each group (:func:`grouped`) is trained by a process of its own, so that a crash or a full
    device does not reach the next group.

    Args:
        points: as :func:`points` returns them.
        say: receives a line of text about each point.
        seeds: the largest size of a group.

    Returns:
        The points that did not finish: {folder: reason}.

    Raises:
        InputError: as :func:`grouped`.
        Terminated: after SIGTERM, once the running points have saved their state.
    """
    failed: dict[Path, str] = {}
    points = list(points)
    grouped(points, seeds)  # raises before anything is trained
    titles = {
        point.workdir: f"[{number}/{len(points)}] {point.workdir}"
        for number, point in enumerate(points, 1)
    }
    left = []
    for point in points:
        try:
            if not _complete(point):
                left.append(point)
                continue
            say(f"{titles[point.workdir]}: already complete")
        except InputError as error:
            say(f"{titles[point.workdir]}: {error}")
            failed[point.workdir] = MEANING_OF_EXIT_CODE[error.exit_code]
    for group in grouped(left, seeds):
        for point in group:
            say(titles[point.workdir])
        if code := _train(_words(group)):
            # One of several runs may fail alone.
            for point in group if len(group) == 1 else [p for p in group if not _complete(p)]:
                failed[point.workdir] = MEANING_OF_EXIT_CODE.get(code, f"exit code {code}")
    return failed


def _words(group: Sequence[Point]) -> tuple[str, ...]:
    """The arguments of the one ``jaxmatch train`` that trains a group."""
    first, *others = group
    return first.words + tuple(word for point in others for word in (AND, *point.words))


def _listed(path: str, argument: str, alone: bool) -> list[Mapping[str, Any]]:
    """The dicts that ``sweep()`` lists.

    ``alone``: a file without ``sweep()`` is a single point.
    """
    if path.endswith(".py"):  # load_module would demand a get_config, which a sweep does not need
        file = Path(path).expanduser()
        if not file.is_file():
            raise InputError(f"there is no config file {path}.")
        names = runpy.run_path(str(file))
    else:
        names = vars(load_module(path))
    sweep = names.get("sweep")
    if sweep is None:
        if alone:
            return [{}]
        raise InputError(f"{path} defines no sweep(); add one, or repeat its run with --seeds.")
    if not callable(sweep):
        raise InputError(f"the sweep of {path} is no function; write def sweep(): return [...].")
    takes = inspect.signature(sweep).parameters.values()
    positional = [each for each in takes if each.kind <= inspect.Parameter.VAR_POSITIONAL]
    words = (argument,) if argument and positional else ()
    if not words and any(each.default is each.empty for each in positional):
        raise InputError(f"the sweep of {path} needs an argument; give --config={path}:ARGUMENT.")
    found = sweep(*words)
    if not isinstance(found, Iterable):
        raise InputError(f"the sweep of {path} lists nothing; its points are to be returned.")
    return list(found)


def _point(
    values: Mapping[str, Any],
    config: str,
    overrides: Sequence[str],
    seed: int | None,
    base: Path,
) -> Point:
    if not isinstance(values, Mapping):
        raise InputError("a point is a dict of overrides by dotted key.")
    flags = {
        key: f"--config.{key}={plain(value)}"
        for key, value in values.items()
        if key not in ("config", "workdir")
    }
    config = values.get("config", config)
    for key in ("config", "workdir"):
        if not (isinstance(text := values.get(key, "x"), str) and text):
            raise InputError(f"its {key} is {text!r}; give a text, or leave it out.")
    if seed is not None:
        argument = config.partition(":")[2]
        if "seed" in flags or ",seed=" in f",{argument}":
            raise InputError("it sets its own seed; leave out --seeds.")
        if argument:  # get_config sees the seed and derives settings from it
            config += f",seed={seed}"
        else:
            flags["seed"] = f"--config.seed={seed}"
    for flag in overrides:
        flags[flag.removeprefix("--config.").partition("=")[0]] = flag
    parsed, _ = from_flags(config, list(flags.values()))
    for stage in stages_of(parsed).values():
        # The images may be on another machine, so settings that follow from them are assumed.
        settled, _ = settle(stage, Circumstances(side=64))
        check_settings(with_usual_input(settled))
        Selection.of(settled)
    workdir = base / values.get("workdir", run_name(parsed))
    words = (f"--config={config}", *flags.values(), f"--workdir={workdir}")
    return Point(words=words, workdir=workdir, config=parsed)


def _complete(point: Point) -> bool:
    """Whether all stages of the run are complete.

    Raises:
        InputError: if the folder holds a run of another configuration.
    """
    stages = chosen_stages(point)
    done = [completed(stage, folder) for folder, stage in stages.items()]
    return None not in done and RunFolder(point.workdir).summary_file.exists()


def chosen_stages(point: Point) -> dict[Path, ConfigDict]:
    """The configuration of each stage of a run by its folder, with its open settings chosen.

    Raises:
        InputError: if a setting cannot work, or the images cannot be found.
    """
    config = point.config
    stages = stage_folders(config) if "order" in config else {"": config}
    folders = {point.workdir / name: stage for name, stage in stages.items()}
    return {
        folder: chosen(stage, folder, stages=len(stages))[0] for folder, stage in folders.items()
    }


def _train(words: Sequence[str]) -> int:
    """Run ``jaxmatch train`` in a process, to which SIGTERM is passed on; return its exit code."""
    # With ``-m`` Python would import a file of the current folder that has a module's name.
    program = f"import sys; sys.path[:] = {sys.path!r}; from jaxmatch.cli.main import main; main()"
    command = [sys.executable, "-c", program, "train", *words]
    process: subprocess.Popen[bytes] | None = None
    terminated = False

    def terminate(number: int, _frame: FrameType | None) -> None:
        nonlocal terminated
        terminated = True
        if process is not None:
            process.send_signal(number)

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        # The table at the end of the sweep shows the summary.
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        if terminated:
            process.terminate()
        code = process.wait()
    except BaseException:
        if process is not None:
            process.terminate()
            process.wait()
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
    if terminated:
        raise Terminated("the sweep was stopped by SIGTERM; the same command continues.")
    return code
