"""``jaxmatch export``: a run's network as one file, and its model card."""

import argparse

from jaxmatch.cli.arguments import DATA, RUN, STEP, UNCALIBRATED, UNKNOWN_SCORE, step
from jaxmatch.runtime.paths import path

HELP = (
    "Write a run's classifier as one program (StableHLO, ONNX), or its weights under PyTorch's "
    "tensor names, with a model card."
)


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("--workdir", type=path, required=True, help=RUN)
    command.add_argument("--step", type=step, metavar="STEP", help=STEP)
    command.add_argument(
        "--network",
        default="",
        help="teacher or student (default: the one that the method reports)",
    )
    command.add_argument(
        "--format",
        default="",
        help="stablehlo or onnx, from uint8 images to probabilities; safetensors or npz, the "
        "weights (default: the suffix of the file)",
    )
    command.add_argument(
        "--naming",
        help="of weights: torchvision, simmatch, torchssl, usb, usb_heads, comatch, timm",
    )
    command.add_argument(
        "--evaluation",
        type=path,
        metavar="FILE",
        help="what evaluate --json printed for this step, for the metrics in the model card "
        "(default: those in the run's summary.json)",
    )
    command.add_argument(
        "-o",
        "--output",
        type=path,
        required=True,
        metavar="FILE",
        help="a new file, such as photos.stablehlo; FILE.card.md is its model card",
    )
    command.add_argument(
        "--unknown",
        action="store_true",
        help="let the program also tell how strange an image looks, as predict --unknown does",
    )
    command.add_argument("--unknown-score", default="", metavar="SCORE", help=UNKNOWN_SCORE)
    command.add_argument("--data", default="", metavar="DIR", help=f"{DATA}; for --unknown")
    command.add_argument("--uncalibrated", action="store_true", help=UNCALIBRATED)


def run(arguments: argparse.Namespace) -> None:
    from dataclasses import replace

    from jaxmatch.errors import InputError
    from jaxmatch.weights.export import PROGRAMS, check_export, export

    kind = check_export(arguments.output, arguments.format)
    if arguments.unknown and kind not in PROGRAMS:
        raise InputError(
            f"--unknown needs a file that computes ({', '.join(PROGRAMS)}); {kind} holds weights."
        )
    if arguments.unknown_score and not arguments.unknown:
        raise InputError("--unknown-score chooses how --unknown is measured; add --unknown.")

    from jaxmatch.evaluation.classifier import load
    from jaxmatch.evaluation.shipping import trained_of
    from jaxmatch.report.card import check_card, read_evaluation, write_card

    check_card(arguments.output)
    run = load(arguments.workdir, arguments.step, calibrated=not arguments.uncalibrated)
    run = replace(run, place=arguments.data)
    unknown = arguments.unknown and (arguments.unknown_score or True)
    trained = trained_of(run, arguments.network, arguments.naming, unknown)
    measured = arguments.evaluation and read_evaluation(arguments.evaluation, run)
    holds = export(arguments.output, trained, kind)
    print(f"wrote {arguments.output}: {trained.origin['network']} of step {run.step}, {holds}")
    card = write_card(arguments.output, trained, run, kind, holds, measured)
    print(f"wrote {card}: fill in its questions")
