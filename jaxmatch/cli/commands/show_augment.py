"""``jaxmatch show-augment``: a picture of a configuration's augmentation."""

import argparse
import textwrap
from pathlib import Path

from jaxmatch.cli.arguments import CONFIG, config_of, path

HELP = (
    "Draw a config's images as one PNG: under every op, with those that it uses first, and as "
    "whole views."
)


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("--config", default="fixmatch:mnist5k", help=CONFIG)
    command.add_argument("-o", "--output", type=path, default=Path("augment.png"), help="the PNG")


def run(arguments: argparse.Namespace) -> None:
    import jax
    import numpy as np

    from jaxmatch.algorithms import build_algorithm
    from jaxmatch.augment.build import multi_crop
    from jaxmatch.config.stages import stages_of
    from jaxmatch.record.run_data import load_new
    from jaxmatch.record.settled import settled
    from jaxmatch.report.sheet import check_name, contact_sheet, summarize, write_sheet

    check_name(arguments.output)
    *_, asked = stages_of(config_of(arguments)).values()
    config, _ = settled(asked)
    algorithm = build_algorithm(config.algorithm)
    roles, transforms = multi_crop(config.augment, config.views, algorithm)
    views = {role: transforms[role] for role in (*algorithm.labeled, *roles)}
    source = load_new(config).source
    images = np.asarray(source.images[:: max(1, len(source.images) // 8)][:8])
    chosen = textwrap.shorten(" ".join([arguments.config, *arguments.overrides]), 200)
    title = f"{chosen} on images of {images.shape[1]} x {images.shape[2]}"
    sheet = contact_sheet(images, views, jax.random.key(config.seed), title)
    write_sheet(sheet, arguments.output)
    print("\n".join([*summarize(views), f"wrote {arguments.output}"]))
