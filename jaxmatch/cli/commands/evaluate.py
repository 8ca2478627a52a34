"""``jaxmatch evaluate``: the metrics of a run on its held-out images."""

import argparse
import json
from typing import Any

from jaxmatch.cli.arguments import DATA, JSON, RUN, STEP, show, step
from jaxmatch.errors import InputError
from jaxmatch.runtime.paths import path

HELP = "Print the test and validation metrics of a run's teacher and student."


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("--workdir", type=path, required=True, help=RUN)
    command.add_argument("--step", type=step, metavar="STEP", help=STEP)
    command.add_argument("--data", default="", metavar="DIR", help=DATA)
    command.add_argument("--json", action="store_true", help=JSON.format("all metrics"))


def run(arguments: argparse.Namespace) -> None:
    import numpy as np

    from jaxmatch.data.lazy import Images
    from jaxmatch.evaluation.classifier import NETWORKS, load
    from jaxmatch.record.run_data import load_recorded
    from jaxmatch.report.scores import scores

    classifier = load(arguments.workdir, arguments.step)
    if not classifier.program.algorithm.labeled:
        raise InputError(
            f"{arguments.workdir} was trained without labels and has no classifier; use jaxmatch "
            "probe."
        )
    data = load_recorded(classifier.config, classifier.folder, place=arguments.data, needed="held")

    def measured(images: Images, labels: np.ndarray) -> dict[str, Any]:
        return {name: classifier.score(images, labels, name) for name in NETWORKS}

    found = {
        "step": classifier.step,
        "evaluated": classifier.program.algorithm.evaluated,
        **measured(data.source.test_images, data.source.test_labels),
    }
    if data.validation_images is not None and data.validation_labels is not None:
        found["validation"] = measured(data.validation_images, data.validation_labels)
    if arguments.json:
        print(json.dumps(found))
    else:
        show(scores(found))
