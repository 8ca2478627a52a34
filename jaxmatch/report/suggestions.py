"""The page on which a person labels suggested images: one HTML file that needs no network.

It shows each picture with the network's prediction and a list of the classes. What is chosen stays
in the browser, and is saved as the table of ``jaxmatch suggest`` with the labels filled in.
"""

import base64
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from jaxmatch.data import images as image_files
from jaxmatch.data.lazy import pixels
from jaxmatch.data.levels import Levels
from jaxmatch.data.thumbnails import thumbnail
from jaxmatch.errors import counted
from jaxmatch.evaluation.suggest import Suggestions, cells, header, quoted
from jaxmatch.report import html
from jaxmatch.runtime import paths

SIDES = (256, 192, 128, 96, 64)  # of pictures; the first one with which the page is small enough
MOST_BYTES = 12 * 2**20  # of all pictures, unless even the smallest ones take more
SHOWN = 3  # classes of a prediction
UNLIKELY = 0.05  # classes below this probability are not shown

STYLE = """
:root { --done: #1a7f37; --button: #0969da; }
@media (prefers-color-scheme: dark) { :root { --done: #3fb950; --button: #4493f8; } }
body { padding: 0; max-width: none; }
main, header > div { max-width: 1240px; margin: 0 auto; padding: 0 16px; }
header { position: sticky; top: 0; z-index: 1; background: var(--card); padding: 10px 0;
  border-bottom: 1px solid var(--line); }
header > div { display: flex; gap: 8px 16px; align-items: center; flex-wrap: wrap; }
header h1 { font-size: 18px; margin: 0; flex: 1 1 auto; }
button { font: inherit; color: inherit; border: 1px solid var(--line); border-radius: 6px;
  background: var(--card); padding: 5px 12px; cursor: pointer; min-height: 36px; }
#save { background: var(--button); border-color: var(--button); color: #fff; font-weight: 600; }
@media (prefers-color-scheme: dark) { #save { color: #0d1117; } }
button:focus-visible, select:focus-visible { outline: 3px solid var(--button);
  outline-offset: 1px; }
ol { list-style: none; margin: 16px 0; padding: 0; display: grid; gap: 12px;
  grid-template-columns: repeat(auto-fill, minmax(min(210px, calc(50% - 6px)), 1fr)); }
li { background: var(--card); border: 2px solid var(--line); border-radius: 8px; padding: 8px;
  display: flex; flex-direction: column; gap: 6px; min-width: 0; }
li.done { border-color: var(--done); }
li > img { width: 100%; aspect-ratio: 1; object-fit: contain; border-radius: 4px; }
.name { font-size: 13px; overflow-wrap: anywhere; display: -webkit-box; overflow: hidden;
  -webkit-line-clamp: 2; -webkit-box-orient: vertical; }
.why { font-size: 13px; color: var(--soft); flex: 1; overflow-wrap: anywhere; }
select { font: inherit; width: 100%; min-height: 38px; color: inherit; background: var(--page);
  border: 1px solid var(--line); border-radius: 6px; padding: 4px; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: var(--card); padding: 10px;
  border: 1px solid var(--line); border-radius: 6px; font-size: 13px; }
"""

SCRIPT = """
const about = JSON.parse(document.getElementById("rows").textContent);
const selects = [...document.querySelectorAll("select")];
// One list for all images: a copy in each would make the page large where classes are many.
const options = document.getElementById("options").content;
for (const select of selects) select.append(options.cloneNode(true));
const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));

function show() {
  let done = 0;
  for (const select of selects) {
    select.closest("li").classList.toggle("done", select.value !== "");
    done += select.value !== "";
  }
  document.getElementById("count").textContent = `${done} of ${selects.length} labeled`;
}

function keep() {
  show();
  try { localStorage.setItem(about.store, JSON.stringify(selects.map((each) => each.value))); }
  catch { /* a browser without storage: the labels last as long as the page */ }
}

try {
  const kept = JSON.parse(localStorage.getItem(about.store)) ?? [];
  selects.forEach((select, place) => { select.value = kept[place] ?? ""; });
} catch { /* nothing was kept */ }

for (const select of selects) select.addEventListener("change", keep);
for (const button of document.querySelectorAll("button[data-class]")) {
  button.addEventListener("click", () => {
    button.closest("li").querySelector("select").value = button.dataset.class;
    keep();
  });
}
document.getElementById("save").addEventListener("click", () => {
  const parts = [bytes(about.header)];
  selects.forEach((select, place) => {
    parts.push(bytes(about.before[place]));
    if (select.value !== "") parts.push(bytes(about.classes[Number(select.value)]));
    parts.push(bytes(about.after[place]));
  });
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob(parts, { type: "text/csv" }));
  link.download = about.file;
  link.click();
});
show();
"""


