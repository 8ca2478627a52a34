"""The commands, one module each.

A module has ``HELP``, ``add_arguments(parser)`` and ``run(arguments)``. It imports what is slow to
import, such as JAX, inside ``run``, so that help texts and errors in arguments come at once. A new
command is a module and its line in :data:`COMMANDS`.
"""

import argparse
from collections.abc import Mapping
from typing import Protocol

from jaxmatch.cli.commands import (
    baseline,
    calibrate,
    demo,
    describe,
    evaluate,
    export,
    features,
    predict,
    probe,
    pseudo_label,
    report,
    show_augment,
    sweep,
    train,
)


class Command(Protocol):
    """A module of this folder."""

    @property
    def HELP(self) -> str:
        """What the command does, in one sentence."""
        ...

    def add_arguments(self, command: argparse.ArgumentParser) -> None:
        """Add the arguments to the command's own parser."""

    def run(self, arguments: argparse.Namespace) -> None:
        """Run the command; errors of users are raised as :mod:`jaxmatch.errors`."""


COMMANDS: Mapping[str, Command] = {
    "train": train,
    "evaluate": evaluate,
    "calibrate": calibrate,
    "predict": predict,
    "pseudo-label": pseudo_label,
    "probe": probe,
    "features": features,
    "baseline": baseline,
    "export": export,
    "report": report,
    "sweep": sweep,
    "demo": demo,
    "describe": describe,
    "show-augment": show_augment,
}
