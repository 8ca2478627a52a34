"""``jaxmatch sweep``: the runs of a config's ``sweep()``."""

import argparse
import sys
from pathlib import Path

from jaxmatch.cli.arguments import path
from jaxmatch.errors import JaxmatchError

HELP = "Print the train commands of a config's sweep(), or run them."


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("--config", required=True, help="FILE_OR_NAME[:ARGUMENT] with a sweep()")
    command.add_argument(
        "--seeds", type=int, nargs="+", default=(), help="repeat all runs with each of these seeds"
    )
    command.add_argument(
        "--run", dest="here", action="store_true", help="train all unfinished runs"
    )
    command.add_argument(
        "--vmap-seeds", type=int, default=1, metavar="N", help="train up to N seeds in one program"
    )
    command.add_argument(
        "--workdir", type=path, default=Path("runs"), help="the folder of the run folders"
    )


def run(arguments: argparse.Namespace) -> None:
    from jaxmatch.cli import sweep
    from jaxmatch.report.results import group, read
    from jaxmatch.report.tables import table_text

    points = sweep.points(
        arguments.config, arguments.overrides, seeds=arguments.seeds, base=arguments.workdir
    )
    groups = sweep.grouped(points, arguments.vmap_seeds)
    if not arguments.here:
        print("\n".join(sweep.command(group) for group in groups))
        return

    def say(text: str) -> None:
        print(f"jaxmatch: {text}", file=sys.stderr)

    for line in sweep.opening(points):
        say(line)
    failed = sweep.run(points, say, arguments.vmap_seeds)
    done = [read(point.workdir) for point in points if point.workdir not in failed]
    if done:
        print(table_text(group(done)))
    if failed:
        reasons = "; ".join(f"{folder} ({reason})" for folder, reason in failed.items())
        raise JaxmatchError(
            f"{len(failed)} of {len(points)} runs did not finish: {reasons}; "
            "the same command tries them again."
        )
