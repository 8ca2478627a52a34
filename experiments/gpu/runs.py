"""Whole runs of a config, a seed after another: accuracy and seconds.

python -m experiments.gpu.runs --config=fixmatch:mnist5k,labels=40 --seeds 0 1 2

Prints a JSON line as each run ends. The runs' folders are not kept.
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from experiments.mnist5k.results import steps_per_second
from jaxmatch import train
from jaxmatch.config.flags import from_flags
from jaxmatch.record.metrics import read
from jaxmatch.runtime.compilation import prepare_process


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--config", required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    arguments, overrides = parser.parse_known_args()
    prepare_process()
    for seed in arguments.seeds:
        print(json.dumps(whole(arguments.config, overrides, seed)), flush=True)


def whole(name: str, overrides: Sequence[str], seed: int) -> dict[str, Any]:
    """What came of the run of one seed."""
    config, _ = from_flags(name, [*overrides, f"--config.seed={seed}"])
    with tempfile.TemporaryDirectory() as folder:
        summary = train(config, folder)
        lines = read(Path(folder))
    return {
        "config": name,
        "seed": seed,
        "device": jax.devices()[0].device_kind,
        "teacher": summary["teacher"]["last"],
        "student": summary["student"]["last"],
        "steps": summary["steps"],
        "seconds": summary["seconds"],
        "steps_per_second": steps_per_second(lines),
        "curve": {str(line["step"]): line["test/teacher/accuracy"] for line in lines},
    }


if __name__ == "__main__":
    main()
