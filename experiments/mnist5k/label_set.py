"""Runs on the ten labels of seed 1 with many random numbers, beside those of ``torch_runs.py``.

jaxmatch sweep --config=experiments/mnist5k/label_set.py --workdir=runs/label_set_1 --run
"""

from collections.abc import Iterator

LABELS = "tests/golden/splits/mnist5k_labels10_seed1.json"
RUNS = {"supervised": 30, "fixmatch": 12, "simmatch": 12}


def sweep() -> Iterator[dict[str, object]]:
    """All of a method, then of the next one."""
    for method, runs in RUNS.items():
        for seed in range(runs):
            yield {
                "config": f"{method}:mnist5k,labels=10,seed=1",
                "workdir": f"{method}-{seed}",
                "data.split": LABELS,
                "seed": seed,
            }
