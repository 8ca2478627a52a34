"""``jaxmatch report``: runs compared in one page."""

import argparse
from pathlib import Path

from jaxmatch.cli.arguments import DATA, RUN, path

HELP = "Compare runs in one HTML page with plots, also as PNGs."


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("runs", type=path, nargs="+", metavar="RUN", help=RUN)
    command.add_argument("-o", "--output", type=path, default=Path("report.html"), help="the page")
    command.add_argument(
        "--baselines", action="store_true", help="measure the baselines of runs that have none"
    )
    command.add_argument(
        "--gallery",
        action=argparse.BooleanOptionalAction,
        help="show images of the runs with their predictions (default: if there are at most three "
        "runs)",
    )
    command.add_argument("--data", default="", metavar="DIR", help=DATA)


def run(arguments: argparse.Namespace) -> None:
    from jaxmatch.report.page import report

    if arguments.baselines:
        from jaxmatch.evaluation.baselines import add_missing

        add_missing(arguments.runs, arguments.data)
    for file in report(
        arguments.runs, arguments.output, gallery=arguments.gallery, place=arguments.data
    ):
        print(f"wrote {file}")
