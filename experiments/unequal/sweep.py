"""FixMatch on long-tailed data, plain and with each of the corrections.

jaxmatch sweep --config=experiments/unequal/sweep.py --workdir=runs/unequal --run
jaxmatch sweep --config=experiments/unequal/sweep.py:mnist5k --workdir=runs/unequal-mnist5k --run
"""

from collections.abc import Iterator

from jaxmatch.errors import InputError, suggest

# Labeled and unlabeled images of the largest class, and gamma of both.
TAILS = {
    "fashion_mnist": "largest=100,imbalance=50,imbalance_unlabeled=50,largest_unlabeled=3000",
    "mnist5k": "largest=60,imbalance=20,imbalance_unlabeled=20,largest_unlabeled=300",
}
STEPS = {"fashion_mnist": 1500, "mnist5k": 300}
# Name and change of each run.
CHANGES: dict[str, dict[str, object]] = {
    "plain": {},
    "sampling": {"unequal.sampling": "balanced"},
    "logits": {"unequal.logit_adjustment": 1.0},
    "abc": {"unequal.abc": 1.0},
    "debiaspl": {"unequal.debias": 0.4},
}


def sweep(argument: str = "fashion_mnist") -> Iterator[dict[str, object]]:
    """Three seeds of each; the argument is the data set."""
    if argument not in TAILS:
        raise InputError(f"no long tail of {argument!r}; {suggest(argument, TAILS)}")
    for seed in range(3):
        for name, change in CHANGES.items():
            yield {
                "config": f"fixmatch:{argument},{TAILS[argument]},seed={seed}",
                "workdir": f"{name}-s{seed}",
                "steps": STEPS[argument],
                "data.ratio": 2,  # USB's for unequal classes
                **change,
            }
