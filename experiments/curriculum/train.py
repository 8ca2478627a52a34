"""Trains a run whose number of unlabeled images a step grows in phases.

    python -m experiments.curriculum.train --config=fixmatch:mnist5k,labels=40,seed=0 \\
        --workdir=runs/curriculum/grow-s0 --ratios 1 3 7

The phases are equally long, up to a call of ``steps_per_call`` steps. The state of the methods with
unlabeled images has no axis of theirs, so the same state passes from one phase's program to the
next's. ``data.ratio`` of the run becomes the last phase's; the phases are in ``phases.json``
beside it. A run that was stopped is not continued.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from jaxmatch.config.flags import from_flags
from jaxmatch.errors import InputError, JaxmatchError
from jaxmatch.program import Program
from jaxmatch.runtime.checkpoint import Checkpoints
from jaxmatch.runtime.compilation import prepare_process
from jaxmatch.runtime.json_files import write_json
from jaxmatch.training.train import prepare


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--config", required=True)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--ratios", type=int, nargs="+", default=[1, 3, 7], metavar="MU")
    arguments, overrides = parser.parse_known_args()
    try:
        config, _ = from_flags(arguments.config, overrides)
        train(config, arguments.workdir, arguments.ratios)
    except JaxmatchError as error:
        print(f"experiments.curriculum: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


def train(config: ConfigDict, folder: Path, ratios: Sequence[int]) -> dict[str, Any]:
    """Train the run of ``config`` with the ratios in turn; the content of its summary.json.

    Raises:
        InputError: if there is something in ``folder``, or nothing to do in a phase.
    """
    started = time.monotonic()
    prepare_process()
    if folder.exists() and any(folder.iterdir()):
        raise InputError(f"{folder} is not empty; choose another --workdir.")
    calls = config.steps // config.steps_per_call
    if len(ratios) > calls:
        raise InputError(f"{len(ratios)} phases of {calls} calls; give fewer --ratios.")
    config = with_ratio(config, ratios[-1])
    with Checkpoints(folder / "checkpoints", keep=config.keep) as checkpoints:
        run = prepare(config, folder, checkpoints, started)
        programs = [
            Program.build(with_ratio(config, ratio), run.facts).compile(run.data)
            for ratio in ratios
        ]
        run.record()
        write_json(folder / "phases.json", {"ratios": list(ratios)})
        with run:
            state = run.start(uninterrupted)
            for call in range(calls):
                take = programs[phase_of(call, calls, len(ratios))]
                state = run.after(*take(state, run.feed), uninterrupted)
            return run.finish(state)


def uninterrupted() -> None:
    """Signals are not noted: they end the process."""


def phase_of(call: int, calls: int, phases: int) -> int:
    """To which of the phases, as equal as may be, a call belongs."""
    return call * phases // calls


def with_ratio(config: ConfigDict, ratio: int) -> ConfigDict:
    """``config`` with so many unlabeled images for each labeled one."""
    changed = config.copy_and_resolve_references()
    changed.data.ratio = ratio
    return changed


if __name__ == "__main__":
    main()
