"""FixMatch and SimMatch with a pass of their own for the weak views, at 40 labels.

jaxmatch sweep --config=experiments/split/sweep.py --workdir=runs/split --run
"""

from collections.abc import Iterator


def sweep() -> Iterator[dict[str, object]]:
    """Seed 0 of both first."""
    for seed in range(3):
        for method in ("fixmatch", "simmatch"):
            yield {
                "config": f"{method}:mnist5k,labels=40,seed={seed}",
                "workdir": f"{method}-s{seed}",
                "forward": "split",
            }
