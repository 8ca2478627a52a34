"""``jaxmatch probe``: simple classifiers on a run's frozen features."""

import argparse
import json
import sys

from jaxmatch.cli.arguments import DATA, RUN, STEP, path, step

HELP = "Print the test accuracy of simple classifiers on a run's frozen features as JSON."


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("--workdir", type=path, required=True, help=RUN)
    command.add_argument("--knn", action="store_true", help="only k nearest neighbors")
    command.add_argument("--linear", action="store_true", help="only a linear classifier")
    command.add_argument(
        "--all-labels",
        action="store_true",
        help="learn from every known label of the training images, not only from those that the "
        "run saw",
    )
    command.add_argument(
        "--images", type=int, metavar="N", help="use at most N training and N test images"
    )
    command.add_argument("--step", type=step, metavar="STEP", help=STEP)
    command.add_argument("--data", default="", metavar="DIR", help=DATA)


def run(arguments: argparse.Namespace) -> None:
    from jaxmatch.evaluation.probe import probe

    both = arguments.knn == arguments.linear
    most = {} if arguments.images is None else {"images": arguments.images}
    found = probe(
        arguments.workdir,
        arguments.step,
        knn=both or arguments.knn,
        linear=both or arguments.linear,
        place=arguments.data,
        all_labels=arguments.all_labels,
        **most,
    )
    if found.get("all_labels") and not arguments.all_labels:
        print(
            "jaxmatch: note: the run saw no labels, so the probes learned from all "
            f"{found['labels']:,} known labels of its training images.",
            file=sys.stderr,
        )
    print(json.dumps(found))
