"""The accuracies of one run for people: what ``evaluate`` prints, and the end of ``train``."""

import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from jaxmatch.errors import printable
from jaxmatch.evaluation.comparison import best_of, compare

NETWORKS = ("teacher", "student")
MOST_ROWS = 20  # of the table of classes
HELP = (
    "what may help: views= that suit the images (documents, medical, industrial), with "
    "--config.augment=contrast, or more labels"
)


def scores(found: Mapping[str, Any]) -> RenderableType:
    """The JSON object of ``jaxmatch evaluate --json`` as tables.

    It has ``step``, ``evaluated``, the test metrics of ``teacher`` and ``student``, and
    ``validation`` with those of the validation set, if there is one.
    """
    parts = {"test": found, **{key: found[key] for key in ("validation",) if key in found}}
    table = plain_table("network", "images", "number", "accuracy", "balanced accuracy", "macro F1")
    for network in NETWORKS:
        reported = " (reported)" if network == found["evaluated"] else ""
        for part, metrics in parts.items():
            each = metrics[network]
            number = sum(row["support"] for row in each["per_class"].values())
            values = (each[key] for key in ("accuracy", "balanced_accuracy", "macro_f1"))
            table.add_row(network + reported, part, f"{number:,}", *map(percent, values))
    rows: Mapping[str, Any] = found[found["evaluated"]]["per_class"]
    title = f"Checkpoint of step {found['step']:,}"
    if len(rows) > MOST_ROWS:
        return Group(Text(title, style="bold"), table)
    classes = plain_table("class", "test images", "recall", "precision", "F1")
    for name, row in rows.items():
        shares = (percent(row[key]) for key in ("recall", "precision", "f1"))
        classes.add_row(Text(printable(name)), f"{row['support']:,}", *shares)
    return Group(
        Text(title, style="bold"),
        table,
        Text(f"\nClasses, {found['evaluated']}", style="bold"),
        classes,
    )


def ending(
    folder: Path, summary: Mapping[str, Any], baselines: Mapping[str, Any] | None = None
) -> list[str]:
    """The lines that tell where a finished run is, how good it is, and what to do next.

    Args:
        folder: of the run.
        summary: the content of its ``summary.json``.
        baselines: the content of its ``baselines.json``, if there is one.
    """
    place = shlex.quote(printable(str(folder)))
    minutes = f"{summary['seconds'] / 60:.1f} minutes"
    lines = [f"{summary['algorithm']}, {summary['steps']:,} steps in {minutes}: {place}"]
    lines += _accuracies(summary)
    if unused := summary.get("unlabeled_unused"):
        lines.append(
            f"no unlabeled image passed the threshold after step {unused['since']:,} (log.txt says "
            "what helps)"
        )
    if baselines and (best := best_of([baselines], "accuracy")):
        lines.append(f"best baseline: {best[0]}, {percent(best[1])}")
        if lost := compare(summary, baselines):
            lines += [lost, HELP]
    if summary.get(summary["evaluated"]) is None:
        commands = [
            f"jaxmatch probe --workdir {place}",
            f"jaxmatch train --config=finetune:DATA,labels=N --config.init_from={place}",
        ]
    else:
        commands = [
            f"jaxmatch evaluate --workdir {place}",
            *([] if baselines else [f"jaxmatch baseline --workdir {place}"]),
            f"jaxmatch predict --workdir {place} FOLDER -o predictions.csv",
            *([f"jaxmatch suggest --workdir {place}"] if _saw_unlabeled(summary) else []),
            f"jaxmatch report {place} -o report.html",
        ]
    return [*lines, "next:", *(f"  {command}" for command in commands)]


def _saw_unlabeled(summary: Mapping[str, Any]) -> bool:
    return bool(summary.get("images_seen", {}).get("unlabeled"))


def _accuracies(summary: Mapping[str, Any]) -> Iterable[str]:
    """Lines with the accuracies of the network that the method reports, or of the probes."""
    network = summary["evaluated"]
    test = summary.get(network)
    if test is None:
        probe = summary.get("probe") or {}
        known = [f"{name} {percent(value)}" for name, value in probe.items() if value is not None]
        if known:
            yield f"test accuracy of probes of the {network}'s features: {', '.join(known)}"
        return
    yield f"test accuracy of the {network}: {_with_balanced(test)}"
    validation = (summary.get("validation") or {}).get(network)
    if validation:
        yield f"validation accuracy of the {network}: {_with_balanced(validation)}"
    if best := summary.get("best"):
        there = best["test"].get(network, {}).get("accuracy")
        yield (
            f"best {best['key']}: {best['value']:.4g} at step {best['step']:,}, with test accuracy "
            f"{percent(there)} (--step best)"
        )


def _with_balanced(accuracies: Mapping[str, Any]) -> str:
    balanced = accuracies.get("metrics", {}).get("balanced_accuracy")
    more = "" if balanced is None else f" (balanced {percent(balanced)})"
    return percent(accuracies["last"]) + more


def percent(share: float | None) -> str:
    """A share in percent; "-" if it is not known."""
    return "-" if share is None else f"{share:.1%}"


def plain_table(name: str, *columns: str) -> Table:
    """A table without lines: names, then columns of numbers."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column(name, overflow="fold", header_style="dim")
    for column in columns:
        table.add_column(column, justify="right", header_style="dim")
    return table
