"""Reads the finished runs of the sweep and their baselines into a table.

python -m experiments.own_data.results runs/own_data
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments import study
from experiments.own_data.sweep import DATA, METHODS, WEAK
from experiments.statistics.__main__ import difference

HERE = Path(__file__).parent
CONTRAST = "`fixmatch`, `views=industrial` and `--config.augment=contrast`"
TITLES = {method: f"`{method}`" for method in (*METHODS, *WEAK)} | {
    "contrast": CONTRAST,
    "wide": "`supervised`, `--config.data.image_size=128`",
}

METRICS = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "roc_auc": "area under ROC",
}


def main(words: Sequence[str] | None = None) -> None:
    found, _ = study.collected(collect, HERE / "results.json", __doc__, words)
    for data in DATA:
        if entries := [each for each in found if each["data"] == data]:
            print(f"{data}\n\n{table(entries)}\n")
            print("\n".join(differences(entries, "mean_teacher")))


def collect(runs: Path) -> list[dict[str, Any]]:
    """The entries of the finished runs."""
    return [entry(path.parent) for path in sorted(runs.glob("*-s*/summary.json"))]


def entry(folder: Path) -> dict[str, Any]:
    """Metrics in [0, 1] of the network that a run reports, and of its baselines."""
    data, run, seed = folder.name.rsplit("-", 2)  # as the sweep names them
    summary = json.loads((folder / "summary.json").read_text())
    baselines = json.loads((folder / "baselines.json").read_text())["baselines"]
    return {
        "data": data,
        "run": run,
        "seed": int(seed.removeprefix("s")),
        "steps": summary["steps"],
        **_measured(summary[summary["evaluated"]]["metrics"]),
        "baselines": {each["title"]: _measured(each["test"]) for each in baselines.values()},
    }


def _measured(metrics: dict[str, Any]) -> dict[str, float]:
    return {key: metrics[key] for key in METRICS if metrics.get(key) is not None}


def table(entries: Sequence[dict[str, Any]]) -> str:
    """:data:`METRICS` in percent as Markdown; the baselines have the same labels."""
    lines = [f"| | seeds | {' | '.join(METRICS.values())} |", "|---" * (2 + len(METRICS)) + "|"]
    for run, title in TITLES.items():
        if runs := {each["seed"]: each for each in entries if each["run"] == run}:
            lines.append(_row(title, runs))
    baselines: dict[str, dict[int, Any]] = {}
    for each in (some for some in entries if some["run"] != "wide"):  # of other pixels
        for title, values in each["baselines"].items():
            baselines.setdefault(title, {})[each["seed"]] = values
    return "\n".join([*lines, *(_row(title, runs) for title, runs in baselines.items())])


def differences(entries: Sequence[dict[str, Any]], run: str) -> list[str]:
    """How far a run is above others on the same labels: lines with means and 95% intervals.

    They are paired over the seeds that both have (:mod:`experiments.statistics`).
    """
    own = {each["seed"]: each for each in entries if each["run"] == run}
    others = {
        other: {each["seed"]: each for each in entries if each["run"] == other}
        for other in TITLES
        if other != run
    }
    for title in next(iter(own.values()), {"baselines": ()})["baselines"]:
        others[title] = {seed: each["baselines"][title] for seed, each in own.items()}
    lines = []
    for other, found in others.items():
        for key, name in METRICS.items():
            ours, theirs = (
                {str(seed): 100 * each[key] for seed, each in runs.items() if key in each}
                for runs in (own, found)
            )
            if len(shared := ours.keys() & theirs.keys()) > 1:
                gain = difference(ours, theirs, paired=True)
                lines.append(
                    f"{run} above {other}, {name}: {gain.mean:.1f} ({gain.low:.1f} to "
                    f"{gain.high:.1f}), {len(shared)} seeds"
                )
    return lines


def _row(title: str, runs: dict[int, Any]) -> str:
    cells = [title, ", ".join(map(str, sorted(runs)))]
    for key in METRICS:
        values = [100 * runs[seed][key] for seed in sorted(runs) if key in runs[seed]]
        each = study.each(values)
        cells.append(f"{study.spread(values)} ({each})" if len(values) > 1 else each)
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
