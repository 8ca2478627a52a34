"""Runs on the ten labels of seed 1 with many random numbers, beside those of ``torch_runs.py``.

jaxmatch sweep --config=experiments/mnist5k/label_set.py --workdir=runs/label_set_1 --run
jaxmatch sweep --config=experiments/mnist5k/label_set.py:early --workdir=runs/label_set_early --run
jaxmatch sweep --config=experiments/mnist5k/label_set.py:short --workdir=runs/label_set_short --run

The second command has runs of 300 steps: how the two programs begin. The third one has 600 steps of
FixMatch and SimMatch, whose end varies less between runs than that of the usual 1,500. The random
numbers are not those of the first command's runs.
"""

from collections.abc import Iterator
from typing import Any

from jaxmatch.errors import InputError

LABELS = "tests/golden/splits/mnist5k_labels10_seed1.json"
RUNS = {
    "": {"supervised": range(30), "fixmatch": range(12), "simmatch": range(12)},
    "early": {"supervised": range(30, 110)},
    "short": {"fixmatch": range(200, 210), "simmatch": range(200, 210)},
}
CHANGES: dict[str, dict[str, Any]] = {"": {}, "early": {"steps": 300}, "short": {"steps": 600}}
USUAL_STEPS = 1500  # of the recipes


def sweep(kind: str = "") -> Iterator[dict[str, Any]]:
    """All of a method, then of the next one."""
    if kind not in RUNS:
        raise InputError(f"{kind!r} is no kind of runs here; give 'early', 'short' or nothing.")
    for method, seeds in RUNS[kind].items():
        for seed in seeds:
            yield {
                "config": f"{method}:mnist5k,labels=10,seed=1",
                "workdir": f"{method}-{seed}",
                "data.split": LABELS,
                "seed": seed,
                **CHANGES[kind],
            }
