"""``jaxmatch features``: a frozen network's features of all images, on disk."""

import argparse
import json

from jaxmatch.cli.arguments import CONFIG, DATA, JSON, STEP, check_one_place, config_of, path, step
from jaxmatch.errors import InputError

HELP = "Keep a frozen network's features of all images of a data set on disk, computed once."


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("--config", help=f"{CONFIG}, with --config.init_from=RUN_OR_FILE")
    command.add_argument("--workdir", type=path, help="a run folder: its own network and images")
    command.add_argument("--step", type=step, metavar="STEP", help=STEP)
    command.add_argument("--data", default="", metavar="DIR", help=DATA)
    command.add_argument(
        "--cache", type=path, metavar="FOLDER", help="the cache (default: runs/features/NAME)"
    )
    command.add_argument("--json", action="store_true", help=JSON.format("what the cache holds"))


def run(arguments: argparse.Namespace) -> None:
    from jaxmatch.evaluation import features

    check_one_place(arguments, "features")
    if arguments.workdir is None:
        if arguments.step is not None:
            raise InputError("--step chooses a checkpoint of a run: it needs --workdir=RUN.")
        found, existed = features.of_config(config_of(arguments), arguments.cache)
    else:
        found, existed = features.of_run(
            arguments.workdir, arguments.step, arguments.data, arguments.cache
        )
    if arguments.json:
        print(json.dumps(found))
        return
    verb = "reused" if existed else "wrote"
    print(
        f"{verb} {found['folder']}: {found['count']:,} images of {found['data']}, "
        f"{found['width']:,} features each, of {found['network']}"
    )
    if found["unreadable"]:
        print(f"{found['unreadable']:,} images are not readable.")
