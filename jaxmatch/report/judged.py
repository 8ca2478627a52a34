"""What a report shows of a classifier beside its accuracy: classes, confusions, calibration.

The figures of a group of runs are those of the network that the method reports: means over the
seeds, or, for counts, sums.
"""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np

from jaxmatch.errors import counted
from jaxmatch.report.html import COLORS, folded, legend, table, text
from jaxmatch.report.results import Group
from jaxmatch.report.shares import SHARES, shares

MOST_GROUPS = COLORS  # that are compared in one picture
MOST_CLASSES = 24  # with bars of their own: the worst ones
MOST_CELLS = 30  # classes of a confusion matrix that is drawn
CONFUSIONS = 10  # that are listed

Metrics = Mapping[str, Any]


def metrics_of(group: Group) -> list[Metrics]:
    """All test metrics of the reported network, of each run behind the group's numbers.

    Runs of versions that did not write them, and of other classes than the first, are left out.
    """
    summaries = [run.stages[-1].summary for run in group.counted]
    every = [(summary.get(summary["evaluated"]) or {}).get("metrics") for summary in summaries]
    found = [metrics for metrics in every if metrics and metrics.get("per_class")]
    return [one for one in found if list(one["per_class"]) == list(found[0]["per_class"])]


def sections(groups: Sequence[Group]) -> str:
    """The classes, confusions and calibration of groups; nothing for those without figures."""
    known = {group.label: found for group in groups if (found := metrics_of(group))}
    shown = dict(list(known.items())[:MOST_GROUPS])
    when = _when([group for group in groups if group.label in shown])
    same = {tuple(found[0]["per_class"]) for found in shown.values()}
    parts = []
    if len(same) == 1:
        parts.append(f"<h2>Classes, {when}</h2>\n{class_bars(shown)}")
    elif shown:
        parts += [
            f"<h2>Classes: {text(label)}, {when}</h2>\n{class_bars({label: found})}"
            for label, found in shown.items()
        ]
    confusions = [
        f"<div><h3>{text(label)}</h3>\n{confusion(found)}</div>"
        for label, found in shown.items()
        if all("confusion" in one for one in found)
    ]
    if confusions:
        meaning = (
            "Rows are true classes, columns predicted ones. A cell has the percentage of the row's "
            "images."
        )
        parts.append(
            f'<h2>Confusions, {when}</h2>\n<p class="soft">{meaning}</p>\n'
            f'<div class="row">{"".join(confusions)}</div>'
        )
    curves = {
        label: joined
        for label, found in shown.items()
        if (joined := _joined([one["reliability"] for one in found if "reliability" in one]))
    }
    if curves:
        parts.append(f"<h2>Confidence, {when}</h2>\n{calibration(curves, shown, groups)}")
    if len(known) > len(shown):
        parts.append(
            f'<p class="soft">Of {len(known)} groups the first {len(shown)} are drawn.</p>'
        )
    return "\n".join(parts)


def _when(groups: Sequence[Group]) -> str:
    """The step of the metrics in the summaries of groups."""
    steps = {run.stages[-1].summary["steps"] for group in groups for run in group.counted}
    return f"at step {steps.pop():,}, the last" if len(steps) == 1 else "at the last step"


def class_bars(groups: Mapping[str, Sequence[Metrics]]) -> str:
    """Recall of each class as a bar for each group, with precision and F1 as numbers."""
    first = next(iter(groups.values()))
    rows: dict[str, list[dict[str, float | None]]] = {
        name: [_mean_shares([one["per_class"][name] for one in found]) for found in groups.values()]
        for name in first[0]["per_class"]
    }
    names = list(rows)
    note = ""
    if len(names) > MOST_CLASSES:
        recalls = {
            name: [recall for one in rows[name] if (recall := one["recall"]) is not None]
            for name in names
        }
        names = sorted(filter(recalls.get, names), key=lambda name: fmean(recalls[name]))
        names = names[:MOST_CLASSES]
        note = f'<p class="soft">The {len(names)} of {len(rows)} classes with the least recall.</p>'
    support = {name: first[0]["per_class"][name]["support"] for name in names}
    bars = "\n".join(
        f"<div>{text(name)}<br><span class=soft>{counted(support[name], 'image')}</span></div>"
        f"<div>{''.join(map(_bar, range(len(rows[name])), rows[name]))}</div>"
        for name in names
    )
    return (
        '<p class="soft">Bars are recall: the share of a class\'s test images that are classified '
        "correctly.</p>"
        f'{legend(list(groups))}{note}<div class="bars">{bars}</div>'
    )


