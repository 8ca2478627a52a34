"""Draws FixMatch and SimMatch over the training on Fashion-MNIST, 100 labels, from finished runs.

python -m experiments.own_data.curves runs/own_data

It reads the runs of the sweep, or without a folder ``curves.json`` beside this file, and writes
``curves.json``, ``curves.svg`` and ``curves.png`` there. The panels are those of SimMatch's figure
(Zheng et al., CVPR 2022, https://arxiv.org/abs/2203.06915): the accuracy of pseudo-labels, of all
unlabeled images and of held-out images.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from jaxmatch.errors import InputError
from jaxmatch.record.metrics import read

HERE = Path(__file__).parent
RECORDED = HERE / "curves.json"
METHODS = {"fixmatch": ("FixMatch", "#1f77b4"), "simmatch": ("SimMatch", "#d62728")}
# By the key in metrics.jsonl: title, and the range of the axis in percent.
PANELS = {
    "pseudo/accuracy": ("pseudo-labels above the threshold", (80, 100)),
    "unlabeled/weak_accuracy": ("all unlabeled images", (55, 80)),
    "test/teacher/accuracy": ("test images", (55, 80)),
}
Curve = dict[str, list[float | None]]  # "step", and by panel accuracies in [0, 1]
Curves = Mapping[str, Mapping[str, Curve]]  # {method: {seed: curve}}


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("runs", type=Path, nargs="?", help="the sweep's --workdir")
    parser.add_argument("-o", "--output", type=Path, default=HERE, help="where the files go")
    chosen = parser.parse_args(words)
    curves = collect(chosen.runs) if chosen.runs else json.loads(RECORDED.read_text())
    (chosen.output / RECORDED.name).write_text(json.dumps(curves) + "\n")
    figure = draw(curves)
    # Fixed ids and no date, so that equal curves give equal files.
    with mpl.rc_context({"svg.hashsalt": "curves"}):
        figure.savefig(chosen.output / "curves.svg", metadata={"Date": None})
    figure.savefig(chosen.output / "curves.png", dpi=110)


def collect(runs: Path) -> Curves:
    """The curves of the finished runs.

    Raises:
        InputError: if a method has none.
    """
    curves: dict[str, dict[str, Curve]] = {}
    for method in METHODS:
        folders = sorted(
            path.parent for path in runs.glob(f"fashion_mnist-{method}-s*/summary.json")
        )
        if not folders:
            raise InputError(
                f"{runs} has no finished run of {method} on fashion_mnist; train the sweep first."
            )
        curves[method] = {each.name.rpartition("-s")[2]: _curve(read(each)) for each in folders}
    return curves


def _curve(lines: Sequence[Mapping[str, Any]]) -> Curve:
    evaluated = [line for line in lines if "test/teacher/accuracy" in line]
    # At first no view may pass the threshold, so that there is no pseudo-label.
    return {key: [line.get(key) for line in evaluated] for key in ("step", *PANELS)}


def draw(curves: Curves) -> Figure:
    """A panel for each accuracy: thin lines are seeds, bold ones their means."""
    figure = Figure(figsize=(10, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(PANELS))
    for axes, (key, (title, limits)) in zip(panels, PANELS.items(), strict=True):
        for method, (label, color) in METHODS.items():
            runs = list(curves[method].values())
            values = 100 * np.array([run[key] for run in runs], float)
            axes.plot(runs[0]["step"], values.T, color=color, linewidth=0.8, alpha=0.35)
            axes.plot(runs[0]["step"], values.mean(0), color=color, linewidth=2, label=label)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("step")
        axes.set_ylim(*limits)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("accuracy (%)")
    panels[-1].legend(frameon=False, loc="lower right")
    return figure


if __name__ == "__main__":
    main()
