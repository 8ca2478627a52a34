"""``jaxmatch export``: a run's network as one file, and its model card."""

import argparse

from jaxmatch.cli.arguments import RUN, STEP, UNCALIBRATED, add_unknown, path, step, unknown

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
        "weights, whose files have these suffixes (default: the suffix of the file)",
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
    add_unknown(command, "let the program tell how strange an image looks, as predict --unknown")
    command.add_argument(
        "--dtype",
        default="",
        help="float32 or bfloat16, that a program computes in (default: the run's; ONNX needs "
        "float32)",
    )
    command.add_argument("--uncalibrated", action="store_true", help=UNCALIBRATED)


def run(arguments: argparse.Namespace) -> None:
    from dataclasses import replace

    from jaxmatch.errors import InputError
    from jaxmatch.weights.export import PROGRAMS, check_export, export

    kind = check_export(arguments.output, arguments.format)
    score = unknown(arguments)
    if score and kind not in PROGRAMS:
        raise InputError(
            f"--unknown needs a file that computes ({', '.join(PROGRAMS)}); {kind} holds weights."
        )
    if arguments.naming and kind in PROGRAMS:
        raise InputError(f"--naming needs a file of weights; {kind} holds a program.")
    if arguments.dtype and kind not in PROGRAMS:
        raise InputError(f"--dtype needs a program ({', '.join(PROGRAMS)}); {kind} holds weights.")

    from jaxmatch.evaluation.classifier import load
    from jaxmatch.evaluation.shipping import trained_of
    from jaxmatch.report.card import check_card, make_card, write_card
    from jaxmatch.report.card_evaluation import read_evaluation

    check_card(arguments.output)
    run = load(
        arguments.workdir,
        arguments.step,
        calibrated=not arguments.uncalibrated,
        dtype=arguments.dtype,
    )
    run = replace(run, place=arguments.data)
    trained = trained_of(run, arguments.network, arguments.naming, score)
    measured = arguments.evaluation and read_evaluation(arguments.evaluation, trained)
    card = make_card(arguments.output, trained, run, kind, measured)
    holds = export(arguments.output, trained, kind)
    print(f"wrote {arguments.output}: {trained.origin['network']} of step {run.step}, {holds}")
    written = write_card(arguments.output, card, kind, holds)
    print(f"wrote {written}: fill in its questions")
