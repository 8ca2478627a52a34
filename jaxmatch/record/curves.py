"""Training curves of one run, or of groups of runs overlaid, as PNGs.

The panels follow those in which Zheng et al., "SimMatch: Semi-supervised Learning with Similarity
Matching", 2022 (https://arxiv.org/abs/2203.06915) compare methods. Coverage and losses are added.
"""

import io
import itertools
import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from types import MappingProxyType
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
from jaxmatch.runtime import paths

Lines = Sequence[Mapping[str, Any]]
Curves = Mapping[str, tuple[str, dict[str, Any]]]  # {metric key: (legend or "", line style)}

FEW = 12  # points of a curve that are marked
REPORTED = "test/reported/accuracy"  # of the network that the method reports

# Okabe and Ito's colors, which differ for every kind of color vision.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_INK = "#333333"
_SOLID: dict[str, Any] = {"linestyle": "-", "linewidth": 1.8}
_DASHED: dict[str, Any] = {"linestyle": (0, (3, 1.5)), "linewidth": 1.5}
_BASELINE = "#777777"
_DASHES = ((8, 2), (5, 2, 1, 2), (3, 2), (1, 1.5))  # one for each baseline
_THIN: dict[str, Any] = {"linestyle": "-", "linewidth": 0.8, "alpha": 0.75}
_ONE_OF_SEVERAL = {"linewidth": 0.8, "alpha": 0.45}  # a seed under its group's mean
_MEAN = {"linewidth": 2.4}
_NARROW = (4.2, 3.2)  # inches of a panel on a narrow screen
_UNLABELED: Curves = {
    "unlabeled/weak_accuracy": ("weak view", _SOLID),
    "unlabeled/strong_accuracy": ("strong view", _DASHED),
}
_PANELS: dict[str, Curves] = {
    "Pseudo-label accuracy": {"pseudo/accuracy": ("confident pseudo-labels", _SOLID)},
    "Unlabeled accuracy": _UNLABELED,
    "Test accuracy": {
        "test/teacher/accuracy": ("teacher", _SOLID),
        "test/student/accuracy": ("student", _THIN),
        "validation/teacher/accuracy": ("teacher, validation set", _DASHED),
    },
}
_COMPARISON: dict[str, Curves] = {
    "Accuracy of confident pseudo-labels": {"pseudo/accuracy": ("", _SOLID)},
    "Coverage: confident pseudo-labels": {"pseudo/coverage": ("", _SOLID)},
    "Unlabeled accuracy": _UNLABELED,
    "Test accuracy": {
        REPORTED: ("reported network", _SOLID),
        "probe/knn": ("nearest neighbors with all labels, label-free", _DASHED),
    },
}


def plot(runs: Mapping[str, Lines], path: str | Path) -> None:
    """Write a PNG with the curves of ``runs``, {label: lines as ``metrics.read`` returns them}.

    Each run has a color; the curves of a run differ in their lines. A panel for which no run has
    values is left out.

    Raises:
        DiskError: if the file cannot be written.
    """
    picture = _figure({label: [lines] for label, lines in runs.items()}, _PANELS, 3, (4, 4.1))
    path = paths.path(path)
    try:
        paths.make_folder(path.parent)
        paths.write_whole(path, picture)
    except OSError as error:
        raise DiskError(
            f"{path} could not be written ({paths.reason(error)}): make room or check the "
            "folder's permissions."
        ) from error


def comparison(
    groups: Mapping[str, Sequence[Lines]],
    levels: Mapping[str, float] = MappingProxyType({}),
    *,
    narrow: bool = False,
) -> bytes:
    """A PNG of pseudo-label accuracy, coverage, unlabeled and test accuracy.

    A group has one color: a thin line for each run, and a bold line for their mean at the steps
    that all of them have. A single run has a bold line.

    Args:
        groups: {label: metrics lines of each run}; test accuracy has the key :data:`REPORTED`.
        levels: {legend: test accuracy} of baselines, drawn as horizontal dashed lines.
        narrow: whether panels stand below each other, for a narrow screen.
    """
    columns, inches = (1, _NARROW) if narrow else (2, (6.5, 4.2))
    return _figure(groups, _COMPARISON, columns, inches, levels)


def losses(groups: Mapping[str, Sequence[Lines]], *, narrow: bool = False) -> bytes:
    """A PNG with a panel for each loss term of ``groups``, as :func:`comparison` takes them.

    The scale is logarithmic if all values are positive and span more than a factor of ten.
    """
    every = itertools.chain.from_iterable(itertools.chain.from_iterable(groups.values()))
    keys = {key for line in every for key in line if key.startswith("loss/")}
    first = ("loss/total", "loss/supervised", "loss/unsupervised")
    terms = sorted(keys, key=lambda key: (first.index(key) if key in first else len(first), key))
    panels: dict[str, Curves] = {key: {key: ("", _SOLID)} for key in terms}
    columns, inches = (1, _NARROW) if narrow else (3, (4.6, 3.8))
    return _figure(groups, panels or {"loss": {}}, columns, inches)


