"""The runs of the README beside this file: 13 methods with 40, 100 and 400 labels, seeds 0 to 2.

jaxmatch sweep --config=experiments/fashion_mnist/sweep.py --workdir=runs/fashion_mnist --run
jaxmatch sweep --config=experiments/fashion_mnist/sweep.py:0 --workdir=runs/fashion_mnist --run

The second command has seed 0 alone.
"""

from collections.abc import Iterator
from typing import Any

from jaxmatch.errors import InputError

LABELS = (40, 100, 400)
SEEDS = (0, 1, 2)
# By the name in the table: the recipe, and its changes. The order is that of the table.
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "supervised": ("supervised", {}),
    "pseudo_label": ("pseudo_label", {}),
    "mixmatch": ("mixmatch", {}),
    "remixmatch": ("remixmatch", {}),
    "uda": ("uda", {}),
    "fixmatch": ("fixmatch", {}),
    "fixmatch_ctaugment": ("fixmatch", {"augment": "ctaugment"}),
    "flexmatch": ("flexmatch", {}),
    "freematch": ("freematch", {}),
    "softmatch": ("softmatch", {}),
    "simmatch": ("simmatch", {}),
    "comatch": ("comatch", {}),
    "selfmatch": ("selfmatch", {}),
}


def sweep(seed: str = "") -> Iterator[dict[str, Any]]:
    """Seed 0 of all first; the runs of one seed if it is given."""
    if seed and seed not in map(str, SEEDS):
        raise InputError(f"{seed!r} is no seed of this study; give 0, 1 or 2, or none for all.")
    for each in (int(seed),) if seed else SEEDS:
        for labels in LABELS:
            for method, (recipe, changes) in METHODS.items():
                yield {
                    "config": f"{recipe}:fashion_mnist,labels={labels},seed={each}",
                    "workdir": f"{method}-{labels}-s{each}",
                    **changes,
                }
