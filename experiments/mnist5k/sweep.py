"""The runs of the README beside this file: the methods at 40 and at 10 labels, seeds 0 to 2.

jaxmatch sweep --config=experiments/mnist5k/sweep.py --workdir=runs/mnist5k --run
"""

from collections.abc import Iterator

METHODS = ("fixmatch", "simmatch", "comatch", "selfmatch")
BASELINES = ("supervised", "pseudo_label")


def sweep() -> Iterator[dict[str, str]]:
    """Seed 0 of all first."""
    for seed in range(3):
        for labels in (10, 40):
            for method in METHODS if labels == 10 else (*BASELINES, *METHODS):
                yield {
                    "config": f"{method}:mnist5k,labels={labels},seed={seed}",
                    "workdir": f"{method}-{labels}-s{seed}",
                }
