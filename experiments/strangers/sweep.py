"""Six known classes, with images of four other classes among the unlabeled ones, or without them.

jaxmatch sweep --config=experiments/strangers/sweep.py --workdir=runs/strangers --run
jaxmatch sweep --config=experiments/strangers/sweep.py:mnist5k --workdir=runs/strangers --run
"""

from collections.abc import Iterator
from typing import Any

SEEDS = (0, 1, 2)
FASHION, DIGITS = "fashion_mnist", "mnist5k"
# As on CIFAR-10, where animals are known and vehicles are not: garments, not shoes and bags.
KNOWN = {
    FASHION: ("T-shirt", "Trouser", "Pullover", "Dress", "Coat", "Shirt"),
    DIGITS: ("0", "1", "2", "3", "4", "5"),
}
# 25 and 4 labels a class, and images held out for the scale of `unknown`.
CHOSEN = {FASHION: "labels=150,size=small", DIGITS: "labels=24"}
VALIDATION = {FASHION: 600, DIGITS: 300}
# By the name in the table: the method, and whether the unlabeled images have strangers.
WAYS: dict[str, tuple[str, bool]] = {
    "supervised": ("supervised", True),
    "fixmatch-without": ("fixmatch", False),
    "fixmatch": ("fixmatch", True),
    "iomatch": ("iomatch", True),
}


def sweep(data: str = FASHION) -> Iterator[dict[str, Any]]:
    """Seed 0 of all first."""
    for seed in SEEDS:
        for way, (method, strangers) in WAYS.items():
            yield {
                "config": f"{method}:{data},{CHOSEN[data]},seed={seed}",
                "data.known_classes": KNOWN[data],
                "data.strangers": strangers,
                "data.validation": VALIDATION[data],
                "workdir": f"{data}-{way}-s{seed}",
            }
