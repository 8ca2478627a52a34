"""One HTML page that compares runs: accuracies over seeds, what differs, curves overlaid."""

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from jaxmatch.errors import DiskError
from jaxmatch.record import curves
from jaxmatch.report.bins import heat_map
from jaxmatch.report.results import Group, Run, group, read, runs_table, table
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
    """Write ``output``, an HTML page that needs nothing else, and its plots as PNGs beside it.

    The plots are also ``<output's stem>_comparison.png`` (pseudo-label accuracy and coverage,
    unlabeled and test accuracy), ``<stem>_losses.png`` and, where a run has learned its
    augmentation, ``<stem>_ctaugment.png``.

    Returns:
        The files written, the page first.

    Raises:
        InputError: if one of ``folders`` is no run folder or has no metrics yet.
        DiskError: if a file cannot be written.
    """
    output = paths.path(output)
    if output.parent.exists() or paths.in_bucket(output):
        paths.check_output(output)
    unique = {paths.absolute(paths.path(folder)): paths.path(folder) for folder in folders}
    groups = group(read(folder) for folder in unique.values())
    lines = {group.label: [_reported(run) for run in group.runs] for group in groups}
    named = {"comparison": curves.comparison(lines), "losses": curves.losses(lines)}
    learned = {one.label: one.bins for one in groups if one.bins}
    if learned:
        named["ctaugment"] = heat_map(learned)
    pictures = {
        output.with_name(f"{output.stem}_{name}.png"): picture for name, picture in named.items()
    }
    page = _page(groups, {path.stem: picture for path, picture in pictures.items()})
    try:
        paths.make_folder(output.parent)
    except OSError as error:
        raise DiskError(
            f"{output.parent} cannot be made ({paths.reason(error)}): choose another --output."
        ) from error
    if not paths.in_bucket(output) and output.exists() and not output.is_file():
        pictures = {}  # a device or a pipe has none beside it
    for path, content in {**pictures, output: page.encode()}.items():
        paths.write_output(path, content)
    return [output, *pictures]


def _reported(run: Run) -> list[dict[str, Any]]:
    """The run's lines, with the accuracy of the network that the method reports."""
    key = f"test/{run.evaluated}/accuracy"
    lines = run.stages[-1].lines
    return [{**line, curves.REPORTED: line[key]} if key in line else dict(line) for line in lines]


def _notes(groups: Sequence[Group]) -> list[str]:
    """What a reader must know of the figures."""
    runs = [run for one in groups for run in one.runs]
    notes = [
        "Accuracies are in percent of the test set, of the network that the method reports; mean "
        "± sample standard deviation over the seeds. mean_20 and median_20 are over a run's last "
        "20 evaluations, or those it has.",
        "best is selected on the test set: compare it only with figures that are as well.",
        "Images seen are those drawn, not views of them; of staged runs, steps, images and seconds "
        "are the sums over the stages.",
    ]
    if len({run.settings["data.name"] for run in runs}) > 1:
        notes.append("The runs are of different data sets, whose accuracies do not compare.")
    if any(not run.finished for run in runs):
        notes.append(
            "Some runs have no summary yet and are marked running: they count in a group's figures "
            "only where none of it has finished, and show what they have reached so far."
        )
    if any(one.bins for one in groups):
        notes.append(
            "The last picture shows CTAugment's weights at the end, means over the seeds: a moving "
            "average of the probability that the teacher gives to the true class of a labeled "
            "image under an op at this level, 1 at the start. Bins far below the best of their row "
            "are drawn no longer."
        )
    seeds = [[run.settings["seed"] for run in group.counted] for group in groups]
    if any(set(other) != set(seeds[0]) for other in seeds):
        notes.append("The groups are of different seeds, so of different labeled images.")
    for one, numbers in zip(groups, seeds, strict=True):
        if len(set(numbers)) < len(numbers):
            notes.append(f"{one.label} has a seed more than once, which its deviation counts.")
    return notes


def _page(groups: Sequence[Group], pictures: Mapping[str, bytes]) -> str:
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
<h2>Accuracy</h2>
{_html(table(groups))}
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


def _html(rows: Sequence[Mapping[str, str]]) -> str:
    """A table of text."""

    def cells(tag: str, values: Iterable[str]) -> str:
        return "".join(f"<{tag}>{escape(value)}</{tag}>" for value in values)

    head = cells("th", rows[0]) if rows else ""
    body = "\n".join(f"<tr>{cells('td', row.values())}</tr>" for row in rows)
    return f'<div class="wide"><table>\n<tr>{head}</tr>\n{body}\n</table></div>'
