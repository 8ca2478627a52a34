"""``jaxmatch evaluate``: the metrics of a run on its held-out images."""

import argparse
import json
from typing import Any

from jaxmatch.cli.arguments import DATA, JSON, RUN, STEP, UNCALIBRATED, path, show, step
from jaxmatch.errors import InputError

HELP = "Print the test and validation metrics of a run's teacher and student."


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("--workdir", type=path, required=True, help=RUN)
    command.add_argument("--step", type=step, metavar="STEP", help=STEP)
    command.add_argument("--data", default="", metavar="DIR", help=DATA)
    command.add_argument("--json", action="store_true", help=JSON.format("all metrics"))
    command.add_argument(
        "--bootstrap",
        type=int,
        nargs="?",
        const=1000,
        metavar="N",
        help="add confidence intervals: percentiles over N sets of as many images, drawn from the "
        "held-out ones with replacement and always the same seed (default: 1000)",
    )
    command.add_argument(
        "--confidence", type=float, metavar="SHARE", help="of the intervals (default: 0.95)"
    )
    command.add_argument("--uncalibrated", action="store_true", help=UNCALIBRATED)


def run(arguments: argparse.Namespace) -> None:
    import numpy as np

    from jaxmatch.data.lazy import Images
    from jaxmatch.evaluation.bootstrap import Resampling
    from jaxmatch.evaluation.classifier import NETWORKS, load
    from jaxmatch.evaluation.shipping import hash_of_weights
    from jaxmatch.record.run_data import load_recorded
    from jaxmatch.report.scores import scores

    resampling = None
    if arguments.bootstrap is not None:
        share = {} if arguments.confidence is None else {"confidence": arguments.confidence}
        resampling = Resampling(arguments.bootstrap, **share)
        resampling.check()
    elif arguments.confidence is not None:
        raise InputError("--confidence is that of intervals: it needs --bootstrap.")
    classifier = load(arguments.workdir, arguments.step, calibrated=not arguments.uncalibrated)
    classifier.check_classifies()
    data = load_recorded(classifier.config, classifier.folder, place=arguments.data, needed="held")

    def measured(images: Images, labels: np.ndarray) -> dict[str, Any]:
        return {name: classifier.score(images, labels, name, resampling) for name in NETWORKS}

    found = {
        "step": classifier.step,
        "evaluated": classifier.program.algorithm.evaluated,
        "weights": {name: hash_of_weights(classifier, name) for name in NETWORKS},
        **measured(data.source.test_images, data.source.test_labels),
    }
    if data.validation_images is not None and data.validation_labels is not None:
        found["validation"] = measured(data.validation_images, data.validation_labels)
    if classifier.calibration is not None:
        found["calibration"] = classifier.calibration
    if resampling is not None:
        found["bootstrap"] = resampling._asdict()
    if arguments.json:
        print(json.dumps(found, allow_nan=False))
    else:
        show(scores(found))