def _figure(
    groups: Mapping[str, Sequence[Lines]],
    panels: Mapping[str, Curves],
    columns: int,
    inches: tuple[float, float],
    levels: Mapping[str, float] = MappingProxyType({}),
) -> bytes:
    """A PNG of ``panels``, {title: curves}, above a common legend; ``inches``: size of a panel.

    ``levels`` are drawn in the panel of test accuracy.
    """
    panels = _with_values(panels, groups)
    columns = min(columns, len(panels))
    rows = math.ceil(len(panels) / columns)
    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.08)  # inches
    size = (inches[0] * columns, inches[1] * rows)
    figure = Figure(figsize=size, dpi=120, layout=layout)
    FigureCanvasAgg(figure)
    many = colormaps["turbo"](np.linspace(0.05, 0.95, len(groups)))
    colors = dict(zip(groups, _COLORS if len(groups) <= len(_COLORS) else many, strict=False))
    every = figure.subplots(rows, columns, squeeze=False).flat
    for axes, panel in itertools.zip_longest(every, panels.items()):
        if panel is None:
            axes.set_axis_off()
        else:
            title, curves = panel
            _panel(axes, title, curves, groups, colors, levels if REPORTED in curves else {})
    handles = [Line2D([], [], color=color, linewidth=2.5) for color in colors.values()]
    letters = int(size[0] * 10) - 6  # that fit beside each other
    names = [verbatim(textwrap.fill(name, letters)) for name in colors]
    longest = min(letters, max(map(len, groups), default=0))
    figure.legend(
        handles,
        names,
        loc="outside lower center",
        ncols=max(1, min(len(groups), 4, int(size[0] * 10 / (longest + 6)))),
        frameon=False,
    )
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    return picture.getvalue()


def _with_values(
    panels: Mapping[str, Curves], groups: Mapping[str, Sequence[Lines]]
) -> Mapping[str, Curves]:
    """The panels for which a run has values; the last one if there are none at all."""
    every = itertools.chain.from_iterable(itertools.chain.from_iterable(groups.values()))
    known = {key for line in every for key in line}
    found = {title: curves for title, curves in panels.items() if curves.keys() & known}
    return found or dict([list(panels.items())[-1]])


def _panel(
    axes: Axes,
    title: str,
    curves: Curves,
    groups: Mapping[str, Sequence[Lines]],
    colors: Mapping[str, Any],
    levels: Mapping[str, float],
) -> None:
    legend = {}
    for label, runs in groups.items():
        for key, (name, style) in curves.items():
            drawn = [points for lines in runs if (points := _points(lines, key))]
            several = len(drawn) > 1
            for points in drawn:
                thin = _ONE_OF_SEVERAL if several else {}
                _draw(axes, points, color=colors[label], **style | thin)
            if several and (mean := _mean(drawn)):
                _draw(axes, mean, color=colors[label], **style | _MEAN)
            if drawn:
                legend[name] = Line2D([], [], color=_INK, **style)
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold", color=_INK, pad=10)
    axes.spines[["top", "right"]].set_visible(False)
    if not legend:
        axes.text(0.5, 0.5, "no values", transform=axes.transAxes, ha="center", color="#888888")
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_color("#DDDDDD")
        return
    for (text, level), dashes in zip(levels.items(), itertools.cycle(_DASHES), strict=False):
        legend[text] = axes.axhline(level, color=_BASELINE, linestyle=(0, dashes), linewidth=1.2)
    axes.set_xlabel("step", color=_INK)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    key = next(iter(curves))
    if key.startswith("loss/"):
        values = np.concatenate([np.asarray(line.get_ydata()) for line in axes.lines])
        if values.min() > 0 and values.max() > 10 * values.min():
            axes.set_yscale("log")
        axes.set_ylabel("mean since the line before", color=_INK)
    else:
        axes.set_ylabel("share" if key == "pseudo/coverage" else "accuracy", color=_INK)
        axes.set_ylim(top=min(1.005, axes.get_ylim()[1]))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:g}%"))
    axes.tick_params(colors=_INK, labelsize=9)
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.8)
    axes.set_axisbelow(True)
    legend.pop("", None)
    if legend:
        names = [verbatim(name) for name in legend]
        axes.legend(legend.values(), names, loc="best", fontsize=9, frameon=False)


def verbatim(text: str) -> str:
    """A text that Matplotlib draws as it is: it sets ``$x$`` as a formula, and hides ``_x``."""
    text = text.replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def _points(lines: Lines, key: str) -> dict[int, float]:
    return {line["step"]: line[key] for line in lines if key in line}


def _mean(runs: Sequence[Mapping[int, float]]) -> dict[int, float]:
    """The mean at the steps that all runs have."""
    shared = set.intersection(*(set(points) for points in runs))
    return {step: fmean(points[step] for points in runs) for step in sorted(shared)}


def _draw(axes: Axes, points: Mapping[int, float], **style: Any) -> None:
    # Through few points a line alone does not show where the values are, or is invisible.
    marker = {"marker": "o", "markersize": 4} if len(points) <= FEW else {}
    axes.plot(list(points), list(points.values()), **marker, **style)
