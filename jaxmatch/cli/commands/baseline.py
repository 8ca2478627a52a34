"""``jaxmatch baseline``: classical classifiers for the same labels."""

import argparse
import json

from jaxmatch.cli.arguments import CONFIG, DATA, check_one_place, config_of, path, show
from jaxmatch.runtime.paths import check_output, check_replaces, write_output

HELP = (
    "Print the accuracy of scikit-learn's classifiers on pixels and, with a pretrained network, on "
    "its frozen features, for the same labels."
)


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("--config", help=CONFIG)
    command.add_argument(
        "--workdir", type=path, help="a run folder: use its images and keep the result in it"
    )
    command.add_argument("--data", default="", metavar="DIR", help=DATA)
    command.add_argument(
        "--features",
        type=path,
        metavar="FOLDER",
        help="the cache of the pretrained network's features, as jaxmatch features writes it "
        "(default: that in runs/features, if there is one)",
    )
    command.add_argument("--json", action="store_true", help="print JSON instead of a table")
    command.add_argument("-o", "--output", type=path, metavar="FILE", help="also write the JSON")


def run(arguments: argparse.Namespace) -> None:
    from jaxmatch.evaluation.baselines import of_config, of_run
    from jaxmatch.evaluation.comparison import compare
    from jaxmatch.record.folder import RunFolder
    from jaxmatch.report.baselines import page

    check_one_place(arguments, "baseline")
    if arguments.output is not None:
        check_output(arguments.output)
        check_replaces(arguments.output, (b"{",), "baselines")
    if arguments.workdir is None:
        found = of_config(config_of(arguments), arguments.features)
    else:
        found = of_run(arguments.workdir, arguments.data, arguments.features)
    text = json.dumps(found, indent=2)
    if arguments.output is not None:
        write_output(arguments.output, f"{text}\n".encode())
    if arguments.json:
        print(text)
        return
    show(page(found))
    summary = arguments.workdir and RunFolder.at(arguments.workdir).read_summary()
    if summary and (lost := compare(summary, found)):
        print(lost)
