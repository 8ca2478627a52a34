"""The results of runs as tables over seeds.

The numbers of a group are mean ± sample standard deviation over its finished runs, as in the tables
of the semi-supervised literature.
"""

import statistics
from collections.abc import Iterable, Sequence

from jaxmatch.evaluation.comparison import TITLES
from jaxmatch.report.labels import settings_text, short_name
from jaxmatch.report.results import ACCURACIES, Group, Run, Stage, baselines

Row = dict[str, str]
# The columns that a reader looks at first; the others are shown on demand.
MAIN = (
    *("method", "data", "labels", "seeds", "last", "balanced", "validation"),
    *("at best validation", "k-NN", "linear probe", "steps", "seconds"),
)
RUNS = (
    *("method", "seed", "status", "last", "balanced", "k-NN", "steps", "seconds"),
    *("earlier stages", "folder"),
)


def columns(rows: Sequence[Row], names: Sequence[str]) -> list[Row]:
    """The rows with the columns ``names`` alone, as far as they have them."""
    return [{name: row[name] for name in names if name in row} for row in rows]


def table(groups: Sequence[Group]) -> list[dict[str, str]]:
    """One row for each group, then for each baseline: {column: text}, accuracies in percent."""
    rows = [
        {
            "method": group.label,
            "data": short_name(str(group.runs[0].settings["data.name"])),
            "labels": str(group.runs[0].settings["data.labels"]),
            "seeds": _seeds(group),
            **_figures(group.counted),
            "differs in": settings_text(group.differs),
        }
        for group in groups
    ]
    empty = dict.fromkeys(rows[0], "") if rows else {}
    known = baselines(groups)
    several = len({shared.network for shared in known if shared.network}) > 1
    for shared in known:
        for name, title in TITLES.items():
            tests = [some["baselines"].get(name, {}).get("test") for some in shared.measured]
            scores = [score for score in tests if score]
            of = f" of {short_name(shared.network)}" if several and shared.network else ""
            row = {
                "method": title + of,
                "data": short_name(shared.data),
                "labels": shared.labels,
                "seeds": f"{len(scores)} ({', '.join(shared.seeds)})",
                "last": _percent(score["accuracy"] for score in scores),
                "balanced": _percent(score["balanced_accuracy"] for score in scores),
            }
            rows += [empty | row] if scores else []
    return _without_empty(rows)


def runs_table(groups: Sequence[Group]) -> list[dict[str, str]]:
    """One row for each run, as :func:`table`."""
    return _without_empty(
        [
            {
                "method": group.label,
                "seed": str(run.settings["seed"]),
                "status": "finished" if run.finished else "running",
                **_figures([run]),
                "earlier stages": "; ".join(map(_earlier, run.stages[:-1])),
                "folder": str(run.folder),
            }
            for group in groups
            for run in group.runs
        ]
    )


def table_text(groups: Sequence[Group]) -> str:
    """:func:`table` as text in aligned columns."""
    rows = table(groups)
    columns = list(rows[0]) if rows else []
    widths = [max(len(column), *(len(row[column]) for row in rows)) for column in columns]
    lines = [columns, ["-" * width for width in widths], *(list(row.values()) for row in rows)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def _figures(runs: Sequence[Run]) -> dict[str, str]:
    """The columns of numbers, for the runs of a group or for a single run."""
    probes = [run.stages[-1].summary.get("probe") or {} for run in runs]

    def cost(key: str, part: str = "") -> str:
        known = [value for run in runs if (value := run.cost(key, part)) is not None]
        return f"{statistics.fmean(known):,.0f}" if known else ""

    return {
        "reported": runs[0].evaluated,
        **{
            kind: _percent(run.accuracy(kind, run.evaluated) for run in runs) for kind in ACCURACIES
        },
        "balanced": _percent(run.balanced() for run in runs),
        "validation": _percent(run.validation() for run in runs),
        "at best validation": _percent(run.selected() for run in runs),
        "teacher last": _percent(run.accuracy("last", "teacher") for run in runs),
        "student last": _percent(run.accuracy("last", "student") for run in runs),
        "k-NN": _percent(probe.get("knn") for probe in probes),
        "linear probe": _percent(probe.get("linear") for probe in probes),
        "steps": cost("steps"),
        "labeled seen": cost("images_seen", "labeled"),
        "unlabeled seen": cost("images_seen", "unlabeled"),
        "seconds": cost("seconds"),
    }


def _percent(values: Iterable[float | None]) -> str:
    """Mean ± sample standard deviation of fractions, in percent."""
    known = [100 * value for value in values if value is not None]
    if len(known) < 2:
        return f"{known[0]:.1f}" if known else ""
    return f"{statistics.fmean(known):.1f} ± {statistics.stdev(known):.1f}"


def _seeds(group: Group) -> str:
    seeds = ", ".join(str(run.settings["seed"]) for run in group.counted)
    text = f"{len(group.counted)} ({seeds})"
    if not group.counted[0].finished:
        return f"{text}, running"
    left = len(group.runs) - len(group.counted)
    return f"{text}, {left} more running" if left else text


def _without_empty(rows: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """The rows without columns that are empty in all of them."""
    return [
        {column: text for column, text in row.items() if any(other[column] for other in rows)}
        for row in rows
    ]


def _earlier(stage: Stage) -> str:
    """The text of a stage before the last one: its name, steps and probes."""
    probe = stage.summary.get("probe") or {}
    shown = {name: f"{100 * value:.1f}" for name, value in probe.items() if value is not None}
    return f"{stage.name} ({settings_text({'steps': stage.summary['steps'], **shown})})"
