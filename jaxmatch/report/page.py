"""One HTML page that compares runs: accuracies over seeds, differing settings, overlaid curves."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from jaxmatch.errors import DiskError
from jaxmatch.record import curves, findings
from jaxmatch.report import html, judged
from jaxmatch.report.baselines import levels, verdicts
from jaxmatch.report.bins import heat_map
from jaxmatch.report.gallery import MOST_RUNS
from jaxmatch.report.gallery import sections as galleries
from jaxmatch.report.results import Group, Run, baselines, group, read, used_settings
from jaxmatch.report.tables import MAIN, RUNS, columns, runs_table, table
from jaxmatch.runtime import paths

MOST_IN_TITLE = 4  # groups that the title names
MEANING = (
    "In percent of the test set after the last step, for the network that the method reports: mean "
    "± sample standard deviation over the seeds."
)


def report(
    folders: Iterable[str | Path],
    output: str | Path,
    *,
    gallery: bool | None = None,
    place: str = "",
) -> list[Path]:
    """Write ``output``, a self-contained HTML page, and its plots as PNGs beside it.

    The PNGs are ``<stem of output>_comparison.png`` (pseudo-label accuracy and coverage, unlabeled
    and test accuracy), ``<stem>_losses.png`` and, if a run used CTAugment,
    ``<stem>_ctaugment.png``.

    Args:
        folders: of the runs.
        output: the page.
        gallery: whether to show images; by default if there are at most three runs. The first
            report of a run needs its data and its network for it.
        place: where the data of the runs is now, if it has moved.

    Returns:
        The files written, the page first.

    Raises:
        InputError: if one of ``folders`` is not a run folder or has no metrics yet, or ``output``
            is a file of another kind.
        DiskError: if a file cannot be written.
    """
    output = paths.path(output)
    if output.parent.exists() or paths.in_bucket(output):
        paths.check_output(output)
        paths.check_replaces(output, (b"<!DOCTYPE html>",), "reports")
    unique = {paths.absolute(paths.path(folder)): paths.path(folder) for folder in folders}
    groups = group(read(folder) for folder in unique.values())
    lines = {group.label: [_lines_with_reported(run) for run in group.runs] for group in groups}
    shown = levels(groups)
    plots = {"comparison": curves.comparison(lines, shown), "losses": curves.losses(lines)}
    on_narrow = {
        "comparison": curves.comparison(lines, shown, narrow=True),
        "losses": curves.losses(lines, narrow=True),
    }
    if bins := {group.label: group.bins for group in groups if group.bins}:
        plots["ctaugment"] = heat_map(bins)
    pictures = {
        output.with_name(f"{output.stem}_{name}.png"): picture for name, picture in plots.items()
    }
    wanted = len(unique) <= MOST_RUNS if gallery is None else gallery
    page = _page(
        groups,
        [_plot(name, each, on_narrow.get(name)) for name, each in plots.items()],
        galleries(groups, place) if wanted else "",
    )
    try:
        paths.make_folder(output.parent)
    except OSError as error:
        raise DiskError(
            f"{output.parent} cannot be created ({paths.reason(error)}): choose another --output."
        ) from error
    if not paths.in_bucket(output) and output.exists() and not output.is_file():
        pictures = {}  # no file can lie beside a device or a pipe
    for path, content in {**pictures, output: page.encode()}.items():
        paths.write_output(path, content)
    return [output, *pictures]


def _lines_with_reported(run: Run) -> list[dict[str, Any]]:
    """The metrics of a run, with the accuracy of the network that the method reports."""
    key = f"test/{run.evaluated}/accuracy"
    lines = run.stages[-1].lines
    return [{**line, curves.REPORTED: line[key]} if key in line else dict(line) for line in lines]


def _has_hidden_truth(run: Run) -> bool:
    """Whether a run has pseudo-labels, but no true class of an unlabeled image."""
    keys = {key for line in run.stages[-1].lines for key in line}
    return "pseudo/coverage" in keys and not keys & {"pseudo/accuracy", "unlabeled/weak_accuracy"}


def _notes(groups: Sequence[Group]) -> list[str]:
    """Sentences that explain the numbers of the page."""
    runs = [run for group in groups for run in group.runs]
    notes = [
        "mean_20 and median_20 are taken over the last "
        "20 evaluations of a run, or over all of them if there are fewer.",
        "validation is the last accuracy on the validation set, and at best validation the test "
        "accuracy of the checkpoint that keep_best chose by it.",
        "best is selected on the test set: compare it only with numbers selected in the same way.",
        "Images seen counts the images drawn, not their views. The steps, images and seconds of a "
        "run in stages are sums over its stages.",
    ]
    if any("test_images" in (run.stages[-1].summary.get("best") or {}) for run in runs):
        notes.append(
            "Evaluations before the last step used data.eval_images of the test images: mean_20, "
            "median_20, best and at best validation are of these, last is of all test images."
        )
    if len({run.settings["data.name"] for run in runs}) > 1:
        notes.append("The runs use different data sets: do not compare their accuracies.")
    if shared := baselines(groups):
        notes.append(
            "Rows on pixels are baselines: scikit-learn's classifiers on the same images and "
            "labels, with the settings in baselines.json. Rows on features learn from the frozen "
            "features of the network that the runs began with. The best of them is chosen on the "
            "test set, in their favor."
        )
        reduced = (text for one in shared for some in one.measured for text in some["notes"])
        notes += [f"Baselines: {text}" for text in dict.fromkeys(reduced)]
    if any(run.stages[-1].summary.get("probe") for run in runs):
        notes.append(
            "k-NN and the linear probe of a run without labels learn from all known labels of the "
            "training images, so that they say what its features are worth, not what few labels "
            "reach."
        )
    for one in groups:
        seeds = [
            str(run.settings["seed"])
            for run in one.runs
            if run.stages[-1].summary.get("unlabeled_unused")
        ]
        if seeds:
            notes.append(
                f"{one.label}: at the end no unlabeled image passed the threshold (seeds "
                f"{', '.join(seeds)}), so these runs did not use them; log.txt says what helps."
            )
    if any(_has_hidden_truth(run) for run in runs):
        notes.append(
            "The true classes of these unlabeled images are not known, so there are no curves of "
            "their accuracy."
        )
    if any(not run.finished for run in runs):
        notes.append(
            "Runs marked running have no summary yet: their numbers are those reached so far. They "
            "count in their group only while none of its runs has finished."
        )
    if any(group.bins for group in groups):
        notes.append(
            "The last picture shows CTAugment's weights at the end of training, as means over the "
            "seeds. A weight starts at 1. It is a moving average of the probability that the "
            "teacher gives to the true class of a labeled image under an op at this level. "
            "CTAugment no longer draws bins far below the best of their row."
        )
    seeds = [[run.settings["seed"] for run in group.counted] for group in groups]
    if any(set(other) != set(seeds[0]) for other in seeds):
        notes.append("The groups have different seeds, so they have different labeled images.")
    for one, numbers in zip(groups, seeds, strict=True):
        if len(set(numbers)) < len(numbers):
            notes.append(
                f"{one.label} contains a seed more than once; its deviation counts each run."
            )
    return notes


def _page(groups: Sequence[Group], plots: Sequence[str], images: str) -> str:
    """The HTML text of the page.

    Args:
        groups: of runs.
        plots: the curves, as HTML.
        images: the galleries, as HTML.
    """
    labels = [group.label for group in groups]
    title = " · ".join(labels) if len(labels) <= MOST_IN_TITLE else f"{len(labels)} configurations"
    rows = table(groups)
    figures = columns(rows, MAIN)
    runs = runs_table(groups)
    shown = columns(runs, RUNS)
    lost = "".join(f"<p><strong>{html.text(text)}</strong></p>" for text in verdicts(groups))
    body = [
        f"<h1>{html.text(title)}</h1>",
        _data(groups),
        f'<h2>Accuracy</h2>\n<p class="soft">{MEANING}</p>\n{html.table(figures)}\n{lost}',
        html.folded("All figures", html.table(rows)) if rows != figures else "",
        html.folded("What the figures mean", html.items(_notes(groups))),
        "<h2>Curves</h2>",
        *plots,
        judged.sections(groups),
        images,
        f"<h2>Runs</h2>\n{html.table(shown, 'runs')}",
        html.folded("All figures of the runs", html.table(runs)) if runs != shown else "",
        html.folded("Settings that all groups share", html.table(_shared(groups), "settings")),
    ]
    return html.document(f"jaxmatch: {title}", "\n".join(part for part in body if part))


def _plot(name: str, wide: bytes, narrow: bytes | None) -> str:
    """A plot; colors of a heat map, which has no narrow picture, mean numbers and stay."""
    if narrow is None:
        return html.picture(wide, name, "plot")
    return html.plot(wide, narrow, name)


def _shared(groups: Sequence[Group]) -> list[dict[str, str]]:
    """The settings that all groups share and use, a row each."""
    used = [used_settings(group.runs[0]) for group in groups]
    return [
        {"setting": key, "value": str(value)}
        for key, value in sorted(used[0].items())
        if all(other.get(key, ...) == value for other in used)
    ]


def _data(groups: Sequence[Group]) -> str:
    """What was found where the images of each group's first run are."""
    found = [group.counted[0].stages[-1].findings for group in groups]
    texts = dict.fromkeys(tuple(findings.lines(each)) for each in found if each is not None)
    return f"<h2>Data</h2>\n{''.join(map(html.items, texts))}" if texts else ""
