"""The tables as Markdown or HTML: our runs beside the published figures, with a legend."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from experiments.tables import published
from experiments.tables.results import Cell, cell
from experiments.tables.sweep import ALL, METHODS, Choice
from jaxmatch.report.html import STYLE

EMPTY = "-"
KINDS = {
    "median_20": "Median of the last 20 evaluations",
    "best": "Best evaluation, which is selected on the test set",
}


@dataclass(frozen=True, kw_only=True)
class Section:
    """A table of text under a title; the columns are the keys of its rows."""

    title: str
    rows: Sequence[Mapping[str, str]]


@dataclass(frozen=True, kw_only=True)
class Page:
    """What a table's command shows."""

    title: str
    sections: Sequence[Section]
    legend: Sequence[str]

    def markdown(self) -> str:
        """The page as GitHub's Markdown."""
        parts = [f"# {self.title}"]
        for section in self.sections:
            lines = [list(section.rows[0]), ["---"] * len(section.rows[0])]
            lines += [list(row.values()) for row in section.rows]
            cells = [
                [text.replace("*", "\\*").replace("|", "\\|") for text in line] for line in lines
            ]
            table = "\n".join(f"| {' | '.join(line)} |" for line in cells)
            parts += [f"## {section.title}", table]
        legend = "\n".join(f"- {text.replace('*', chr(92) + '*')}" for text in self.legend)
        return "\n\n".join([*parts, "## Legend", legend])

    def html(self) -> str:
        """The page as HTML that needs nothing else."""

        def cells(tag: str, values: Sequence[str]) -> str:
            return "".join(f"<{tag}>{escape(text)}</{tag}>" for text in values)

        tables = "\n".join(
            f'<h2>{escape(section.title)}</h2>\n<div class="wide"><table>\n'
            f"<tr>{cells('th', list(section.rows[0]))}</tr>\n"
            + "\n".join(f"<tr>{cells('td', list(row.values()))}</tr>" for row in section.rows)
            + "\n</table></div>"
            for section in self.sections
        )
        return f"""<!DOCTYPE html>
<html lang="en">
<head><meta charset="utf-8"><title>{escape(self.title)}</title><style>{STYLE}</style></head>
<body>
<h1>{escape(self.title)}</h1>
{tables}
<h2>Legend</h2>
<ul>{cells("li", self.legend)}</ul>
</body>
</html>
"""


def page(choice: Choice, base: Path) -> Page:
    """The table of ``choice`` with the runs in the folder ``base``."""
    table = choice.table
    methods = choice.methods or table.methods
    columns = [labels for labels in choice.labels if labels != ALL] or table.labels
    ours = {
        (method, labels): cell(base, table, method, labels, choice.preset, choice.seeds)
        for method in methods
        for labels in columns
    }
    if choice.name == "imagenet":
        sections, notes = _imagenet(choice, columns, ours)
    else:
        sections, notes = _small(choice, columns, ours)
    return Page(
        title=f"{table.title}: error rates in percent",
        sections=sections,
        legend=[*_our_legend(choice, ours), *notes],
    )


def _small(
    choice: Choice, columns: Sequence[str], ours: Mapping[tuple[str, str], Cell]
) -> tuple[list[Section], list[str]]:
    """Two sections for each number of labels, one for each way to read a run's evaluations."""
    sections, notes = [], Notes()
    for labels in columns:
        for kind, title in KINDS.items():
            best = kind == "best"
            sources = [one for one in published.SOURCES if (one.statistic == "best") == best]
            theirs = {
                _heading(one, choice): dict(_marked(one, choice, labels, notes)) for one in sources
            }
            if not best:
                theirs["authors"] = _of_authors(choice, labels, notes)
            theirs = {name: cells for name, cells in theirs.items() if cells}
            methods = [method for method, column in ours if column == labels]
            others = dict.fromkeys(row for cells in theirs.values() for row in cells)
            rows = [
                {
                    "method": row,
                    "ours": ours[row, labels].error(kind) if row in methods else EMPTY,
                    **{name: cells.get(row, EMPTY) for name, cells in theirs.items()},
                }
                for row in dict.fromkeys([*methods, *others])
            ]
            column = labels if choice.table.columns else f"{labels} labels"
            sections.append(Section(title=f"{column}. {title}", rows=rows))
    return sections, [*_sources_legend(choice), *notes.lines()]


