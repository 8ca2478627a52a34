"""A picture of CTAugment's learned policy: the weight of every bin of every op's parameters."""

import io
import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from jaxmatch.record.curves import verbatim

Bins = Mapping[str, Mapping[str, Sequence[float]]]  # {op: {parameter: weight of each bin}}

_COLUMNS, _COLORS = 3, "viridis"
_WIDTH, _ROW, _MARGIN = 4.6, 0.24, 1.1  # of a panel, in inches


def heat_map(groups: Mapping[str, Bins]) -> bytes:
    """A PNG with one panel for each of ``groups``, {label: bins}, all on one color scale.

    A row of a panel shows a parameter; its bins lie side by side over the levels 0..1.
    """
    columns = min(len(groups), _COLUMNS)
    rows = math.ceil(len(groups) / columns)
    most = max(sum(map(len, bins.values())) for bins in groups.values())
    figure = Figure(
        figsize=(_WIDTH * columns + 1, (_ROW * most + _MARGIN) * rows),
        dpi=120,
        layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.08),
    )
    FigureCanvasAgg(figure)
    least = min(
        min(weights)
        for bins in groups.values()
        for parameters in bins.values()
        for weights in parameters.values()
    )
    scale = Normalize(min(least, 0.95), 1)
    panels = figure.subplots(rows, columns, squeeze=False)
    for axes in panels.flat[len(groups) :]:
        axes.set_axis_off()
    for axes, (label, bins) in zip(panels.flat, groups.items(), strict=False):
        _panel(axes, label, bins, scale)
    colors = ScalarMappable(scale, _COLORS)
    figure.colorbar(colors, ax=panels, label="weight of the bin", shrink=0.6)
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    return picture.getvalue()


def _panel(axes: Axes, label: str, bins: Bins, scale: Normalize) -> None:
    rows = [
        (f"{op}, {parameter}", weights)
        for op, parameters in bins.items()
        for parameter, weights in parameters.items()
    ]
    for place, (_, weights) in enumerate(rows):
        edges, height = np.linspace(0, 1, len(weights) + 1), [place, place + 0.9]
        axes.pcolormesh(edges, height, [weights], norm=scale, cmap=_COLORS)
    axes.set_yticks(np.arange(len(rows)) + 0.45, [name for name, _ in rows])
    axes.invert_yaxis()
    axes.set_xlabel("level")
    axes.set_title(verbatim(label), loc="left", fontsize=11, fontweight="bold")
    axes.tick_params(length=0, labelsize=8)
    axes.spines[:].set_visible(False)
