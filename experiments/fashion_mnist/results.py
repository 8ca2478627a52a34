"""Collects the runs of the sweep: results.json, tables in Markdown, and curves.png.

python -m experiments.fashion_mnist.results runs/fashion_mnist
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from experiments import study
from experiments.fashion_mnist.sweep import LABELS, METHODS, SEEDS
from jaxmatch.evaluation.comparison import TITLES
from jaxmatch.record.folder import RunFolder
from jaxmatch.record.metrics import read

HERE = Path(__file__).parent
Results = Mapping[str, Any]


def main(words: Sequence[str] | None = None) -> None:
    results, folder = study.collected(collect, HERE / "results.json", __doc__, words)
    plot(results, folder / "curves.png")
    print(table(results))


def collect(runs: Path) -> dict[str, Any]:
    """The finished runs by folder, and the baselines on pixels by labels and seed.

    Raises:
        InputError: if no run has finished.
    """
    found: dict[str, Any] = {"runs": {}, "baselines": {}}
    for labels in LABELS:
        for seed in SEEDS:
            for method in METHODS:
                folder = runs / f"{method}-{labels}-s{seed}"
                summary = RunFolder(folder).read_summary()
                if summary is None:
                    continue
                found["runs"][folder.name] = entry(folder, summary)
                # They depend on labels and seed alone.
                if (file := folder / "baselines.json").exists():
                    measured = json.loads(file.read_text())["baselines"]
                    found["baselines"][f"{labels}-s{seed}"] = {
                        key: one["test"]["accuracy"] for key, one in measured.items()
                    }
    if not found["runs"]:
        raise study.no_run(runs)
    return found


def entry(folder: Path, summary: Mapping[str, Any]) -> dict[str, Any]:
    """What is kept of a run: accuracies in [0, 1], seconds, the last stage's curve by step."""
    evaluated = summary["evaluated"]
    key = f"test/{evaluated}/accuracy"
    lines = [line for line in read(RunFolder.at(folder).path) if key in line]
    stages = list(summary.get("stages", {}).values())
    before = sum(stage["steps"] for stage in stages[:-1])
    return {
        "accuracy": summary[evaluated]["last"],
        "balanced_accuracy": summary[evaluated]["metrics"]["balanced_accuracy"],
        "seconds": summary["seconds"],
        "curve": {str(before + line["step"]): line[key] for line in lines},
    }


def rows(results: Results) -> dict[str, list[list[float]]]:
    """Accuracies in percent by row of the table: a list over seeds for each number of labels."""
    found: dict[str, list[list[float]]] = {}
    for key, title in TITLES.items():
        found[title] = [
            [
                100 * results["baselines"][place][key]
                for seed in SEEDS
                if key in results["baselines"].get(place := f"{labels}-s{seed}", {})
            ]
            for labels in LABELS
        ]
    for method in METHODS:
        found[f"`{method}`"] = [
            [100 * one["accuracy"] for one in seeds(results, method, labels)] for labels in LABELS
        ]
    return {title: values for title, values in found.items() if any(values)}


def seeds(results: Results, method: str, labels: int) -> list[Mapping[str, Any]]:
    """The finished runs of a cell, in the order of the seeds."""
    places = (f"{method}-{labels}-s{seed}" for seed in SEEDS)
    return [results["runs"][place] for place in places if place in results["runs"]]


def table(results: Results) -> str:
    """Accuracies in percent as Markdown, with the minutes of a run in the last column."""
    lines = [f"| | {' | '.join(f'{labels} labels' for labels in LABELS)} | minutes |"]
    lines.append("|---" * (2 + len(LABELS)) + "|")
    for title, cells in rows(results).items():
        runs = [one for n in LABELS for one in seeds(results, title.strip("`"), n)]
        minutes = f"{fmean(one['seconds'] for one in runs) / 60:.1f}" if runs else ""
        lines.append(f"| {title} | {' | '.join(map(study.spread, cells))} | {minutes} |")
    return "\n".join(lines)


def plot(results: Results, file: Path) -> None:
    """Test accuracy over the steps: a panel for each number of labels, a mean for each method."""
    figure = Figure(figsize=(12, 4.5), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(LABELS))
    measured = rows(results)
    for axes, labels in zip(panels, LABELS, strict=True):
        for number, method in enumerate(METHODS):
            curves = [one["curve"] for one in seeds(results, method, labels)]
            if not curves:
                continue
            steps = sorted(map(int, set.intersection(*map(set, curves))))
            values = [[100 * curve[str(step)] for step in steps] for curve in curves]
            style = {"color": f"C{number % 10}", "linestyle": "-" if number < 10 else "--"}
            axes.plot(steps, np.mean(values, axis=0), label=method, **style)
        column = LABELS.index(labels)
        known = [measured[title][column] for title in TITLES.values() if title in measured]
        if best := max((fmean(values) for values in known if values), default=None):
            axes.axhline(best, color="black", linestyle=":", label="best on pixels")
        axes.set_title(f"{labels} labels")
        axes.set_xlabel("step")
        axes.grid(alpha=0.25)
    panels[0].set_ylabel("test accuracy, %")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper", fontsize=8)
    figure.savefig(file)


if __name__ == "__main__":
    main()