def _mean_shares(rows: Sequence[Metrics]) -> dict[str, float | None]:
    """The shares of a class as means over the runs in which they are defined."""
    found = [shares(row) for row in rows]
    known = {key: [value for one in found if (value := one[key]) is not None] for key in SHARES}
    return {key: fmean(values) if values else None for key, values in known.items()}


def _bar(number: int, scores: Mapping[str, float | None]) -> str:
    recall = scores["recall"]
    shown = {key: "-" if each is None else f"{100 * each:.1f}" for key, each in scores.items()}
    return (
        f'<div class="bar"><div><i style="width:{100 * (recall or 0):.1f}%;'
        f'background:var(--c{number})"></i></div><span>{shown["recall"]}'
        f"{'' if recall is None else '%'} · precision {shown['precision']} · F1 {shown['f1']}"
        "</span></div>"
    )


def confusion(found: Sequence[Metrics]) -> str:
    """A confusion matrix as a shaded table, and the most frequent confusions as a list."""
    names = list(found[0]["per_class"])
    matrix = np.sum([one["confusion"] for one in found], axis=0)
    support = matrix.sum(1, keepdims=True)
    shares = np.divide(matrix, support, out=np.zeros(matrix.shape), where=support > 0)
    wrong = np.where(np.eye(len(names), dtype=bool), 0, matrix)
    order = np.argsort(-wrong, axis=None, kind="stable")[:CONFUSIONS]
    rows = [
        {
            "true class": names[true],
            "predicted": names[predicted],
            "images": f"{matrix[true, predicted]:,}",
            "of its class": f"{shares[true, predicted]:.1%}",
        }
        for true, predicted in zip(*np.unravel_index(order, matrix.shape), strict=True)
        if wrong[true, predicted]
    ]
    listed = folded("The most frequent confusions", table(rows)) if rows else ""
    if len(names) > MOST_CELLS:
        return f'<p class="soft">{len(names)} classes are too many to draw.</p>{listed}'
    head = "".join(f'<th scope="col">{text(name)}</th>' for name in names)
    body = "\n".join(
        f'<tr><th scope="row">{text(name)}</th>'
        + "".join(
            _cell(shares[row, column], matrix[row, column], row == column)
            for column in range(len(names))
        )
        + "</tr>"
        for row, name in enumerate(names)
    )
    counts = [
        {"": name, **{other: f"{count:,}" for other, count in zip(names, row, strict=True)}}
        for name, row in zip(names, matrix, strict=True)
    ]
    return (
        f'<div class="wide"><table class="confusion"><thead><tr><th></th>{head}</tr></thead>\n'
        f"<tbody>{body}</tbody></table></div>{listed}{folded('Counts', table(counts))}"
    )


def _cell(share: float, count: int, right: bool) -> str:
    color = "shade" if right else "bad"
    shown = f"{100 * share:.0f}" if count else ""
    return (
        f'<td title="{counted(count, "image")}" style="background:color-mix(in srgb,var(--{color}) '
        f'{min(85, round(85 * share))}%,var(--card))">{shown}</td>'
    )


def calibration(
    curves: Mapping[str, Metrics], metrics: Mapping[str, Sequence[Metrics]], groups: Sequence[Group]
) -> str:
    """How often predictions of a confidence are right, and how many have it, in bins of 1/15."""

    def mean(label: str, metric: str) -> str:
        known = [value for one in metrics[label] if (value := one.get(metric)) is not None]
        return f"{fmean(known):.3f}" if known else ""

    rows = [
        {
            "method": label,
            "expected calibration error": mean(label, "expected_calibration_error"),
            "negative log likelihood": mean(label, "negative_log_likelihood"),
            **_temperature(next(group for group in groups if group.label == label)),
        }
        for label in curves
    ]
    columns = dict.fromkeys(column for row in rows for column in row)
    full = [{column: row.get(column, "") for column in columns} for row in rows]
    return (
        f"{legend(list(curves))}"
        f'<div class="row"><div><h3>Calibration</h3>{_reliability(curves)}</div>'
        f"<div><h3>Distribution</h3>{_histogram(curves)}</div></div>"
        '<p class="soft">On the dashed line predictions are right as often as their confidence '
        "says. Below it a network is too sure of itself. Larger dots stand for more images.</p>"
        f"{table(full)}"
    )


