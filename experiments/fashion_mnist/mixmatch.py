"""Why MixMatch falls behind supervised: its weight, on seeds 3 to 5 and 5,000 validation images.

jaxmatch sweep --config=experiments/fashion_mnist/mixmatch.py --workdir=runs/fashion_mixmatch --run
python -m experiments.fashion_mnist.mixmatch runs/fashion_mixmatch

The seeds of the results, 0 to 2, and the test images have no part in the choice.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments import study
from experiments.fashion_mnist.views import HERE, SEEDS, VALIDATION, accuracies

LABELS = (100, 400)
SUPERVISED = "supervised"
WEIGHTS = (75.0, 25.0, 7.5, 2.5, 0.0)
# By the name of a candidate: what it changes. 75 is CIFAR-10's weight.
CANDIDATES: dict[str, dict[str, Any]] = {
    SUPERVISED: {},
    **{f"{weight:g}": {"algorithm.unlabeled_weight": weight} for weight in WEIGHTS},
}


def sweep() -> Iterator[dict[str, Any]]:
    """The first seed of all first."""
    for seed in SEEDS:
        for labels in LABELS:
            for name, changes in CANDIDATES.items():
                method = SUPERVISED if name == SUPERVISED else "mixmatch"
                yield {
                    "config": f"{method}:fashion_mnist,labels={labels},seed={seed}",
                    "workdir": f"{name}-{labels}-s{seed}",
                    "data.validation": VALIDATION,
                    **changes,
                }


def collect(runs: Path) -> dict[str, dict[str, dict[str, float]]]:
    """Validation accuracies in percent by candidate, labels and seed, of the finished runs."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for name in CANDIDATES:
        for labels in LABELS:
            if known := accuracies(runs, name, str(labels)):
                found.setdefault(name, {})[str(labels)] = known
    return found


def table(results: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """The accuracies as Markdown."""
    lines = ["| weight | " + " | ".join(f"{labels} labels" for labels in LABELS) + " |"]
    lines.append("|---|" + "---|" * len(LABELS))
    for name, found in results.items():
        cells = []
        for labels in LABELS:
            values = list(found.get(str(labels), {}).values())
            cells.append(f"{study.each(values)}: {study.spread(values)}" if values else "not run")
        title = "supervised, without MixUp" if name == SUPERVISED else name
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(words: Sequence[str] | None = None) -> None:
    results, _ = study.collected(collect, HERE / "mixmatch.json", __doc__, words)
    print(table(results))


if __name__ == "__main__":
    main()
