"""What a step of each method costs on any machine: the images that it passes through networks.

    python -m experiments.mnist5k.cost

With the settings for ``mnist5k``, forward passes of targets and teachers included; ``cost.json``
beside this file keeps them.
"""

import argparse
from pathlib import Path

from experiments.mnist5k.sweep import METHODS
from experiments.mnist5k_pretraining.sweep import METHODS as PRETRAINING
from jaxmatch.config.flags import config
from jaxmatch.program import Program
from jaxmatch.record import run_data
from jaxmatch.record.settled import settled
from jaxmatch.runtime.json_files import write_json

RECORDED = Path(__file__).with_name("cost.json")


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    # SelfMatch has stages, and the variants of a method cost what it costs.
    variants = ("selfmatch", "vat_entmin", "fixmatch_ctaugment")
    methods = [each for each in (*METHODS, *PRETRAINING) if each not in variants]
    write_json(RECORDED, {method: forward_images(method) for method in methods})


def forward_images(method: str) -> int:
    """The images of a step of the method."""
    labels = None if method in PRETRAINING else 40
    settings = settled(config(f"{method}:mnist5k", labels=labels))[0]
    program = Program.build(settings, run_data.load_new(settings).facts())
    return program.forward_images(program.data)


if __name__ == "__main__":
    main()
