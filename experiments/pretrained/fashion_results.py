"""Collects the runs of ``fashion.py``: fashion.json, tables in Markdown, and fashion.png.

python -m experiments.pretrained.fashion_results runs/fashion
"""

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from experiments import study
from experiments.pretrained.fashion import LABELS, NETWORKS, PRETRAINING, WAYS, name
from jaxmatch.evaluation.comparison import TITLES

HERE = Path(__file__).parent
SEEDS = (0, 1, 2)
Results = Mapping[str, Any]
BEST = "the best baseline"  # by its mean, for each number of labels
# What is worth how many points more than what.
GAINS = (
    ("all weights", "supervised from scratch"),
    ("FixMatch", "FixMatch from scratch"),
    ("SoftMatch", "SoftMatch from scratch"),
    ("all weights", "classifier alone"),
    ("LoRA", "all weights"),
    ("SoftMatch", "FixMatch"),
    ("SoftMatch from scratch", BEST),
    ("SoftMatch", BEST),
)


def main(words: Sequence[str] | None = None) -> None:
    results, folder = study.collected(collect, HERE / "fashion.json", __doc__, words)
    plot(results, folder / "fashion.png")
    print(table(results))


def collect(runs: Path) -> dict[str, Any]:
    """Accuracies of the finished runs by folder, probes of the encoders, and baselines.

    Raises:
        InputError: if no run has finished.
    """
    found: dict[str, Any] = {"encoders": {}, "runs": {}, "baselines": {}}
    for network in NETWORKS:
        for method in PRETRAINING:
            if summary := _read(runs / f"{method}-{network}" / "summary.json"):
                found["encoders"][f"{method}-{network}"] = summary["probe"]
        for labels in LABELS:
            for seed in SEEDS:
                for way in WAYS:
                    folder = runs / name(network, way, labels, seed)
                    summary = _read(folder / "summary.json")
                    if summary is None:
                        continue
                    evaluated = summary[summary["evaluated"]]
                    found["runs"][folder.name] = {
                        "accuracy": evaluated["last"],
                        "balanced_accuracy": evaluated["metrics"]["balanced_accuracy"],
                        "seconds": summary["seconds"],
                    }
                    # Equal for all runs of a network's features, labels and seed.
                    if WAYS[way][1] and (measured := _read(folder / "baselines.json")):
                        found["baselines"][f"{network}-{labels}-s{seed}"] = {
                            key: one["test"]["accuracy"]
                            for key, one in measured["baselines"].items()
                        }
    if not found["runs"]:
        raise study.no_run(runs)
    return found


def rows(results: Results, network: str) -> dict[str, list[list[float]]]:
    """Accuracies in percent by row of the table: a list over seeds for each number of labels."""
    found: dict[str, list[list[float]]] = {}
    for key, title in TITLES.items():
        known = [
            [
                100 * results["baselines"][place][key]
                for seed in SEEDS
                if key in results["baselines"].get(place := f"{network}-{labels}-s{seed}", {})
            ]
            for labels in LABELS
        ]
        found[title] = known
    for way in WAYS:
        found[way] = [
            [
                100 * results["runs"][place]["accuracy"]
                for seed in SEEDS
                if (place := name(network, way, labels, seed)) in results["runs"]
            ]
            for labels in LABELS
        ]
    return {title: known for title, known in found.items() if any(known)}


def gains(results: Results, network: str) -> dict[str, list[list[float]]]:
    """How far one row is above another on equal labels, in points, as :func:`rows`."""
    known = rows(results, network)
    baselines = [known[title] for title in TITLES.values() if title in known]
    known[BEST] = [
        max((row[place] for row in baselines if row[place]), key=statistics.fmean, default=[])
        for place in range(len(LABELS))
    ]
    return {
        f"{one} over {other}": [
            # While runs are missing, a cell has fewer values than another one.
            [a - b for a, b in zip(*pair, strict=True)] if len({*map(len, pair)}) == 1 else []
            for pair in zip(known[one], known[other], strict=True)
        ]
        for one, other in GAINS
        if one in known and other in known
    }


def table(results: Results) -> str:
    """The results as Markdown, in percent."""
    lines = ["| encoder | k-NN | linear probe |", "|---|---|---|"]
    for encoder, probe in results["encoders"].items():
        cells = [f"{100 * probe[key]:.1f}" if probe else "" for key in ("knn", "linear")]
        lines.append(f"| {encoder} | {' | '.join(cells)} |")
    for network in NETWORKS:
        for kind, found in (("", rows(results, network)), (", points", gains(results, network))):
            if found:
                heads = [f"{network}{kind}", *(f"{n} labels" for n in LABELS)]
                lines += ["", f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
            for title, known in found.items():
                lines.append(f"| {title} | {' | '.join(map(study.spread, known))} |")
    return "\n".join(lines)


def plot(results: Results, file: Path) -> None:
    """Accuracy over the number of labels: a panel for each network, a line for each way."""
    figure = Figure(figsize=(11, 5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    # A network may lack some ways, and a line has the same color in each panel.
    styles = {
        title: {"linestyle": line, "color": f"C{number}"}
        for line, titles in ((":", TITLES.values()), ("-", WAYS))
        for number, title in enumerate(titles)
    }
    panels = figure.subplots(1, len(NETWORKS), sharey=True, squeeze=False)[0]
    for axes, network in zip(panels, NETWORKS, strict=True):
        for title, known in rows(results, network).items():
            points = [(n, values) for n, values in zip(LABELS, known, strict=True) if values]
            means = [statistics.fmean(values) for _, values in points]
            errors = [statistics.stdev(values) if len(values) > 1 else 0 for _, values in points]
            style = {**styles[title], "marker": "o"}
            axes.errorbar([n for n, _ in points], means, errors, label=title, capsize=3, **style)
        axes.set_xscale("log")
        axes.set_xticks(LABELS, map(str, LABELS))
        axes.minorticks_off()
        axes.set_xlabel("labels")
        axes.set_title(network)
    panels[0].set_ylabel("test accuracy, %")
    handles, names = panels[-1].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside right upper", fontsize=8)
    figure.savefig(file)


def _read(file: Path) -> dict[str, Any] | None:
    return json.loads(file.read_text()) if file.exists() else None


if __name__ == "__main__":
    main()
