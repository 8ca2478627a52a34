"""FixMatch with other confidence thresholds, on 40 labels of MNIST-5k.

jaxmatch sweep --config=experiments/threshold/sweep.py --workdir=runs/threshold --run
"""

from collections.abc import Iterator
from typing import Any

THRESHOLDS = (0.0, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 1.01)
SEEDS = (0,)


def sweep() -> Iterator[dict[str, Any]]:
    """Seed 0 of all first."""
    for seed in SEEDS:
        for threshold in THRESHOLDS:
            yield {
                "config": f"fixmatch:mnist5k,labels=40,seed={seed}",
                "algorithm.threshold": threshold,
                "workdir": f"tau{threshold}-s{seed}",
            }
