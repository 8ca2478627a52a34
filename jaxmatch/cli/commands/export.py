"""``jaxmatch export``: a run's network as one file."""

import argparse

from jaxmatch.cli.arguments import RUN, STEP, UNCALIBRATED, step
from jaxmatch.runtime.paths import path

HELP = "Write a run's network under PyTorch's tensor names, with the heads that have one."


def add_arguments(command: argparse.ArgumentParser) -> None:
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
    command.add_argument("--uncalibrated", action="store_true", help=UNCALIBRATED)


def run(arguments: argparse.Namespace) -> None:
    from jaxmatch.evaluation.classifier import load
    from jaxmatch.models.lora import merged
    from jaxmatch.weights.export import check_export, export
    from jaxmatch.weights.trained import Trained

    check_export(arguments.output)
    run = load(arguments.workdir, arguments.step, calibrated=not arguments.uncalibrated)
    program = run.program
    trained = Trained(
        variables=merged(program.model, run.variables(arguments.network)),
        algorithm=program.algorithm,
        network=program.network,
        classes=run.classes,
        image_shape=run.image_shape,
        mean=program.mean,
        std=program.std,
        naming=arguments.naming,
        temperature=run.temperature(arguments.network),
    )
    holds = export(arguments.output, trained)
    network = arguments.network or program.algorithm.evaluated
    print(f"wrote {arguments.output}: {network} of step {run.step}, {holds}")
