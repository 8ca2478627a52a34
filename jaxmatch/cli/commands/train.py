"""``jaxmatch train``: one run, or several by one program."""

import argparse
import json
import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jaxmatch.cli.arguments import CONFIG, DATA, JSON, add_minutes, config_of, path
from jaxmatch.cli.words import AND
from jaxmatch.errors import InputError

if TYPE_CHECKING:
    from ml_collections import ConfigDict

HELP = "Train a run, or continue it. --config.key=value overrides a setting."


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("--config", required=True, help=CONFIG)
    command.add_argument("--workdir", type=path, help="the run folder (default: runs/NAME)")
    command.add_argument("--data", default="", metavar="DIR", help=DATA)
    add_minutes(command)
    command.add_argument("--json", action="store_true", help=JSON.format("the summary"))
    command.add_argument(
        "--multihost", action="store_true", help="join the other hosts of a cluster"
    )
    command.add_argument(
        "--coordinator",
        metavar="HOST:PORT",
        help="the address of process 0 (default: the cluster's)",
    )
    command.add_argument("--processes", type=int, help="the number of processes")
    command.add_argument("--process", type=int, help="the number of this process, from 0")
    command.add_argument(
        "--join-seconds", type=int, default=300, help="how long to wait for all processes"
    )
    command.epilog = (
        f"RUN {AND} RUN {AND} ... trains several runs in one program. The runs may differ only in "
        "their seeds. Each RUN is a --config, overrides and a --workdir."
    )


def run(arguments: argparse.Namespace) -> None:
    from jaxmatch.runtime import hosts
    from jaxmatch.training.train import train

    if arguments.others:
        _train_together([arguments, *arguments.others])
        return
    config = config_of(arguments)
    where = (arguments.coordinator, arguments.processes, arguments.process)
    if arguments.multihost or any(value is not None for value in where):
        hosts.join(*where, seconds=arguments.join_seconds)
        if not hosts.leader():
            logging.disable(logging.WARNING)
    summary = train(config, arguments.workdir, arguments.data)
    if hosts.leader():
        _print_end(arguments, config, summary)


def _train_together(runs: Sequence[argparse.Namespace]) -> None:
    from jaxmatch.training import together

    for run in runs:
        given = (run.coordinator, run.processes, run.process)
        if run.multihost or any(value is not None for value in given):
            raise InputError(f"several processes train one run at a time; leave out {AND}.")
        if run.data:
            raise InputError(f"--data works for one run at a time; leave out {AND}.")
    configs = [config_of(run) for run in runs]
    pairs = [(config, run.workdir) for config, run in zip(configs, runs, strict=True)]
    summaries = together.train(pairs)
    for run, config, summary in zip(runs, configs, summaries, strict=True):
        run.json = runs[0].json
        _print_end(run, config, summary)


def _print_end(run: argparse.Namespace, config: "ConfigDict", summary: Mapping[str, Any]) -> None:
    """Print the summary of a finished run as JSON, or what it says and what to do next."""
    from jaxmatch.record.folder import RunFolder
    from jaxmatch.report.scores import ending
    from jaxmatch.training.train import default_folder

    if run.json:
        print(json.dumps({key: value for key, value in summary.items() if key != "ctaugment"}))
    else:
        folder = run.workdir or default_folder(config)
        print("\n".join(ending(folder, summary, RunFolder.at(folder).read_baselines())))
