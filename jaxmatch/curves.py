"""Training curves: pseudo-label, unlabeled and test accuracy against the step.

The three panels are those in which Zheng et al., "SimMatch: Semi-supervised Learning with
Similarity Matching", 2022 (https://arxiv.org/abs/2203.06915) compare methods.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from jaxmatch.errors import DiskError

Lines = Sequence[Mapping[str, Any]]

# Okabe and Ito's colors, told apart with any color vision.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_INK = "#333333"
_SOLID: dict[str, Any] = {"linestyle": "-", "linewidth": 1.8}
_DASHED: dict[str, Any] = {"linestyle": (0, (3, 1.5)), "linewidth": 1.5}
_THIN: dict[str, Any] = {"linestyle": "-", "linewidth": 0.8, "alpha": 0.75}
_PANELS = {
    "Pseudo-label accuracy": {"pseudo/accuracy": ("confident pseudo-labels", _SOLID)},
    "Unlabeled accuracy": {
        "unlabeled/weak_accuracy": ("weak view", _SOLID),
        "unlabeled/strong_accuracy": ("strong view", _DASHED),
    },
    "Test accuracy": {
        "test/teacher/accuracy": ("teacher", _SOLID),
        "test/student/accuracy": ("student", _THIN),
    },
}


def plot(runs: Mapping[str, Lines], path: str | Path) -> None:
    """Write a PNG with the curves of ``runs``, {label: metrics lines as of ``metrics.read``}.

    Runs are told apart by color, curves of one run by line; what no run has recorded is marked
    "not applicable". DiskError where the file cannot be written.
    """
    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.08)  # inches
    figure = Figure(figsize=(12, 4.1), dpi=120, layout=layout)
    FigureCanvasAgg(figure)
    many = colormaps["turbo"](np.linspace(0.05, 0.95, len(runs)))
    colors = dict(zip(runs, _COLORS if len(runs) <= len(_COLORS) else many, strict=False))
    for axes, (title, curves) in zip(figure.subplots(1, 3), _PANELS.items(), strict=True):
        _panel(axes, title, curves, runs, colors)
    handles = [Line2D([], [], color=color, linewidth=2.5) for color in colors.values()]
    figure.legend(
        handles,
        list(colors),
        loc="outside lower center",
        ncols=min(len(runs), 4) or 1,
        frameon=False,
    )
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="png")
    except OSError as error:
        raise DiskError(
            f"{path} could not be written ({error.strerror or error}): make room or check the "
            "folder's permissions."
        ) from error


def _panel(
    axes: Axes,
    title: str,
    curves: Mapping[str, tuple[str, dict[str, Any]]],
    runs: Mapping[str, Lines],
    colors: Mapping[str, Any],
) -> None:
    legend = {}
    for label, lines in runs.items():
        for key, (name, style) in curves.items():
            points = [(line["step"], line[key]) for line in lines if key in line]
            if points:
                # A single evaluation has no line to draw.
                marker = "o" if len(points) == 1 else ""
                axes.plot(*zip(*points, strict=True), color=colors[label], marker=marker, **style)
                legend[name] = Line2D([], [], color=_INK, **style)
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold", color=_INK, pad=10)
    axes.spines[["top", "right"]].set_visible(False)
    if not legend:
        axes.text(
            0.5, 0.5, "not applicable", transform=axes.transAxes, ha="center", color="#888888"
        )
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_color("#DDDDDD")
        return
    axes.set_xlabel("step", color=_INK)
    axes.set_xlim(left=0)
    axes.set_ylim(top=min(1.005, axes.get_ylim()[1]))
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:g}%"))
    axes.tick_params(colors=_INK, labelsize=9)
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.legend(legend.values(), legend.keys(), loc="best", fontsize=9, frameon=False)
