"""One HTML page that compares runs: accuracies over seeds, differing settings, overlaid curves."""

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from jaxmatch.errors import DiskError
from jaxmatch.record import curves, findings
from jaxmatch.report.baselines import levels, verdicts
from jaxmatch.report.bins import heat_map
from jaxmatch.report.results import Group, Run, baselines, group, read, runs_table, table
from jaxmatch.runtime import paths

STYLE = """
body { font: 16px/1.45 system-ui, sans-serif; color: #222; max-width: 1500px; margin: 2em auto;
  padding: 0 1.5em; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 14px; font-variant-numeric: tabular-nums; }
th, td { padding: .35em .8em; text-align: left; border-bottom: 1px solid #ddd;
  white-space: nowrap; }
th { border-bottom: 2px solid #888; }
td:last-child { white-space: normal; min-width: 14em; }
img { max-width: 100%; height: auto; }
"""


def report(folders: Iterable[str | Path], output: str | Path) -> list[Path]:
    """Write ``output``, a self-contained HTML page, and its plots as PNGs beside it.

    The PNGs are ``<stem of output>_comparison.png`` (pseudo-label accuracy and coverage, unlabeled
    and test accuracy), ``<stem>_losses.png`` and, if a run used CTAugment,
    ``<stem>_ctaugment.png``.

    Returns:
        The files written, the page first.

    Raises:
        InputError: if one of ``folders`` is not a run folder or has no metrics yet.
        DiskError: if a file cannot be written.
    """
    output = paths.path(output)
    if output.parent.exists() or paths.in_bucket(output):
        paths.check_output(output)
    unique = {paths.absolute(paths.path(folder)): paths.path(folder) for folder in folders}
    groups = group(read(folder) for folder in unique.values())
    lines = {group.label: [_lines_with_reported(run) for run in group.runs] for group in groups}
    plots = {"comparison": curves.comparison(lines, levels(groups)), "losses": curves.losses(lines)}
    if bins := {group.label: group.bins for group in groups if group.bins}:
        plots["ctaugment"] = heat_map(bins)
    pictures = {
        output.with_name(f"{output.stem}_{name}.png"): picture for name, picture in plots.items()
    }
    page = _page(groups, {path.stem: picture for path, picture in pictures.items()})
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


def _notes(groups: Sequence[Group]) -> list[str]:
    """Sentences that explain the numbers of the page."""
    runs = [run for group in groups for run in group.runs]
    notes = [
        "Accuracies are in percent of the test set, for the network that the method reports: mean "
        "± sample standard deviation over the seeds. mean_20 and median_20 are taken over the last "
        "20 evaluations of a run, or over all of them if there are fewer.",
        "validation is the last accuracy on the validation set, and at best validation the test "
        "accuracy of the checkpoint that keep_best chose by it.",
        "best is selected on the test set: compare it only with numbers selected in the same way.",
        "Images seen counts the images drawn, not their views. The steps, images and seconds of a "
        "run in stages are sums over its stages.",
    ]
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


def _page(groups: Sequence[Group], pictures: Mapping[str, bytes]) -> str:
    """The HTML text of the page; ``pictures`` are PNGs by name."""
    identities = [group.runs[0].identity() for group in groups]
    common = {
        key: value
        for key, value in identities[0].items()
        if all(other.get(key, ...) == value for other in identities)
    }
    images = "\n".join(
        f'<p><img alt="{escape(name)}" '
        f'src="data:image/png;base64,{base64.b64encode(picture).decode()}"></p>'
        for name, picture in pictures.items()
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head><meta charset="utf-8"><title>jaxmatch report</title><style>{STYLE}</style></head>
<body>
<h1>{escape(" · ".join(group.label for group in groups))}</h1>
{_data(groups)}
<h2>Accuracy</h2>
{_html(table(groups))}
{"".join(f"<p><strong>{escape(text)}</strong></p>" for text in verdicts(groups))}
<ul>{"".join(f"<li>{escape(note)}</li>" for note in _notes(groups))}</ul>
<h2>Curves</h2>
{images}
<h2>Runs</h2>
{_html(runs_table(groups))}
<details><summary>Settings that all groups share</summary>
{_html([{"setting": key, "value": str(value)} for key, value in sorted(common.items())])}
</details>
</body>
</html>
"""


def _data(groups: Sequence[Group]) -> str:
    """What was found where the images of each group's first run are."""
    found = [group.counted[0].stages[-1].findings for group in groups]
    texts = dict.fromkeys("\n".join(findings.lines(each)) for each in found if each is not None)
    if not texts:
        return ""
    parts = "\n".join(
        f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in text.splitlines())}</ul>"
        for text in texts
    )
    return f"<h2>Data</h2>\n{parts}"


def _html(rows: Sequence[Mapping[str, str]]) -> str:
    """The rows as an HTML table."""

    def cells(tag: str, values: Iterable[str]) -> str:
        return "".join(f"<{tag}>{escape(value)}</{tag}>" for value in values)

    head = cells("th", rows[0]) if rows else ""
    body = "\n".join(f"<tr>{cells('td', row.values())}</tr>" for row in rows)
    return f'<div class="wide"><table>\n<tr>{head}</tr>\n{body}\n</table></div>'
