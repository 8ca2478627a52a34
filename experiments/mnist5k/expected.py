"""What the docstrings of the configs say to expect, from the results that are recorded here.

    python -m experiments.mnist5k.expected

A test holds the docstrings against these sentences, so new results change both.
"""

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from experiments import study

HERE = Path(__file__).parent
# The row whose settings are those of the config, if it has another name.
ROWS = {"vat": "vat_entmin"}
STAGES = ", 450 of them SimCLR's,"


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    for config, sentence in sentences().items():
        print(f"{config}: {sentence}")


def sentences() -> dict[str, str]:
    """By config: accuracy with spread and cost, of training and of pre-training."""
    results, costs = _read("results.json"), _read("cost.json")
    pretraining = _read("../mnist5k_pretraining/results.json")
    configs = {path.stem for path in (HERE.parents[1] / "configs").glob("*.py")}
    found = {}
    for config in sorted(configs):
        row = ROWS.get(config, config)
        if row in results["40"]:
            found[config] = _trained(results, row, _cost(costs, config))
        elif config in pretraining:
            found[config] = _pretrained(pretraining[config], _cost(costs, config))
    return found


def _trained(results: dict[str, Any], row: str, cost: str) -> str:
    shares = [
        f"{_spread(run['teacher'] for run in results[labels][row].values())} with {labels}"
        for labels in ("40", "10")
    ]
    return (
        f"On MNIST-5k 1,500 steps{cost} end at a test accuracy of {' and '.join(shares)} labels, "
        "over seeds 0 to 2 (experiments/mnist5k)."
    )


def _pretrained(runs: dict[str, Any], cost: str) -> str:
    knn, linear, tuned = (
        _spread(run[key] for run in runs.values()) for key in ("knn", "linear", "finetune40")
    )
    seeds = "seed 0" if len(runs) == 1 else f"seeds 0 to {len(runs) - 1}"
    return (
        f"On MNIST-5k 1,560 steps{cost} end at {knn} by k-NN and {linear} by a linear probe, both "
        f"with all labels, and fine-tuning on 40 labels at {tuned}, {seeds} "
        "(experiments/mnist5k_pretraining)."
    )


def _cost(costs: dict[str, int], config: str) -> str:
    return f" of {costs[config]} images through networks" if config in costs else STAGES


def _spread(values: Iterable[float]) -> str:
    return f"{study.spread([100 * value for value in values])} %"


def _read(name: str) -> Any:
    return json.loads((HERE / name).read_text())


if __name__ == "__main__":
    main()
