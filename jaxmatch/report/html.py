"""Pieces of HTML pages that are one file, for wide and narrow, light and dark screens."""

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape

from jaxmatch.data.thumbnails import exact
from jaxmatch.errors import printable

# Okabe and Ito's colors, as in the curves; black is white on a dark screen.
COLORS = 7
STYLE = """
:root { color-scheme: light dark; --text: #1f2328; --soft: #59636e; --page: #fff; --card: #f6f8fa;
  --line: #d1d9e0; --shade: #0072b2; --bad: #b35900;
  --c0: #0072b2; --c1: #d55e00; --c2: #009e73; --c3: #cc79a7; --c4: #e69f00; --c5: #56b4e9;
  --c6: #000; }
@media (prefers-color-scheme: dark) { :root { --text: #e6edf3; --soft: #9198a1; --page: #0d1117;
  --card: #161b22; --line: #3d444d; --shade: #56b4e9; --bad: #ffa657; --c0: #3d9bd6;
  --c6: #fff; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 16px; max-width: 1240px; font: 16px/1.5 system-ui, sans-serif;
  color: var(--text); background: var(--page); overflow-wrap: anywhere; }
h1 { font-size: 26px; line-height: 1.25; }
h2 { font-size: 20px; margin: 36px 0 10px; padding-top: 14px; border-top: 1px solid var(--line); }
h3 { font-size: 16px; margin: 20px 0 6px; }
p, li { max-width: 80ch; }
.soft { color: var(--soft); font-size: 14px; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 14px; font-variant-numeric: tabular-nums; }
th, td { padding: 5px 10px; text-align: left; border-bottom: 1px solid var(--line);
  overflow-wrap: normal; vertical-align: top; }
th { border-bottom: 2px solid var(--soft); }
details .wide td { white-space: nowrap; }
details .settings td { white-space: normal; overflow-wrap: anywhere; }
.runs td:last-child { overflow-wrap: anywhere; min-width: 12em; }
details { margin: 12px 0; }
summary { cursor: pointer; }
.plot { display: block; max-width: 100%; height: auto; background: #fff; border-radius: 6px;
  margin: 12px 0; }
@media (prefers-color-scheme: dark) { .plot.lines { background: none; border-radius: 0;
  filter: invert(1) hue-rotate(180deg) brightness(1.15); mix-blend-mode: screen; } }
.row { display: flex; flex-wrap: wrap; gap: 16px 32px; }
.row > * { flex: 1 1 320px; min-width: 0; max-width: 560px; }
svg { width: 100%; max-width: 420px; height: auto; font: 12px system-ui, sans-serif;
  fill: var(--text); }
.key { display: inline-block; width: 12px; height: 12px; border-radius: 3px; margin-right: 6px; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 18px; font-size: 14px; margin: 6px 0; }
.bars { display: grid; grid-template-columns: minmax(80px, 190px) 1fr; gap: 8px 12px;
  font-size: 14px; align-items: center; }
.bar { display: flex; gap: 8px; align-items: center; }
.bar > span { flex: 0 0 232px; text-align: right; white-space: nowrap; color: var(--soft); }
.bar > div { flex: 1 1 auto; min-width: 40px; background: var(--card); border-radius: 3px; }
.bar > div > i { display: block; height: 12px; border-radius: 3px; }
.confusion th, .confusion td { padding: 4px 6px; text-align: right; border: 1px solid var(--page);
  min-width: 34px; }
.confusion th { font-weight: 400; color: var(--soft); max-width: 110px; overflow: hidden;
  text-overflow: ellipsis; white-space: nowrap; }
.confusion thead th { writing-mode: vertical-rl; transform: rotate(180deg); text-align: left;
  max-height: 110px; max-width: none; }
.images { display: grid; gap: 10px; padding: 0; list-style: none;
  grid-template-columns: repeat(auto-fill, minmax(104px, 1fr)); }
.images li { background: var(--card); border-radius: 6px; padding: 6px; font-size: 12px;
  line-height: 1.35; min-width: 0; }
.images img { display: block; width: 100%; aspect-ratio: 1; object-fit: contain; }
.images b { font-weight: 600; }
.images .name { color: var(--soft); display: -webkit-box; -webkit-line-clamp: 2; overflow: hidden;
  -webkit-box-orient: vertical; }
img.sharp { image-rendering: pixelated; }
@media (max-width: 600px) { .bars { grid-template-columns: 1fr; }
  .confusion th, .confusion td { padding: 4px 2px; min-width: 30px; font-size: 13px; } }
.wrong { color: var(--bad); }
"""


def document(title: str, body: str, style: str = "") -> str:
    """A whole page, with rules of its own after :data:`STYLE`."""
    return f"""<!DOCTYPE html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{text(title)}</title><style>{STYLE}{style}</style></head>
<body>
{body}
</body>
</html>
"""


def text(value: object) -> str:
    """A value as text of a page; letters that cannot be printed are written as escapes."""
    return escape(printable(str(value)))


def table(rows: Sequence[Mapping[str, str]], kind: str = "") -> str:
    """Rows as a table, whose head has the names of the columns."""

    def cells(tag: str, values: Iterable[str]) -> str:
        return "".join(f"<{tag}>{text(value)}</{tag}>" for value in values)

    head = cells("th", rows[0]) if rows else ""
    body = "\n".join(f"<tr>{cells('td', row.values())}</tr>" for row in rows)
    named = f' class="{kind}"' if kind else ""
    return f'<div class="wide"><table{named}>\n<tr>{head}</tr>\n{body}\n</table></div>'


def items(values: Iterable[str]) -> str:
    """A list of sentences; nothing if there are none."""
    found = "".join(f"<li>{text(value)}</li>" for value in values)
    return f"<ul>{found}</ul>" if found else ""


def folded(title: str, content: str) -> str:
    """Content that is shown on demand."""
    return f"<details><summary>{text(title)}</summary>\n{content}\n</details>"


def plot(content: bytes, narrow: bytes, name: str) -> str:
    """A PNG of lines on white, and another one for narrow screens; dark screens show it dark."""
    source = f"data:image/png;base64,{base64.b64encode(narrow).decode()}"
    return (
        f'<picture><source media="(max-width: 600px)" srcset="{source}">'
        f"{picture(content, name, 'plot lines')}</picture>"
    )


def picture(content: bytes, name: str, kind: str = "") -> str:
    """An image inside the page."""
    format_ = "png" if content.startswith(b"\x89PNG") else "jpeg"
    named = f' class="{kind}"' if kind else ""
    source = f"data:image/{format_};base64,{base64.b64encode(content).decode()}"
    return f'<img{named} alt="{text(name)}" src="{source}">'


def thumbnail(content: bytes, name: str) -> str:
    """A picture of :mod:`jaxmatch.data.thumbnails`, with sharp pixels if it has few."""
    return picture(content, name, "sharp" if exact(content) else "")


def legend(labels: Sequence[str]) -> str:
    """The colors of labels, in their order."""
    return (
        '<div class="legend">'
        + "".join(
            f'<span><i class="key" style="background:var(--c{number % COLORS})"></i>{text(label)}'
            "</span>"
            for number, label in enumerate(labels)
        )
        + "</div>"
    )
