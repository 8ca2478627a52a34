"""The accuracies of one run for people: what ``evaluate`` prints, and the end of ``train``."""

import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from jaxmatch.errors import counted, printable
from jaxmatch.evaluation.comparison import best_of, compare
from jaxmatch.evaluation.temperature import sentences

NETWORKS = ("teacher", "student")
MOST_ROWS = 20  # of the table of classes
TITLES = {"macro_f1": "macro F1", "weighted_f1": "weighted F1", "roc_auc": "area under ROC"}
NO_SHARES = ("negative_log_likelihood", "expected_calibration_error", "roc_auc")
HELP = (
    "what may help: views= that suit the images (documents, medical, industrial), with them "
    "--config.augment=contrast or a method without strong views (mean_teacher, vat); more labels"
)


def scores(found: Mapping[str, Any]) -> RenderableType:
    """The JSON object of ``jaxmatch evaluate --json`` as tables.

    It has ``step``, ``evaluated``, the test metrics of ``teacher`` and ``student``, and
    ``validation`` with those of the validation set, if there is one. It may have ``calibration``
    and ``bootstrap``, and then each network has ``intervals``.
    """
    bootstrap = found.get("bootstrap")
    reported = found[found["evaluated"]]
    parts: list[RenderableType] = [Text(f"Checkpoint of step {found['step']:,}", style="bold")]
    parts += _with_intervals(found) if bootstrap else [_one_row_each(found)]
    if len(reported["per_class"]) <= MOST_ROWS:
        title = Text(f"\nClasses, {found['evaluated']}", style="bold")
        parts += [title, _classes(reported)]
    notes = sentences(found.get("calibration"), found["evaluated"])
    if bootstrap:
        notes.append(
            f"in brackets: {bootstrap['confidence']:.0%} intervals, over "
            f"{bootstrap['resamples']:,} resampled sets of images"
        )
    return Group(*parts, *(Text(f"\n{note}") for note in notes))


def _one_row_each(found: Mapping[str, Any]) -> RenderableType:
    """A row for each network and set, with its accuracies."""
    parts = {"test": found, **{key: found[key] for key in ("validation",) if key in found}}
    table = plain_table("network", "images", "number", "accuracy", "balanced accuracy", "macro F1")
    for network in NETWORKS:
        reported = " (reported)" if network == found["evaluated"] else ""
        for part, metrics in parts.items():
            each = metrics[network]
            number = sum(row["support"] for row in each["per_class"].values())
            values = (each[key] for key in ("accuracy", "balanced_accuracy", "macro_f1"))
            table.add_row(network + reported, part, f"{number:,}", *map(percent, values))
    return table


def _with_intervals(found: Mapping[str, Any]) -> Iterator[RenderableType]:
    """A table for each set, with a row for each metric and a column for each network."""
    parts = {"test": found, **{key: found[key] for key in ("validation",) if key in found}}
    for part, metrics in parts.items():
        number = sum(row["support"] for row in metrics[NETWORKS[0]]["per_class"].values())
        table = plain_table(
            counted(number, f"{part} image"),
            *(
                f"{network} (reported)" if network == found["evaluated"] else network
                for network in NETWORKS
            ),
        )
        for name in metrics[NETWORKS[0]]["intervals"]:
            if name == "per_class":
                continue
            each = [metrics[network] for network in NETWORKS]
            shown = number_text if name in NO_SHARES else percent
            values = (_bracketed(one[name], one["intervals"][name], shown) for one in each)
            table.add_row(TITLES.get(name, name.replace("_", " ")), *values)
        yield Text()
        yield table


def _classes(metrics: Mapping[str, Any]) -> RenderableType:
    """A row for each class, with its test images and how well they are found."""
    table = plain_table("class", "test images", "recall", "precision", "F1")
    intervals = metrics.get("intervals", {}).get("per_class", {})
    for name, row in metrics["per_class"].items():
        there = row["support"] > 0  # else recall and F1 are shares of nothing
        shares = (
            _bracketed(row[key], intervals.get(name, {}).get(key), percent, gap="\n")
            if there or key == "precision"
            else "-"
            for key in ("recall", "precision", "f1")
        )
        table.add_row(Text(printable(name)), f"{row['support']:,}", *shares)
    return table


def _bracketed(
    value: float | None,
    interval: Sequence[float] | None,
    shown: Callable[[float | None], str],
    gap: str = " ",
) -> str:
    """A value with its interval, if there is one: "71.3% (68.0 to 74.5)"."""
    if interval is None:
        return shown(value)
    low, high = (shown(end).removesuffix("%") for end in interval)
    return f"{shown(value)}{gap}({low} to {high})"


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
    if common := _as_good_an_answer(test):
        yield common
    validation = (summary.get("validation") or {}).get(network)
    if validation:
        yield f"validation accuracy of the {network}: {_with_balanced(validation)}"
    if best := summary.get("best"):
        there = best["test"].get(network, {}).get("accuracy")
        used = "evaluate, predict and export use it" if best.get("selected") else "--step best"
        yield (
            f"best {best['key']}: {best['value']:.4g} at step {best['step']:,}, with test accuracy "
            f"{percent(there)}{_on_part(best)} ({used})"
        )


def _on_part(best: Mapping[str, Any]) -> str:
    """Which images the test accuracy of the best checkpoint is of, if it is not of all."""
    count = best.get("test_images")
    return "" if count is None else f" on {count:,} of the test images"


def _as_good_an_answer(test: Mapping[str, Any]) -> str | None:
    """A line if the name of the most frequent class is right as often as the network; else None."""
    rows = test.get("metrics", {}).get("per_class", {})
    counts = {name: row["support"] for name, row in rows.items()}
    if not sum(counts.values()):
        return None
    name = max(counts, key=lambda each: counts[each])
    share = counts[name] / sum(counts.values())
    if test["last"] > share or test["last"] == 1:
        return None
    return (
        f"{percent(share)} of the test images are {printable(name)!r}, so that this answer alone "
        "has as good an accuracy; read the balanced one"
    )


def _with_balanced(accuracies: Mapping[str, Any]) -> str:
    metrics = accuracies.get("metrics", {})
    balanced, area = metrics.get("balanced_accuracy"), metrics.get("roc_auc")
    more = [f"balanced {percent(balanced)}"] if balanced is not None else []
    if area is not None:  # there are two classes
        more.append(f"{TITLES['roc_auc']} {number_text(area)}")
    return percent(accuracies["last"]) + (f" ({', '.join(more)})" if more else "")


def number_text(value: float | None) -> str:
    """A number that is no share; "-" if it is not known."""
    return "-" if value is None else f"{value:.3f}"


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