def _temperature(group: Group) -> dict[str, str]:
    """The temperatures of the runs, and the error on the validation set before and after them."""
    found = [
        known[network]
        for run in group.counted
        if (known := run.stages[-1].calibration) and (network := run.evaluated) in known
    ]
    if not found:
        return {}

    def mean(when: str) -> str:
        return f"{fmean(one[when]['expected_calibration_error'] for one in found):.3f}"

    return {
        "temperature": ", ".join(f"{one['temperature']:.3g}" for one in found),
        "error on validation before": mean("before"),
        "after": mean("after"),
    }


def _joined(found: Sequence[Metrics]) -> dict[str, list[float]]:
    """The bins of several runs as one: counts are sums, the others means over images."""
    if not found:
        return {}
    counts = np.sum([one["count"] for one in found], axis=0)
    joined: dict[str, list[float]] = {"count": counts.tolist()}
    for key in ("accuracy", "confidence"):
        sums = np.sum(
            [
                [count * (value or 0) for count, value in zip(one["count"], one[key], strict=True)]
                for one in found
            ],
            axis=0,
        )
        joined[key] = np.divide(sums, counts, out=np.zeros(len(counts)), where=counts > 0).tolist()
    return joined


# A picture is SIZE wide and high; its axes have the origin at LEFT and BOTTOM and the length SPAN.
SIZE, LEFT, BOTTOM, SPAN = 340, 44, 300, 280


def _axes(vertical: str, top: float) -> str:
    """Axes from 0 to 100% confidence and 0 to ``top``, with lines at five levels."""
    lines = []
    for part in range(5):
        x, y = LEFT + SPAN * part / 4, BOTTOM - SPAN * part / 4
        lines.append(
            f'<line x1="{LEFT}" y1="{y}" x2="{LEFT + SPAN}" y2="{y}" stroke="var(--line)"/>'
            f'<text x="{LEFT - 6}" y="{y + 4}" text-anchor="end">{100 * top * part / 4:.0f}%</text>'
            f'<text x="{x}" y="{BOTTOM + 16}" text-anchor="middle">{25 * part}%</text>'
        )
    return (
        "".join(lines)
        + f'<text x="{LEFT + SPAN / 2}" y="{BOTTOM + 34}" text-anchor="middle">confidence</text>'
        + f'<text x="{LEFT}" y="{BOTTOM - SPAN - 8}">{text(vertical)}</text>'
    )


def _svg(name: str, content: str) -> str:
    return f'<svg viewBox="0 0 {SIZE} {SIZE}" role="img" aria-label="{text(name)}">{content}</svg>'


def _reliability(curves: Mapping[str, Metrics]) -> str:
    drawn = []
    for number, one in enumerate(curves.values()):
        total = max(1, sum(one["count"]))
        points = [
            (LEFT + SPAN * confidence, BOTTOM - SPAN * accuracy, count / total)
            for count, accuracy, confidence in zip(
                one["count"], one["accuracy"], one["confidence"], strict=True
            )
            if count
        ]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y, _ in points)
        color = f"var(--c{number})"
        dots = "".join(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{2 + 8 * share**0.5:.1f}" fill="{color}" '
            'fill-opacity="0.55"/>'
            for x, y, share in points
        )
        drawn.append(f'<polyline points="{path}" fill="none" stroke="{color}"/>{dots}')
    ideal = (
        f'<line x1="{LEFT}" y1="{BOTTOM}" x2="{LEFT + SPAN}" y2="{BOTTOM - SPAN}" '
        'stroke="var(--soft)" stroke-dasharray="5 4"/>'
    )
    return _svg("accuracy by confidence", _axes("accuracy", 1) + ideal + "".join(drawn))


def _histogram(curves: Mapping[str, Metrics]) -> str:
    shares = [np.array(one["count"]) / max(1, sum(one["count"])) for one in curves.values()]
    top = max(0.2, np.ceil(max(map(max, shares)) * 5) / 5)
    drawn = []
    for number, values in enumerate(shares):
        width = SPAN / len(values)
        heights = BOTTOM - SPAN * values / top
        steps = " ".join(
            f"{LEFT + width * place:.1f},{y:.1f} {LEFT + width * (place + 1):.1f},{y:.1f}"
            for place, y in enumerate(heights)
        )
        drawn.append(
            f'<polyline points="{steps}" fill="none" stroke="var(--c{number})" stroke-width="2"/>'
        )
    return _svg("share of the images by confidence", _axes("test images", top) + "".join(drawn))