def write_page(
    file: Path, found: Suggestions, table: str, run: str, levels: Levels, command: str
) -> None:
    """Write the page.

    Args:
        file: to write.
        found: the suggested images.
        table: the name of the table that the page saves.
        run: the run folder, as people know it.
        levels: how the run reads the pixels of files.
        command: what to run when the table is saved.

    Raises:
        DiskError: if it cannot be written.
    """
    paths.write_output(file, page(found, table, run, levels, command).encode())


def page(found: Suggestions, table: str, run: str, levels: Levels, command: str) -> str:
    """The text of the page; arguments are those of :func:`write_page`."""
    rows = cells(found)
    about = {
        "store": f"jaxmatch suggest {_digest(found)}",
        "file": table,
        "header": _text(header(found)),
        "before": [_text(before) for before, _ in rows],
        "after": [_text(after) for _, after in rows],
        "classes": [_text(quoted(name)) for name in found.classes],
    }
    pictures = thumbnails(found, levels)
    cards = "\n".join(_card(found, place, picture) for place, picture in enumerate(pictures))
    title = f"{counted(len(found), 'image')} to label next"
    body = f"""<header><div><h1>{html.text(title)}</h1><span id="count" role="status"></span>
<button id="save" type="button">Save {html.text(table)}</button></div></header>
<main>
<p>Chosen for {html.text(run)} from {found.pool:,} unlabeled images of
{html.text(found.source.name)}. Choose the class of each picture; leave those that you do
not know. The browser keeps your choices. Save the table over {html.text(table)}, then
run:</p>
<pre>{html.text(command)}</pre>
<ol>
{cards}
</ol>
</main>
<template id="options">{_options(found.classes)}</template>
<script type="application/json" id="rows">{_json(about)}</script>
<script>{SCRIPT}</script>"""
    return html.document(title, body, STYLE)


def thumbnails(found: Suggestions, levels: Levels) -> list[bytes]:
    """The suggested images as JPEG, or as PNG where they are small, within :data:`MOST_BYTES`.

    A file is shown whole, as it is on disk, and not as the network sees it.
    """
    pictures: list[bytes] = []
    for side in SIDES:
        pictures = [thumbnail(_picture(found, place, levels), side) for place in range(len(found))]
        if sum(map(len, pictures)) <= MOST_BYTES:
            break
    return pictures


def _picture(found: Suggestions, place: int, levels: Levels) -> Image.Image:
    source, position = found.source, int(found.positions[place])
    if found.key == "path":
        return image_files.decode(paths.path(source.location) / found.names[place], levels)
    return Image.fromarray(pixels(source.images, position))


def _options(classes: Sequence[str]) -> str:
    named = "".join(
        f'<option value="{number}">{html.text(each)}</option>'
        for number, each in enumerate(classes)
    )
    return f'<option value="">not labeled</option>{named}'


def _card(found: Suggestions, place: int, picture: bytes) -> str:
    name = found.names[place]
    shown = name if found.key == "path" else f"image {name}"
    title = html.text(shown)
    best = int(found.probabilities[place].argmax())
    return (
        f"<li>{html.thumbnail(picture, shown)}"
        f'<span class="name" title="{title}">{title}</span>'
        f'<span class="why">{html.text(why(found, place))}</span>'
        f'<button type="button" data-class="{best}">It is '
        f"{html.text(found.classes[best])}</button>"
        f'<select aria-label="class of {title}"></select></li>'
    )


def why(found: Suggestions, place: int) -> str:
    """The prediction for an image, and how many images it stands for, in words."""
    values = found.probabilities[place]
    order = np.argsort(-values, kind="stable")[:SHOWN]
    shown = [number for number in order if values[number] >= UNLIKELY or number == order[0]]
    text = "Predicted: " + "; ".join(f"{found.classes[n]} {values[n]:.0%}" for n in shown) + "."
    if len(found.similar) and (count := int(found.similar[place])) > 1:
        text += f" Stands for {count:,} similar images."
    return text


def _digest(found: Suggestions) -> str:
    """Tells suggestions apart, so that a page does not show the choices of another one."""
    content = b"".join(before for before, _ in cells(found)) + ascii(found.classes).encode()
    return hashlib.sha256(content).hexdigest()[:16]


def _text(content: bytes) -> str:
    return base64.b64encode(content).decode()


def _json(value: object) -> str:
    """JSON that does not end the script element that holds it."""
    return json.dumps(value).replace("<", "\\u003c")
