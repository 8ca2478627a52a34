"""What several commands share: texts of arguments, the configuration, and how they print."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from jaxmatch.errors import InputError
from jaxmatch.runtime import paths

if TYPE_CHECKING:
    from ml_collections import ConfigDict
    from rich.console import RenderableType

BEST, NEWEST = "best", "newest"
RUN = "a run folder that train has written"
STEP = (
    "the step of the checkpoint; best for the one that keep_best or select chose, or newest "
    "(default: best for a run with select, else newest)"
)
UNCALIBRATED = "leave out the temperature that the validation set gave"
DATA = "the place of the run's folder, npz file or TFDS directory, if it has moved"
JSON = "print {} as JSON, for programs"
CONFIG = "FILE_OR_NAME:DATA[,labels=N][,seed=S][,size=SIZE][,views=V][,preset=P][,split=FILE]"


def path(text: str) -> Path:
    """The path that an argument names, on this machine or in a bucket.

    Raises:
        InputError: if it is empty, as of a shell variable that is not set, or no such path.
    """
    if not text:
        raise InputError("an argument that names a file or folder is empty; give its path.")
    return paths.path(text)


def step(text: str) -> int | str:
    """The step that ``--step`` names: a number, the best one or the newest."""
    return text if text in (BEST, NEWEST) else int(text)


def add_minutes(command: argparse.ArgumentParser) -> None:
    """Add ``--minutes``, which :func:`config_of` reads."""
    command.add_argument(
        "--minutes", type=float, metavar="M", help="choose the steps that take M minutes"
    )


def config_of(arguments: argparse.Namespace) -> "ConfigDict":
    """The configuration of the arguments; notes about it go to stderr."""
    from jaxmatch.config.flags import from_flags

    minutes = getattr(arguments, "minutes", None)
    given = [] if minutes is None else [f"--config.minutes={minutes}"]
    config, notes = from_flags(arguments.config, [*arguments.overrides, *given])
    for note in notes:
        print(f"jaxmatch: note: {note}", file=sys.stderr)
    return config


def add_unknown(command: argparse.ArgumentParser, meaning: str) -> None:
    """Add ``--unknown``, whose help is ``meaning``, and what goes with it."""
    command.add_argument("--unknown", action="store_true", help=meaning)
    command.add_argument(
        "--unknown-score",
        default="",
        metavar="SCORE",
        help="how strangeness is measured: energy, max_logit or heads (those of the method, the "
        "default where it has some; else energy)",
    )
    command.add_argument("--data", default="", metavar="DIR", help=f"{DATA}; for --unknown")


def unknown(arguments: argparse.Namespace) -> bool | str:
    """Whether strangeness is measured; the name of its score if that is given.

    Raises:
        InputError: if a score or the place of the data is given alone.
    """
    if arguments.unknown_score and not arguments.unknown:
        raise InputError("--unknown-score chooses how --unknown is measured; add --unknown.")
    if arguments.data and not arguments.unknown:
        raise InputError(
            "--data says where the data of --unknown is now; add --unknown, or leave out --data."
        )
    return arguments.unknown and (arguments.unknown_score or True)


def check_one_place(arguments: argparse.Namespace, command: str) -> None:
    """Check that a command has either a configuration or a run folder.

    Raises:
        InputError: if not, or if other arguments do not fit.
    """
    if (arguments.config is None) == (arguments.workdir is None):
        raise InputError(f"{command} needs either --config=NAME:DATA,labels=N or --workdir=RUN.")
    if arguments.workdir is None and arguments.data:
        raise InputError("--data says where a run's data is now: it needs --workdir=RUN.")
    if arguments.workdir is not None and arguments.overrides:
        raise InputError("--workdir has its own configuration; leave out --config.key=value.")


def show(content: "RenderableType") -> None:
    """Print tables to stdout: 80 columns wide where that is no terminal."""
    from rich.console import Console

    console = Console(highlight=False, emoji=False, markup=False)
    with console.capture() as captured:
        console.print(content)
    print("\n".join(line.rstrip() for line in captured.get().splitlines()))
