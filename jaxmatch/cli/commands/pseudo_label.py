"""``jaxmatch pseudo-label``: labels for unlabeled images from the average of runs."""

import argparse

from jaxmatch.cli.arguments import DATA, RUN, STEP, path, step
from jaxmatch.errors import InputError

HELP = "Label the unlabeled images of runs by their average, for --config.data.pseudo_labels."


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("runs", type=path, nargs="+", metavar="RUN", help=RUN)
    command.add_argument(
        "-o", "--output", type=path, required=True, metavar="FILE", help="a .csv or .npz to write"
    )
    command.add_argument(
        "--average",
        default="probability",
        help="what is averaged over the runs: probability, rank (of the classes in each image) or "
        "vote (one class for each run)",
    )
    command.add_argument("--step", type=step, metavar="STEP", help=STEP)
    command.add_argument("--data", default="", metavar="DIR", help=DATA)


def run(arguments: argparse.Namespace) -> None:
    from jaxmatch.evaluation.pseudo_label import make
    from jaxmatch.record.folder import RunFolder
    from jaxmatch.record.pseudo_labels import check_file, write

    check_file(arguments.output)
    for run in map(RunFolder.at, arguments.runs):  # all of them before the first one predicts
        if run.read_config() is None:
            raise InputError(f"{run.path} is no run folder: it has no config.json.")
        run.read_facts()
    table, of_files = make(arguments.runs, arguments.average, arguments.step, arguments.data)
    write(arguments.output, table, of_files)
    known = table.labels >= 0
    print(
        f"wrote {arguments.output}: {int(known.sum()):,} unlabeled images, {arguments.average} of "
        f"{len(arguments.runs)} {'run' if len(arguments.runs) == 1 else 'runs'}, mean confidence "
        f"{table.confidence[known].mean():.2f}"
    )
    if not known.all():
        print(f"{int((~known).sum()):,} images are not readable and have no label.")
