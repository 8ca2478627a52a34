"""``jaxmatch demo``: supervised and FixMatch on the embedded digits."""

import argparse
from pathlib import Path

from jaxmatch.cli.arguments import path, show

HELP = "Train supervised, then FixMatch, on 40 labels of MNIST-5k: print a table with baselines."


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--workdir", type=path, default=Path("runs/demo"), help="the folder of both run folders"
    )
    command.add_argument("--seed", type=int, default=0, help="chooses the labels and all draws")


def run(arguments: argparse.Namespace) -> None:
    from rich.table import Table

    from jaxmatch.config.flags import from_flags
    from jaxmatch.config.keys import KEYS
    from jaxmatch.evaluation.baselines import add_missing
    from jaxmatch.evaluation.comparison import compare
    from jaxmatch.record.folder import RunFolder
    from jaxmatch.settings import check_value
    from jaxmatch.training.train import train

    check_value("seed", arguments.seed, KEYS["seed"].kind)
    summaries = {}
    for name in ("supervised", "fixmatch"):
        config, _ = from_flags(f"{name}:mnist5k,labels=40,seed={arguments.seed}", [])
        summaries[name] = train(config, arguments.workdir / name)
    folders = [arguments.workdir / name for name in summaries]
    add_missing(folders)
    baselines = RunFolder(folders[0]).read_baselines() or {"baselines": {}}
    table = Table("method", "test accuracy", "steps", "seconds", title="MNIST-5k, 40 labels")
    for found in baselines["baselines"].values():
        table.add_row(found["title"], f"{found['test']['accuracy']:.1%}", "", "")
    for name, summary in summaries.items():
        accuracy = f"{summary[summary['evaluated']]['last']:.1%}"
        table.add_row(name, accuracy, str(summary["steps"]), f"{summary['seconds']:.0f}")
    show(table)
    for summary in summaries.values():
        if text := compare(summary, baselines):
            print(text)
