"""The arguments of each command, with their help texts."""

import argparse
from pathlib import Path

from jaxmatch.cli.words import AND
from jaxmatch.runtime.paths import path

BEST = "best"
RUN = "a run folder that train has written"
STEP = "the step of the checkpoint, or best for that of keep_best (default: the newest)"
DATA = "the place of the run's folder, npz file or TFDS directory, if it has moved"
JSON = "print {} as JSON, for programs"
CONFIG = "FILE_OR_NAME:DATA[,labels=N][,seed=S][,size=SIZE][,views=V][,preset=P][,split=FILE]"


def step(text: str) -> int | str:
    """The step that ``--step`` names: a number, or the best one."""
    return text if text == BEST else int(text)


def parser() -> argparse.ArgumentParser:
    """The parser of all commands; overrides such as ``--config.key=value`` are unknown to it."""
    found = argparse.ArgumentParser(
        prog="jaxmatch",
        description="Train image classifiers from few labels and many unlabeled images.",
        allow_abbrev=False,
    )
    commands = found.add_subparsers(dest="command", required=True)
    for name, (add_arguments, text) in COMMANDS.items():
        add_arguments(commands.add_parser(name, help=text, description=text, allow_abbrev=False))
    return found


def _train(command: argparse.ArgumentParser) -> None:
    command.add_argument("--config", required=True, help=CONFIG)
    command.add_argument("--workdir", type=path, help="the run folder (default: runs/NAME)")
    command.add_argument("--data", default="", metavar="DIR", help=DATA)
    command.add_argument(
        "--minutes", type=float, metavar="M", help="choose the steps that take M minutes"
    )
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


def _evaluate(command: argparse.ArgumentParser) -> None:
    command.add_argument("--workdir", type=path, required=True, help=RUN)
    command.add_argument("--step", type=step, metavar="STEP", help=STEP)
    command.add_argument("--data", default="", metavar="DIR", help=DATA)
    command.add_argument("--json", action="store_true", help=JSON.format("all metrics"))


def _predict(command: argparse.ArgumentParser) -> None:
    command.add_argument("--workdir", type=path, required=True, help=RUN)
    command.add_argument("--step", type=step, metavar="STEP", help=STEP)
    command.add_argument("paths", type=path, nargs="+", help="image files, or folders of them")
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
    command.add_argument(
        "--left-out",
        type=path,
        metavar="FILE",
        help="a table to write of path and reason of each file that is no readable image",
    )


def _probe(command: argparse.ArgumentParser) -> None:
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


def _features(command: argparse.ArgumentParser) -> None:
    command.add_argument("--config", help=f"{CONFIG}, with --config.init_from=RUN_OR_FILE")
    command.add_argument("--workdir", type=path, help="a run folder: its own network and images")
    command.add_argument("--step", type=step, metavar="STEP", help=STEP)
    command.add_argument("--data", default="", metavar="DIR", help=DATA)
    command.add_argument(
        "--cache", type=path, metavar="FOLDER", help="the cache (default: runs/features/NAME)"
    )
    command.add_argument("--json", action="store_true", help=JSON.format("what the cache holds"))


def _baseline(command: argparse.ArgumentParser) -> None:
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


def _pseudo_label(command: argparse.ArgumentParser) -> None:
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


def _export(command: argparse.ArgumentParser) -> None:
    command.add_argument("--workdir", type=path, required=True, help=RUN)
    command.add_argument("--step", type=step, metavar="STEP", help=STEP)
    command.add_argument(
        "--network",
        default="",
        help="teacher or student (default: the one that the method reports)",
    )
    command.add_argument(
        "--naming", help="torchvision, simmatch, torchssl, usb, usb_heads, comatch, timm"
    )
    command.add_argument(
        "-o", "--output", type=path, required=True, help="a new .safetensors or .npz file"
    )


def _report(command: argparse.ArgumentParser) -> None:
    command.add_argument("runs", type=path, nargs="+", metavar="RUN", help=RUN)
    command.add_argument("-o", "--output", type=path, default=Path("report.html"), help="the page")
    command.add_argument(
        "--baselines", action="store_true", help="measure the baselines of runs that have none"
    )


def _sweep(command: argparse.ArgumentParser) -> None:
    command.add_argument("--config", required=True, help="FILE_OR_NAME[:ARGUMENT] with a sweep()")
    command.add_argument(
        "--seeds", type=int, nargs="+", default=(), help="repeat all runs with each of these seeds"
    )
    command.add_argument(
        "--run", dest="here", action="store_true", help="train all unfinished runs"
    )
    command.add_argument(
        "--vmap-seeds", type=int, default=1, metavar="N", help="train up to N seeds in one program"
    )
    command.add_argument(
        "--workdir", type=path, default=Path("runs"), help="the folder of the run folders"
    )


def _demo(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--workdir", type=path, default=Path("runs/demo"), help="the folder of both run folders"
    )
    command.add_argument("--seed", type=int, default=0, help="chooses the labels and all draws")


def _describe(command: argparse.ArgumentParser) -> None:
    command.add_argument("--config", help=CONFIG)
    command.add_argument("--json", action="store_true", help=JSON.format("everything"))
    command.add_argument(
        "--keys",
        nargs="?",
        const="",
        metavar="PREFIX",
        help="list the keys of a configuration instead: type, value (of --config, else the "
        "default) and meaning",
    )


def _show_augment(command: argparse.ArgumentParser) -> None:
    command.add_argument("--config", default="fixmatch:mnist5k", help=CONFIG)
    command.add_argument("-o", "--output", type=path, default=Path("augment.png"), help="the PNG")


COMMANDS = {
    "train": (_train, "Train a run, or continue it. --config.key=value overrides a setting."),
    "evaluate": (
        _evaluate,
        "Print the test and validation metrics of a run's teacher and student.",
    ),
    "predict": (_predict, "Classify image files and write a table: path,class,confidence."),
    "pseudo-label": (
        _pseudo_label,
        "Label the unlabeled images of runs by their average, for --config.data.pseudo_labels.",
    ),
    "probe": (
        _probe,
        "Print the test accuracy of simple classifiers on a run's frozen features as JSON.",
    ),
    "features": (
        _features,
        "Keep a frozen network's features of all images of a data set on disk, computed once.",
    ),
    "baseline": (
        _baseline,
        "Print the accuracy of scikit-learn's classifiers on pixels and, with a pretrained "
        "network, on its frozen features, for the same labels.",
    ),
    "export": (
        _export,
        "Write a run's network under PyTorch's tensor names, with the heads that have one.",
    ),
    "report": (_report, "Compare runs in one HTML page with plots, also as PNGs."),
    "sweep": (_sweep, "Print the train commands of a config's sweep(), or run them."),
    "demo": (
        _demo,
        "Train supervised, then FixMatch, on 40 labels of MNIST-5k: print a table with baselines.",
    ),
    "describe": (
        _describe,
        "Print what a config finds and what will run: images, network, memory, arithmetic; or its "
        "keys.",
    ),
    "show-augment": (
        _show_augment,
        "Draw a config's images as one PNG: under every op, with those that it uses first, and as "
        "whole views.",
    ),
}
