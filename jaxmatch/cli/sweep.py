"""Sweeps: the points that a config file's ``sweep()`` lists, as commands or run one by one.

``sweep()``, or ``sweep(argument)`` for what follows the colon of ``--config``, returns or yields a
dict of overrides for each run. "config" names another ``--config`` than the sweep's own, and
"workdir" a run folder inside the sweep's that stays what it is as settings are added::

    def sweep():
        for name in ("fixmatch", "simmatch"):
            for threshold in (0.9, 0.95):
                yield {"config": f"{name}:mnist5k,labels=40", "algorithm.threshold": threshold}
"""

import inspect
import runpy
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from jaxmatch.cli.words import AND
from jaxmatch.config.checks import check_settings
from jaxmatch.config.flags import from_flags, load_module
from jaxmatch.config.saved import run_name
from jaxmatch.config.stages import stage_folders, stages_of
from jaxmatch.errors import InputError, Terminated
from jaxmatch.record.folder import RunFolder
from jaxmatch.runtime import paths
from jaxmatch.training import together
from jaxmatch.training.train import completed

MEANING = {2: "bad input", 3: "NaN or Inf", 4: "disk", 130: "Ctrl-C", 143: "SIGTERM", -9: "killed"}


@dataclass(frozen=True, kw_only=True)
class Point:
    """One run of a sweep: what to train, where, and the configuration that this gives."""

    words: tuple[str, ...]  # of ``jaxmatch train``
    workdir: Path
    config: ConfigDict


def points(
    config: str,
    overrides: Sequence[str] = (),
    *,
    seeds: Sequence[int] = (),
    base: str | Path = "runs",
) -> list[Point]:
    """The runs of the sweep in the file of ``config`` (``FILE_OR_NAME[:ARGUMENT]``), in order.

    Args:
        config: as ``--config``; a file without ``sweep()`` is one point.
        overrides: ``--config.key=value`` of all points; they win over a point's own.
        seeds: repeat every point for these, the first seed of all points first.
        base: the folder of the run folders, which have their default names.

    Raises:
        InputError: naming the point that is wrong, or the two that are the same run.
    """
    path, _, argument = config.partition(":")
    if seeds and any(flag.startswith("--config.seed=") for flag in overrides):
        raise InputError("give --seeds or --config.seed, not both.")
    found: list[Point] = []
    known: dict[str, int] = {}
    numbered = list(enumerate(_listed(path, argument, alone=bool(seeds)), 1))
    for seed in seeds or (None,):
        for number, values in numbered:
            try:
                point = _point(values, config, overrides, seed, paths.path(base))
            except InputError as error:
                raise InputError(f"point {number} of the sweep ({values}): {error}") from error
            for name in {run_name(point.config), str(point.workdir)}:
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
    """The points that one process trains, by ``seeds`` at most: equal ones but for their seed.

    Groups have the order of their first points. Raises InputError where ``seeds`` is less than 1,
    or more and a point cannot be trained along with others (:mod:`jaxmatch.training.together`).
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
    """The shell command that trains or continues the runs of a group."""
    return shlex.join(("jaxmatch", "train", *_words(group)))


def run(
    points: Iterable[Point], say: Callable[[str], None] = lambda text: None, seeds: int = 1
) -> dict[Path, str]:
    """Train the points in order, continuing interrupted ones and skipping finished ones.

    Each group of up to ``seeds`` of them (:func:`grouped`) is a process of its own, so that neither
    a crash nor a device that stays full of one reaches the next. ``say`` is given a line of text
    about each point.

    Returns:
        Why a point did not finish, for each that did not, by its folder.

    Raises:
        InputError: as :func:`grouped`.
        Terminated: after a SIGTERM, once the points that ran have saved their state.
    """
    failed: dict[Path, str] = {}
    points = list(points)
    grouped(points, seeds)  # refuses before anything is trained
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
            failed[point.workdir] = MEANING[error.exit_code]
    for group in grouped(left, seeds):
        for point in group:
            say(titles[point.workdir])
        if code := _train(_words(group)):
            # Of runs trained together one may fail alone.
            for point in group if len(group) == 1 else [p for p in group if not _complete(p)]:
                failed[point.workdir] = MEANING.get(code, f"exit code {code}")
    return failed


def _words(group: Sequence[Point]) -> tuple[str, ...]:
    """Of ``jaxmatch train``."""
    first, *others = group
    return first.words + tuple(word for point in others for word in (AND, *point.words))


def _listed(path: str, argument: str, alone: bool) -> list[Mapping[str, Any]]:
    """What ``sweep()`` lists; a file without one is a single point where seeds repeat it."""
    if path.endswith(".py"):  # not load_module: a file of points alone needs no get_config
        if not Path(path).is_file():
            raise InputError(f"there is no config file {path}.")
        names = runpy.run_path(path)
    else:
        names = vars(load_module(path))
    sweep = names.get("sweep")
    if sweep is None:
        if alone:
            return [{}]
        raise InputError(f"{path} defines no sweep(); add one, or repeat its run with --seeds.")
    takes = inspect.signature(sweep).parameters.values()
    if argument and takes:
        return list(sweep(argument))
    if any(parameter.default is parameter.empty for parameter in takes):
        raise InputError(f"the sweep of {path} takes an argument: --config={path}:ARGUMENT.")
    return list(sweep())


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
        key: f"--config.{key}={value}"
        for key, value in values.items()
        if key not in ("config", "workdir")
    }
    config = values.get("config", config)
    if seed is not None:
        argument = config.partition(":")[2]
        if "seed" in flags or ",seed=" in f",{argument}":
            raise InputError("it has a seed of its own; leave --seeds out.")
        if argument:  # before anything is derived from it
            config += f",seed={seed}"
        else:
            flags["seed"] = f"--config.seed={seed}"
    for flag in overrides:
        flags[flag.removeprefix("--config.").partition("=")[0]] = flag
    parsed, _ = from_flags(config, list(flags.values()))
    for stage in stages_of(parsed).values():
        check_settings(stage)
    workdir = base / values.get("workdir", run_name(parsed))
    words = (f"--config={config}", *flags.values(), f"--workdir={workdir}")
    return Point(words=words, workdir=workdir, config=parsed)


def _complete(point: Point) -> bool:
    """Whether all stages are; InputError where the folder holds another configuration."""
    config, folder = point.config, point.workdir
    stages = stage_folders(config) if "order" in config else {"": config}
    done = [completed(stage, folder / name) for name, stage in stages.items()]
    return None not in done and RunFolder(folder).summary_file.exists()


def _train(words: Sequence[str]) -> int:
    """The exit code of ``jaxmatch train`` in a process that gets this one's SIGTERM."""
    # With ``-m`` a file of the current folder called like some module would run in its place.
    program = f"import sys; sys.path[:] = {sys.path!r}; from jaxmatch.cli.main import main; main()"
    command = [sys.executable, "-c", program, "train", *words]
    process: subprocess.Popen[bytes] | None = None
    terminated = False

    def terminate(number: int, frame: Any) -> None:
        del frame
        nonlocal terminated
        terminated = True
        if process is not None:
            process.send_signal(number)

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        # Its summary is in the table that the sweep ends with.
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
