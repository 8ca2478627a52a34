"""FixMatch at 40 labels with fewer unlabeled images a step, or fewer steps.

jaxmatch sweep --config=experiments/curriculum/sweep.py --workdir=runs/curriculum --run
"""

from collections.abc import Iterator

# Name and change of the runs that need no program of their own; the README has those that grow.
CHANGES = {
    "ratio1": {"data.ratio": 1},
    "ratio3": {"data.ratio": 3},
    "short": {"steps": 840},  # as many image passes as those that grow
}


def sweep() -> Iterator[dict[str, object]]:
    """Three seeds of each."""
    for seed in range(3):
        for name, change in CHANGES.items():
            yield {
                "config": f"fixmatch:mnist5k,labels=40,seed={seed}",
                "workdir": f"{name}-s{seed}",
                **change,
            }