def _imagenet(
    choice: Choice, columns: Sequence[str], ours: Mapping[tuple[str, str], Cell]
) -> tuple[list[Section], list[str]]:
    """A section for each number of labels, a row for each published figure."""
    names = dict(zip(choice.table.labels, choice.table.percent, strict=True))
    shown = {names[labels]: labels for labels in columns}
    if not choice.labels:
        shown["100k"] = ""  # that we do not run
    figures = [figure for figure in published.imagenet() if _wanted(choice, figure.row)]
    sources = published.IMAGENET
    sections, notes = [], Notes()
    for percent, labels in shown.items():
        methods = [method for method, column in ours if column == labels]
        there = [figure for figure in figures if figure.labels == percent]
        rows = []
        for row in dict.fromkeys([*methods, *(figure.row for figure in there)]):
            cells = ours.get((row, labels))
            run = cells.error("median_20") if cells else EMPTY
            for figure in [one for one in there if one.row == row] or [None]:
                rows.append(
                    {
                        "method": row or EMPTY,
                        "ours, top-1": run,
                        "published as": figure.printed + notes.mark("", sources[figure.source])
                        if figure
                        else EMPTY,
                        "top-1": figure.error if figure else EMPTY,
                        "top-5": figure.top5 if figure else EMPTY,
                    }
                )
        title = f"{percent} of the labels ({int(labels):,})" if labels else "100,000 labels"
        sections.append(Section(title=title, rows=rows))
    return sections, [*published.IMAGENET_NOTES, *notes.lines()]


class Notes:
    """Numbers footnotes in the order in which they are first needed."""

    def __init__(self):
        """Start without any."""
        self._numbers: dict[str, int] = {}

    def mark(self, text: str, note: str) -> str:
        """``text`` with the number of ``note`` behind it; as it is where there is none."""
        if not note:
            return text
        return f"{text} [{self._numbers.setdefault(note, len(self._numbers) + 1)}]"

    def lines(self) -> list[str]:
        """The notes."""
        return [f"[{number}] {note}" for note, number in self._numbers.items()]


def _wanted(choice: Choice, row: str) -> bool:
    """Whether a published row is shown: all are unless methods were chosen."""
    return not choice.methods or row in choice.methods


def _marked(
    source: published.Source, choice: Choice, labels: str, notes: Notes
) -> Iterator[tuple[str, str]]:
    for (row, column), text in source.cells(choice.name).items():
        if column == labels and _wanted(choice, row):
            yield row, notes.mark(text, source.doubt(row, choice.name))


def _of_authors(choice: Choice, labels: str, notes: Notes) -> dict[str, str]:
    found: dict[str, list[str]] = {}
    for figure in published.authors(choice.name):
        if figure.labels == labels and _wanted(choice, figure.row):
            text = notes.mark(figure.error, published.AUTHORS[figure.source])
            found.setdefault(figure.row, []).append(text)
    return {row: "; ".join(texts) for row, texts in found.items()}


def _heading(source: published.Source, choice: Choice) -> str:
    """The source's name, with its network where that is not the usual one."""
    network = source.networks.get(choice.name)
    return source.name if network == published.LARGE[choice.name] else f"{source.name} ({network})"


def _our_legend(choice: Choice, ours: Mapping[tuple[str, str], Cell]) -> list[str]:
    lines = [
        f"ours: this library with preset {choice.preset}, test error of the network that the "
        "method reports; mean ± sample standard deviation over the seeds, how many in brackets. "
        '"not run" is a cell without a run folder; a published row that we have no run for has '
        f'"{EMPTY}". {choice.table.protocol}'.strip(),
    ]
    changed: dict[str, list[str]] = {}
    for (method, labels), found in ours.items():
        for text in found.changed:
            where = f"{method} at {METHODS[method].labels or labels}"
            if where not in changed.setdefault(text, []):
                changed[text].append(where)
    lines += [
        f"* not the settings of the recipe (run -> recipe): {text} ({', '.join(where)})."
        for text, where in changed.items()
    ]
    return lines


def _sources_legend(choice: Choice) -> list[str]:
    lines = []
    for source in published.SOURCES:
        if source.cells(choice.name):
            note = source.notes.get(choice.name, "")
            network = source.networks[choice.name]
            lines.append(f"{source.name}: {source.origin} {network}. {note}".strip())
    if published.authors(choice.name):
        lines.append(
            "authors: what a method's own authors report, by the statistic of their choice, which "
            "is not always known; the number names the source."
        )
    return lines
