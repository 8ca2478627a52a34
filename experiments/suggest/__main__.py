"""Train on few labels, add labels by each rule of ``jaxmatch suggest``, train on, and compare.

The truth is known, so the labels come from it. Runs that are finished are not trained again.
"""

import argparse
import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxmatch import config, train
from jaxmatch.evaluation import suggest
from jaxmatch.evaluation.acquisition import RULES
from jaxmatch.evaluation.classifier import load
from jaxmatch.record.folder import RunFolder


def run(
    data: str, options: dict[str, Any], rules: Sequence[str], more: int, base: Path
) -> dict[str, Any]:
    """The test accuracies of one seed: of the first run, and after each rule's labels."""
    seed = options["seed"]
    first = base / f"first-s{seed}"
    found: dict[str, Any] = {"seed": seed, "first": accuracy(train(config(data, **options), first))}
    for rule in rules:
        table = base / f"{rule}-s{seed}.csv"
        folder = base / f"{rule}-s{seed}"
        if not RunFolder(folder).begun:
            table.write_bytes(labeled(suggest.choose(load(first), more, rule=rule, seed=seed)))
        going_on = {
            "init_from": first,
            "classifier_init": "logistic",
            "data.added_labels": table,
        }
        found[rule] = accuracy(train(config(data, **options, **going_on), folder))
        found[f"{rule}_first_was_wrong"] = share_wrong(table)
        found[f"{rule}_classes"] = len({row["label"] for row in read(table)})
    return found


def accuracy(summary: dict[str, Any]) -> float:
    """The last test accuracy of the network that a run reports."""
    return summary[summary["evaluated"]]["last"]


def labeled(found: suggest.Suggestions) -> bytes:
    """The table of suggestions with the true labels."""
    lines = suggest.header(found)
    for position, (before, after) in zip(found.positions, suggest.cells(found), strict=True):
        truth = found.classes[found.source.labels[position]]
        lines += before + suggest.quoted(truth) + after
    return lines


def read(table: Path) -> list[dict[str, str]]:
    """The rows of a table."""
    return list(csv.DictReader(io.StringIO(table.read_text())))


def share_wrong(table: Path) -> float:
    """The share of suggested images that the first run did not recognise."""
    return float(np.mean([row["label"] != row["prediction"] for row in read(table)]))


def main(argv: Sequence[str] | None = None) -> None:
    """Print and keep the accuracies, a line of JSON for each seed."""
    parser = argparse.ArgumentParser(prog="python -m experiments.suggest", description=__doc__)
    parser.add_argument("--data", default="fixmatch:mnist5k", help="METHOD:DATA of known truth")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--rules", nargs="+", default=["typiclust", "clue", "random"], choices=list(RULES)
    )
    parser.add_argument("--labels", type=int, default=10, help="of the first run")
    parser.add_argument("--more", type=int, default=10, help="labels to add")
    parser.add_argument("--steps", type=int, default=750, help="of each run")
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="KEY=VALUE", help="other settings of all runs"
    )
    parser.add_argument("--workdir", type=Path, default=Path("runs/suggest"))
    chosen = parser.parse_args(argv)
    chosen.workdir.mkdir(parents=True, exist_ok=True)
    results = []
    settings = {"labels": chosen.labels, "steps": chosen.steps}
    settings |= dict(each.split("=", 1) for each in chosen.set)
    for seed in chosen.seeds:
        options = {**settings, "seed": seed}
        results.append(run(chosen.data, options, chosen.rules, chosen.more, chosen.workdir))
        print(json.dumps(results[-1]), flush=True)
    (chosen.workdir / "results.json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
