"""``jaxmatch predict``: a table of the classes of image files."""

import argparse
import sys
from dataclasses import replace

from jaxmatch.cli.arguments import RUN, STEP, UNCALIBRATED, add_unknown, path, step, unknown

HELP = "Classify image files and write a table: path,class,confidence."


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("--workdir", type=path, required=True, help=f"{RUN}, or an exported file")
    command.add_argument("--step", type=step, metavar="STEP", help=STEP)
    command.add_argument("paths", nargs="+", help="image files, or folders of them")
    command.add_argument(
        "-o",
        "--output",
        type=path,
        required=True,
        metavar="FILE",
        help="the table to write: CSV, or JSON Lines if the name ends in .jsonl",
    )
    command.add_argument(
        "--probabilities", action="store_true", help="add a column p:CLASS for each class"
    )
    add_unknown(
        command,
        "add a column of the share of known images (the validation set) that look less strange: "
        "from 0.95 on an image is likely of no class",
    )
    command.add_argument(
        "--left-out",
        type=path,
        metavar="FILE",
        help="a table to write of path and reason of each file that is no readable image",
    )
    command.add_argument("--uncalibrated", action="store_true", help=UNCALIBRATED)


def run(arguments: argparse.Namespace) -> None:
    from jaxmatch.errors import InputError, some
    from jaxmatch.evaluation.classifier import Classifier
    from jaxmatch.evaluation.exported import load
    from jaxmatch.evaluation.predict import check_outputs, predict

    check_outputs(arguments.output, arguments.left_out)
    score = unknown(arguments)
    classifier = load(arguments.workdir, arguments.step, calibrated=not arguments.uncalibrated)
    if isinstance(classifier, Classifier):
        classifier = replace(classifier, place=arguments.data)
    elif arguments.data or arguments.uncalibrated:
        raise InputError(
            f"{arguments.workdir} is an exported file; --data and --uncalibrated need a run folder."
        )
    missing = predict(
        classifier,
        arguments.paths,
        arguments.output,
        probabilities=arguments.probabilities,
        unknown=score,
        left_out=arguments.left_out,
        tell=_tell_images if sys.stderr.isatty() else lambda done: None,
    )
    if sys.stderr.isatty():
        print(file=sys.stderr)
    for reason, names in sorted(missing.items()):
        print(f"jaxmatch: left out {len(names):,} ({reason}): {some(names)}", file=sys.stderr)


def _tell_images(done: int) -> None:
    print(f"\rjaxmatch: {done:,} images", end="", file=sys.stderr, flush=True)
