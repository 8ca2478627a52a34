"""``jaxmatch calibrate``: the temperature of a run's probabilities."""

import argparse
import json

from jaxmatch.cli.arguments import DATA, JSON, RUN, STEP, path, step

HELP = (
    "Fit the temperature of a run's probabilities to its validation set and keep it with the run. "
    "train does so at its end."
)


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("--workdir", type=path, required=True, help=RUN)
    command.add_argument("--step", type=step, metavar="STEP", help=STEP)
    command.add_argument("--data", default="", metavar="DIR", help=DATA)
    command.add_argument("--json", action="store_true", help=JSON.format("the temperatures"))


def run(arguments: argparse.Namespace) -> None:
    from jaxmatch.evaluation.calibrate import calibrate
    from jaxmatch.evaluation.classifier import NETWORKS
    from jaxmatch.evaluation.temperature import sentences

    classifier, found = calibrate(arguments.workdir, arguments.step, arguments.data)
    if arguments.json:
        print(json.dumps({"step": classifier.step, **found}, allow_nan=False))
        return
    for network in NETWORKS:
        for sentence in sentences(found, network):
            print(f"{network} of step {classifier.step:,}: {sentence}")
