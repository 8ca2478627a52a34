"""What classical classifiers reach with the same labels: a page, and how runs compare with them."""

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

from rich import console
from rich.text import Text

from jaxmatch.evaluation.comparison import TITLES, best_of, mean_of, verdict
from jaxmatch.report.labels import short_name
from jaxmatch.report.results import Group, baselines
from jaxmatch.report.scores import TITLES as TITLES_OF_METRICS
from jaxmatch.report.scores import number_text, percent, plain_table


def page(found: Mapping[str, Any]) -> console.RenderableType:
    """A table with a row for each baseline, then what it was measured on.

    Args:
        found: the result of :func:`jaxmatch.evaluation.baselines.measure`.
    """
    parts = ["test", *(["validation"] if found["validation"] else [])]
    shown: dict[str, Callable[[float | None], str]]
    shown = {"accuracy": percent, "balanced_accuracy": percent}
    if any("roc_auc" in one["test"] for one in found["baselines"].values()):
        shown["roc_auc"] = number_text
    names = ["accuracy", "balanced", TITLES_OF_METRICS["roc_auc"]][: len(shown)]
    table = plain_table(
        "classifier",
        *(f"{part} {name}" if name == "accuracy" else name for part in parts for name in names),
    )
    for one in found["baselines"].values():
        table.add_row(
            one["title"],
            *(write(one[part].get(metric)) for part in parts for metric, write in shown.items()),
        )
    title = f"{found['data']}, {found['labels']:,} labels, seed {found['seed']}"
    height, width, channels = found["pixels"]
    network = found.get("network")
    counts = [f"{found[part]:,} {part}" for part in ("unlabeled", *parts)]
    lines = [
        f"Images: {', '.join(counts)}. Pixels: {height}x{width}, {channels} "
        f"{'channel' if channels == 1 else 'channels'}.",
        *([f"Features: {network['width']:,}, of {network['name']}."] if network else []),
        *found["notes"],
        *(f"{one['title']}: {one['settings']}." for one in found["baselines"].values()),
    ]
    return console.Group(Text(title, style="bold"), table, "", *lines)


def verdicts(groups: Sequence[Group]) -> list[str]:
    """Sentences that say whether the finished runs of each group beat their best baseline."""
    texts, missing = [], []
    for group in groups:
        runs = [run for run in group.counted if run.baselines is not None]
        measured = [run.baselines for run in runs if run.baselines is not None]
        best = best_of(measured, "accuracy")
        if best is None:
            if group.runs[0].settings["data.labels"] != "none":
                missing.append(group.label)
        elif runs[0].finished:
            lost = verdict(group.label, [run.stages[-1].summary for run in runs], measured)
            own = fmean(run.accuracy("last", run.evaluated) or 0.0 for run in runs)
            does = "beats" if own > best[1] else "is as good as"
            text = f"{group.label} {does} the best baseline, {best[0]} ({best[1]:.1%})."
            texts.append(lost or text)
    if missing:
        texts.append(
            f"No baselines are measured for {', '.join(missing)}: jaxmatch report --baselines "
            "compares runs with classical classifiers for the same labels, on pixels and on the "
            "features of the network that they began with."
        )
    return texts


def levels(groups: Sequence[Group]) -> dict[str, float]:
    """The test accuracy of the baselines by the text of a legend.

    If the groups have several data sets, numbers of labels or networks, or a network and pixels,
    only the best baseline of each.
    """
    shared = baselines(groups)
    several = len({(one.data, one.labels) for one in shared}) > 1
    networks = len({one.network for one in shared if one.network}) > 1
    found = {}
    for one in shared:
        means = mean_of(one.measured, "accuracy")
        if len(shared) > 1:
            means = dict([max(means.items(), key=lambda item: item[1])])
        suffix = f" of {short_name(one.network)}" if networks and one.network else ""
        suffix += f", {short_name(one.data)}, {one.labels} labels" if several else ""
        found |= {f"{TITLES[name]}{suffix}, {mean:.1%}": mean for name, mean in means.items()}
    return found
