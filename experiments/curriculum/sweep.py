"""FixMatch at 40 labels with fewer unlabeled images a step, from the first step to the last.

jaxmatch sweep --config=experiments/curriculum/sweep.py --workdir=runs/curriculum --run
"""

from collections.abc import Iterator


def sweep() -> Iterator[dict[str, object]]:
    """Three seeds of two ratios; the README beside this file has the runs that grow."""
    for seed in range(3):
        for ratio in (1, 3):
            yield {
                "config": f"fixmatch:mnist5k,labels=40,seed={seed}",
                "workdir": f"ratio{ratio}-s{seed}",
                "data.ratio": ratio,
            }
