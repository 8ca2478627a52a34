"""Collects the finished runs of the sweep beside this file: results.json, threshold.png, a table.

python -m experiments.threshold.results runs/threshold
"""

import io
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from experiments import study
from experiments.threshold.sweep import SEEDS, THRESHOLDS
from jaxmatch.errors import InputError
from jaxmatch.record.metrics import read

HERE = Path(__file__).parent
LAST = 0.2  # share of the steps that pseudo-labels are averaged over
# {column: (key of a run's entry, its color in the plot)}
COLUMNS = {
    "test accuracy": ("accuracy", "#0072B2"),
    "coverage": ("coverage", "#009E73"),
    "pseudo-label error": ("error", "#D55E00"),
}
Results = Mapping[str, Mapping[str, Mapping[str, float | None]]]  # {threshold: {seed: entry}}


def main(words: Sequence[str] | None = None) -> None:
    results, folder = study.collected(collect, HERE / "results.json", __doc__, words)
    (folder / "threshold.png").write_bytes(plot(results))
    print(table(results))


def collect(runs: Path) -> Results:
    """The entries of the finished runs.

    Raises:
        InputError: if a folder is of another threshold than its name says.
    """
    results: dict[str, dict[str, Any]] = {}
    for threshold in THRESHOLDS:
        for seed in SEEDS:
            folder = runs / f"tau{threshold}-s{seed}"  # as the sweep names it
            if (folder / "summary.json").exists():
                config = json.loads((folder / "config.json").read_text())
                if config["algorithm"]["threshold"] != threshold or config["seed"] != seed:
                    raise InputError(f"{folder} holds another threshold or seed; move it away.")
                results.setdefault(str(threshold), {})[str(seed)] = entry(folder)
    return results


def entry(folder: Path) -> dict[str, float | None]:
    """What is kept of one run, in shares; the error is None where no label was confident.

    Coverage is the share of the unlabeled images that were confident, the error the share of
    these whose label was wrong: both of all images drawn in the last :data:`LAST` of the steps.
    """
    summary = json.loads((folder / "summary.json").read_text())
    late = [line for line in read(folder) if line["step"] > (1 - LAST) * summary["steps"]]
    coverage = [line["pseudo/coverage"] for line in late]
    # A line's accuracy is of its confident labels, and lines are equally many steps apart.
    wrong = [
        line["pseudo/coverage"] * (1 - line["pseudo/accuracy"])
        for line in late
        if "pseudo/accuracy" in line
    ]
    return {
        "accuracy": summary["teacher"]["last"],
        "coverage": statistics.fmean(coverage),
        "error": sum(wrong) / sum(coverage) if sum(coverage) else None,
        "seconds": summary["seconds"],
    }


def table(results: Results) -> str:
    """The results as Markdown, in percent."""
    rows = [f"| tau | seeds | {' | '.join(COLUMNS)} |", "|---|---|---|---|---|"]
    for threshold in THRESHOLDS:
        seeds = results.get(str(threshold), {})
        cells = [study.spread(_values(seeds, key), empty="") for key, _ in COLUMNS.values()]
        rows.append(f"| {threshold:g} | {', '.join(seeds) or 'not run'} | {' | '.join(cells)} |")
    return "\n".join(rows)


def plot(results: Results) -> bytes:
    """A PNG: accuracy, coverage and pseudo-label error against the threshold; dots are seeds."""
    there = [threshold for threshold in THRESHOLDS if str(threshold) in results]
    figure = Figure(figsize=(12, 3.8), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    panels: Sequence[Axes] = figure.subplots(1, len(COLUMNS))
    for axes, (title, (key, color)) in zip(panels, COLUMNS.items(), strict=True):
        # Equally spaced: half of the thresholds are within a tenth of each other.
        seeds = [_values(results[str(threshold)], key) for threshold in there]
        means = [(at, statistics.fmean(values)) for at, values in enumerate(seeds) if values]
        axes.plot([at for at, _ in means], [mean for _, mean in means], color=color, linewidth=2)
        for at, values in enumerate(seeds):
            axes.plot([at] * len(values), values, "o", color=color, markersize=5)
        axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
        axes.set_xticks(range(len(there)), [f"{threshold:g}" for threshold in there])
        axes.set_xlabel("confidence threshold tau")
        axes.set_ylabel("%")
        if key != "accuracy":
            axes.set_ylim(bottom=0)
        axes.grid(axis="y", color="#DDDDDD", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    return picture.getvalue()


def _values(seeds: Mapping[str, Mapping[str, float | None]], key: str) -> list[float]:
    found: list[float | None] = [values[key] for values in seeds.values()]
    return [100 * value for value in found if value is not None]


if __name__ == "__main__":
    main()
